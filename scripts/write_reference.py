"""Write the settings into docs/reference.md, from the config classes and their docstrings.

    python scripts/write_reference.py

Everything between the markers `settings:begin` and `settings:end` is replaced.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def configs() -> dict[str, type[BaseModel]]:
    """The verbs that take settings, each with its config class; later ones list only what differs."""
    from craft.evaluation.config import EvalConfig, TransferConfig
    from craft.judging.config import JudgeConfig
    from craft.training.config import AdaptConfig, AlignConfig, BaselineConfig

    return {
        "craft adapt": AdaptConfig,
        "craft baseline": BaselineConfig,
        "craft align": AlignConfig,
        "craft eval": EvalConfig,
        "craft transfer": TransferConfig,
        "craft judge": JudgeConfig,
    }


def described(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each attribute."""
    texts: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        section = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2]
        for entry in re.split(r"\n(?=    \w)", "\n" + section.split("\n\n")[0]):
            names, colon, text = entry.strip().partition(": ")
            if colon and re.fullmatch(r"\w+(, \w+)*", names):
                texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, default as YAML, description) of every setting."""
    texts = described(model)
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            changed = field.get_default(call_default_factory=True)
            for inner, _, text in settings(kind, f"{prefix}{name}."):
                value = changed
                for part in inner.removeprefix(f"{prefix}{name}.").split("."):
                    value = getattr(value, part)
                yield inner, written(value), text
        else:
            default = field.get_default(call_default_factory=True)
            yield prefix + name, written(default), texts.get(name, "")


def written(value: object) -> str:
    """A default as YAML would have it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(written(item) for item in value) + "]"
    return value if isinstance(value, str) and value else json.dumps(value)


def tables() -> str:
    """One table for each verb; of other training verbs, what differs from `craft adapt`."""
    from craft.evaluation.config import TransferConfig
    from craft.training.config import LoopConfig

    parts: list[str] = []
    first: set[tuple[str, str, str]] = set()
    for verb, model in configs().items():
        rows = list(settings(model))
        trains = issubclass(model, LoopConfig)
        shown = [row for row in rows if not trains or row not in first]
        note = "\nThe loop's other settings are those of `craft adapt`.\n" if trains and first else ""
        if model is TransferConfig:
            shown = [row for row in shown if not row[0].startswith("adapt.")]
            note = "\n`adapt.NAME` is a setting of the adaptations: those of `craft adapt`.\n"
        parts.append(f"### `{verb}`\n{note}\n| setting | default | what it is |\n|---|---|---|")
        parts[-1] += "".join(
            f"\n| `{name}` | `{default}` | {text.replace('|', chr(92) + '|')} |"
            for name, default, text in shown
        )
        first = first or set(rows)
    return "\n\n".join(parts)


def page(text: str) -> str:
    """The page with the tables of now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
