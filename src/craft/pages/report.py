"""`craft report`: runs, evaluations and results on one HTML page that refers to no other file.

CRAFT reads only regular files inside the reported folders, draws PNG files anew, and escapes all text.
"""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

from craft.core.errors import CheckpointError, DataError
from craft.core.files import atomic_write_text, check_writable, read_json
from craft.core.provenance import machine
from craft.core.text import flat, percent
from craft.data import open_image
from craft.data.images import lazy_image
from craft.judging.answers import read_rows
from craft.judging.cases import BINARY, DIMENSIONS
from craft.pages.figure import draw_curves
from craft.pages.matrix import matrix_page
from craft.pages.reliability import draw_reliability
from craft.training.run_folder import RunFolder

ANSWERS, EDGE = 40, 216  # judged answers that are listed; longest side of their images in pixels
LARGEST = 256 * 2**20  # bytes of a file that is read
SIGNATURE = b"\x89PNG\r\n\x1a\n"
DAMAGE = (TemplateError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
Record = Mapping[str, Any]


class ReportSection(NamedTuple):
    """One run or result: heading, kind in a word, and HTML."""

    title: str
    kind: str
    body: Markup


def report(paths: Sequence[str | Path], out: str | Path, title: str = "CRAFT report") -> Path:
    """Write one page with all runs and results in some paths.

    Args:
        paths: run folders; what `craft demo`, `craft eval --out`, `craft transfer --out`, `craft judge` and
            `python -m paper` wrote (files or folders); or folders with such folders.

    Raises:
        DataError: a path does not exist or holds nothing of these kinds, or a PNG file is damaged.
        CheckpointError: a file is damaged.
        ConfigError: the page cannot be written.
    """
    check_writable(out)
    sections: list[ReportSection] = []
    for path in paths:
        added = sections_of(Path(os.path.abspath(path)))  # "." has a name too
        if not added:
            raise DataError(
                f"{path} holds nothing to report. Give a run folder, or what craft demo, eval --out, "
                "transfer --out, judge or python -m paper wrote."
            )
        sections += added
    about = "craft {craft-vlm}, torch {torch}".format_map(machine()["versions"])
    page = VIEWS.page(title, about, sections).encode(
        "utf-8", "backslashreplace"
    )  # JSON may have half characters
    atomic_write_text(out, page.decode("utf-8"))
    return Path(out)


def sections_of(path: Path, below: bool = True) -> list[ReportSection]:
    """One section for each run or result in a file or folder and, with `below`, in the folders inside.

    Raises:
        DataError: the path does not exist or is neither a file nor a folder, or a PNG file is damaged.
        CheckpointError: a file is damaged, or far larger than a result.
    """
    if not path.exists():
        raise DataError(f"There is nothing at {path}; check the path.")
    if not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is neither a file nor a folder, so CRAFT does not read it. Check the path.")
    folders: list[Path] = []
    if path.is_file():
        results = [path.resolve()] if path.suffix == ".json" else []
    elif _files(path, "run.json"):
        results = _files(path, "run.json", "stage-*/run.json", "judge/*/report-*.json")
    else:
        results = _files(path, "*.json")
        folders = [one for one in sorted(path.iterdir()) if below and one.is_dir() and _inside(one, path)]
    sections = [section for result in results if (section := _section(result))]
    return sections + [section for folder in folders for section in sections_of(folder, below=False)]


def _section(path: Path) -> ReportSection | None:
    """The section about a JSON file; None if it is neither a run nor a result."""
    _check_size(path)
    record = read_json(path)
    keys = {path.name, *record} if isinstance(record, dict) else set()
    make = next((make for needed, make in KINDS if needed <= keys), None)
    try:
        return make(record, path) if make else None
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); make it again.") from error


def _files(folder: Path, *patterns: str) -> list[Path]:
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [path for path in paths if _regular(path, folder)]


def _regular(path: Path, folder: Path) -> bool:
    """Whether this is a file of the folder: no device or pipe, no link that leads outside."""
    try:
        return path.is_file() and _inside(path, folder)
    except (OSError, ValueError):  # a name that no file can have
        return False


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _check_size(path: Path) -> None:
    if path.stat().st_size > LARGEST:
        raise CheckpointError(
            f"{path} has {path.stat().st_size >> 20} MiB, far more than a result. Move it out of the folder."
        )


def _text(folder: Path, name: str) -> bool:
    """Whether the folder has this text file."""
    path = folder / name
    if regular := _regular(path, folder):
        _check_size(path)
    return regular


def _run(record: Record, path: Path) -> ReportSection:
    lines = RunFolder(path.parent).metrics() if _text(path.parent, "metrics.jsonl") else []
    png, about = draw_curves(lines)
    settings = sorted(flat(record.get("config") or {}).items())
    return ReportSection(path.parent.name, "training", VIEWS.training(record, settings, _img(png, about)))


def _demo(record: Record, path: Path) -> ReportSection:
    figure = _picture(path.parent, "demo.png", "answers before and after, changed patches, losses")
    return ReportSection(f"Demo on {record['data']}", "demo", VIEWS.demo(record, figure))


def _evaluation(record: Record, path: Path) -> ReportSection:
    settings = record["reports"][0]["settings"]
    title = f"{settings.get('backbone')} on {settings.get('data')}"
    diagrams = [
        _img(*draw_reliability(one["calibration"])) for one in record["reports"] if "calibration" in one
    ]
    return ReportSection(title, "evaluation", VIEWS.evaluation(record, settings, diagrams))


def _judged(record: Record, path: Path) -> ReportSection:
    folder = path.parent
    rows = read_rows(folder / "answers.jsonl")[:ANSWERS] if _text(folder, "answers.jsonl") else []
    names = {row["id"]: str(row.get("image") or "") for row in rows}
    pictures = {row: _picture(folder, name, "the picture", EDGE) for row, name in names.items()}
    answers = record["settings"].get("answers") or {}
    body = VIEWS.judged(record, answers, record["samples"][:ANSWERS], pictures)
    return ReportSection(f"{answers.get('backbone') or folder.name}, judged", "judge", body)


def _transfer(record: Record, path: Path) -> ReportSection:
    heat_map = _picture(path.parent, f"{path.stem}.png", "the matrix as a heat map")
    page = _markdown(matrix_page(record).partition("\n")[2], path.parent)
    return ReportSection("Transfer matrix", "transfer", heat_map + page)


def _experiment(record: Record, path: Path) -> ReportSection:
    page = path.with_suffix(".md")
    if not _text(path.parent, page.name):
        raise LookupError(f"its page {page.name} is missing")
    title, text = page.read_text(encoding="utf-8").split("\n", 1)
    return ReportSection(title.removeprefix("# "), "experiment", _markdown(text, path.parent))


def _picture(folder: Path, name: str, about: str, edge: int | None = None) -> Markup:
    """The pixels of a PNG file of a folder; nothing if it is missing, outside or something else."""
    path, stream = folder / name, io.BytesIO()
    if not _regular(path, folder) or not _starts_as_png(path):
        return Markup()
    _check_size(path)
    try:
        with open_image(str(path)) if edge else lazy_image(path) as image:
            if edge:
                image.thumbnail((edge, edge))
            image.save(stream, format="PNG")  # without texts, and without what follows the image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a complete PNG ({error}). Remove it, or make it again.") from error
    return _img(stream.getvalue(), about, "small" if edge else "whole")


def _starts_as_png(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def _img(png: bytes, about: str, size: str = "whole") -> Markup:
    html = Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">')
    return html.format(size, about, base64.b64encode(png).decode()) if png else Markup()


def _markdown(text: str, folder: Path) -> Markup:
    """Headings are one level lower, links are text, and images of the folder are embedded."""
    tokens = MARKDOWN.parse(text.replace("\0", ""))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
    return Markup(MARKDOWN.renderer.render(tokens, MARKDOWN.options, {"folder": folder}))


def _markdown_image(_: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> Markup:
    name, about = str(tokens[index].attrs["src"]), tokens[index].content
    missing = Markup('<span class="warn">The image {} is missing.</span>')
    return _picture(env["folder"], name, about) or missing.format(name)


KINDS: tuple[tuple[set[str], Callable[[Record, Path], ReportSection]], ...] = (
    ({"run.json"}, _run),
    ({"experiment", "provenance"}, _experiment),
    ({"encoders", "backbones", "table", "cells", "summary"}, _transfer),
    ({"statuses", "figures", "samples"}, _judged),
    ({"reports", "spread", "accuracy"}, _evaluation),
    ({"rows", "frozen", "text_unchanged"}, _demo),
)
"""The keys (or file name) by which CRAFT recognises a run or result, and what makes its section."""

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("entity")
MARKDOWN.add_render_rule("image", _markdown_image)
MARKDOWN.add_render_rule("link_open", lambda *_: "")
MARKDOWN.add_render_rule("link_close", lambda *_: "")

PAGES = Environment(loader=PackageLoader("craft.pages", ""), autoescape=True, undefined=StrictUndefined)
GLOBALS = {"DIMENSIONS": DIMENSIONS, "BINARY": BINARY, "percent": percent}
VIEWS: Any = PAGES.get_template("report.html", globals=GLOBALS).module
