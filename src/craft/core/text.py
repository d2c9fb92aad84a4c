"""Markdown that we write."""

import re
from collections.abc import Iterable


def table_row(cells: Iterable[str]) -> str:
    """One line of a table. A bar in a cell, as in the name of a data set, does not end the cell."""
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"
