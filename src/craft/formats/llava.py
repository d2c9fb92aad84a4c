"""LLaVA-style checkpoints of transformers (`LlavaForConditionalGeneration`) as continuous LVLMs.

CLIP or SigLIP tower, two-layer projector, any causal LM: `craft.load("llava-hf/llava-1.5-7b-hf")`, or a
folder. The parts become ours, so that everything that tunes, asks and measures works on them as on a
discrete LVLM.
"""

from pathlib import Path
from typing import Any

import torch

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError
from craft.core.files import read_json
from craft.formats.llm_folder import load_tokenizer, quiet
from craft.formats.weight_folder import WeightFolder
from craft.models.backbone import Backbone
from craft.models.images import BARS
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.vision_tower import OURS, LlavaTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import Continuous, tower_fingerprint

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def is_llava(folder: Path) -> bool:
    """Whether a folder's config.json is that of a LLaVA checkpoint of transformers."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and config.get("model_type") == "llava"


def load_llava(
    folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> LVLM:
    """Load a LLaVA checkpoint as a continuous LVLM.

    Args:
        folder: config, weights (safetensors), tokenizer and image processor, as transformers saves them.
        device, dtype: as for `craft.load`.

    Returns:
        An `LVLM` in evaluation mode; `origin` is the folder.

    Raises:
        CheckpointError: files are missing or damaged, or the checkpoint has something that is not read here
            (several feature layers, features with the class token, another kind of projector or tower).
    """
    root, target = Path(folder), resolve_device(device)
    precision = resolve_dtype(dtype, target)
    WeightFolder(root)
    llava = _read(root)
    config, whole = llava.config, llava.model
    tower = _tower(root, config, whole.vision_tower)
    codebook = Continuous(tower.dim, tower_fingerprint(tower.state_dict()))
    visual = VisualTokenizer(tower, codebook, aspect=_images(root, tower.class_token)[2])
    llm = _llm(llava)
    backbone = Backbone(
        _projector(root, config, whole.multi_modal_projector).to(precision),
        llm.to(precision),
        _tokenizer(root),
        "llava",
        codebook.fingerprint,
    )
    tower.to(precision)
    return LVLM(visual, backbone, root.name or str(root), root.resolve()).to(target).eval()


def _read(root: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    try:
        with quiet():
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(
                root, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        llava, report = loaded
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"The LLaVA checkpoint in {root} cannot be loaded: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{root} lacks {len(missing)} tensors, the first of them {missing[0]}; the checkpoint is "
            "incomplete."
        )
    return llava


def _tower(root: Path, config: Any, vision: Any) -> LlavaTower:
    kind, layer = config.vision_config.model_type, config.vision_feature_layer
    if kind not in ("clip_vision_model", "siglip_vision_model") or not isinstance(layer, int):
        raise CheckpointError(
            f"{root}: a {kind} read at layer {layer} is not known here; LLaVA checkpoints with a CLIP or "
            "SigLIP tower, read at one layer, are."
        )
    class_token = kind == "clip_vision_model"
    wanted = "default" if class_token else "full"
    if config.vision_feature_select_strategy != wanted:
        raise CheckpointError(
            f"{root}: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, which "
            f"does not leave one token per patch of a {kind}; {wanted!r} would."
        )
    mean, std, _ = _images(root, class_token)
    depth = layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer
    model = config.vision_config.to_diff_dict()
    del model["transformers_version"]  # another version has the same tower
    return LlavaTower({"model": model, "depth": depth, "mean": mean, "std": std}, vision)


def _images(root: Path, clip: bool) -> tuple[list[float], list[float], str]:
    """How pictures become pixels: mean, standard deviation, aspect mode (see `craft.models.images`)."""
    told: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (root / name).is_file():
            found = read_json(root / name)
            told = found.get("image_processor", found) or told
            if "image_mean" in told:
                break
    mean = told.get("image_mean", CLIP_MEAN if clip else OURS)
    std = told.get("image_std", CLIP_STD if clip else OURS)
    if told.get("do_pad") and str(told.get("image_processor_type")).startswith("LlavaImageProcessor"):
        return list(mean), list(std), _bars(root, mean)  # other processors' do_pad changes no single picture
    crop = told.get("do_center_crop", clip)
    return list(mean), list(std), "crop" if crop else "resize"


def _bars(root: Path, mean: list[float]) -> str:
    """The aspect mode that pads with the mean colour, as LLaVA's own processor does before it resizes."""
    colour = tuple(int(255 * value) for value in mean)
    for name, known in BARS.items():
        if known == colour:
            return name
    raise CheckpointError(
        f"{root}: its pictures are padded to squares with the colour {colour}, which is not known here; "
        f"CLIP's {BARS['pad-clip']} and the grey {BARS['pad']} are."
    )


def _projector(root: Path, config: Any, module: Any) -> Projector:
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise CheckpointError(
            f"{root}: a projector with {config.projector_hidden_act} "
            f"{'and' if config.multimodal_projector_bias else 'without'} bias is not known here; LLaVA's "
            "has GELU and bias."
        )
    out, width = module.linear_1.weight.shape
    projector = Projector({"type": "mlp2x_gelu", "in": width, "out": out})
    first, _, last = projector.layers  # type: ignore[misc]
    first.load_state_dict(module.linear_1.state_dict())
    last.load_state_dict(module.linear_2.state_dict())
    return projector


def _llm(llava: Any) -> Any:
    """The language model as a causal LM of its own; weights are shared, not copied."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        llm: Any = AutoModelForCausalLM.from_config(llava.config.text_config)
    setattr(llm, llm.base_model_prefix, llava.model.language_model)
    llm.set_output_embeddings(llava.lm_head)
    llm.generation_config = llava.generation_config
    return llm


def _tokenizer(root: Path) -> Any:
    tokenizer = load_tokenizer(root)
    legacy = root / "chat_template.json"
    if getattr(tokenizer, "chat_template", None) is None and legacy.is_file():
        tokenizer.chat_template = read_json(legacy).get("chat_template")
    return tokenizer
