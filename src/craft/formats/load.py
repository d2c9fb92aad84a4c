"""Models by name, from a folder or from the hub (`craft.load`); adapted encoders and tuned parts."""

import difflib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch

from craft.core.device import resolve_device
from craft.core.errors import CheckpointError, ConfigError
from craft.core.files import PathLike, read_json, user_path
from craft.formats import artefact, tuned
from craft.formats.artefact import Artefact
from craft.formats.checks import format_of
from craft.formats.names import hub_folder, is_hub_id, shipped, shipped_folder
from craft.models.llm_bits import check_bits
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer


def load(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    llm_bits: int | None = None,
    visual: str | Path | None = None,
    scale: int | None = None,
) -> LVLM:
    """Load an LVLM.

    Args:
        name_or_path: a shipped model (`craft.formats.names.shipped()` lists them), a folder in the native,
            VILA-U, Tar, UniTok, Chameleon or LLaVA (transformers) layout, or a hub id `org/name`
            (`org/name/backbone` if a family has several).
        device: "auto" (None), "cpu", "cuda", "mps", ...
        dtype: of the weights in memory: "float32", "bfloat16" or "auto" (None), which is bfloat16 if the
            device supports it. The codebook is always float32.
        llm_bits: 4 or 8 packs the LLM's linear maps in as many bits (bitsandbytes; `craft.models.llm_bits`).
            The LLM is then frozen.
        visual: for Tar's layout, the folder or hub id of the visual tokenizer if it is not near the LLM
            (`craft.formats.tar`).
        scale: for Tar's layout, the side of the squares of patches that become one token: 1, 2 or 3. Both may
            also follow the name, as in `Tar-1.5B?scale=2&visual=csuhan/Tar-7B-v0.1`, so that every command
            takes them.

    Returns:
        The model in evaluation mode.

    Raises:
        CraftError: the name is unknown, the hub cannot be reached, or files are missing or damaged; the
            message says what to do.
        ConfigError: bitsandbytes, the device or the layout does not support `llm_bits`.
    """
    from craft.formats.tar import is_tar, load_tar

    name = str(name_or_path)
    if llm_bits is not None:
        check_bits(llm_bits, resolve_device(device))
    name, options = split_name(name)
    visual, scale = options.get("visual", visual), options.get("scale", scale)
    folder = _folder_of(name)
    if is_tar(folder):
        source = None if visual is None else _folder_of(str(visual))
        return load_tar(folder, device, dtype, llm_bits, source, scale)
    _refuse_options(name, visual, scale)
    return _load_folder(folder, device, dtype, llm_bits)


def _refuse_options(name: str, visual: object, scale: object) -> None:
    if visual is not None or scale is not None:
        raise ConfigError(f"visual and scale are for Tar's layout, and {name} has another; leave them out.")


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """A model's name and the options that follow it: `NAME?scale=2&visual=FOLDER`.

    Raises:
        ConfigError: an option is unknown, or its value cannot be read.
    """
    head, mark, query = name.partition("?")
    if not mark or user_path(name).exists():
        return name, {}
    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    if not options or not options.keys() <= {"scale", "visual"}:
        raise ConfigError(
            f"{name}: after ? a model's name takes scale=NUMBER and visual=FOLDER, joined by &."
        )
    if "scale" in options:
        if not options["scale"].isdecimal() or int(options["scale"]) < 1:
            raise ConfigError(f"{name}: scale is a whole number from 1 on, not {options['scale']!r}.")
        options["scale"] = int(options["scale"])
    return head, options


def _folder_of(name: str) -> Path:
    """The folder of a shipped model, on this machine, or downloaded from the hub."""
    if name in shipped():
        return shipped_folder(name)
    path = user_path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder of the model.")
    if is_hub_id(name):
        return hub_folder(name)
    names = shipped()
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    listed = f" Shipped models: {', '.join(names)}." if names else ""
    raise CheckpointError(
        f"There is no model {name!r}: it is neither a folder nor a shipped model.{hint}{listed}"
    )


def load_visual_tokenizer(
    name_or_path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> VisualTokenizer:
    """Load a visual tokenizer without an LLM.

    Args:
        name_or_path: a shipped family (`craft-tiny`) or backbone, a family's folder or its `visual/`, a
            folder in VILA-U's, Tar's, UniTok's or Chameleon's layout, or a hub id; for Tar, options may
            follow it (`load`).
        device, dtype: as for `load`.

    Raises:
        CraftError: as for `load`.
    """
    from craft.formats.chameleon import is_chameleon, load_chameleon_visual
    from craft.formats.refusals import refuse_continuous, refuse_pickles
    from craft.formats.tar import is_tar, load_tar_visual
    from craft.formats.unitok import is_unitok, load_unitok_visual
    from craft.formats.vila_u import is_vila_u, load_vila_u_visual
    from craft.formats.visual_folder import VISUAL_FORMAT, load_visual

    name, options = split_name(str(name_or_path))
    source, scale = options.get("visual"), options.get("scale")
    first, target = name.split("/")[0], resolve_device(device)
    families = {model.split("/")[0] for model in shipped()}
    path = shipped_folder(first) if first in families else user_path(name)
    if not path.is_dir() and is_hub_id(name):
        path = hub_folder(name)
    if path.is_dir() and is_tar(path):
        return load_tar_visual(path, target, dtype, source and _folder_of(source), scale)
    _refuse_options(name, source, scale)
    if path.is_dir():
        refuse_continuous(path, _config_of(path))
        if is_chameleon(path):
            return load_chameleon_visual(path, target, dtype)
        if is_unitok(path):
            return load_unitok_visual(path, target, dtype)
        if is_vila_u(path):
            return load_vila_u_visual(path, target, dtype)
    for folder in (path, path / "visual", path.parent / "visual"):
        if format_of(folder / "config.json") == VISUAL_FORMAT:
            return load_visual(folder, target, dtype or "auto")
    if path.is_dir():
        refuse_pickles(path)
    raise CheckpointError(
        f"There is no visual tokenizer at {name!r}. Shipped: {', '.join(sorted(families)) or 'none'}; or "
        "give a family's folder (with visual/), or a VILA-U, Tar, UniTok or Chameleon checkpoint."
    )


def _load_folder(
    folder: Path, device: str | torch.device | None, dtype: str | torch.dtype | None, llm_bits: int | None
) -> LVLM:
    """Load a folder in whatever layout it has."""
    from craft.formats.chameleon import is_chameleon, load_chameleon
    from craft.formats.llava import is_llava, load_llava
    from craft.formats.native import load_native
    from craft.formats.refusals import refuse_continuous, refuse_pickles
    from craft.formats.unitok import is_unitok, load_unitok
    from craft.formats.vila_u import is_vila_u, load_vila_u

    if (folder / "craft.json").is_file():
        if format_of(folder / "craft.json") not in (artefact.FORMAT, tuned.FORMAT):
            return load_native(folder, device, dtype, llm_bits)
        raise CheckpointError(
            f"{folder} is an adapted encoder, which needs a backbone: "
            f"craft.load(BACKBONE).with_encoder({str(folder)!r}), or --encoder on the command line."
        )
    if any((folder / name / "craft.json").is_file() for name in ("encoder", "tuned")):
        raise CheckpointError(
            f"{folder} is a run folder, whose adapted encoder needs a backbone: "
            f"craft.load(BACKBONE).with_encoder({str(folder)!r}), or --encoder on the command line."
        )
    refuse_continuous(folder, _config_of(folder))
    if is_llava(folder):
        if llm_bits is not None:
            raise ConfigError(
                f"llm_bits={llm_bits} is for discrete LVLMs, and {folder} is a LLaVA checkpoint; leave "
                "llm_bits out."
            )
        return load_llava(folder, device, dtype)
    if is_chameleon(folder):
        return load_chameleon(folder, device, dtype, llm_bits)
    if is_unitok(folder):
        return load_unitok(folder, device, dtype, llm_bits)
    if "vision_tower_cfg" in _config_of(folder) or is_vila_u(folder):
        return load_vila_u(folder, device, dtype, llm_bits)
    members = sorted(path.parent.name for path in folder.glob("*/craft.json"))
    if len(members) == 1:
        return load_native(folder / members[0], device, dtype, llm_bits)
    if members:
        raise CheckpointError(f"{folder} is a family of models; add one of {', '.join(members)} to the path.")
    refuse_pickles(folder)
    raise CheckpointError(
        f"{folder} holds no model: neither craft.json (native layout), nor VILA-U's llm/, vision_tower/ and "
        "mm_projector/, nor a config.json of Tar, UniTok, Chameleon or LLaVA is there. Shipped models: "
        f"{', '.join(shipped()) or 'none'}."
    )


def _config_of(folder: Path) -> dict[str, Any]:
    """The folder's config.json, or nothing."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return config if isinstance(config, dict) else {}


def load_artefact(path: PathLike) -> Artefact:
    """Read an adapted encoder, or a baseline's tuned parts (a `Tuned`), and check it against its manifest.

    Args:
        path: the artefact's folder, or a run folder with `encoder/` or `tuned/`.

    Raises:
        CheckpointError: there is no artefact, the run has not finished, a file is missing or damaged, or the
            weights are not those of the manifest.
    """
    folder = find_artefact(path)
    if format_of(folder / "craft.json") == tuned.FORMAT:
        return tuned.read_tuned(folder)
    return artefact.read_artefact(folder)


def find_artefact(path: PathLike) -> Path:
    """The artefact's folder, for a run folder or the artefact's folder itself.

    Raises:
        CheckpointError: there is no artefact; the message says what is there instead.
    """
    path = user_path(path)
    for name in ("encoder", "tuned"):
        if (path / name / "craft.json").is_file():
            return path / name
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; give a run folder of `craft adapt`, or its encoder/ folder."
        )
    if (path / "run.json").is_file() or (path / "checkpoints").is_dir():
        raise CheckpointError(
            f"The run in {path} has not finished: it has no encoder/ or tuned/ yet. Run the same `craft "
            "adapt` or `craft baseline` again with --resume."
        )
    if not (path / "craft.json").is_file():
        raise CheckpointError(
            f"{path} is not an adapted encoder: it has no craft.json. Give a run folder of `craft adapt`."
        )
    return path


LVLM.read_encoder = staticmethod(load_artefact)
