"""Table 4: the cost of training and inference, from what `python -m paper bench` measured."""

import shlex
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import read_json
from paper.publish import Data, table
from paper.reported import NOTE, plain_table, reported
from paper.work import Work

FILES = {"training": "bench_train", "inference": "bench_infer"}
"""The result files of `python -m paper bench train` and `bench infer`."""

ON_A_GPU = {
    "training at real size, on a GPU": "bench_train_gpu",
    "the same, compiled": "bench_train_compiled_gpu",
    "inference at real size, on a GPU": "bench_infer_gpu",
}
"""The same with `--size real --device cuda`; missing files are left out."""


def measure(work: Work) -> Data:
    """The benchmark results, unchanged.

    Raises:
        ConfigError: one of them is missing; the message names the command.
    """
    results = {}
    for part, name in FILES.items():
        path = Path(work.plan.benches) / f"{name}.json"
        if not path.is_file():
            verb = name.replace("_", " ")
            raise ConfigError(
                f"Table 4 is made from {path}, which does not exist; `python -m paper {verb} --out {path}` "
                "measures it."
            )
        results[part] = read_json(path)
    for part, name in ON_A_GPU.items():
        if (path := Path(work.plan.benches) / f"{name}.json").is_file():
            results[part] = read_json(path)
    return results


def page(data: Data) -> str:
    """Table 4 as Markdown."""
    parts = ["# Table 4: what it costs\n"]
    for part, name in (FILES | ON_A_GPU).items():
        if (result := data.get(part)) is None:
            continue
        parts += [f"## {part[0].upper()}{part[1:]}\n", *_about(result), _rows(result["rows"]) + "\n"]
        if result.get("levers"):
            parts += ["Each speed-up, of CRAFT with the small LLM unless the row says otherwise:\n"]
            parts += [_rows(result["levers"]) + "\n"]
        parts += _ratios(result.get("ratios") or {})
        words = ["python", "-m", "paper", *name.split("_")[:2]]
        words += ["--size", "real", "--device", "cuda"] if part in ON_A_GPU else []
        words += [word for way in result.get("ways", ()) for word in ("--ways", way)]
        parts.append(f"Measured by `{shlex.join(words)}`; all figures: `{name}.json`.\n")
    parts += ["## The paper's Table 4\n", NOTE + " Eight A100 with 40 GB, batch 32; inference at batch 1.\n"]
    parts += [plain_table(reported()["table4"][part]) + "\n" for part in FILES]
    commit = (data["provenance"]["commit"] or "unknown")[:10]
    return "\n".join([*parts, f"Made by `{data['command']}` at commit `{commit}`.\n"])


def _about(result: Data) -> list[str]:
    """On what machine it was measured, and at what sizes."""
    machine, sizes = result.get("machine") or {}, result.get("sizes") or {}
    words = [f"{name} {value}" for name, value in sizes.items()]
    if "device" in machine:
        words.insert(0, f"on {machine['device']}, {machine.get('threads', '?')} threads")
    return [f"Measured {', '.join(words)}; random weights.\n"] if words else []


def _ratios(ratios: Data) -> list[str]:
    rows = [[name, _cell(value)] for name, value in ratios.items() if value is not None]
    return [table(["ratio", "value"], rows) + "\n"] if rows else []


def _rows(rows: list[Data]) -> str:
    """Rows as a table, with every column that has numbers or words."""
    known = {key: value for row in rows for key, value in row.items()}
    heads = [key for key, value in known.items() if isinstance(value, str | int | float)]
    return table(heads, [[_cell(row.get(head)) for head in heads] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
