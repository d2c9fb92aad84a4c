"""Measure how well probabilities of options fit the accuracy, before and after the encoder's temperature.

    python scripts/measure_calibration.py apparel digits --seeds 0 1 2 --out docs/results/calibration.json

Each encoder is adapted with the default settings and asked on its test split by the likeliest option. Also
measured: which tower `craft serve` chooses for the test images of every domain, by the encoders of seed 0.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import craft
from craft.core.files import write_json
from craft.core.provenance import machine
from craft.formats.load import load_artefact
from craft.serving.routing import MARGIN, route

MODEL = "craft-tiny/qwen2"


def calibrated(domain: str, seed: int, work: Path) -> dict[str, Any]:
    """One encoder: its temperature, and the calibration of its answers."""
    out = work / f"{domain}-{seed}"
    craft.adapt(MODEL, domain, str(out), seed=seed, resume=(out / "run.json").exists())
    report = craft.evaluate(MODEL, encoder=str(out), data=domain, limit=1000, protocol="options")
    result = report.to_json()
    print(
        json.dumps(
            {
                "domain": domain,
                "seed": seed,
                **{k: v["after"]["error"] for k, v in result["calibration"].items() if isinstance(v, dict)},
            }
        )
    )
    return {"domain": domain, "seed": seed, "accuracy": report.scored, "calibration": result["calibration"]}


def routed(domains: list[str], work: Path) -> dict[str, Any]:
    """How many test images of each domain each tower gets."""
    lvlm = craft.load(MODEL)
    counts = {domain: load_artefact(work / f"{domain}-0").base_counts for domain in domains}
    table = {}
    for domain in ("apparel", "digits", "sketch", "scenes"):
        samples = craft.data.load_data(domain).test[:500]
        codes = lvlm.encode([sample.image for sample in samples]).codes
        chosen = [route(image, counts, lvlm.visual.prior) or "base" for image in codes]
        table[domain] = {name: chosen.count(name) for name in (*domains, "base")}
    return {"margin": MARGIN, "encoders": domains, "images": table}


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domains", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--route", nargs="*", default=[], help="further domains, adapted with seed 0, for routing"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [
        calibrated(domain, seed, arguments.work) for domain in arguments.domains for seed in arguments.seeds
    ]
    for domain in arguments.route:
        out = arguments.work / f"{domain}-0"
        craft.adapt(MODEL, domain, str(out), seed=0, resume=(out / "run.json").exists())
    routing = routed([*arguments.domains, *arguments.route], arguments.work)
    write_json(arguments.out, {"model": MODEL, "runs": runs, "routing": routing, "provenance": machine()})


if __name__ == "__main__":
    main()
