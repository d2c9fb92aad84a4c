"""CRAFT's own on-disk layout: a family folder with one visual tokenizer and any number of backbones.

    FAMILY/visual/{config.json, model.safetensors, text_encoder/, README.md[, prior.safetensors]}
    FAMILY/BACKBONE/{craft.json, projector/, llm/, README.md}   (llm/ or what `craft.formats.llm_source` says;
                                                                 projector/ or `craft.formats.table_folder`)

LoRA that acts on prompts with an image only is beside the LLM, in `lora/` ("lora_scope": "image", version 2).

A backbone whose `craft.json` names a vision tower ("tower:…") instead of a codebook is a continuous LVLM: it
reads the features of the family's tower without quantisation. A family with only such backbones needs no
codebook (its visual tokenizer has 0 levels).

Weights keep their dtype on disk (bfloat16 for a new model) through any number of loads and saves. The
codebook is never rounded: it is saved in that dtype only if no value changes, else in float32.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError, CodebookMismatchError, ConfigError
from craft.core.files import PathLike, atomic_directory, read_json, write_json
from craft.core.records import check_record
from craft.core.tensors import hash_tensors, load_tensors, save_tensors
from craft.formats.checks import (
    add_factors,
    build_with,
    cast,
    dtype_named,
    read_manifest,
    stored_dtype,
    under,
)
from craft.formats.llm_source import LORA, load_borrowed, load_tokenizer, quiet, read_llm
from craft.formats.table_folder import load_table, save_table
from craft.formats.visual_folder import (
    VISUAL_FORMAT,
    load_visual,
    millions,
    remember_dtype,
    save_visual,
    visual_tensors,
    write_card,
)
from craft.models.backbone import Backbone
from craft.models.image_lora import has_image_lora, image_factors
from craft.models.llm_bits import refuse_packed
from craft.models.lvlm import LVLM
from craft.models.projector import Projector, ProjectorConfig
from craft.models.prompts import FORMATS
from craft.models.token_table import TokenTable
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize.continuous import TOWER

__all__ = ["NATIVE_FORMAT", "load_native", "load_visual", "save_native", "save_visual"]

NATIVE_FORMAT, VERSION = "craft-native", 1
_SCOPED = 2  # the version of a backbone whose LoRA acts on prompts with an image only
_TRANSIENT = ("is_local", "local_files_only", "name_or_path")  # these describe where it was read from


def save_native(family: PathLike, name: str, lvlm: LVLM, dtype: str | None = None) -> Path:
    """Write an LVLM as backbone `name` of a family; the family's visual tokenizer is written if it is new.

    Args:
        dtype: of all weights on disk; by default the dtype each part was read in, bfloat16 for a new part.

    Returns:
        The backbone's folder.

    Raises:
        CodebookMismatchError: the family has another codebook; the message has both fingerprints.
        CheckpointError: the family has another vision tower, or the LLM is packed in 4 or 8 bits.
    """
    refuse_packed(lvlm.backbone.llm, "cannot be saved")
    if lvlm.backbone.llm.config.model_type == "chameleon":
        raise CheckpointError(
            f"{lvlm.name} cannot be saved in the native layout: transformers reads Chameleon's LLM only with "
            "its VQ model. Keep its own folder; `craft export --format chameleon` writes a tower into a copy."
        )
    family = Path(family)
    if name in ("", "visual") or Path(name).name != name:
        raise CheckpointError(f"{name!r} cannot name a backbone; use one folder name other than 'visual'.")
    if (family / "visual").exists():
        _same_visual(family / "visual", lvlm.visual, dtype)
    else:
        save_visual(family / "visual", lvlm.visual, dtype)
    _save_backbone(family / name, lvlm.backbone, dtype or stored_dtype(lvlm.backbone))
    return family / name


def load_native(
    folder: PathLike,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    llm_bits: int | None = None,
) -> LVLM:
    """Read an LVLM in the native layout.

    Args:
        folder: `FAMILY/BACKBONE`.
        device: "auto" (None), "cpu", "cuda", ...
        dtype: of vision tower, projector and LLM in memory; "auto" (None) is bfloat16 if the device supports
            it, float32 on the CPU.
        llm_bits: as for `craft.load`.

    Returns:
        An `LVLM` in evaluation mode, called `FAMILY/BACKBONE`; `origin` is the folder.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
        CodebookMismatchError: the backbone was made for another codebook than the family's.
        ConfigError: `llm_bits` is set for a backbone that names its LLM, or has LoRA beside it.
    """
    folder, target = Path(folder), resolve_device(device)
    precision = resolve_dtype(dtype, target)
    manifest = read_backbone_manifest(folder)
    if manifest["prompt"] not in FORMATS:
        raise CheckpointError(
            f"{folder / 'craft.json'} names prompt format {manifest['prompt']!r}; "
            f"this version has {', '.join(FORMATS)}."
        )
    scope = manifest.get("lora_scope", "all")
    if llm_bits is not None and ("llm" in manifest or scope == "image"):
        source = manifest.get("llm", folder / "llm")
        raise ConfigError(
            f"llm_bits={llm_bits} packs an LLM while it is read from its folder, but the backbone in "
            f"{folder} takes its LLM from {source} and adds LoRA; leave llm_bits out."
        )
    if scope == "image" and not (folder / LORA).is_file():
        raise CheckpointError(f"{folder} lacks {LORA}, the LoRA of its LLM; copy the whole folder again.")
    visual = load_visual(folder / str(manifest["visual"]), "cpu")
    if str(manifest["codebook"]).startswith(TOWER) and not visual.continuous:
        visual = visual.unquantised()
    visual.vision_tower.to(precision)
    if visual.codebook.fingerprint != manifest["codebook"]:
        source = (folder / str(manifest["visual"])).resolve()
        raise CodebookMismatchError(
            f"The backbone in {folder} was made for codebook {manifest['codebook']}, and the visual "
            f"tokenizer in {source} has codebook {visual.codebook.fingerprint}; "
            "put it back into the folder of its family. (tower:… denotes the features of a vision tower.)"
        )
    borrowed = None
    if "llm" in manifest:
        llm, tokenizer, borrowed = load_borrowed(folder, str(manifest["llm"]), precision, scope)
    else:
        llm = read_llm(folder / "llm", precision, llm_bits, target if llm_bits else None)
        tokenizer = load_tokenizer(folder / "llm")
        if scope == "image":
            add_factors(llm, load_tensors(folder / LORA), folder / LORA, scope)
    if (folder / "table").is_dir():
        reader: Projector | TokenTable = load_table(folder / "table", llm)
    else:
        reader = _load_projector(folder / "projector").to(precision)
    backbone = Backbone(reader, llm, tokenizer, manifest["prompt"], manifest["codebook"], borrowed)
    _check_sizes(folder, reader, visual, backbone.embeddings.weight.shape[1])
    remember_dtype(backbone, manifest["dtype"], folder / "craft.json")
    resolved = folder.resolve()
    return LVLM(visual, backbone, f"{resolved.parent.name}/{resolved.name}", resolved).to(target).eval()


def read_backbone_manifest(folder: Path) -> dict[str, Any]:
    """The `craft.json` of a backbone's folder.

    Raises:
        CheckpointError: as `read_manifest`.
    """
    return read_manifest(folder / "craft.json", NATIVE_FORMAT, _SCOPED, "a backbone")


def _check_sizes(folder: Path, reader: Projector | TokenTable, visual: VisualTokenizer, width: int) -> None:
    """Check that projector or token table fit the codebook and an LLM of this width."""
    codebook = visual.codebook
    if isinstance(reader, TokenTable):
        sizes = (codebook.num_levels, 0 if visual.continuous else visual.need_codes("A token table").size)
        if (reader.levels, reader.size) != sizes:
            raise CheckpointError(
                f"{folder}: the token table has {reader.levels} levels of {reader.size} codes, and the "
                f"codebook has {sizes[0]} of {sizes[1]}; the folders belong to different models."
            )
    elif (reader.config["in"], reader.config["out"]) != (codebook.dim, width):
        raise CheckpointError(
            f"{folder}: the projector maps {reader.config['in']} to {reader.config['out']}, and codebook and "
            f"LLM have widths {codebook.dim} and {width}; the folders belong to different models."
        )


def _same_visual(folder: Path, visual: VisualTokenizer, dtype: str | None) -> None:
    """Check that a family's visual tokenizer on disk is `visual`, on which its other backbones depend."""
    config = read_manifest(folder / "config.json", VISUAL_FORMAT, VERSION, "a visual tokenizer")
    stored = load_tensors(folder / "model.safetensors")
    tensors = visual_tensors(visual, dtype or config["dtype"])
    if visual.continuous:  # a continuous backbone shares only the tower, not the codebook
        stored, tensors = under(stored, "vision_tower."), under(tensors, "vision_tower.")
    elif config["fingerprint"] != visual.codebook.fingerprint:
        raise CodebookMismatchError(
            f"The family in {folder.parent} has codebook {config['fingerprint']}, and this model has "
            f"codebook {visual.codebook.fingerprint}; save it into another folder."
        )
    if hash_tensors(stored) != hash_tensors(tensors):
        raise CheckpointError(
            f"The family in {folder.parent} has another vision tower than this model; save the model into "
            "another folder, or save an adapted vision tower as an adapted encoder."
        )


def _save_backbone(target: Path, backbone: Backbone, dtype: str) -> None:
    precision, scoped = dtype_named(dtype, target), has_image_lora(backbone.llm)
    manifest = {
        "format": NATIVE_FORMAT,
        "version": _SCOPED if scoped else VERSION,
        "visual": "../visual",
        "codebook": backbone.codebook_fingerprint,
        "prompt": backbone.prompt,
        "dtype": dtype,
    }
    borrowed = backbone.borrowed
    lora = cast(image_factors(backbone.llm), precision) if borrowed is None else borrowed.lora
    if borrowed is not None:
        manifest["llm"] = borrowed.name
    if lora:
        manifest["lora_scope"] = "image" if scoped else "all"
    with atomic_directory(target) as building:
        write_json(building / "craft.json", manifest)
        if backbone.projector is None:
            save_table(building / "table", backbone, precision)
        else:
            folder = building / "projector"
            write_json(folder / "config.json", backbone.projector.config)
            save_tensors(folder / "model.safetensors", cast(backbone.projector.state_dict(), precision))
        if borrowed is None:
            _save_llm(building / "llm", backbone.llm, precision)
            _save_tokenizer(building / "llm", backbone.tokenizer)
        if lora:
            save_tensors(building / LORA, lora)
        write_card(target, building, _backbone_card(target, backbone))


def _save_llm(folder: Path, llm: PreTrainedModel, dtype: torch.dtype) -> None:
    """Save config, generation config and weights by transformers, without LoRA; tied weights once."""
    state: dict[str, Tensor] = {}
    apart = image_factors(llm)
    storages: set[tuple[int, torch.Size]] = set()
    for name, tensor in llm.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in storages and name not in apart:
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        storages.add(key)
    with quiet():
        llm.save_pretrained(folder, state_dict=state)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})


def _save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(folder)
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {k: v for k, v in settings.items() if k not in _TRANSIENT})


def _load_projector(folder: Path) -> Projector:
    path, file = folder / "model.safetensors", folder / "config.json"
    make = partial(Projector, check_record(ProjectorConfig, read_json(file), file))
    return build_with(make, cast(load_tensors(path), torch.float32), path)


def _backbone_card(target: Path, backbone: Backbone) -> str:
    name = f"{target.parent.name}/{target.name}"
    kind = backbone.llm.config.model_type
    size = millions(dict(backbone.llm.named_parameters()))
    return (
        f"# {name}\n\nA backbone ({kind}, {size} parameters, prompt format `{backbone.prompt}`) for codebook "
        f"`{backbone.codebook_fingerprint}`.\n\n"
        f'```python\nimport craft\n\nlvlm = craft.load("{name}")\n```\n'
    )
