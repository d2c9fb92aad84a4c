"""Adapt through token tables by each rule, beside the projector form: docs/results/table-gradient.{json,md}.

python scripts/measure_table_gradient.py [--domains apparel digits] [--seeds 0 1 2] [--rules affine soft]

Each cell is one adaptation with default settings and `losses.table_gradient=RULE`, and both LLMs asked the
same 500 test questions before and after. Cells that the JSON has already are not run again, so a stopped run
continues. The projector's figures are those of docs/results/apparel.json and digits.json: the same settings,
seeds and questions. Domains without such a file need the rule "projector" too.
"""

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from craft.core.files import atomic_write_text, write_json
from craft.core.provenance import machine
from craft.core.text import table_row
from craft.evaluation.metrics import interval_over_seeds

sys.path.insert(0, str(Path(__file__).parent))
from measure_domains import measure, question_error

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs/results/table-gradient"
SURROGATE, OTHER = "craft-tiny/qwen2-table", "craft-tiny/llama-table"
RULES = ("projector", "affine", "soft")
LIMIT = 500
MANY = 3
FEW = (
    "Rows of fewer than three seeds are leads: they show that a tower adapts through a table and that "
    "another LLM with another table gains too, and not that one rule is better."
)


def gains(runs: list[dict[str, Any]], role: int, group: str) -> tuple[list[float], list[float]]:
    """Gains in points of the surrogate (0) or the other LLM (1), one per run, and their standard errors over
    questions."""
    rows = [list(run["rows"].values())[role] for run in runs]
    values = [100 * (row["adapted"][group] - row["zero-shot"][group]) for row in rows]
    return values, [100 * question_error(row, group) for row in rows]


def shown(values: list[float], errors: list[float]) -> str:
    """Mean, interval over seeds and questions (from three seeds on), and the values."""
    ends = interval_over_seeds(values, errors) if len(values) >= MANY else None
    interval = "" if ends is None else f" [{ends[0]:+.1f}, {ends[1]:+.1f}]"
    return f"{statistics.mean(values):+.1f}{interval} ({', '.join(f'{value:+.1f}' for value in values)})"


def difference(record: dict[str, Any], domain: str, role: int) -> str:
    """The gain by "soft" minus that by "affine", by seed."""
    (soft, noise), (affine, other) = (
        gains(select(record, domain, r), role, "accuracy") for r in RULES[:0:-1]
    )
    both = [math.hypot(a, b) for a, b in zip(noise, other, strict=True)]
    return shown([a - b for a, b in zip(soft, affine, strict=True)], both)


def page(record: dict[str, Any]) -> str:
    """The Markdown page."""
    lines = [
        "# Gradients through a token table",
        "",
        f"Gains in points of strict exact match over zero-shot on {LIMIT} test questions, default settings: "
        f"mean [95 % interval over seeds and questions] (each seed). The surrogate is `{SURROGATE}`, the "
        f"other LLM `{OTHER}`; *projector* is `craft-tiny/qwen2` and `craft-tiny/llama` with the same "
        "settings, seeds and questions. Made by `python scripts/measure_table_gradient.py`.",
        "",
        table_row(["domain", "rule", "seeds", "surrogate", "other LLM", "unseen", "unseen, other LLM"]),
        table_row(["---"] * 7),
    ]
    for domain in dict.fromkeys(run["domain"] for run in record["runs"]):
        for rule in RULES:
            runs = select(record, domain, rule)
            if not runs:
                continue
            cells = [shown(*gains(runs, role, group)) for group in ("accuracy", "unseen") for role in (0, 1)]
            seeds = ", ".join(str(run["seed"]) for run in runs)
            lines.append(table_row([domain, rule, seeds, *cells]))
    lines += [
        "",
        "The gain by `soft` minus that by `affine`, likewise. These are eight comparisons, and one in twenty "
        "such intervals misses by chance; answers of the two count as independent, so the intervals are "
        "rather too wide.",
        "",
        table_row(["domain", "surrogate", "other LLM"]),
        table_row(["---"] * 3),
    ]
    for domain in dict.fromkeys(run["domain"] for run in record["runs"]):
        lines.append(table_row([domain, *(difference(record, domain, role) for role in (0, 1))]))
    counts = Counter((run["domain"], run["rule"]) for run in record["runs"])
    few = min(counts.values()) < MANY
    lines += ["", *([FEW] if few else []), *record["notes"], ""]
    return "\n".join(lines)


def select(record: dict[str, Any], domain: str, rule: str) -> list[dict[str, Any]]:
    """The runs of a rule; of the projector those with the seeds that some rule has."""
    runs = [run for run in record["runs"] if run["domain"] == domain]
    page = ROOT / f"docs/results/{domain}.json"
    if rule == "projector" and page.is_file():
        seeds = {run["seed"] for run in runs}
        return [run for run in json.loads(page.read_text(encoding="utf-8"))["runs"] if run["seed"] in seeds]
    return sorted((run for run in runs if run["rule"] == rule), key=lambda run: run["seed"])


def cell(domain: str, rule: str, seed: int) -> dict[str, Any]:
    """One run, with its rule and its machine."""
    names, settings = (SURROGATE, OTHER), {"losses.table_gradient": rule}
    if rule == "projector":
        names, settings = ("craft-tiny/qwen2", "craft-tiny/llama"), {}
    return {
        **measure(domain, names[0], [names[1]], seed, LIMIT, settings),
        "rule": rule,
        "machine": machine(),
    }


def main() -> None:
    """Run the cells that are missing, and write JSON and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["apparel", "digits"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", default=["affine", "soft"], choices=RULES)
    arguments = parser.parse_args()
    path = OUT.with_suffix(".json")
    record: dict[str, Any] = {"runs": [], "notes": []}
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
    for seed in arguments.seeds:
        for domain in arguments.domains:
            for rule in arguments.rules:
                if (seed, domain, rule) in {
                    (run["seed"], run["domain"], run["rule"]) for run in record["runs"]
                }:
                    continue
                record["runs"].append(cell(domain, rule, seed))
                write_json(path, record)
    write_json(path, record)
    atomic_write_text(OUT.with_suffix(".md"), page(record))


if __name__ == "__main__":
    main()
