"""VILA-U's on-disk layout: root config + `llm/` + `vision_tower/` + `mm_projector/`, read and written.

Reading loads only what image understanding needs. Writing copies the original checkpoint and overwrites the
bytes of changed tensors, so the decoder, the text encoder, the generation head and all other parts stay the
same.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.files import atomic_directory, member, read_json
from craft.core.records import Layers, Record, Size, check_record
from craft.formats.artefact import Artefact
from craft.formats.llm_source import load_tokenizer, read_llm
from craft.formats.visual_folder import siglip_text_encoder
from craft.formats.weight_folder import WeightFolder, copy_folder, refuse_overlap
from craft.models.backbone import Backbone
from craft.models.llm_bits import refuse_packed
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.text_encoder import TextEncoder
from craft.models.towers import build_tower
from craft.models.vision_tower import SiglipTower, VisionTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

VISION = "rqvaesiglip.siglip_model.vision_model."
TEXT = "rqvaesiglip.siglip_model.text_model."
CODEBOOK = "rqvaesiglip.quantizer.codebooks.{}.weight"
SCALE = ("rqvaesiglip.logit_scale", "rqvaesiglip.siglip_model.logit_scale")  # aliases: one may be absent
# transformers' defaults of SiglipVisionConfig and SiglipTextConfig, for keys that a config omits
_LAYERS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
VISION_DEFAULTS = {**_LAYERS, "image_size": 224, "patch_size": 16}
TEXT_DEFAULTS = {**_LAYERS, "vocab_size": 32000, "max_position_embeddings": 64}
# of the published SigLIP models, only the heads of so400m are not 64 wide
HEADS = {1152: 16}
# and only at 384 px its patches do not fill the image: 27 patches of 14 px per side leave 6 px
SIDES = {(27, 14): 384}
Codewords = Annotated[int, Field(ge=1, le=2**24)]


class _Quantizer(Record):
    code_shape: list[Layers] = Field(min_length=1)
    n_embed: Codewords | list[Codewords]
    shared_codebook: bool | None = None
    pretrained_model: str | None = None

    @model_validator(mode="after")
    def _one_size_per_level(self) -> "_Quantizer":
        if isinstance(self.n_embed, list) and len(self.n_embed) != self.code_shape[-1]:
            raise ValueError("n_embed needs one number per level, as many as the last one in code_shape")
        return self


class _TowerFolder(Record):
    rqvaesiglip: _Quantizer


class _ProjectorFolder(Record):
    mm_projector_type: str


class _SiglipPart(Record):
    """What CRAFT takes from SigLIP's own config; sizes are compared with the weights."""

    image_size: Size | None = None


def is_vila_u(folder: Path) -> bool:
    """Whether a folder has VILA-U's three parts."""
    return all((folder / part).is_dir() for part in ("llm", "vision_tower", "mm_projector"))


def load_vila_u(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    llm_bits: int | None = None,
) -> LVLM:
    """Load a VILA-U checkpoint.

    Args:
        folder: the checkpoint's root.
        device: "auto" (None), "cpu", "cuda", ...
        dtype: of vision tower, projector and LLM; "auto" (None) is bfloat16 if the device supports it. The
            codebook stays float32.
        llm_bits: as for `craft.load`.

    Returns:
        An `LVLM` in evaluation mode; `origin` is the folder.

    Raises:
        CheckpointError: a file, shard or tensor is missing, damaged, of another shape than the config says,
            or stored as `pytorch_model.bin` (the message has the conversion command).

    Source: the VILA-U layout (mit-han-lab/vila-u).
    """
    root = Path(folder)
    aspect = _aspect(root)
    for part in ("vision_tower", "mm_projector", "llm"):
        WeightFolder(root / part)  # headers first, to report a missing shard before reading gigabytes
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    visual = _load_visual(root, aspect)
    projector = _load_projector(root / "mm_projector")
    llm = read_llm(root / "llm", precision, llm_bits, target if llm_bits else None)
    tokenizer = load_tokenizer(root / "llm", literal=False)
    backbone = Backbone(projector.to(precision), llm, tokenizer, "vila-u", visual.codebook.fingerprint)
    width = backbone.embeddings.weight.shape[1]
    if (projector.config["in"], projector.config["out"]) != (visual.codebook.dim, width):
        raise CheckpointError(
            f"{root}: the projector maps {projector.config['in']} to {projector.config['out']}, and "
            f"codebook and LLM have widths {visual.codebook.dim} and {width}; the folders belong to "
            "different checkpoints."
        )
    visual.vision_tower.to(precision)
    lvlm = LVLM(visual, backbone, root.name or str(root), origin=root.resolve())
    return lvlm.to(target).eval()


def load_vila_u_visual(
    folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> VisualTokenizer:
    """The visual tokenizer of a VILA-U checkpoint, without its LLM.

    Raises:
        CheckpointError: as for `load_vila_u`.
    """
    root, target = Path(folder), resolve_device(device)
    aspect = _aspect(root)
    visual = _load_visual(root, aspect)
    visual.vision_tower.to(resolve_dtype(dtype, target))
    return visual.to(target).eval()


def _aspect(root: Path) -> str:
    if not root.is_dir():
        raise CheckpointError(f"Folder {root} does not exist; check the path.")
    config = check_record(Record, read_json(root / "config.json"), root / "config.json")
    aspect = config.get("image_aspect_ratio") or "resize"
    if aspect not in ("resize", "pad"):
        raise CheckpointError(
            f"{root / 'config.json'}: image_aspect_ratio {aspect!r} is not 'resize' or 'pad'."
        )
    return aspect


def _load_visual(root: Path, aspect: str) -> VisualTokenizer:
    weights = WeightFolder(root / "vision_tower")
    config = _tower_config(root)
    made = build_tower(siglip_vision_config(weights, VISION, root, config.get("pretrained_model")))
    tower = cast(SiglipTower, made)
    state = {
        name: weights.tensor(key) for name in tower.state_dict() if (key := _file_name(name)) is not None
    }
    state["cls_token"] = tower.cls_token.detach()
    for name, value in tower.state_dict().items():
        if state[name].shape != value.shape:
            raise CheckpointError(
                f"{weights.folder}: {_file_name(name)} has shape {list(state[name].shape)}, and the SigLIP "
                f"config says {list(value.shape)}; name the right one in rqvaesiglip.pretrained_model."
            )
    tower.load_state_dict(state)
    scale = next((weights.tensor(name) for name in SCALE if name in weights.where), None)
    temperature = {} if scale is None else {"log_temperature": scale}
    text_encoder = _load_text_encoder(weights, root, config.get("pretrained_model"))
    return VisualTokenizer(
        tower, read_codebook(root / "vision_tower"), text_encoder, aspect=aspect, **temperature
    )


def _load_text_encoder(weights: WeightFolder, root: Path, pretrained_model: str | None) -> TextEncoder | None:
    """SigLIP's text tower in the checkpoint, with the tokenizer of the folder `pretrained_model`, if any."""
    state = {name: weights.tensor(name) for name in weights.where if name.startswith(TEXT)}
    if not state:
        return None
    config = siglip_text_config(weights, TEXT, root, pretrained_model)
    tokenizer = (_named_folder(root, pretrained_model) if pretrained_model else root) / "tokenizer.json"
    return siglip_text_encoder(
        state, config, tokenizer if tokenizer.is_file() else None, where=weights.folder
    )


def _tower_config(root: Path) -> dict[str, Any]:
    file = root / "vision_tower" / "config.json"
    return check_record(_TowerFolder, read_json(file), file, "copy the original config")["rqvaesiglip"]


def _file_name(name: str) -> str | None:
    """A tensor name of `SiglipTower` -> the checkpoint's name; None for [CLS], which VILA-U lacks."""
    if name == "cls_token":
        return None
    return VISION + re.sub(r"^layers\.", "encoder.layers.", name)


def read_codebook(vision_tower: Path) -> ResidualCodebook:
    """The codebook of a VILA-U `vision_tower/`, without the zero padding row of each level.

    A codebook that levels share may be stored once (as level 0) or once per level.

    Raises:
        CheckpointError: a level is missing and the config does not say that levels are shared, or its shape
            differs from the config.
    """
    weights = WeightFolder(vision_tower)
    config = _tower_config(vision_tower.parent)
    depth, size, shared = int(config["code_shape"][-1]), config["n_embed"], config.get("shared_codebook")
    sizes = [int(size)] * depth if isinstance(size, int) else [int(number) for number in size]
    levels: list[Tensor] = []
    for level in range(depth):
        name = CODEBOOK.format(level)
        if shared and level:
            if name in weights.where and not torch.equal(weights.tensor(name)[: sizes[level]], levels[0]):
                raise CheckpointError(
                    f"{weights.where[name]}: {name} differs from level 0, and the config says "
                    "shared_codebook; one of the two is wrong."
                )
            levels.append(levels[0])
            continue
        table = weights.tensor(name)
        if table.ndim != 2 or table.shape[0] not in (sizes[level], sizes[level] + 1):
            raise CheckpointError(
                f"{weights.where[name]}: {name} has shape {list(table.shape)}, and the config says "
                f"{sizes[level]} codewords (and a padding row)."
            )
        levels.append(table[: sizes[level]])
    return ResidualCodebook(levels)


def _load_projector(folder: Path) -> Projector:
    weights = WeightFolder(folder)
    config = check_record(_ProjectorFolder, read_json(folder / "config.json"), folder / "config.json")
    kind = config["mm_projector_type"]
    names = sorted(weights.where)
    matrices = [weights.shapes[name] for name in names if name.endswith("weight")]
    if not matrices or any(len(shape) != 2 for shape in matrices):
        raise CheckpointError(
            f"{folder} holds layers that are not linear, so it is not a projector of a known type; copy the "
            "original folder."
        )
    projector = Projector({"type": kind, "in": matrices[0][1], "out": matrices[-1][0]})
    expected = {name: tuple(value.shape) for name, value in projector.state_dict().items()}
    if expected != weights.shapes:
        raise CheckpointError(
            f"{folder}: type {kind!r} has tensors {expected}, and the files have {weights.shapes}; copy the "
            "original folder."
        )
    projector.load_state_dict({name: weights.tensor(name) for name in names})
    return projector


def tower_tensors(
    state: dict[str, Tensor], log_temperature: Tensor | None, weights: WeightFolder
) -> dict[str, Tensor]:
    """A SigLIP tower's state and log τ by the names in a `vision_tower/`, without [CLS]."""
    named = {key: value for name, value in state.items() if (key := _file_name(name)) is not None}
    if log_temperature is not None:
        named |= {
            name: log_temperature.detach().reshape(weights.shapes[name])
            for name in SCALE
            if name in weights.where
        }
    return named


def save_vila_u(lvlm: LVLM, folder: str | Path) -> None:
    """Save an LVLM that was loaded from a VILA-U checkpoint in the same layout.

    Every file is copied from the original checkpoint; then the tensors that changed are overwritten in place.
    If nothing was trained, every file is identical to the original. The layout cannot hold a learned [CLS]
    token, so it is not saved; patch codes do not depend on it.

    Args:
        lvlm: the model; its `origin`, the checkpoint's folder, must still exist.
        folder: the target, which is written completely or not at all.

    Raises:
        CheckpointError: the model was not loaded from a VILA-U checkpoint, the checkpoint no longer exists,
            the vision tower has a symmetric [CLS] (its patches need it), the LLM is packed in 4 or 8 bits,
            or the target overlaps with the checkpoint.
    """
    refuse_packed(lvlm.backbone.llm, "cannot be written in VILA-U's layout")
    root, target, projector = lvlm.origin, Path(folder), lvlm.backbone.projector
    if root is None or not is_vila_u(root) or projector is None:
        raise CheckpointError(
            f"{lvlm.name} cannot be written in VILA-U's layout: the checkpoint it was loaded from "
            f"({root or 'none'}) is not a VILA-U folder. Use the native layout."
        )
    refuse_overlap(target, root)
    parts = {part: WeightFolder(root / part) for part in ("vision_tower", "mm_projector", "llm")}
    tower = _vila_u_tower(lvlm.visual.vision_tower)
    llm = {
        name: value for name, value in lvlm.backbone.llm.state_dict().items() if name in parts["llm"].where
    }
    tensors = {
        "vision_tower": tower_tensors(tower.state_dict(), lvlm.visual.log_temperature, parts["vision_tower"]),
        "mm_projector": dict(projector.state_dict()),
        "llm": llm,
    }
    with atomic_directory(target) as building:
        copy_folder(root, building, skip=parts)
        for part, weights in parts.items():
            weights.write(building / part, tensors[part])


def _vila_u_tower(tower: VisionTower) -> SiglipTower:
    if not isinstance(tower, SiglipTower):
        raise CheckpointError(
            f"A {type(tower).__name__} cannot be written in VILA-U's layout, which holds a SigLIP tower; "
            "use the native layout."
        )
    if tower.cls_attention != "read-only":
        raise CheckpointError(
            "This vision tower was trained with cls_attention='symmetric': its patches read the [CLS] "
            "token, which VILA-U's layout cannot hold. Train with cls_attention='read-only' to export."
        )
    return tower


def export_vision_tower(source: LVLM | Artefact, base_folder: str | Path, out: str | Path) -> Path:
    """Write a `vision_tower/` with an adapted tower, to replace the one in a VILA-U checkpoint.

    Args:
        source: an `LVLM`, or a loaded `craft.formats.artefact.Artefact`.
        base_folder: the VILA-U checkpoint that it was adapted from; what CRAFT does not use is copied from
            it.
        out: a folder; `out/vision_tower/` is written.

    Raises:
        CodebookMismatchError: the base has another codebook; the message has both fingerprints.
        CheckpointError: as `save_vila_u`, or the base is not a VILA-U checkpoint.
    """
    base = Path(base_folder)
    if not (base / "vision_tower").is_dir():
        raise CheckpointError(f"{base} is not a VILA-U checkpoint: it has no vision_tower/ folder.")
    weights = WeightFolder(base / "vision_tower")
    visual = source.visual if isinstance(source, LVLM) else source.apply_to(_load_visual(base, "resize"))
    adapted, stored = visual.codebook.fingerprint, read_codebook(base / "vision_tower").fingerprint
    if adapted != stored:
        raise CodebookMismatchError(
            f"The encoder was adapted for codebook {adapted}, and {base} has codebook {stored}; give the "
            "checkpoint that the encoder was adapted from."
        )
    tower = _vila_u_tower(visual.vision_tower)
    tensors = tower_tensors(tower.state_dict(), visual.log_temperature, weights)
    target, root = Path(out) / "vision_tower", base.resolve()
    resolved, source_tower = target.resolve(), (base / "vision_tower").resolve()
    overlaps = source_tower in (resolved, *resolved.parents) or resolved in (root, *root.parents)
    if overlaps:  # the target is replaced
        raise CheckpointError(
            f"{target} is, contains or is inside the vision tower of the base checkpoint ({base}); choose "
            "another folder."
        )
    with atomic_directory(target) as building:
        weights.write(building, tensors)
    return target


# The SigLIP architecture of a tower, which the checkpoint only names (`pretrained_model`)


def siglip_vision_config(
    weights: WeightFolder, prefix: str, root: Path, pretrained_model: str | None
) -> dict[str, Any]:
    """Config for `SiglipTower`.

    Args:
        root: the checkpoint's root; `pretrained_model` may be a folder in it with a SigLIP `config.json`.
        pretrained_model: the entry of the checkpoint's config.

    Returns:
        The config in that folder, if there is one; else sizes from tensor shapes, and what shapes do not show
        (heads, activation, epsilon) as in the published SigLIP models. Sizes are checked against tensor
        shapes in both cases.

    Raises:
        CheckpointError: tensors are missing, or contradict that config.
    """
    hidden, _, patch, _ = _shape(weights, prefix + "embeddings.patch_embedding.weight", 4)
    side = math.isqrt(_shape(weights, prefix + "embeddings.position_embedding.weight", 2)[0])
    stored = _config_in_checkpoint(root, pretrained_model, "vision_config")
    image = SIDES.get((side, patch), side * patch)
    stated = (stored[1].get("image_size") if stored else None) or image
    if stated // patch == side:
        image = stated  # the patch embedding ignores the remaining pixels
    sizes = {"hidden_size": hidden, "patch_size": patch, "image_size": image}
    sizes |= _layer_sizes(weights, prefix)
    return {**_complete(weights, sizes, VISION_DEFAULTS, stored), "type": "siglip"}


def siglip_text_config(
    weights: WeightFolder, prefix: str, root: Path, pretrained_model: str | None
) -> dict[str, Any]:
    """Config for `TextEncoder`, determined like that of the vision model.

    Raises:
        CheckpointError: as `siglip_vision_config`.
    """
    vocabulary, hidden = _shape(weights, prefix + "embeddings.token_embedding.weight", 2)
    length = _shape(weights, prefix + "embeddings.position_embedding.weight", 2)[0]
    sizes = {"hidden_size": hidden, "vocab_size": vocabulary, "max_position_embeddings": length}
    sizes |= _layer_sizes(weights, prefix)
    return _complete(
        weights, sizes, TEXT_DEFAULTS, _config_in_checkpoint(root, pretrained_model, "text_config")
    )


def _complete(
    weights: WeightFolder,
    sizes: dict[str, int],
    defaults: dict[str, Any],
    stored: tuple[Path, dict[str, Any]] | None,
) -> dict[str, Any]:
    """Sizes from shapes; the rest from the config in the checkpoint, or from the published models."""
    if stored is None:
        hidden = sizes["hidden_size"]
        heads = HEADS.get(hidden, hidden // 64)
        if heads == 0 or hidden % heads:
            raise CheckpointError(
                f"{weights.folder}: no published SigLIP model has width {hidden}, so the number of attention "
                "heads is unknown; put the SigLIP config.json in a folder and name it where the checkpoint "
                "names its SigLIP: rqvaesiglip.pretrained_model (VILA-U), or teacher in ta_tok.json (Tar)."
            )
        return {**defaults, **sizes, "num_attention_heads": heads}
    file, config = stored
    merged = {key: config.get(key, default) for key, default in defaults.items()}
    for key, size in sizes.items():
        if merged[key] != size:
            raise CheckpointError(
                f"{file} says {key} {merged[key]}, and the weights in {weights.folder} say {size}."
            )
    return merged


def _config_in_checkpoint(root: Path, name: str | None, part: str) -> tuple[Path, dict[str, Any]] | None:
    """The SigLIP config in a folder of the checkpoint, if `pretrained_model` names one."""
    file = _named_folder(root, name) / "config.json" if name else None
    if file is None or not file.is_file():
        return None
    config = check_record(Record, read_json(file), file)
    return file, check_record(_SiglipPart, config.get(part, {}), f"{part} in {file}")


def _named_folder(root: Path, name: str) -> Path:
    """The folder in the checkpoint that `pretrained_model` names; it may be absent (a name on the hub)."""
    return member(
        root, name, root / "vision_tower" / "config.json: rqvaesiglip.pretrained_model", nested=True
    )


def _shape(weights: WeightFolder, name: str, axes: int) -> tuple[int, ...]:
    shape = weights.shapes.get(name)
    if shape is None:
        raise CheckpointError(f"{weights.folder} lacks tensor {name}; the checkpoint is incomplete.")
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(f"{weights.where[name]}: {name} has shape {list(shape)}; copy it again.")
    return shape


def _layer_sizes(weights: WeightFolder, prefix: str) -> dict[str, int]:
    """MLP width and number of layers."""
    start = prefix + "encoder.layers."
    inner = _shape(weights, start + "0.mlp.fc1.weight", 2)[0]
    names = [name.removeprefix(start).split(".")[0] for name in weights.shapes if name.startswith(start)]
    depth = max(int(name) for name in names if name.isdecimal()) + 1
    return {"intermediate_size": inner, "num_hidden_layers": depth}
