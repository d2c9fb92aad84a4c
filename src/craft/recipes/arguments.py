"""Arguments that every recipe takes: models and data, by name or loaded."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import user_path
from craft.data import Data
from craft.data.load import as_setting
from craft.formats.artefact import Artefact
from craft.formats.load import load
from craft.formats.names import shipped
from craft.models.lvlm import LVLM

ModelSource = str | Path | LVLM
DataSource = str | Path | Data


def model_name(model: ModelSource | None) -> str | None:
    """A model as settings name it."""
    if model is None:
        return None
    return model.name if isinstance(model, LVLM) else str(model)


def data_name(data: DataSource | None) -> str | None:
    """A data set as settings name it."""
    if data is None:
        return None
    return data.name if isinstance(data, Data) else as_setting(data)


def loaded(model: ModelSource, device: str | None = None, dtype: str | None = None) -> LVLM:
    """The LVLM, which is loaded if only its name is known.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return model if isinstance(model, LVLM) else load(model, device, dtype)


def surrogate_of(artefact: Artefact, flag: str = "--model", folders: bool = False) -> str:
    """The LVLM that an encoder was adapted with, if it is a shipped one. CRAFT loads no other by its name in
    a file, and downloads none.

    Args:
        flag: the option that names an LVLM.
        folders: accept a folder on this machine too.

    Raises:
        ConfigError: the user must name it.
    """
    name = artefact.surrogate
    if name in shipped() or (folders and name and user_path(name).is_dir()):
        return name
    known = f" It was adapted with {name}." if name else ""
    raise ConfigError(
        f"The encoder in {artefact.folder} does not come with its model, and CRAFT neither loads nor "
        f"downloads a model because a file names it.{known} Name the model: {flag} MODEL."
    )


def surrogate_name(artefact: Artefact) -> str:
    """The name of the LVLM that an encoder was adapted with, for tables."""
    return str(artefact.manifest.get("surrogate") or "adapted")


def without_none(arguments: Mapping[str, Any], names: Collection[str] | None = None) -> dict[str, Any]:
    """The arguments without those that are None; with names, only these may be dropped."""
    return {
        name: value
        for name, value in arguments.items()
        if value is not None or (names is not None and name not in names)
    }
