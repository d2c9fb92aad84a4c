"""Nested mappings."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted name: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        values |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return values
