"""How results are printed on standard output."""

import json
import os
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from craft.core.streams import printable, write
from craft.core.text import percent, visible_json


def show_json(value: Any) -> None:
    """The one JSON document of a `--json` run; NaN and infinity become null."""
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    text = json.dumps(_finite(value), indent=2, ensure_ascii=not unicode, default=str)
    write(visible_json(text) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def show_line(line: object = "") -> None:
    """One line of text. Characters that would control a terminal, a line break among them, are escapes."""
    write(printable(line) + "\n")


def show_text(text: str) -> None:
    """Text with lines of its own, such as a prompt or a page."""
    write(printable(text, keep="\n") + "\n")


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    sections: Collection[int] = (),
    prose: Collection[str] = (),
) -> None:
    """A table; the first column is text, the others are numbers. The one function that prints tables.

    No cell loses a character, and only sentences are broken, between words. If the table is wider than the
    terminal (or than COLUMNS), it becomes one block per row: a line "head: cell" for each cell. In a pipe or
    a file it is as wide as it needs to be.

    Args:
        title: printed above the table.
        columns: the heads.
        rows: the cells.
        sections: numbers of the rows after which a line is drawn.
        prose: heads of the columns with sentences.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heads, *cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
    wraps = [name in prose for name in columns]
    room, widths = _room(), _widths([heads, *cells], wraps)
    if title:
        show_line(title)
    if room is not None:
        widths = _narrowed(widths, _widths([heads, *cells], wraps, words=True), room)
        if _table_width(widths) > room:
            _show_blocks(heads, cells)
            return
    table = Table()
    for number, name in enumerate(heads):
        left = number == 0 or wraps[number] or not _has_digits(row[number] for row in cells)
        form: Any = {"justify": "left" if left else "right", "no_wrap": not wraps[number]}
        table.add_column(Text(name), width=widths[number], **form)
    for number, row in enumerate(cells):
        table.add_row(*map(Text, row), end_section=number in sections)
    console = Console(width=_table_width(widths))
    write("".join(segment.text for segment in console.render(table)))


def _room() -> int | None:
    """The width of the terminal, or COLUMNS if it is set; None in a pipe or a file."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


def _widths(rows: Sequence[Sequence[str]], prose: Sequence[bool], words: bool = False) -> list[int]:
    """The width of each column; with `words`, that of the longest word for columns with sentences."""
    from rich.cells import cell_len

    def widest(column: Sequence[str], wraps: bool) -> int:
        parts = [word for cell in column for word in cell.split()] if words and wraps else column
        return max(map(cell_len, parts), default=0)

    return [widest(column, wraps) for column, wraps in zip(zip(*rows, strict=True), prose, strict=True)]


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths between these limits: what the least ones leave of the room goes to all columns alike."""
    narrow, spare = list(least), max(0, room - _table_width(least))
    order = sorted(range(len(widths)), key=lambda number: widths[number] - least[number])
    for done, number in enumerate(order):
        share = min(widths[number] - least[number], spare // (len(order) - done))
        narrow[number] += share
        spare -= share
    return narrow


def _table_width(widths: Sequence[int]) -> int:
    """The width of a table with its lines and the space beside each cell."""
    return sum(widths) + 3 * len(widths) + 1


def _has_digits(cells: Iterable[str]) -> bool:
    return any(character.isdigit() for cell in cells for character in cell)


def _show_blocks(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        indent = ""
        for head, cell in zip(heads, row, strict=True):
            if cell:
                write(f"{indent}{head}: {cell}\n")
            indent = "  "


def show_pairs(pairs: Mapping[str, Any]) -> None:
    """Lines of name and value, aligned; names without a value are left out. A list has a line per item."""
    lines = {
        printable(name): [printable(item) for item in (value if isinstance(value, list) else [value])]
        for name, value in pairs.items()
        if value not in (None, "", [], ())
    }
    width = max((len(name) for name in lines), default=0) + 2
    for name, values in lines.items():
        for number, value in enumerate(values):
            write(f"{'' if number else name:<{width}}{value}\n")


def spread(figure: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation over seeds: "68.4 ± 1.2"; a single run has no deviation."""
    if figure is None:
        return "-"
    return percent(figure["mean"]) + (f" ± {percent(figure['std'])}" if figure["runs"] > 1 else "")


def between(interval: Sequence[float]) -> str:
    """(0.64, 0.72) -> "64.0 to 72.0"."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def size(count: int) -> str:
    """Bytes in words: "1.2 GiB"."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def listed(words: Sequence[str], most: int = 12) -> str:
    """The first words, separated by commas, or by semicolons if a word contains a comma."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ("; " if any("," in word for word in words) else ", ").join(words[:most]) + more
