"""Measure how well probabilities of options fit the accuracy, before and after the encoder's temperature.

    python scripts/measure_calibration.py apparel digits --seeds 0 1 2 --out docs/results/calibration.json

Each encoder is adapted with the default settings and asked on its test split by the likeliest option. Beside
the results lies reliability.png, the diagram of the first encoder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import craft
from craft.core.files import atomic_write_bytes, write_json
from craft.core.provenance import machine
from craft.pages.reliability import draw_reliability

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


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domains", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [
        calibrated(domain, seed, arguments.work) for domain in arguments.domains for seed in arguments.seeds
    ]
    write_json(arguments.out, {"model": MODEL, "runs": runs, "provenance": machine()})
    atomic_write_bytes(
        arguments.out.with_name("reliability.png"), draw_reliability(runs[0]["calibration"])[0]
    )


if __name__ == "__main__":
    main()
