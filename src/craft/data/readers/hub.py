"""Data sets of the Hugging Face hub: `craft data prepare hub:OWNER/NAME` alone downloads them."""

import glob
from pathlib import Path

from craft.core.errors import DataError
from craft.data.images import PICTURES, refuse_unreadable
from craft.data.readers.packed import configurations_of
from craft.data.readers.tables import TABLES, TAR
from craft.data.splits import LEFT_OUT, SPLIT_NAMES, SplitNames, file_splits

HUB = "hub:"
"""The prefix of a hub data set: `hub:OWNER/NAME`, or `hub:OWNER/NAME/CONFIGURATION`."""

_ROWS = (*TABLES, TAR)
_DATA = (*_ROWS, *sorted(PICTURES))


def hub_folder(name: str, names: SplitNames = SPLIT_NAMES) -> Path:
    """Download a data set of the hub (or find it in the local cache) and return its folder.

    CRAFT reads the files of the data set: parquet files if it has any, else all images, tables and tars.
    With HF_HUB_OFFLINE=1, CRAFT uses the cache only.

    Args:
        name: `hub:OWNER/NAME`, `hub:OWNER/NAME@REVISION`, or either followed by `/CONFIGURATION`.
        names: what the names of splits mean; splits that are not to be read are not downloaded.

    Raises:
        DataError: no such data set; it has several configurations, or splits with unknown names (before the
            download); it is private; it is a loading script without data files; it contains images that this
            installation cannot open; no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    parts = name.removeprefix(HUB).split("/")
    if len(parts) < 2 or not all(parts):
        raise DataError(f"'{name}' does not name a hub data set. Write {HUB}OWNER/NAME.")
    repository, _, revision = parts[1].partition("@")
    id, configuration = f"{parts[0]}/{repository}", "/".join(parts[2:])
    try:
        patterns = _patterns(id, revision or None, configuration, names)
        folder = snapshot_download(
            id, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except DataError:
        raise
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"the hub data set {id} is not in the local cache, and the hub cannot be reached. "
            "Download it on a machine with a network and use its folder."
        ) from error
    except HfHubHTTPError as error:
        raise DataError(f"the hub refused the data set {id}: {' '.join(str(error).split())}") from error
    except HFValidationError as error:
        raise DataError(f"'{id}' cannot be a data set of the hub: {error}") from error
    except Exception as error:  # no network; each version of the hub's client has its own HTTP library
        raise DataError(f"the hub cannot be reached for {id}: {error}. Use a local folder.") from error
    root = Path(folder)
    refuse_script(id, [path.relative_to(root).as_posix() for path in root.rglob("*")])
    return root / configuration if configuration else root


def _patterns(id: str, revision: str | None, configuration: str, names: SplitNames) -> list[str] | None:
    """What to download; None (everything) if the network is switched off and only the cache counts."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    files = HfApi().list_repo_files(id, repo_type="dataset", revision=revision)
    refuse_script(id, files)
    if packed := [Path(file) for file in files if file.lower().endswith(".parquet")]:
        return [*_parquet(id, packed, configuration, names), "README.md"]
    if not any(f.lower().endswith(_ROWS) for f in files):  # else rows name the images
        refuse_unreadable(f"the hub data set {id}", _in_folders(files, configuration))
    prefix = f"{configuration}/*" if configuration else "*"
    endings = (ending for kind in _DATA for ending in (kind, kind.upper()))
    return [f"{prefix}{ending}" for ending in endings] + ["README.md"]


def _parquet(id: str, files: list[Path], configuration: str, names: SplitNames) -> list[str]:
    """Patterns for the parquet files of a configuration, without splits that are not to be read.

    Raises:
        DataError: there are several configurations and none is named, or splits have unknown names.
    """
    top = Path(configuration)
    groups = configurations_of([path for path in files if path.is_relative_to(top)], top)
    if len(groups) > 1:
        raise DataError(
            f"the hub data set {id} has several configurations: "
            f"{', '.join(name or '.' for name in sorted(groups))}. Name one of them: "
            f"{HUB}{id}/{sorted(groups)[-1]}."
        )
    splits = [file_splits(group, top, names) for group in groups.values()]
    read = (path for group in splits for path, split in group.items() if split != LEFT_OUT)
    return [glob.escape(path.as_posix()) for path in read]


def _in_folders(files: list[str], configuration: str) -> list[str]:
    """The files in class folders: neither hidden nor next to the class folders (a logo)."""
    start = f"{configuration}/" if configuration else ""
    inside = [file for file in files if file.startswith(start) and "/" in file.removeprefix(start)]
    return [file for file in inside if not any(part.startswith(".") for part in file.split("/"))]


def refuse_script(id: str, files: list[str]) -> None:
    """Refuse a data set that is a script.

    Raises:
        DataError: there is a loading script, and nothing that CRAFT can read.
    """
    script = f"{id.rpartition('/')[2]}.py"
    if script in files and not any(file.lower().endswith(_DATA) for file in files):
        raise DataError(
            f"the hub data set {id} is a loading script ({script}) without data files, and CRAFT runs no "
            "scripts. Use a copy in parquet format, or the original files."
        )
