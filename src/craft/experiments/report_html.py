"""HTML for reports: text is escaped, pictures are part of the page, nothing is fetched from anywhere."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONG = 48  # letters of a cell that may wrap


@dataclass(frozen=True)
class Section:
    """One run or result on the page.

    Attributes:
        title: its heading, as text.
        kind: what it is, in a word or two.
        body: HTML.
    """

    title: str
    kind: str
    body: str


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: its heading, as text.
        about: a line below it, as text.
        sections: in order.
    """
    style = files("craft.experiments").joinpath("report.css").read_text(encoding="utf-8")
    entries = "".join(
        f'<li><a href="#s{n}">{escape(s.title)}</a> <span class="kind">{escape(s.kind)}</span></li>'
        for n, s in enumerate(sections, start=1)
    )
    bodies = "".join(
        f'<section id="s{n}"><h2>{escape(s.title)} <span class="kind">{escape(s.kind)}</span></h2>'
        f"{s.body}</section>\n"
        for n, s in enumerate(sections, start=1)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="about">{escape(about)}</p>\n<ul class="toc">{entries}</ul>\n{bodies}</body>\n</html>\n'
    )


def escape(text: object) -> str:
    """Any text as HTML."""
    return html.escape(str(text), quote=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; columns of numbers are set to the right."""
    return html_table([escape(head) for head in heads], [[escape(cell) for cell in row] for row in rows])


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    columns = [[row[n] for row in rows if n < len(row)] for n in range(len(heads))]
    texts = [any(not _is_number(cell) for cell in cells) for cells in columns]

    def line(cells: Sequence[str], tag: str) -> str:
        made = []
        for n, cell in enumerate(cells):
            text = n < len(texts) and texts[n]
            long = " long" if tag == "td" and len(cell) > _LONG and "<img" not in cell else ""
            made.append(f'<{tag} class="{"text" if text else "number"}{long}">{cell}</{tag}>')
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(heads, "th")}</thead><tbody>{body}</tbody></table></div>\n'


def _is_number(cell: str) -> bool:
    """Whether a cell begins like a figure; one without a value goes with its column."""
    plain = re.sub(r"<[^>]*>", "", cell).strip()
    return plain in ("", "-") or plain.lstrip("+-")[:1].isdigit()


def pairs(told: Mapping[str, object]) -> str:
    """Names and values; those without a value are left out."""
    rows = [[escape(name), escape(value)] for name, value in told.items() if value not in (None, "", [], ())]
    body = "".join(f'<tr><th class="text">{n}</th><td class="text long">{v}</td></tr>' for n, v in rows)
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>\n'


def picture(data: bytes, about: str, small: bool = False) -> str:
    """A PNG as part of the page."""
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    kind = ' class="small"' if small else ""
    return f'<img{kind} alt="{escape(about)}" src="{source}">'


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """A line over steps as SVG, with its first, lowest, highest and last value in words."""
    wide, high, left, low = 300.0, 120.0, 52.0, 18.0
    xs, ys = [x for x, _ in points], [y for _, y in points]
    spans = (max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0)
    placed = " ".join(
        f"{left + (x - min(xs)) / spans[0] * (wide - left - 4):.1f},"
        f"{4 + (max(ys) - y) / spans[1] * (high - low - 8):.1f}"
        for x, y in points
    )
    small = 'font-size="10" fill="#57606a"'
    labels = (
        f'<text x="{left - 5}" y="12" text-anchor="end" {small}>{max(ys):.3g}</text>'
        f'<text x="{left - 5}" y="{high - low}" text-anchor="end" {small}>{min(ys):.3g}</text>'
        f'<text x="{left}" y="{high - 3}" {small}>{min(xs):g}</text>'
        f'<text x="{wide - 4}" y="{high - 3}" text-anchor="end" {small}>step {max(xs):g}</text>'
    )
    told = f"{name}: {ys[0]:.4g} at first, {ys[-1]:.4g} at last"
    return (
        f'<figure><svg viewBox="0 0 {wide:g} {high:g}" role="img" aria-label="{escape(told)}">'
        f'<path d="M{left},4V{high - low}H{wide - 4}" fill="none" stroke="#d0d7de"/>'
        f'<polyline points="{placed}" fill="none" stroke="#0550ae" stroke-width="1.6"/>{labels}</svg>'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def markdown(text: str, folder: Path) -> str:
    """Our own pages as HTML: headings (one level lower), paragraphs, lists, tables, pictures of `folder`,
    bold, emphasis, code. Links become their text. Everything else is shown as it is written.

    Args:
        text: the page; its first heading is left out.
        folder: where its pictures lie.
    """
    blocks = re.split(r"\n\s*\n", text.strip())
    return "".join(_block(block.strip("\n"), folder) for block in blocks if not block.startswith("# "))


def _block(block: str, folder: Path) -> str:
    lines = block.split("\n")
    if heading := re.fullmatch(r"(#{2,4}) (.*)", lines[0]):
        level = len(heading[1]) + 1
        rest = "\n".join(lines[1:]).strip()
        return f"<h{level}>{_inline(heading[2])}</h{level}>\n" + (_block(rest, folder) if rest else "")
    if len(lines) >= 2 and lines[0].startswith("|") and set(lines[1]) <= set("|-: "):
        cells = [[_inline(cell) for cell in _cells(line)] for line in lines]
        return html_table(cells[0], cells[2:])
    if image := re.fullmatch(r"!\[(.*)\]\(([\w.-]+)\)", block):
        place = folder / image[2]
        found = picture(place.read_bytes(), image[1]) if place.is_file() else ""
        return found or f'<p class="warn">The picture {escape(image[2])} is not there.</p>\n'
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>\n"
    return f"<p>{_inline(' '.join(lines))}</p>\n"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _inline(text: str) -> str:
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(escape(found[1]))
        return f"\x00{len(kept) - 1}\x00"

    text = re.sub(r"\\([\\|*_`\[\]<>#$])", keep, text.replace("\x00", ""))
    text = escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub("\x00(\\d+)\x00", lambda found: kept[int(found[1])], text)
