"""Table 4: what training and inference cost, from what `craft bench` measured."""

from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import read_json
from craft.experiments.paper import NOTE, plain_table, theirs
from craft.experiments.publish import Data, footer, table
from craft.experiments.work import Work

FILES = {"training": "bench_train", "inference": "bench_infer"}
"""What `craft bench train` and `craft bench infer` write."""


def measure(work: Work) -> Data:
    """Both results as they are.

    Raises:
        ConfigError: one of them is missing; the message names the command.
    """
    found = {}
    for part, name in FILES.items():
        path = Path(work.plan.benches) / f"{name}.json"
        if not path.is_file():
            verb = name.replace("_", " ")
            raise ConfigError(f"Table 4 is made of {path}, which is not there; `craft {verb}` measures it.")
        found[part] = read_json(path)
    return found


def page(data: Data) -> str:
    """Table 4 as Markdown."""
    parts = ["# Table 4: what it costs\n"]
    for part, name in FILES.items():
        parts += [f"## {part.capitalize()}\n", *_about(data[part]), _rows(data[part]) + "\n"]
        parts += [
            *_ratios(data[part]),
            f"Measured by `craft {name.replace('_', ' ')}`; all figures: `{name}.json`.\n",
        ]
    parts += ["## The paper's Table 4\n", NOTE + " Eight A100 with 40 GB, batch 32; inference at batch 1.\n"]
    parts += [plain_table(theirs()["table4"][part]) + "\n" for part in FILES]
    return "\n".join([*parts, footer(data)])


def _about(found: Data) -> list[str]:
    """Where it was measured, and at what sizes."""
    told, sizes = found.get("machine") or {}, found.get("sizes") or {}
    words = [f"{name} {value}" for name, value in sizes.items()]
    if "device" in told:
        words.insert(0, f"on {told['device']}, {told.get('threads', '?')} threads")
    return [f"Measured {', '.join(words)}; random weights.\n"] if words else []


def _ratios(found: Data) -> list[str]:
    ratios = found.get("ratios") or {}
    rows = [[name, _cell(value)] for name, value in ratios.items()]
    return [table(["ratio", "value"], rows) + "\n"] if rows else []


def _rows(found: Data) -> str:
    """A result's rows as a table: every column that holds a number or a word."""
    rows: list[Data] = found["rows"]
    heads = [key for key, value in rows[0].items() if isinstance(value, str | int | float)]
    return table(heads, [[_cell(row.get(head)) for head in heads] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
