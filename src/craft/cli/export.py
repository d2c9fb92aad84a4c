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
    format: Literal["vila-u", "tar", "chameleon", "unitok"] = "vila-u",
    common: Common = COMMON,
) -> None:
    """Write an adapted encoder in the file layout of another program.

    Args:
        encoder: a run folder of `craft adapt`, or its encoder/.
        base: the checkpoint that was adapted, or another of its codebook; CRAFT copies from it everything
            that it did not train.
        out: the folder to write. For vila-u, OUT/vision_tower/ replaces the folder of that name in the
            checkpoint; for tar, OUT is the LLM's folder if its shards hold TA-Tok, else OUT/TA-Tok/ is
            written; for chameleon, OUT is a copy of the checkpoint; for unitok, OUT holds the tokenizer file.
        format: the layout to write.
    """
    from craft.formats.chameleon import export_chameleon
    from craft.formats.load import load_artefact
    from craft.formats.tar import export_tar
    from craft.formats.unitok import export_unitok
    from craft.formats.vila_u import export_vision_tower

    writers = {
        "vila-u": export_vision_tower,
        "tar": export_tar,
        "chameleon": export_chameleon,
        "unitok": export_unitok,
    }
    write = writers[format]
    with locked(out):
        written = write(load_artefact(encoder), base, out)
    if common.json:
        show_json({"format": format, "written": str(written)})
        return
    show_line(f"written: {written}")
    if format == "vila-u":
        show_line(f"To use it, replace {base / 'vision_tower'} with it in a copy of the checkpoint.")
