"""Adapt through token tables by each rule, beside the projector form: docs/results/table-gradient.{json,md}.

python scripts/measure_table_gradient.py [--domains apparel digits] [--seeds 0 1 2] [--rules affine soft]

Each cell is one adaptation with default settings and `losses.table_gradient=RULE`, and both LLMs asked the
same 500 test questions before and after. Cells that the JSON has already are not run again, so a stopped run
continues. The projector's figures are those of docs/results/apparel.json and digits.json: the same settings,
seeds and questions.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from craft.core.files import atomic_write_text, write_json
from craft.core.text import table_row
from craft.evaluation.metrics import interval_over_seeds

sys.path.insert(0, str(Path(__file__).parent))
from measure_domains import measure

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs/results/table-gradient"
SURROGATE, OTHER = "craft-tiny/qwen2-table", "craft-tiny/llama-table"
LIMIT = 500
MANY = 3
FEW = (
    "With fewer than three seeds these are leads: they show that a tower adapts through a table and that "
    "another LLM with another table gains too, and not that one rule is better."
)


def gains(runs: list[dict[str, Any]], role: int, group: str) -> list[float]:
    """Gains in points, one per run, of the surrogate (0) or the other LLM (1)."""
    rows = [list(run["rows"].values())[role] for run in runs]
    return [100 * (row["adapted"][group] - row["zero-shot"][group]) for row in rows]


def shown(values: list[float]) -> str:
    """Mean, t-interval over seeds (from three on), and the values."""
    ends = interval_over_seeds(values) if len(values) >= MANY else None
    interval = "" if ends is None else f" [{ends[0]:+.1f}, {ends[1]:+.1f}]"
    return f"{statistics.mean(values):+.1f}{interval} ({', '.join(f'{value:+.1f}' for value in values)})"


def page(record: dict[str, Any]) -> str:
    """The Markdown page."""
    lines = [
        "# Gradients through a token table",
        "",
        f"Gains in points of strict exact match over zero-shot on {LIMIT} test questions, default settings: "
        f"mean [95 % t-interval over seeds] (each seed). The surrogate is `{SURROGATE}`, the other LLM "
        f"`{OTHER}`; *projector* is `craft-tiny/qwen2` and `craft-tiny/llama` with the same settings, seeds "
        "and questions. Made by `python scripts/measure_table_gradient.py`.",
        "",
        table_row(["domain", "rule", "seeds", "surrogate", "other LLM", "unseen", "unseen, other LLM"]),
        table_row(["---"] * 7),
    ]
    for domain in record["domains"]:
        for rule in ("projector", *record["rules"]):
            runs = select(record, domain, rule)
            if not runs:
                continue
            cells = [shown(gains(runs, role, group)) for group in ("accuracy", "unseen") for role in (0, 1)]
            seeds = ", ".join(str(run["seed"]) for run in runs)
            lines.append(table_row([domain, rule, seeds, *cells]))
    few = len({run["seed"] for run in record["runs"]}) < MANY
    lines += ["", *([FEW] if few else []), *record["notes"], ""]
    return "\n".join(lines)


def select(record: dict[str, Any], domain: str, rule: str) -> list[dict[str, Any]]:
    """The runs of a rule; of the projector those with the seeds that some rule has."""
    seeds = {run["seed"] for run in record["runs"] if run["domain"] == domain}
    if rule == "projector":
        runs = json.loads((ROOT / f"docs/results/{domain}.json").read_text(encoding="utf-8"))["runs"]
        return [run for run in runs if run["seed"] in seeds]
    runs = [run for run in record["runs"] if (run["domain"], run["rule"]) == (domain, rule)]
    return sorted(runs, key=lambda run: run["seed"])


def main() -> None:
    """Run the cells that are missing, and write JSON and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["apparel", "digits"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", default=["affine", "soft"])
    arguments = parser.parse_args()
    path = OUT.with_suffix(".json")
    record: dict[str, Any] = {"runs": [], "notes": []}
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
    record |= {"domains": arguments.domains, "rules": arguments.rules}
    for seed in arguments.seeds:
        for domain in arguments.domains:
            for rule in arguments.rules:
                cell = (seed, domain, rule)
                if cell in {(run["seed"], run["domain"], run["rule"]) for run in record["runs"]}:
                    continue
                run = measure(domain, SURROGATE, [OTHER], seed, LIMIT, {"losses.table_gradient": rule})
                record["runs"].append({**run, "rule": rule, **origin()})
                write_json(path, record)
    write_json(path, record)
    atomic_write_text(OUT.with_suffix(".md"), page(record))


def origin() -> dict[str, Any]:
    """Commit and machine of a run."""
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {
        "commit": commit,
        "python": platform.python_version(),
        "processor": platform.machine(),
        **versions,
    }


if __name__ == "__main__":
    main()
