"""Chameleon checkpoints of transformers (`ChameleonForConditionalGeneration`), read and written.

The VQ model in them is vision tower and codebook. The LLM reads codes as tokens of its own vocabulary. All
Chameleon LLMs (7B, 30B) and what was tuned from them (Anole) read the codes of one VQ model.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError, CodebookMismatchError, ConfigError
from craft.core.files import atomic_directory, read_json
from craft.core.records import Record, check_record
from craft.formats.artefact import Artefact
from craft.formats.checks import load_strict
from craft.formats.llm_source import check_config, check_weights, in_dtype, load_tokenizer, quiet, reason_of
from craft.formats.weight_folder import WeightFolder, refuse_overlap
from craft.models.backbone import Backbone
from craft.models.chameleon import ChameleonTower, TextHead
from craft.models.lvlm import LVLM
from craft.models.prompts import CHAMELEON_TOKENS
from craft.models.token_table import TokenTable
from craft.models.towers import build_tower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

VQ = "model.vqmodel."
CODEBOOK = VQ + "quantize.embedding.weight"
# defaults of transformers' image processor, for keys that a folder omits
_PROCESSOR: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 512},
    "resample": 1,  # Lanczos
    "do_center_crop": True,
    "crop_size": {"height": 512, "width": 512},
    "do_rescale": True,
    "rescale_factor": 0.0078,
    "do_normalize": True,
    "image_mean": [1.0, 1.0, 1.0],
    "image_std": [1.0, 1.0, 1.0],
}


class _Config(Record):
    vq_config: dict[str, Any] = Field(default={})
    vocabulary_map: dict[str, int] = Field(min_length=1)


class _Processor(Record):
    rescale_factor: float = Field(default=1, gt=0)
    image_mean: list[float] = Field(min_length=3, max_length=3)
    image_std: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, max_length=3)


def is_chameleon(folder: Path) -> bool:
    """Whether a folder has the config.json of a Chameleon checkpoint of transformers."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and config.get("model_type") == "chameleon"


def load_chameleon(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    llm_bits: int | None = None,
) -> LVLM:
    """Load a Chameleon checkpoint.

    Args:
        folder: config, weights (safetensors), tokenizer and image processor, as transformers saves them.
        device, dtype: as for `craft.load`. The codebook stays float32.
        llm_bits: refused.

    Returns:
        An `LVLM` in evaluation mode; `origin` is the folder. Its `llm` is transformers' own model without the
        VQ model, whose output embedding never writes image tokens.

    Raises:
        CheckpointError: files are missing or damaged, or the image processor does something that CRAFT does
            not do.
        ConfigError: `llm_bits` is set.
    """
    root, target = Path(folder), resolve_device(device)
    if llm_bits is not None:
        raise ConfigError(
            f"llm_bits={llm_bits} packs an LLM that has a folder of its own, and in the Chameleon checkpoint "
            f"{root} it shares one with the VQ model; leave llm_bits out."
        )
    precision = resolve_dtype(dtype, target)
    visual, table = _load_visual(root)
    tokenizer = _tokenizer(root)
    llm = _load_llm(root, table)
    fingerprint = visual.codebook.fingerprint
    backbone = Backbone(table, in_dtype(llm, precision), tokenizer, "chameleon", fingerprint)
    visual.vision_tower.to(precision)
    return LVLM(visual, backbone, root.name or str(root), root.resolve()).to(target).eval()


def load_chameleon_visual(
    folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> VisualTokenizer:
    """The visual tokenizer of a Chameleon checkpoint, without its LLM.

    Raises:
        CheckpointError: as for `load_chameleon`.
    """
    target = resolve_device(device)
    visual, _ = _load_visual(Path(folder))
    visual.vision_tower.to(resolve_dtype(dtype, target))
    return visual.to(target).eval()


def export_chameleon(source: LVLM | Artefact, base_folder: str | Path, out: str | Path) -> Path:
    """Write a copy of a Chameleon checkpoint with an adapted tower in its VQ model.

    All files are copied; then the tensors of the tower are overwritten in place, in the checkpoint's dtype.

    Args:
        source: an `LVLM`, or a loaded `craft.formats.artefact.Artefact`.
        base_folder: any Chameleon checkpoint of the codebook.
        out: the folder to write, completely or not at all.

    Raises:
        CodebookMismatchError: the base has another codebook; the message has both fingerprints.
        CheckpointError: the base is not a Chameleon checkpoint, or `out` overlaps with it.
    """
    base, target = Path(base_folder), Path(out)
    if not is_chameleon(base):
        raise CheckpointError(f"{base} is not a Chameleon checkpoint: its config.json does not say so.")
    stored = _load_visual(base)[0]
    visual = source.visual if isinstance(source, LVLM) else source.apply_to(stored)
    adapted, expected = visual.codebook.fingerprint, stored.codebook.fingerprint
    if adapted != expected:
        raise CodebookMismatchError(
            f"The encoder was adapted for codebook {adapted}, and {base} has codebook {expected}; give a "
            "checkpoint of the family that the encoder was adapted from."
        )
    refuse_overlap(target, base)
    with atomic_directory(target) as building:
        tensors = {VQ + name: value for name, value in visual.vision_tower.state_dict().items()}
        WeightFolder(base).write(building, tensors)
    return target


def _load_visual(root: Path) -> tuple[VisualTokenizer, TokenTable]:
    """The visual tokenizer, and the tokens of its codes."""
    weights, file = WeightFolder(root), root / "config.json"
    config = check_record(_Config, read_json(file), file)
    tower = build_tower(
        {"type": "chameleon", "model": _sizes(config.get("vq_config", {})), **_processing(root)},
        f"{file}: vq_config",
    )
    assert isinstance(tower, ChameleonTower)
    size = _crop(root)
    if size != tower.image_size:
        raise CheckpointError(
            f"{root}: the image processor makes images of {size} px, and the VQ model reads "
            f"{tower.image_size} px; copy both files of one checkpoint."
        )
    state = {name: weights.tensor(VQ + name) for name in tower.state_dict()}
    load_strict(tower, state, root)
    codewords = weights.tensor(CODEBOOK)
    if codewords.ndim != 2 or codewords.shape[1] != tower.dim:
        raise CheckpointError(
            f"{weights.where[CODEBOOK]}: {CODEBOOK} has shape {list(codewords.shape)}, and vq_config in "
            f"{file} says width {tower.dim}; copy both again."
        )
    visual = VisualTokenizer(tower, ResidualCodebook([codewords]), aspect="crop-lanczos")
    return visual, TokenTable(_image_ids(config["vocabulary_map"], len(codewords), file)[None])


def _sizes(vq_config: dict[str, Any]) -> dict[str, Any]:
    """What of a VQ model's config determines the tower, and so is compared between checkpoints."""
    from transformers import ChameleonVQVAEConfig

    names = ("resolution", "base_channels", "channel_multiplier", "num_res_blocks", "latent_channels")
    names += ("embed_dim", "in_channels", "double_latent", "attn_resolutions", "attn_type", "dropout")
    try:
        config = ChameleonVQVAEConfig(**vq_config)
    except Exception as error:  # the library raises any exception
        raise CheckpointError(f"vq_config cannot be read: {reason_of(error)}") from error
    return {name: getattr(config, name) for name in names}


def _image_ids(vocabulary: dict[str, int], size: int, file: Path) -> Tensor:
    """The token id of each code, int64 `[K]`, by transformers' own reading of the names IMGIMG…."""
    try:
        ids = ChameleonImageVocabularyMapping(vocabulary).img2bpe
    except ValueError:
        ids = {}
    if sorted(ids) != list(range(size)):
        raise CheckpointError(
            f"{file}: vocabulary_map names {len(ids)} image tokens (IMGIMG…), and the codebook has {size} "
            "codewords; copy the config of the checkpoint."
        )
    return torch.tensor([ids[code] for code in range(size)])


def _settings(root: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's settings, and the file that they are from."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        content = read_json(root / name) if (root / name).is_file() else {}
        content = check_record(Record, content, root / name)
        content = content.get("image_processor", content)
        if "image_mean" in content or name == "preprocessor_config.json":
            return root / name, {**_PROCESSOR, **content}
    raise AssertionError


def _crop(root: Path) -> int:
    """The side of the square that the image processor makes.

    Raises:
        CheckpointError: it does not make it by scaling and cropping, as Chameleon's does.
    """
    file, settings = _settings(root)
    size, crop = settings["size"], settings["crop_size"]
    crop = {crop} if isinstance(crop, int) else set(crop.values())
    side = size if isinstance(size, int) else size.get("shortest_edge")
    steps = settings["do_resize"] and settings["do_center_crop"] and settings["resample"] == 1
    if not steps or crop != {side} or not isinstance(side, int):
        names = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
        listed = ", ".join(f"{name} {settings[name]!r}" for name in names)
        raise CheckpointError(
            f"{file}: CRAFT scales the shorter side by Lanczos resampling (1) and crops a square of the same "
            f"side, as Chameleon does, and this file has {listed}; use the file of the checkpoint."
        )
    return side


def _processing(root: Path) -> dict[str, Any]:
    """Factor, mean and standard deviation by which the image processor normalises bytes."""
    file, settings = _settings(root)
    check_record(_Processor, settings, file)
    normalised = settings["do_normalize"]
    return {
        "factor": float(settings["rescale_factor"]) if settings["do_rescale"] else 1.0,
        "mean": list(settings["image_mean"]) if normalised else [0.0] * 3,
        "std": list(settings["image_std"]) if normalised else [1.0] * 3,
    }


def _tokenizer(root: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(root)
    known = tokenizer.get_vocab()
    needed = {token: token for token in CHAMELEON_TOKENS} | {"sep_token": tokenizer.sep_token}
    for name, token in needed.items():
        if token not in known:
            raise CheckpointError(
                f"The text tokenizer in {root} lacks {name}, which is in every prompt of Chameleon; copy the "
                "tokenizer of the checkpoint."
            )
    return tokenizer


def _load_llm(root: Path, table: TokenTable) -> PreTrainedModel:
    """transformers' own model without its VQ model."""
    from transformers import ChameleonForConditionalGeneration

    check_config(root)
    try:
        with quiet():
            loaded: Any = ChameleonForConditionalGeneration.from_pretrained(
                root,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        llm, report = loaded
    except Exception as error:  # the libraries raise any exception
        raise CheckpointError(
            f"The Chameleon checkpoint in {root} cannot be loaded: {reason_of(error)}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{root} lacks {len(missing)} tensors, among them {missing[0]}; the checkpoint is incomplete."
        )
    check_weights(llm, WeightFolder(root))
    del llm.model.vqmodel
    llm.lm_head = TextHead(llm.lm_head, table.ids[0])
    return llm
