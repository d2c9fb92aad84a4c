"""Markdown."""

import re
from collections.abc import Iterable


def table_row(cells: Iterable[str]) -> str:
    """One row of a Markdown table. A bar in a cell, as in the name of a data set, is escaped."""
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"
