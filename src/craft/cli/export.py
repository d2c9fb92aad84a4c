"""`craft export`."""

from pathlib import Path
from typing import Literal

from craft.cli.options import COMMON, Common
from craft.cli.output import show_json


def export(
    encoder: Path,
    *,
    base: Path,
    out: Path,
    format: Literal["vila-u"] = "vila-u",
    common: Common = COMMON,
) -> None:
    """Write an adapted encoder in the layout of another program.

    Args:
        encoder: a run folder of `craft adapt`, or its encoder/.
        base: the VILA-U checkpoint that it was adapted from; what CRAFT does not touch is copied from it.
        out: a folder; OUT/vision_tower/ drops into the checkpoint in place of its own.
        format: which layout.
    """
    from craft.formats.encoder import load_artefact
    from craft.formats.vila_u import export_vision_tower

    written = export_vision_tower(load_artefact(encoder), base, out)
    if common.json:
        show_json({"format": format, "written": str(written)})
        return
    print(f"written: {written}")
    print(f"To use it, put it in place of {base / 'vision_tower'} in a copy of the checkpoint.")
