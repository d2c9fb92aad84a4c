"""How damaged data is entered, and the good data that it is made of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replicas import paint

Make = Callable[[Path], str | Path]
"""Makes damaged data below a folder and returns what `--data` would be given."""

DAMAGE: dict[str, tuple[Make, tuple[str, ...]]] = {}
"""Maker and the facts of its message, by name."""


def damage(*facts: str) -> Callable[[Make], Make]:
    """Enter a maker under its name.

    Args:
        facts: what the message must contain, in this order: where, what, the fix. `{root}` is the folder.
    """

    def enter(make: Make) -> Make:
        DAMAGE[make.__name__] = make, facts
        return make

    return enter


def states(message: str, facts: tuple[str, ...], root: Path) -> bool:
    """Whether a message is one line and contains all facts in their order."""
    position = 0
    for fact in facts:
        text = fact.replace("{root}", str(root))
        position = message.find(text, position)
        if position < 0:
            return False
        position += len(text)
    return "\n" not in message


def row(n: int, **fields: Any) -> dict[str, Any]:
    """A good row, with some fields changed; None leaves one out."""
    whole = {"image": f"img/{n}.png", "question": "What is it?", "answer": f"thing {n % 3}"} | fields
    return {name: value for name, value in whole.items() if value is not None}


def lines(root: Path, *rows: Any, name: str = "q.jsonl", count: int = 6) -> Path:
    """A JSONL whose second row on is `rows`, among good ones, with their pictures."""
    all_rows = [row(0), *rows, *(row(n) for n in range(1 + len(rows), count))]
    for n in range(count):
        paint(root / "img" / f"{n}.png", n)
    path = root / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in all_rows))
    return path


def talk(root: Path, **fields: Any) -> Path:
    """A JSON list of LLaVA conversations, one of them changed."""
    good = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    entries = [{"id": str(n), "image": f"{n}.png", "conversations": good} for n in range(3)]
    entries[1] |= fields
    for n in range(3):
        paint(root / f"{n}.png", n)
    (root / "chat.json").write_text(json.dumps(entries))
    return root / "chat.json"


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Turns in LLaVA's form."""
    return [{"from": who, "value": what} for who, what in turns]


def folder(root: Path, *names: str) -> Path:
    """Class folders of four pictures each."""
    for c, name in enumerate(names):
        for n in range(4):
            paint(root / name / f"{n}.png", 10 * c + n)
    return root


def one_bad(root: Path, content: bytes, ending: str = ".png") -> Path:
    """Class folders in which one file holds this."""
    folder(root, "ash", "elm")
    (root / "ash" / f"0{ending}").write_bytes(content)
    return root
