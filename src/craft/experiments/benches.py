"""Table 4: what training and inference cost, from what `craft bench` measured."""

import shlex
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import read_json
from craft.experiments.paper import NOTE, plain_table, theirs
from craft.experiments.publish import Data, table
from craft.experiments.work import Work

FILES = {"training": "bench_train", "inference": "bench_infer"}
"""What `craft bench train` and `craft bench infer` write."""

ON_A_GPU = {
    "training at real size, on a GPU": "bench_train_gpu",
    "the same, compiled": "bench_train_compiled_gpu",
    "inference at real size, on a GPU": "bench_infer_gpu",
}
"""The same with `--size real --device cuda`, shown where they are."""


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
    for part, name in ON_A_GPU.items():
        if (path := Path(work.plan.benches) / f"{name}.json").is_file():
            found[part] = read_json(path)
    return found


def page(data: Data) -> str:
    """Table 4 as Markdown."""
    parts = ["# Table 4: what it costs\n"]
    for part, name in (FILES | ON_A_GPU).items():
        if (found := data.get(part)) is None:
            continue
        parts += [f"## {part[0].upper()}{part[1:]}\n", *_about(found), _rows(found["rows"]) + "\n"]
        if found.get("levers"):
            parts += ["The levers, of CRAFT with the small LLM where nothing else is said:\n"]
            parts += [_rows(found["levers"]) + "\n"]
        parts += _ratios(found.get("ratios") or {})
        parts += _calculated(found.get("calculated") or {})
        words = ["craft", *name.split("_")[:2]]
        words += ["--size", "real", "--device", "cuda"] if part in ON_A_GPU else []
        words += [word for way in found.get("ways", ()) for word in ("--ways", way)]
        parts.append(f"Measured by `{shlex.join(words)}`; all figures: `{name}.json`.\n")
    parts += ["## The paper's Table 4\n", NOTE + " Eight A100 with 40 GB, batch 32; inference at batch 1.\n"]
    parts += [plain_table(theirs()["table4"][part]) + "\n" for part in FILES]
    commit = (data["provenance"]["commit"] or "unknown")[:10]
    return "\n".join([*parts, f"Made by `{data['command']}` at commit `{commit}`.\n"])


def _about(found: Data) -> list[str]:
    """Where it was measured, and at what sizes."""
    told, sizes = found.get("machine") or {}, found.get("sizes") or {}
    words = [f"{name} {value}" for name, value in sizes.items()]
    if "device" in told:
        words.insert(0, f"on {told['device']}, {told.get('threads', '?')} threads")
    return [f"Measured {', '.join(words)}; random weights.\n"] if words else []


def _ratios(ratios: Data) -> list[str]:
    rows = [[name, _cell(value)] for name, value in ratios.items() if value is not None]
    return [table(["ratio", "value"], rows) + "\n"] if rows else []


def _calculated(found: Data) -> list[str]:
    """What no machine here has run: FLOPs and activations at real size."""
    if not found:
        return []
    sizes = ", ".join(f"{name} {value}" for name, value in found["sizes"].items())
    return [
        f"Calculated, not measured: CRAFT with the small LLM at real size ({sizes}).\n",
        _rows(found["levers"]) + "\n",
        *_ratios({name: value for name, value in found.items() if isinstance(value, float)}),
    ]


def _rows(rows: list[Data]) -> str:
    """Rows as a table: every column that holds a number or a word."""
    known = {key: value for row in rows for key, value in row.items()}
    heads = [key for key, value in known.items() if isinstance(value, str | int | float)]
    return table(heads, [[_cell(row.get(head)) for head in heads] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
