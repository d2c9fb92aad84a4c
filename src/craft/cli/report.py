"""`craft report`."""

from pathlib import Path

from craft.cli.options import COMMON, Common
from craft.cli.output import show_json, show_pairs, size


def report(
    *places: Path,
    out: Path = Path("runs/report.html"),
    title: str = "CRAFT report",
    common: Common = COMMON,
) -> None:
    """Put runs, evaluations and results on one HTML page, to send to someone.

    The page needs no other file and fetches nothing: tables, curves and pictures are in it.

    Args:
        places: run folders; what craft eval --out, transfer --out, judge and reproduce wrote; or folders of
            such.
        out: the page.
        title: its heading.
    """
    from craft.core.errors import ConfigError
    from craft.experiments.report import report as write

    if not places:
        raise ConfigError("Name at least one run folder or result, as in `craft report runs/apparel`.")
    written = write(places, out, title)
    count = written.stat().st_size
    if common.json:
        show_json({"page": str(written), "bytes": count})
        return
    show_pairs({"written": written, "size": size(count)})
