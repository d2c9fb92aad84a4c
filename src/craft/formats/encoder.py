"""Encoders for `--encoder`: an adapted encoder, a baseline's tuned parts, or a run that has one of them."""

from pathlib import Path

from craft.core.errors import CheckpointError
from craft.core.files import PathLike, read_json, user_path
from craft.formats import artefact, tuned
from craft.formats.artefact import Artefact
from craft.models.lvlm import LVLM


def load_artefact(path: PathLike) -> Artefact:
    """Read an adapted encoder, or a baseline's tuned parts (a `Tuned`), and check it against its manifest.

    Args:
        path: the artefact's folder, or a run folder with `encoder/` or `tuned/`.

    Raises:
        CheckpointError: there is no artefact, the run has not finished, a file is missing or damaged, or the
            weights are not those of the manifest.
    """
    folder = find_artefact(path)
    manifest = read_json(folder / "craft.json")
    if isinstance(manifest, dict) and manifest.get("format") == tuned.FORMAT:
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
