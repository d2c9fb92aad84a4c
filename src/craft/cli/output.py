"""How results are printed on standard output."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from craft.core.text import percent

_WIDTH = 110  # of tables that are not printed to a terminal


def show_json(value: Any) -> None:
    """The one JSON document of a `--json` run; NaN and infinity become null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], sections: Sequence[int] = ()
) -> None:
    """A table; the first column is text, the others are numbers.

    Args:
        title: printed above the table.
        columns: the heads.
        rows: the cells.
        sections: numbers of the rows after which a line is drawn.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left")
    for number, name in enumerate(columns):
        prose = any(len(row[number]) > 40 for row in rows)  # wraps; short cells never do
        words = number == 0 or prose or all(not any(c.isdigit() for c in row[number]) for row in rows)
        table.add_column(Text(name), justify="left" if words else "right", no_wrap=not prose, overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), end_section=number in sections)
    width = None if sys.stdout.isatty() else _WIDTH
    Console(highlight=False, width=width).print(table)


def show_pairs(pairs: Mapping[str, Any]) -> None:
    """Lines of name and value, aligned; names without a value are left out."""
    lines = {name: str(value) for name, value in pairs.items() if value not in (None, "", [], ())}
    width = max((len(name) for name in lines), default=0) + 2
    for name, value in lines.items():
        print(f"{name:<{width}}{value}")


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
