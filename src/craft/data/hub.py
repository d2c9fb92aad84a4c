"""Data sets on the Hugging Face hub: fetched when named as `hub:OWNER/NAME`, never otherwise."""

from pathlib import Path

from craft.core.errors import DataError
from craft.data.images import PICTURES, refuse_unreadable
from craft.data.tables import TABLES

HUB = "hub:"
"""What a place on the hub begins with: `hub:OWNER/NAME`, or `hub:OWNER/NAME/CONFIGURATION`."""

_DATA = (*TABLES, *sorted(PICTURES))


def hub_folder(place: str) -> Path:
    """Download a data set of the hub (or find it in the local cache) and return its folder.

    The data set is read from its files: parquet files where it has any, else all pictures, tables and tars.
    With HF_HUB_OFFLINE=1 only the cache is looked into.

    Args:
        place: `hub:OWNER/NAME`, `hub:OWNER/NAME@REVISION`, or either with `/CONFIGURATION` behind it.

    Raises:
        DataError: no such data set; it is private; it is a loading script without data files; it holds
            pictures that cannot be opened here; no network.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    parts = place.removeprefix(HUB).split("/")
    if len(parts) < 2 or not all(parts):
        raise DataError(f"'{place}' is not a place on the hub. Write {HUB}OWNER/NAME.")
    name, _, revision = parts[1].partition("@")
    id, below = f"{parts[0]}/{name}", "/".join(parts[2:])
    within = f"{below}/*" if below else "*"
    try:
        patterns = None
        if not constants.HF_HUB_OFFLINE:
            files = HfApi().list_repo_files(id, repo_type="dataset", revision=revision or None)
            check_files(id, files)
            kinds = (".parquet",) if any(f.endswith(".parquet") for f in files) else _DATA
            if not any(f.lower().endswith(TABLES) for f in files):  # else rows name the pictures
                refuse_unreadable(f"the hub data set {id}", _in_folders(files, below))
            endings = (ending for kind in kinds for ending in (kind, kind.upper()))
            patterns = [f"{within}{ending}" for ending in endings] + ["README.md"]
        folder = snapshot_download(
            id, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except DataError:
        raise
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"the hub data set {id} is not in the local cache, and the hub cannot be reached. "
            "Download it on a machine with a network and give its folder."
        ) from error
    except HfHubHTTPError as error:
        raise DataError(f"the hub refused the data set {id}: {' '.join(str(error).split())}") from error
    except HFValidationError as error:
        raise DataError(f"'{id}' cannot be a data set of the hub: {error}") from error
    except Exception as error:  # without a network; the hub's HTTP library is another in every version
        raise DataError(f"the hub cannot be reached for {id}: {error}. Give a local folder.") from error
    root = Path(folder)
    check_files(id, [path.relative_to(root).as_posix() for path in root.rglob("*")])
    return root / below if below else root


def _in_folders(files: list[str], below: str) -> list[str]:
    """The files in class folders: not hidden, nor beside them (a logo)."""
    start = f"{below}/" if below else ""
    inside = [file for file in files if file.startswith(start) and "/" in file.removeprefix(start)]
    return [file for file in inside if not any(part.startswith(".") for part in file.split("/"))]


def check_files(id: str, files: list[str]) -> None:
    """Refuse a data set that is a script.

    Raises:
        DataError: there is a loading script, and nothing that can be read.
    """
    script = f"{id.rpartition('/')[2]}.py"
    if script in files and not any(file.lower().endswith(_DATA) for file in files):
        raise DataError(
            f"the hub data set {id} is a loading script ({script}) without data files, and scripts are not "
            "run. Use a copy stored as parquet, or the original files."
        )
