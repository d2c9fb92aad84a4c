"""Values as text: percentages, Markdown rows, file names, dotted names, digests, and text for a terminal."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Characters that a terminal obeys or does not show: C0, DEL and C1; soft hyphen; zero width (without the
# joiners, which Persian and emoji need); marks, embeddings, overrides and isolates of direction; line
# separators; lone surrogates, as in undecodable file names; tags.
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: object, keep: str = "") -> str:
    """Text for a terminal or a log: what would control it, or would not be seen, becomes an escape.

    ESC becomes `\\x1b`, a line break in a name `\\n`. Everything that comes from data, files, models and
    services passes through here before it is printed. JSON has its own escapes: see `visible_json`.

    Args:
        text: the text, or an object with one.
        keep: characters that stay, such as the line breaks of a text with several lines.
    """
    return _UNSEEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def visible_json(text: str) -> str:
    """The same JSON document, with the characters of `visible` inside its strings as JSON's escapes."""
    return _UNSEEN.sub(lambda match: "\n" if match[0] == "\n" else json.dumps(match[0])[1:-1], text)


def one_line(text: object, most: int | None = None) -> str:
    """A text without line breaks, such as the error of a library; longer than `most`, it ends in "…"."""
    line = " ".join(str(text).split())
    return line if most is None or len(line) <= most else f"{line[: most - 2]} …"


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
