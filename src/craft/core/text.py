"""Values as text: percentages, Markdown rows, file names, dotted names and digests."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any


def percent(value: float | None) -> str:
    """A fraction in percent: 0.684 is "68.4"; None and NaN are "-"."""
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A difference of fractions in percentage points: 0.25 is "+25.0"; None is "-"."""
    return "-" if value is None else f"{100 * value:+.1f}"


def table_row(cells: Iterable[str]) -> str:
    """One row of a Markdown table. A bar in a cell, as in the name of a data set, is escaped."""
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"


def slug(name: str, default: str) -> str:
    """A name as a file name; `default` if nothing of it remains."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or default


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted name: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        leaves |= flat(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return leaves


def json_digest(value: Any, *, compact: bool = False) -> str:
    """SHA-256 (64 hex digits) of a value as JSON, independent of the order of its keys.

    Args:
        compact: write the JSON without spaces and without escapes. Both forms name results on disk, so
            neither may change.
    """
    if compact:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    else:
        text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
