"""Tar's layout: an LLM's folder, whose vocabulary has a token for each code, and TA-Tok (arXiv 2506.18898).

TA-Tok's tensors are in the LLM's own shards (`model.vision_tower.vision_tower.*`), or in
`TA-Tok/ta_tok.safetensors` beside or inside the LLM's folder, with the settings in `ta_tok.json`.
"""

from pathlib import Path
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.files import atomic_directory, read_json
from craft.core.records import Record, Size, check_record
from craft.formats.artefact import Artefact
from craft.formats.checks import load_strict
from craft.formats.llm_source import load_tokenizer, read_llm
from craft.formats.vila_u import siglip_vision_config
from craft.formats.weight_folder import WeightFolder, refuse_overlap
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.ta_tok import TaTokTower
from craft.models.token_table import TokenTable
from craft.models.towers import build_tower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook, derived_fingerprint

INSIDE = "model.vision_tower.vision_tower."
"""Names of TA-Tok's tensors in an LLM's shards begin so."""

TENSORS, SETTINGS, CONFIG = "ta_tok.safetensors", "ta_tok.json", "siglip2_config"
_SIMVQ = "bottleneck.regularizer."
_CODEBOOK = ("embedding.weight", "embedding_proj.weight", "embedding_proj.bias")
_OURS = {"encode_task_layer.0.": "task_layer.", "bottleneck.in_linear.": "in_linear."}
"""What names of the linear maps begin with in TA-Tok, and here."""

_FETCH = (
    "Download TA-Tok without a pickle from the shards of csuhan/Tar-7B-v0.1 and name that folder after the "
    "model's, NAME?visual=FOLDER; or convert ta_tok.pth yourself: "
    "python scripts/convert_ta_tok.py ta_tok.pth TA-Tok."
)


class _Llm(Record):
    image_start_token_id: int = Field(ge=0)
    num_image_tokens: Annotated[int, Field(ge=1, le=2**24)]


class _Quantiser(Record):
    l2_normalized: bool = True


class _Regularizer(Record):
    name: str = "simvq"
    args: _Quantiser = _Quantiser()


class _BottleneckArgs(Record):
    norm: str = "none"
    regularizer: _Regularizer = _Regularizer()


class _Bottleneck(Record):
    args: _BottleneckArgs = _BottleneckArgs()


class _Args(Record):
    bottleneck: _Bottleneck = _Bottleneck()
    input_size: Size | None = None
    teacher: str | None = None
    pool_scale: int = Field(default=1, ge=1, le=16)
    select_layer_id: int = -2


class _Model(Record):
    args: _Args = _Args()


class _Settings(Record):
    model: _Model = _Model()


def is_tar(folder: Path) -> bool:
    """Whether a folder has the config.json of a Tar LLM."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and {"image_start_token_id", "num_image_tokens"} <= config.keys()


def load_tar(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    llm_bits: int | None = None,
    visual: str | Path | None = None,
    scale: int | None = None,
) -> LVLM:
    """Load a Tar checkpoint.

    Args:
        folder: the LLM's folder.
        device, dtype, llm_bits: as for `craft.load`.
        visual: a folder with TA-Tok: `ta_tok.safetensors`, or a Tar LLM whose shards hold it. None looks into
            the LLM's shards, then into `TA-Tok/` inside and beside the folder.
        scale: the side of the squares of patches that become one token (1, 2 or 3 in Tar); None is what
            TA-Tok's settings say.

    Returns:
        An `LVLM` in evaluation mode; `origin` is the folder.

    Raises:
        CheckpointError: TA-Tok is not there, or only as a pickle file; tensors are missing or damaged; the
            numbers of codes of LLM and TA-Tok differ.

    Source: the layout of csuhan/Tar.
    """
    root = Path(folder)
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    tokenizer, first = _load_checked(root, visual, scale)
    llm = read_llm(root, precision, llm_bits, target if llm_bits else None, shared=True)
    table = TokenTable.consecutive(first, 1, tokenizer.need_codes("A Tar LLM").size)
    text = load_tokenizer(root, literal=False)
    backbone = Backbone(table, llm, text, "tar", tokenizer.codebook.fingerprint)
    tokenizer.vision_tower.to(precision)
    lvlm = LVLM(tokenizer, backbone, root.name or str(root), origin=root.resolve())
    return lvlm.to(target).eval()


def load_tar_visual(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    visual: str | Path | None = None,
    scale: int | None = None,
) -> VisualTokenizer:
    """TA-Tok of a Tar checkpoint, without its LLM; the arguments are those of `load_tar`.

    Raises:
        CheckpointError: as for `load_tar`.
    """
    target = resolve_device(device)
    tokenizer, _ = _load_checked(Path(folder), visual, scale)
    tokenizer.vision_tower.to(resolve_dtype(dtype, target))
    return tokenizer.to(target).eval()


def _load_checked(root: Path, visual: str | Path | None, scale: int | None) -> tuple[VisualTokenizer, int]:
    """TA-Tok, which has as many codewords as the LLM has image tokens, and the id of the first of these."""
    config = check_record(_Llm, read_json(root / "config.json"), root / "config.json")
    source = _find(root, None if visual is None else Path(visual))
    tokenizer = _load_visual(source, root, scale)
    size = tokenizer.need_codes("A Tar LLM").size
    if size != config["num_image_tokens"]:
        raise CheckpointError(
            f"{root / 'config.json'} counts {config['num_image_tokens']} image tokens, and TA-Tok in "
            f"{source.weights.folder} has {size} codewords; the two do not belong together."
        )
    return tokenizer, config["image_start_token_id"]


class _Source:
    """Where TA-Tok's tensors are: a weight folder, and what their names begin with in it."""

    def __init__(self, weights: WeightFolder, prefix: str = "") -> None:
        self.weights = weights
        self.prefix = prefix

    def tensor(self, name: str) -> Tensor:
        return self.weights.tensor(self.prefix + name)


def _find(root: Path, visual: Path | None) -> _Source:
    """TA-Tok, from the folder `visual`, or from where it may be near an LLM's folder.

    Raises:
        CheckpointError: it is not there.
    """
    folders = (
        [root, root / "TA-Tok", root.parent / "TA-Tok"] if visual is None else [visual, visual / "TA-Tok"]
    )
    for folder in folders:
        if (folder / TENSORS).is_file():
            return _Source(WeightFolder(folder, single=TENSORS))
        if (folder / "config.json").is_file() and is_tar(folder):
            weights = WeightFolder(folder)
            if any(name.startswith(INSIDE) for name in weights.where):
                return _Source(weights, INSIDE)
    pickles = [folder / "ta_tok.pth" for folder in folders if (folder / "ta_tok.pth").is_file()]
    if pickles:
        raise CheckpointError(
            f"{pickles[0]} is a pickle file, which CRAFT does not open because it can run code. {_FETCH}"
        )
    looked = ", ".join(str(folder) for folder in folders)
    raise CheckpointError(
        f"{root} is a Tar LLM, and TA-Tok, its visual tokenizer, is neither in its shards nor in {looked} "
        f"({TENSORS}). {_FETCH}"
    )


def _load_visual(source: _Source, root: Path, scale: int | None) -> VisualTokenizer:
    weights = source.weights
    settings, where = _settings(root, weights.folder)
    bottleneck = settings.bottleneck.args
    quantiser = bottleneck.regularizer
    kind = (settings.select_layer_id, bottleneck.norm, quantiser.name, quantiser.args.l2_normalized)
    if kind != (-2, "none", "simvq", True):
        raise CheckpointError(
            f"{where}: CRAFT reads TA-Tok with select_layer_id, norm, quantiser and l2_normalized as "
            f"published, which is (-2, 'none', 'simvq', True); here they are {kind}."
        )
    home, teacher = _teacher(settings.teacher, (weights.folder, weights.folder.parent, root, root.parent))
    siglip = siglip_vision_config(weights, f"{source.prefix}encoder.", home, teacher)
    size, patch = settings.input_size, siglip["patch_size"]
    if size is not None and size // patch == siglip["image_size"] // patch:
        siglip["image_size"] = size  # the patch embedding ignores what fills no patch
    config = {
        **siglip,
        "type": "ta-tok",
        "dim": weights.shapes.get(f"{source.prefix}bottleneck.in_linear.weight", (0,))[0],
        "scale": settings.pool_scale if scale is None else scale,
    }
    tower = cast(TaTokTower, build_tower(config, weights.folder))
    if not 1 <= tower.scale <= tower.side:
        raise CheckpointError(
            f"scale={tower.scale} averages more patches than the {tower.side} per side of this vision tower; "
            "Tar has 1, 2 and 3."
        )
    state = {name: source.tensor(_file_name(name)) for name in tower.state_dict() if name != "cls_token"}
    load_strict(tower, {**state, "cls_token": tower.cls_token.detach()}, weights.folder)
    return VisualTokenizer(tower, _codebook(source))


def _codebook(source: _Source) -> ResidualCodebook:
    """`normalize(E Wᵀ + b)`, derived once in float32 from whatever dtype is stored."""
    stored = {name: source.tensor(_SIMVQ + name) for name in _CODEBOOK}
    embedding, weight, bias = (stored[name].float() for name in _CODEBOOK)
    if embedding.ndim != 2 or weight.shape != (embedding.shape[1],) * 2 or bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"{source.weights.folder}: the shapes of TA-Tok's embedding {list(embedding.shape)} and of its "
            f"projection {list(weight.shape)} do not fit each other; copy it again."
        )
    codewords = F.normalize(F.linear(embedding, weight, bias), dim=-1)
    return ResidualCodebook(codewords[None], derived_fingerprint(stored, "simvq", "cosine"))


def _file_name(name: str) -> str:
    """A tensor name of `TaTokTower` -> the name in TA-Tok."""
    for theirs, ours in _OURS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return "encoder." + (f"encoder.{name}" if name.startswith("layers.") else name)


def _settings(root: Path, folder: Path) -> tuple[_Args, Path]:
    """TA-Tok's arguments, and the file that they are from; the published ones if there is none."""
    beside = (path / "TA-Tok" for path in (folder, folder.parent, root, root.parent))
    for near in (folder, *beside):
        file = near / SETTINGS
        if file.is_file():
            return _Settings(**check_record(_Settings, read_json(file), file)).model.args, file
    return _Args(), folder


def _teacher(name: str | None, folders: tuple[Path, ...]) -> tuple[Path, str | None]:
    """The folder that holds the folder of SigLIP's config, and that folder's name; or None.

    Args:
        name: the teacher in TA-Tok's settings, if they name one; `siglip2_config` is looked for too.
        folders: where to look.
    """
    for candidate in (name, CONFIG):
        for folder in folders:
            if candidate is not None and (folder / candidate / "config.json").is_file():
                return folder, candidate
    return folders[0], None


def export_tar(source: LVLM | Artefact, base: str | Path, out: str | Path) -> Path:
    """Write TA-Tok with an adapted vision tower, in the place and dtype that the checkpoint has it.

    Everything else is copied byte for byte: the LLM's folder if TA-Tok is in its shards, else `TA-Tok/`.

    Args:
        source: an `LVLM`, or a loaded adapted encoder.
        base: the LLM's folder that it was adapted from.
        out: the folder to write, completely or not at all; it holds TA-Tok afterwards.

    Returns:
        The written folder: `out`, or `out/TA-Tok`.

    Raises:
        CodebookMismatchError: the base has another codebook.
        CheckpointError: the base is no Tar checkpoint, the tower is not TA-Tok's, or folders overlap.
    """
    root = Path(base)
    if not is_tar(root):
        raise CheckpointError(f"{root} is not a Tar checkpoint: its config.json has no image tokens.")
    ta_tok = _find(root, None)
    adapted = (
        source.visual.vision_tower.config if isinstance(source, LVLM) else source.manifest["vision_tower"]
    )
    own = _load_visual(ta_tok, root, adapted.get("scale"))  # no weight depends on the scale
    visual = source.visual if isinstance(source, LVLM) else source.apply_to(own)
    if visual.codebook.fingerprint != own.codebook.fingerprint:
        raise CodebookMismatchError(
            f"The encoder was adapted for codebook {visual.codebook.fingerprint}, and {root} has codebook "
            f"{own.codebook.fingerprint}; give the checkpoint that the encoder was adapted from."
        )
    if not isinstance(visual.vision_tower, TaTokTower):
        raise CheckpointError(
            f"A {type(visual.vision_tower).__name__} cannot be written in Tar's layout, which holds TA-Tok's."
        )
    folder = ta_tok.weights.folder
    target = Path(out) if ta_tok.prefix else Path(out) / "TA-Tok"
    refuse_overlap(target, folder)
    state = visual.vision_tower.state_dict()
    tensors = {ta_tok.prefix + _file_name(name): state[name] for name in state if name != "cls_token"}
    with atomic_directory(target) as building:
        ta_tok.weights.write(building, tensors)
    return target
