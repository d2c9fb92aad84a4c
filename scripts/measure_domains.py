"""Measure adaptation on the embedded domains: OUT.json and OUT.md.

Adapts the shipped tower with one surrogate per domain and seed, and asks both backbones the same test
questions before and after. docs/results/apparel.json (and digits.json alike) was made by

    python scripts/measure_domains.py --domains apparel --limit 500 --out docs/results/apparel
"""

import argparse
import math
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import craft
from craft.core.files import atomic_write_text, write_json
from craft.evaluation.metrics import harmonic_mean, interval_over_seeds

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("accuracy", "seen", "unseen", "lenient", "unparseable")


def measure(domain: str, surrogate: str, others: list[str], seed: int, limit: int | None, set_: dict) -> dict:
    """One adaptation; every backbone before and after, on the same questions."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        result = craft.adapt(surrogate=surrogate, data=domain, out=folder, seed=seed, overwrite=True, **set_)
        minutes = (time.monotonic() - start) / 60
        rows = {}
        for name in [surrogate, *others]:
            before = craft.evaluate(name, like=result.out, data=domain, limit=limit)
            after = craft.evaluate(name, encoder=result.out, data=domain, limit=limit)
            rows[name] = {
                phase: {group: getattr(report, group) for group in GROUPS} | {"samples": len(report.samples)}
                for phase, report in (("zero-shot", before), ("adapted", after))
            }
    changed = result.metrics["train"].get("codes_changed")
    return {"domain": domain, "seed": seed, "held_out": list(result.held_out), "minutes": round(minutes, 2),
            "best_step": result.metrics["best_step"], "codes_changed": changed, "rows": rows}  # fmt: skip


def table(runs: list[dict], surrogate: str) -> str:
    """Means and spreads over seeds, one line per domain and backbone."""
    lines = [
        "| domain | backbone | zero-shot | adapted | gain | seen | unseen | gain, unseen | H | gain, H |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for domain in dict.fromkeys(run["domain"] for run in runs):
        chosen = [run for run in runs if run["domain"] == domain]
        for name in chosen[0]["rows"]:
            rows = [run["rows"][name] for run in chosen]
            role = "surrogate" if name == surrogate else "never trained with"
            cells = [domain, f"{name} ({role})", level(rows, "zero-shot"), level(rows, "adapted"), gain(rows)]
            for group in ("seen", "unseen", "harmonic"):
                cells.append(f"{level(rows, 'zero-shot', group)} → {level(rows, 'adapted', group)}")
                cells += [] if group == "seen" else [gain(rows, group)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def level(rows: list[dict], phase: str, group: str = "accuracy") -> str:
    """Mean and standard deviation over seeds, in percent; "-" if a seed has no such questions."""
    values = [figure(row[phase], group) for row in rows]
    if None in values:
        return "-"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def figure(figures: dict, group: str) -> float | None:
    """A figure of a phase; "harmonic" is the harmonic mean of seen and unseen."""
    return harmonic_mean(figures["seen"], figures["unseen"]) if group == "harmonic" else figures[group]


def gain(rows: list[dict], group: str = "accuracy") -> str:
    """Mean gain in points, with its 95 % interval over seeds and questions; "-" if a seed has no such
    questions."""
    pairs = [(figure(row["adapted"], group), figure(row["zero-shot"], group)) for row in rows]
    if any(None in pair for pair in pairs):
        return "-"
    gains = [after - before for after, before in pairs]
    ends = interval_over_seeds(gains, [question_error(row, group) for row in rows])
    shown = "" if ends is None else f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
    return f"{100 * statistics.mean(gains):+.1f}{shown}"


def question_error(row: dict, group: str) -> float:
    """The standard error over questions of one seed's gain.

    The files have shares but no answers, so the marks before and after count as independent. They are mostly
    of the same questions with the same right answers, so the error is rather too large than too small.
    """
    variance = 0.0
    for phase in ("adapted", "zero-shot"):
        figures = row[phase]
        if group != "harmonic":
            variance += variance_of(figures, group)
            continue
        seen, unseen = figures["seen"], figures["unseen"]
        if seen + unseen > 0:  # the delta method: dH/d(seen) = 2 unseen² / (seen + unseen)²
            slopes = (2 * unseen**2 / (seen + unseen) ** 2, 2 * seen**2 / (seen + unseen) ** 2)
            variance += slopes[0] ** 2 * variance_of(figures, "seen")
            variance += slopes[1] ** 2 * variance_of(figures, "unseen")
    return math.sqrt(variance)


def variance_of(figures: dict, group: str) -> float:
    """The variance over questions of a share."""
    share, count = figures[group], asked(figures, group)
    share = (count * share + 2) / (count + 4)  # shares of 0 and 1 have noise too (Agresti, Coull 1998)
    return share * (1 - share) / count


def asked(figures: dict, group: str) -> int:
    """The number of questions of a group, from the shares of all groups."""
    total, seen, unseen = figures["samples"], figures["seen"], figures["unseen"]
    if group == "accuracy" or None in (seen, unseen):
        return total
    right = figures["accuracy"] * total

    def misfit(count: int) -> float:
        parts = (total - count) * seen, count * unseen
        return abs(sum(parts) - right) + sum(abs(part - round(part)) for part in parts)

    count = min(range(1, total), key=misfit)
    return count if group == "unseen" else total - count


def page(told: dict) -> str:
    """The Markdown page of the JSON beside it."""
    seeds = list(dict.fromkeys(run["seed"] for run in told["runs"]))
    limit = told["settings"]["limit"]
    given = "".join(f" {name}={value}" for name, value in told["settings"]["set"].items())
    command = "python scripts/measure_domains.py" + (f" --set{given}" if given else "")
    asked = "the test split" if limit is None else f"at most {limit} questions of the test split"
    covers = "95 % interval over seeds and questions" if len(seeds) > 1 else "one seed: no interval"
    head = (
        f"Strict exact match in percent over {asked}, mean ± standard deviation over the seeds "
        f"{seeds}; gains in points [{covers}]; four options, so a blind guess scores 25. Seen and unseen: "
        "zero-shot → adapted; H is their harmonic mean. "
        f"Made by `{command}`.\n\n"
    )
    text = table(told["runs"], told["settings"]["surrogate"])
    return f"# Adaptation on the embedded domains\n\n{head}{text}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", nargs="+", default=["apparel", "digits"])
    parser.add_argument("--surrogate", default="craft-tiny/qwen2")
    parser.add_argument("--others", nargs="+", default=["craft-tiny/llama"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--set", nargs="*", default=[], help="settings as key=value, e.g. max_steps=100")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/domains")
    args = parser.parse_args()
    import yaml

    chosen = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
    runs = []
    for domain in args.domains:
        for seed in args.seeds:
            runs.append(measure(domain, args.surrogate, args.others, seed, args.limit, chosen))
            print(table(runs, args.surrogate), flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    machine = {"python": platform.python_version(), "processor": platform.machine(), **versions}
    settings = {"surrogate": args.surrogate, "set": chosen, "limit": args.limit}
    told = {"commit": commit, "machine": machine, "settings": settings, "runs": runs}
    write_json(args.out.with_suffix(".json"), told)
    atomic_write_text(args.out.with_suffix(".md"), page(told))


if __name__ == "__main__":
    main()
