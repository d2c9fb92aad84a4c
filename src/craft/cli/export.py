"""`craft export`."""

from pathlib import Path
from typing import Literal

from craft.cli.options import COMMON, Common
from craft.cli.output import show_json, show_line
from craft.core.lock import locked


def export(
    encoder: Path,
    *,
    base: Path,
    out: Path,
    format: Literal["vila-u"] = "vila-u",
    common: Common = COMMON,
) -> None:
    """Write an adapted encoder in the file layout of another program.

    Args:
        encoder: a run folder of `craft adapt`, or its encoder/.
        base: the VILA-U checkpoint that was adapted; CRAFT copies from it everything that it did not train.
        out: the folder to write; OUT/vision_tower/ replaces the folder of that name in the checkpoint.
        format: the layout to write.
    """
    from craft.formats.load import load_artefact
    from craft.formats.vila_u import export_vision_tower

    with locked(out):
        written = export_vision_tower(load_artefact(encoder), base, out)
    if common.json:
        show_json({"format": format, "written": str(written)})
        return
    show_line(f"written: {written}")
    show_line(f"To use it, replace {base / 'vision_tower'} with it in a copy of the checkpoint.")
