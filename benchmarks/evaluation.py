"""Evaluation: single questions against batches, stored codes, images read once, and scored options.

    python benchmarks/evaluation.py [--quick] [--model craft-tiny/qwen2] [--out evaluation.json]

Five questions on each image of a part of the embedded domain `apparel`, answers of at most 5 tokens. "One
by one" is a loop over `LVLM.answer`, so the vision tower and the LLM run for each question. All variants must
give the same answers. Option scoring is another protocol, whose agreement with the answers is reported.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _measure import arguments, counted, fastest, report

import craft
from craft.evaluation.report import Report
from craft.evaluation.run import evaluate_lvlm
from craft.formats.code_cache import CodeCache
from craft.models import decoding
from craft.models.lvlm import LVLM

QUESTIONS = (
    "What is shown in the picture?",
    "Which of these is it?",
    "What kind of thing is this?",
    "Name what you see.",
    "What is it?",
)


def main() -> None:
    """Time every variant, compare the answers, print the table."""
    options = arguments(__doc__ or "", _more)
    device = torch.device(options.device)
    lvlm = craft.load(options.model, device=options.device, dtype=options.dtype)
    lvlm.requires_grad_(False)  # the FLOP counter looks for the graph of what has a gradient
    images, per_image = (6, 3) if options.quick else (options.images, len(QUESTIONS))
    data = craft.data.load_data("apparel").test[:images]
    samples = [
        replace(sample, id=f"{sample.id} {question}", question=question)
        for sample in data
        for question in QUESTIONS[:per_image]
    ]
    with tempfile.TemporaryDirectory() as folder:
        CodeCache(folder).encode(lvlm.visual, [s.image for s in data], progress=False)
        variants = _variants(lvlm, samples, Path(folder), options.batch)
        answers = {name: function() for name, function in variants.items()}
        seconds = fastest(variants, options.repeats, device)
        flops = {name: counted(variants[name]) for name in ("one by one", "+ images read once")}
    first = next(iter(variants))
    rows = [
        {
            "evaluation": name,
            "questions/s": round(len(samples) / seconds[name].wall, 1),
            "speed": f"{seconds[first].wall / seconds[name].wall:.1f}x",
            "by cpu": f"{seconds[first].cpu / seconds[name].cpu:.1f}x",
            "same answers": _same(answers[first], answers[name]),
        }
        for name in variants
    ]
    both = evaluate_lvlm(lvlm, samples, batch_size=options.batch, protocol="both", progress=False)
    best = "+ images read once"
    facts = {
        "speed ratio": round(seconds[first].wall / seconds[best].wall, 2),
        "by processor time": round(seconds[first].cpu / seconds[best].cpu, 2),
        "FLOPs ratio": round(flops[first] / flops[best], 2),
        "GFLOP a question": {name: round(n / len(samples) / 1e9, 3) for name, n in flops.items()},
        "option scoring: speed ratio": round(seconds[first].wall / seconds["options scored"].wall, 2),
        "option scoring agrees with generation": round(both.agreement or 0, 4),
        "same, where an option was written": round(both.agreement_parseable or 0, 4),
        "answers equal": all(_same(answers[first], answers[name]) == "all" for name in list(variants)[:-1]),
        "sizes": {
            "model": options.model,
            "images": images,
            "questions": len(samples),
            "batch": options.batch,
        },
        "dtype": str(next(lvlm.backbone.llm.parameters()).dtype),
    }
    report("Evaluation", rows, facts, options)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="craft-tiny/qwen2", help="a shipped model, a folder or a hub id")
    parser.add_argument("--dtype", default=None, help="float32 or bfloat16")
    parser.add_argument("--images", type=int, default=60, help="images, each with five questions")
    parser.add_argument("--batch", type=int, default=64, help="questions per forward pass")


def _variants(lvlm: LVLM, samples: list[Any], folder: Path, batch: int) -> dict[str, Callable[[], Any]]:
    """Each variant adds one optimisation; every call starts from the state of a new process."""

    def one_by_one() -> list[str]:
        return [lvlm.answer([sample.image], [sample.prompt()])[0] for sample in samples]

    def evaluated(stored: bool, shared: bool, protocol: str = "generate") -> Report:
        usual = decoding.SHARED
        decoding.SHARED = usual if shared else 0
        try:
            cache = CodeCache(folder) if stored else None
            return evaluate_lvlm(
                lvlm, samples, batch_size=batch, protocol=protocol, cache=cache, progress=False
            )  # type: ignore[arg-type]
        finally:
            decoding.SHARED = usual

    return {
        "one by one": one_by_one,
        "batches, an image encoded once": lambda: evaluated(False, False),
        "+ codes on disk": lambda: evaluated(True, False),
        "+ images read once": lambda: evaluated(True, True),
        "options scored": lambda: evaluated(True, True, "options"),
    }


def _same(first: Any, other: Any) -> str:
    answers = [
        [row["prediction"] for row in result.samples] if isinstance(result, Report) else result
        for result in (first, other)
    ]
    equal = sum(a == b for a, b in zip(*answers, strict=True))
    return "all" if equal == len(answers[0]) else f"{equal} of {len(answers[0])}"


if __name__ == "__main__":
    main()
