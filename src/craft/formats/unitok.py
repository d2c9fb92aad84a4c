"""UniTok's layout: a tokenizer file and an MLLM's folder (arXiv 2502.20321).

    ROOT/unitok_tokenizer.safetensors + unitok_tokenizer.json, or unitok_tokenizer.pth
    ROOT/MLLM/{config.json (model_type mini_gemini), model.safetensors, tokenizer files}

The tokenizer file may also be in the MLLM's folder. The `.pth` is read with `weights_only=True`, so no code
in it can run. Product quantisation becomes residual quantisation: each codebook is a level that is zero
outside its slice, so the sum of codewords is their concatenation, exactly.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import LlamaConfig

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.files import atomic_directory, read_json, write_json
from craft.core.records import Record, Size, check_record
from craft.core.tensors import check_finite_weights, save_tensors
from craft.formats.artefact import Artefact
from craft.formats.checks import load_strict
from craft.formats.llm_source import load_tokenizer, quiet, read_llm, reason_of
from craft.formats.weight_folder import WeightFolder, refuse_overlap
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.sequence_projector import SequenceProjector
from craft.models.towers import build_tower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.models.vitamin import VitaminTower
from craft.quantize import ResidualCodebook, derived_fingerprint

NAME = "unitok_tokenizer"
KIND = "mini_gemini"
EMBEDDER = "model.multi_embedder."
HEADS = {"vitamin_large": 16, "vitamin_base": 12, "vitamin_small": 6}
"""Attention heads of the tower by `args.model`; the tensors do not tell."""

_OURS = ("model_type", "architectures", "rope_scaling")
"""Keys of the MLLM's config.json that would make transformers look for another class; Llama needs none."""

_CODEBOOK = "quantizer.codebooks.{}.codebook.weight"


class _Args(Record):
    model: str
    img_size: Size
    num_codebooks: int = Field(ge=1, le=1024)
    vocab_width: Size
    quant_proj: str = "attn"
    num_query: int = 0


class _Pth(Record):
    args: _Args


class _Variant(Record):
    num_heads: Size | None = None


class _File(Record):
    pth: _Pth
    architecture_of_this_variant: _Variant = _Variant()


@dataclass(frozen=True)
class _Source:
    """The tokenizer file, read.

    Attributes:
        path: the file.
        args: its settings.
        heads: attention heads of the tower, or None if the file does not say.
        tensors: all tensors that CRAFT uses, by their names in the file.
    """

    path: Path
    args: _Args
    heads: int | None
    tensors: Mapping[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} lacks tensor {name}; the checkpoint is incomplete.")
        return self.tensors[name]

    def count(self, prefix: str) -> int:
        """How many numbers follow `prefix` in the names: blocks of a list."""
        below = (name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix))
        return len({number for name in below if (number := name.split(".")[0]).isdecimal()})


def is_unitok(folder: Path) -> bool:
    """Whether a folder is UniTok's MLLM, or holds it beside the tokenizer file."""
    return _mllm(folder) is not None


def _mllm(folder: Path) -> Path | None:
    """The MLLM's folder: `folder`, or the one below it."""
    for path in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        config = read_json(path / "config.json") if (path / "config.json").is_file() else None
        if isinstance(config, dict) and config.get("model_type") == KIND:
            return path
    return None


def load_unitok(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    llm_bits: int | None = None,
) -> LVLM:
    """Load a UniTok checkpoint.

    Args:
        folder: the MLLM's folder, or the one that holds it.
        device, dtype, llm_bits: as for `craft.load`.

    Returns:
        An `LVLM` in evaluation mode; `origin` is the folder.

    Raises:
        CheckpointError: the tokenizer file is not there, tensors are missing, damaged or do not fit.
        CodebookMismatchError: the MLLM's copy of the codebooks is another one than the tokenizer's.

    Source: the layout of FoundationVision/UniTok.
    """
    root, target = Path(folder), resolve_device(device)
    precision = resolve_dtype(dtype, target)
    visual, weights = _load_checked(root)
    mllm = weights.folder
    settings = {key: value for key, value in read_json(mllm / "config.json").items() if key not in _OURS}
    config = LlamaConfig(**settings)
    llm = read_llm(mllm, precision, llm_bits, target if llm_bits else None, shared=True, config=config)
    projector = _projector(weights, visual.codebook.dim).to(precision)
    with quiet(warnings=False), warnings.catch_warnings():  # of transformers, about the unknown model type
        warnings.simplefilter("ignore", FutureWarning)
        tokenizer = load_tokenizer(mllm, literal=False)
    backbone = Backbone(projector, llm, tokenizer, "vila-u", visual.codebook.fingerprint)
    visual.vision_tower.to(precision)
    return LVLM(visual, backbone, root.name or str(root), origin=root.resolve()).to(target).eval()


def load_unitok_visual(
    folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> VisualTokenizer:
    """The visual tokenizer of a UniTok checkpoint, without its LLM.

    Raises:
        CheckpointError, CodebookMismatchError: as for `load_unitok`.
    """
    target = resolve_device(device)
    visual, _ = _load_checked(Path(folder))
    visual.vision_tower.to(resolve_dtype(dtype, target))
    return visual.to(target).eval()


def _load_checked(root: Path) -> tuple[VisualTokenizer, WeightFolder]:
    """The visual tokenizer, and the MLLM's weights, which have the same codebooks."""
    mllm = _mllm(root)
    assert mllm is not None
    source, weights = _find(root, mllm), WeightFolder(mllm)
    visual = _visual(source)
    own = _codebook(weights.tensor, EMBEDDER + _CODEBOOK, source.args)
    if own.fingerprint != visual.codebook.fingerprint:
        raise CodebookMismatchError(
            f"The MLLM in {mllm} has codebook {own.fingerprint}, and {source.path} has codebook "
            f"{visual.codebook.fingerprint}; the two are from different checkpoints."
        )
    return visual, weights


def _find(root: Path, mllm: Path) -> _Source:
    """The tokenizer file in the MLLM's folder, in `root`, or beside the MLLM's folder.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    folders = dict.fromkeys((mllm, root, mllm.parent))
    for folder in folders:
        if (folder / f"{NAME}.safetensors").is_file():
            return _read_safetensors(folder)
    for folder in folders:
        if (folder / f"{NAME}.pth").is_file():
            return _read_pth(folder / f"{NAME}.pth")
    raise CheckpointError(
        f"{mllm} is UniTok's MLLM, and its visual tokenizer is not there: neither {NAME}.safetensors nor "
        f"{NAME}.pth is in {', '.join(map(str, folders))}. Download it from "
        "FoundationVision/unitok_tokenizer."
    )


def _read_safetensors(folder: Path) -> _Source:
    weights, file = WeightFolder(folder, single=f"{NAME}.safetensors"), folder / f"{NAME}.json"
    if not file.is_file():
        raise CheckpointError(
            f'{file} is missing: the settings of the tokenizer, as {{"pth": {{"args": ...}}}}; put the '
            f'"args" of {NAME}.pth there.'
        )
    content = _File(**check_record(_File, read_json(file), file))
    wanted = [name for name in weights.where if name.startswith(("encoder.", "quant_proj.", "quantizer."))]
    tensors = {name: weights.tensor(name) for name in wanted}
    heads = content.architecture_of_this_variant.num_heads
    return _Source(folder / f"{NAME}.safetensors", content.pth.args, heads, tensors)


def _read_pth(path: Path) -> _Source:
    content = _unpickled(path)
    tensors = content["trainer"]["unitok"]
    check_finite_weights(tensors, dict.fromkeys(tensors, path), path)
    return _Source(path, _Args(**check_record(_Args, content["args"], path)), None, tensors)


def _unpickled(path: Path) -> dict[str, Any]:
    """`unitok_tokenizer.pth`, read without running code in it.

    Raises:
        CheckpointError: it holds more than tensors and settings, or something else.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises any exception
        raise CheckpointError(
            f"{path} cannot be read with weights_only=True, which keeps code in it from running: "
            f"{reason_of(error)} Download it again."
        ) from error
    try:
        tensors, _ = content["trainer"]["unitok"], content["args"]
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise TypeError("not all of its tensors are tensors")
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{path} does not hold {{"args", "trainer": {{"unitok"}}}} as {NAME}.pth does; download it again.'
        ) from error
    return content


def _visual(source: _Source) -> VisualTokenizer:
    """The tower with its weights, and the codebook."""
    args = source.args
    if args.quant_proj != "attn" or args.num_query:
        raise CheckpointError(
            f"{source.path}: CRAFT reads UniTok with quant_proj 'attn' and num_query 0, as it is published; "
            f"here they are {args.quant_proj!r} and {args.num_query}."
        )
    heads = source.heads or HEADS.get(args.model)
    if heads is None:
        raise CheckpointError(
            f"{source.path}: the number of attention heads of the model {args.model!r} is unknown; write "
            f"it into {NAME}.json as architecture_of_this_variant.num_heads. Known: {', '.join(HEADS)}."
        )
    backbone, blocks = "encoder.patch_embed.backbone.", "encoder.blocks."
    width = source.tensor("encoder.norm.weight").shape[0]
    stages = [f"{backbone}stages.{stage}." for stage in (0, 1)]
    config = {
        "type": "vitamin",
        "image_size": args.img_size,
        "stem_width": source.tensor(f"{backbone}stem.conv1.weight").shape[0],
        "stage_dims": [source.tensor(f"{stage}0.conv3_1x1.weight").shape[0] for stage in stages],
        "stage_depths": [source.count(stage) for stage in stages],
        "hidden_size": width,
        "num_hidden_layers": source.count(blocks),
        "num_attention_heads": heads,
        "intermediate_size": source.tensor(f"{blocks}0.mlp.w0.weight").shape[0],
        "dim": args.vocab_width,
        "codebooks": args.num_codebooks,
        "projection_inner": source.tensor("quant_proj.mlp.w0.weight").shape[0],
    }
    tower = build_tower(config, source.path)
    state = {name: source.tensor(_file_name(name)) for name in tower.state_dict()}
    load_strict(tower, state, source.path)
    return VisualTokenizer(tower, _codebook(source.tensor, _CODEBOOK, args), aspect="pad-clip-bilinear")


def _codebook(tensor: Any, name: str, args: _Args) -> ResidualCodebook:
    """The codebooks as levels: rows of unit length in their slice, zeros elsewhere."""
    if args.vocab_width % args.num_codebooks:
        raise CheckpointError(
            f"UniTok's settings divide {args.vocab_width} numbers (vocab_width) among {args.num_codebooks} "
            "codebooks (num_codebooks), which is not possible; copy the file again."
        )
    stored = [tensor(name.format(index)) for index in range(args.num_codebooks)]
    width = args.vocab_width // args.num_codebooks
    if any(table.ndim != 2 or table.shape[1] != width for table in stored):
        raise CheckpointError(
            f"UniTok's codebooks have shapes {[list(table.shape) for table in stored]}, and "
            f"{args.num_codebooks} of them with {args.vocab_width} numbers need rows of {width}; the file is "
            "from another model."
        )
    levels = []
    for index, table in enumerate(stored):
        rows = torch.zeros(len(table), args.vocab_width)
        rows[:, index * width : (index + 1) * width] = F.normalize(table.float(), dim=-1)
        levels.append(rows)
    named = {str(index): table for index, table in enumerate(stored)}
    return ResidualCodebook(levels, derived_fingerprint(named, "product", "cosine"))


def _projector(weights: WeightFolder, dim: int) -> SequenceProjector:
    shape = weights.shapes
    attention, mlp = f"{EMBEDDER}attn_projection.", f"{EMBEDDER}mm_projector."
    names = [f"{attention}proj.weight", f"{attention}mlp.w0.weight", f"{mlp}3.weight"]
    missing = [name for name in names if name not in shape]
    if missing:
        raise CheckpointError(f"{weights.folder} lacks tensor {missing[0]}; the checkpoint is incomplete.")
    width, inner, out = (shape[name][0] for name in names)
    projector = SequenceProjector({"type": "unitok", "in": dim, "width": width, "inner": inner, "out": out})
    state = {name: weights.tensor(EMBEDDER + name) for name in projector.state_dict()}
    load_strict(projector, state, weights.folder)
    return projector


def _file_name(name: str) -> str:
    """A tensor name of `VitaminTower` -> the name in the tokenizer file."""
    if name.startswith("quant_proj."):
        return name
    if name.startswith("layers."):
        return "encoder.blocks." + name.removeprefix("layers.")
    if name.startswith(("stem.", "stages.", "pool.")):
        return "encoder.patch_embed.backbone." + name
    return "encoder." + name


def export_unitok(source: LVLM | Artefact, base: str | Path, out: str | Path) -> Path:
    """Write the tokenizer file with an adapted vision tower; everything else in it is copied.

    Args:
        source: an `LVLM`, or a loaded adapted encoder.
        base: the checkpoint that it was adapted from.
        out: the folder to write, completely or not at all: `unitok_tokenizer.safetensors` and its settings.

    Raises:
        CodebookMismatchError: the base has another codebook.
        CheckpointError: the base is no UniTok checkpoint, or holds `out`.
    """
    root, target = Path(base), Path(out)
    mllm = _mllm(root)
    if mllm is None:
        raise CheckpointError(f"{root} is not a UniTok checkpoint: no config.json of {KIND} is there.")
    tokenizer_file = _find(root, mllm)
    own = _visual(tokenizer_file)
    visual = source.visual if isinstance(source, LVLM) else source.apply_to(own)
    tower = visual.vision_tower
    if visual.codebook.fingerprint != own.codebook.fingerprint or not isinstance(tower, VitaminTower):
        raise CodebookMismatchError(
            f"The encoder was adapted for codebook {visual.codebook.fingerprint}, and {root} has codebook "
            f"{own.codebook.fingerprint}; give the checkpoint that the encoder was adapted from."
        )
    refuse_overlap(target, tokenizer_file.path.parent)
    tensors = {_file_name(name): value for name, value in tower.state_dict().items()}
    with atomic_directory(target) as building:
        if tokenizer_file.path.suffix == ".pth":
            content = _unpickled(tokenizer_file.path)
            whole = dict(content["trainer"]["unitok"])
            whole |= {name: value.to(whole[name].dtype).cpu() for name, value in tensors.items()}
            save_tensors(building / f"{NAME}.safetensors", whole)
            settings = {key: value for key, value in content["args"].items() if _is_json(value)}
            write_json(building / f"{NAME}.json", {"pth": {"args": settings}})
        else:
            weights = WeightFolder(tokenizer_file.path.parent, single=tokenizer_file.path.name)
            others = [path.name for path in tokenizer_file.path.parent.iterdir() if path.stem != NAME]
            weights.write(building, tensors, skip=others)
    return target


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
