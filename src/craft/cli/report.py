"""`craft report`."""

from pathlib import Path

from craft.cli.options import COMMON, Common
from craft.cli.output import show_json, show_pairs, size
from craft.core.errors import ConfigError


def report(
    *paths: Path,
    out: Path = Path("runs/report.html"),
    title: str = "CRAFT report",
    common: Common = COMMON,
) -> None:
    """Write runs, evaluations and results as one HTML page that you can send to someone.

    Tables, curves and images are in the page: it needs no other file and fetches nothing.

    Args:
        paths: run folders; what craft demo, craft eval --out, craft transfer --out, craft judge and python -m
            paper wrote; or folders with these.
        out: the page.
        title: its heading.
    """
    if not paths:
        raise ConfigError("Name at least one run folder or result, as in `craft report runs/apparel`.")
    from craft.pages.report import report as write

    written = write(paths, out, title)
    count = written.stat().st_size
    if common.json:
        show_json({"page": str(written), "bytes": count})
        return
    show_pairs({"written": written, "size": size(count)})
