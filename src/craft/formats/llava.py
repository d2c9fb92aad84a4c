"""LLaVA checkpoints of transformers (`LlavaForConditionalGeneration`) as continuous LVLMs.

CLIP or SigLIP tower, two-layer projector, any causal LM: `craft.load("llava-hf/llava-1.5-7b-hf")`, or a
folder. The parts become CRAFT's modules, so training and evaluation work as on a discrete LVLM.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError
from craft.core.files import read_json
from craft.core.records import Record, check_record
from craft.formats.llm_source import check_config, check_weights, in_dtype, load_tokenizer, quiet, reason_of
from craft.formats.weight_folder import WeightFolder
from craft.models.backbone import Backbone
from craft.models.images import BARS
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.vision_tower import OURS, LlavaTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import Continuous, tower_fingerprint

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Images(Record):
    image_mean: list[float] | None = Field(default=None, min_length=3, max_length=3)
    image_std: list[Annotated[float, Field(gt=0)]] | None = Field(default=None, min_length=3, max_length=3)


class _Template(Record):
    chat_template: str | None = None


def is_llava(folder: Path) -> bool:
    """Whether a folder has the config.json of a LLaVA checkpoint of transformers."""
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
        CheckpointError: files are missing or damaged, or the checkpoint has something that CRAFT does not
            support (several feature layers, features of the class token, another projector or tower).
    """
    root, target = Path(folder), resolve_device(device)
    precision = resolve_dtype(dtype, target)
    weights = WeightFolder(root)
    check_config(root)
    llava = _read(root)
    check_weights(llava, weights)
    config, whole = llava.config, llava.model
    tower = _tower(root, config, whole.vision_tower)
    codebook = Continuous(tower.dim, tower_fingerprint(tower.state_dict()))
    visual = VisualTokenizer(tower, codebook, aspect=_images(root, tower.class_token)[2])
    llm = _llm(llava)
    backbone = Backbone(
        _projector(root, config, whole.multi_modal_projector).to(precision),
        in_dtype(llm, precision),
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
                root,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        llava, report = loaded
    except Exception as error:
        raise CheckpointError(
            f"The LLaVA checkpoint in {root} cannot be loaded: {reason_of(error)}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{root} lacks {len(missing)} tensors, among them {missing[0]}; the checkpoint is incomplete."
        )
    return llava


def _tower(root: Path, config: Any, vision: PreTrainedModel) -> LlavaTower:
    kind, layer = config.vision_config.model_type, config.vision_feature_layer
    if kind not in ("clip_vision_model", "siglip_vision_model") or not isinstance(layer, int):
        raise CheckpointError(
            f"{root}: CRAFT does not support a {kind} read at layer {layer}; use a LLaVA checkpoint with a "
            "CLIP or SigLIP tower that is read at one layer."
        )
    class_token = kind == "clip_vision_model"
    expected = "default" if class_token else "full"
    if config.vision_feature_select_strategy != expected:
        raise CheckpointError(
            f"{root}: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, which "
            f"does not give one token per patch of a {kind}; use a checkpoint with {expected!r}."
        )
    mean, std, _ = _images(root, class_token)
    layers = config.vision_config.num_hidden_layers
    depth = layer if layer >= 0 else layers + 1 + layer
    if not 0 < depth <= layers:
        raise CheckpointError(f"{root}: vision_feature_layer is {layer}, and the tower has {layers} layers.")
    model = config.vision_config.to_diff_dict()
    del model["transformers_version"]  # does not affect the tower
    return LlavaTower({"model": model, "depth": depth, "mean": mean, "std": std}, vision)


def _images(root: Path, clip: bool) -> tuple[list[float], list[float], str]:
    """Image preprocessing: mean, standard deviation, aspect mode (see `craft.models.images`)."""
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (root / name).is_file():
            content = check_record(Record, read_json(root / name), root / name)
            nested = content.get("image_processor", content) or settings
            settings = check_record(_Images, nested, root / name)
            if "image_mean" in settings:
                break
    mean = settings.get("image_mean", CLIP_MEAN if clip else OURS)
    std = settings.get("image_std", CLIP_STD if clip else OURS)
    if settings.get("do_pad") and str(settings.get("image_processor_type")).startswith("LlavaImageProcessor"):
        return list(mean), list(std), _bars(root, mean)  # in other processors do_pad affects batches only
    crop = settings.get("do_center_crop", clip)
    return list(mean), list(std), "crop" if crop else "resize"


def _bars(root: Path, mean: list[float]) -> str:
    """The aspect mode that pads with the mean colour, as LLaVA's processor does before it resizes."""
    colour = tuple(int(255 * value) for value in mean)
    for name, bars in BARS.items():
        if bars == colour:
            return name
    raise CheckpointError(
        f"{root} pads images to squares with the colour {colour}, which CRAFT does not support; use a "
        f"checkpoint with CLIP's {BARS['pad-clip']} or the grey {BARS['pad']}."
    )


def _projector(root: Path, config: Any, module: Any) -> Projector:
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise CheckpointError(
            f"{root}: a projector with {config.projector_hidden_act} "
            f"{'and' if config.multimodal_projector_bias else 'without'} bias is not supported; use a LLaVA "
            "checkpoint, whose projector has GELU and bias."
        )
    out, width = module.linear_1.weight.shape
    projector = Projector({"type": "mlp2x_gelu", "in": width, "out": out})
    first, _, last = projector.layers  # type: ignore[misc]
    first.load_state_dict(module.linear_1.state_dict())
    last.load_state_dict(module.linear_2.state_dict())
    return projector


def _llm(llava: Any) -> PreTrainedModel:
    """The language model as a separate causal LM; weights are shared, not copied."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(llava.config.text_config, trust_remote_code=False)
    setattr(llm, llm.base_model_prefix, llava.model.language_model)
    llm.set_output_embeddings(llava.lm_head)
    llm.generation_config = llava.generation_config
    return llm


def _tokenizer(root: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(root)
    legacy = root / "chat_template.json"
    if getattr(tokenizer, "chat_template", None) is None and legacy.is_file():
        tokenizer.chat_template = check_record(_Template, read_json(legacy), legacy).get("chat_template")
    return tokenizer
