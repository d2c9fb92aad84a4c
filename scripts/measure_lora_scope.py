"""The scope of the LoRA of craft-tiny/smollm2: "scope" in docs/results/smollm2.json (`make smollm2` first).

python scripts/measure_lora_scope.py [--dtypes float32 bfloat16] [--questions 300, or 0] [--batch 16]

The same weights are read three times: the published LLM, LoRA on all prompts (as before), and LoRA on prompts
with an image. Without images: perplexity of held-out text, and greedy answers. With images: training
questions of three domains (development: no test question is asked), answered with LoRA merged and apart.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from craft.core.files import read_json, write_json
from craft.core.progress import say
from craft.core.provenance import machine
from craft.data import load_data
from craft.evaluation.language import INSTRUCTIONS, TEXTS, perplexity
from craft.evaluation.run import evaluate_lvlm
from craft.formats.llm_source import open_llm
from craft.formats.load import load
from craft.formats.names import shipped_folder
from craft.models.backbone import Backbone
from craft.models.decoding import generate
from craft.models.lvlm import LVLM

OUT = Path(__file__).resolve().parent.parent / "docs/results/smollm2.json"
MODEL, DOMAINS, TOKENS = "craft-tiny/smollm2", ("apparel", "digits", "sketch"), 40


def read_all(dtype: str, folder: Path) -> dict[str, LVLM]:
    """The published LLM, LoRA on all prompts, and LoRA on prompts with an image; one projector and tower."""
    source = shipped_folder(MODEL)
    shutil.copytree(source.parent / "visual", folder / "visual")
    shutil.copytree(source, folder / "smollm2")
    manifest = read_json(source / "craft.json")
    models = {}
    for scope, version in (("all", 1), ("image", 2)):
        write_json(folder / "smollm2/craft.json", {**manifest, "version": version, "lora_scope": scope})
        models[scope] = load(folder / "smollm2", "cpu", dtype)
    old = models["all"].backbone
    llm, tokenizer = open_llm("smollm2", old.embeddings.weight.dtype)
    bare = Backbone(old.reader, llm, tokenizer, old.prompt, old.codebook_fingerprint)
    return {"published": LVLM(models["all"].visual, bare, "published").eval(), **models}


def without_images(models: dict[str, LVLM]) -> dict[str, Any]:
    """Perplexity and answers of each, and whether the scope "image" is the published LLM bit for bit."""
    record: dict[str, Any] = {}
    for name, lvlm in models.items():
        answers = generate(lvlm.backbone, None, INSTRUCTIONS, TOKENS)
        record[name] = {"perplexity": round(perplexity(lvlm.backbone, TEXTS), 3), "answers": answers}
    bare, scoped = models["published"].backbone, models["image"].backbone
    with torch.no_grad():
        logits = [[one.logits(one.inputs(None, [text])) for text in TEXTS] for one in (bare, scoped)]
    record["logits_equal"] = all(torch.equal(a, b) for a, b in zip(*logits, strict=True))
    record["answers_equal"] = record["published"]["answers"] == record["image"]["answers"]
    return record


def with_images(models: dict[str, LVLM], count: int, batch: int) -> dict[str, Any]:
    """Answers and scores of options to training questions of each domain: LoRA on all prompts, and apart."""
    record: dict[str, Any] = {}
    for name in DOMAINS:
        samples = load_data(name).train[: count // len(DOMAINS)]
        start, reports = time.monotonic(), []
        for scope in ("all", "image"):
            reports.append(evaluate_lvlm(models[scope], samples, protocol="both", batch_size=batch))
        old, new = (report.samples for report in reports)
        pairs = list(zip(old, new, strict=True))
        record[name] = {
            "questions": len(samples),
            "same_answer": sum(a["prediction"] == b["prediction"] for a, b in pairs),
            "same_option": sum(a["scored"] == b["scored"] for a, b in pairs),
            "largest_difference_of_a_log_probability": round(
                max(abs(x - y) for a, b in pairs for x, y in zip(a["scores"], b["scores"], strict=True)), 4
            ),
            "correct": {
                scope: round(sum(row["strict"] for row in rows) / len(rows), 4)
                for scope, rows in (("all", old), ("image", new))
            },
            "seconds": round(time.monotonic() - start),
        }
        say(f"{name}: {json.dumps(record[name])}")
    return record


def main() -> None:
    """Measure, and write the result of each dtype; those of others stay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    for dtype in args.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            models = read_all(dtype, Path(folder))
        record = {**machine(), "without_images": without_images(models)}
        say(f"{dtype}: {json.dumps(record)}")
        if args.questions:
            record["with_images"] = with_images(models, args.questions, args.batch)
        results = read_json(OUT)
        scope = {**results.get("scope", {}), "command": "python scripts/measure_lora_scope.py", dtype: record}
        write_json(OUT, {**results, "scope": scope})


if __name__ == "__main__":
    main()
