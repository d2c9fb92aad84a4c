"""`craft serve` under load, its memory, the cost of the front before an engine, and `craft ask`.

`python scripts/measure_serve.py [--requests 2000] [--clients 64] [--part load …] [--out FILE]` writes
docs/results/serving.json; a part that is not measured keeps what the file has. Servers run as processes of
their own, on the CPU. Other work on the machine changes all times, so what counts are ratios of one run.
"""

import argparse
import asyncio
import base64
import copy
import io
import json
import os
import platform
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import torch

import craft
from craft.core.files import read_json, write_json
from craft.data.images import open_image
from craft.data.sample import Sample
from craft.evaluation.engine import packed
from craft.formats.artefact import save_artefact
from craft.models.lvlm import LVLM

ROOT = Path(__file__).resolve().parent.parent
LENGTH = 5
"""Tokens of an answer at most, as in an evaluation."""

SEVEN_B = {"LLM": 6.74e9, "tower": 0.43e9, "bytes per weight": 2}
"""Vicuna-7B, and SigLIP-SO400M as VILA-U's tower, in bfloat16."""


class Job(NamedTuple):
    """A question to one encoder: the encoder's name, the number of the question, and the request's body."""

    encoder: str
    number: int
    body: bytes


class Result(NamedTuple):
    """What came back: status, text, the hash of the tower that answered, and seconds."""

    status: int
    text: str
    tower: str
    seconds: float


# What is asked


def noisy(lvlm: LVLM, folder: Path, seed: int) -> Path:
    """An artefact whose tower is the base tower with noise on its weights, so that it answers differently."""
    visual = copy.copy(lvlm.visual)
    visual._modules = dict(lvlm.visual._modules)
    visual.vision_tower = copy.deepcopy(lvlm.visual.vision_tower)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in visual.vision_tower.parameters():
            weights += 0.15 * weights.std(unbiased=False) * torch.randn(weights.shape, generator=noise)
    prior = torch.ones(lvlm.visual.codebook.size, dtype=torch.long)
    return save_artefact(folder, visual, prior=prior, manifest={"surrogate": lvlm.name, "held_out": []})


def uri(sample: Sample) -> str:
    """The sample's image as a data URI."""
    stream = io.BytesIO()
    open_image(sample.image).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def jobs_of(
    model: str, encoders: Sequence[str], samples: Sequence[Sample], length: int = LENGTH
) -> list[Job]:
    """Every question to every encoder, in random order."""
    jobs = []
    for number, sample in enumerate(samples):
        image = {"type": "image_url", "image_url": {"url": uri(sample)}}
        content = [image, {"type": "text", "text": sample.prompt()}]
        for encoder in encoders:
            body = {
                "model": f"{model}:{encoder}" if encoder else model,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": length,
            }
            jobs.append(Job(encoder, number, json.dumps(body).encode()))
    random.Random(0).shuffle(jobs)
    return jobs


# Servers and clients


@contextmanager
def process(
    *words: str, ready: str = "/ready", environment: dict[str, str] | None = None
) -> Iterator[tuple[str, psutil.Process]]:
    """The address and process of the command `WORDS --port N`, which answers at `ready`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    running = subprocess.Popen([*words, "--port", str(port)], env=environment or ours)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if running.poll() is not None:
                raise SystemExit(f"{' '.join(words)} ended with status {running.returncode}")
            try:
                if httpx.get(f"{url}{ready}").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url, psutil.Process(running.pid)
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(120)


def craft_serve(model: str, encoders: dict[str, Path], *words: str) -> Any:
    """`craft serve` in float32 on the CPU."""
    named = [word for name, folder in encoders.items() for word in ("--encoder", f"{name}={folder}")]
    fixed = ("--device", "cpu", "--dtype", "float32")
    return process(sys.executable, "-m", "craft", "serve", model, *named, *fixed, *words)


def ask_all(url: str, jobs: Sequence[Job], clients: int) -> tuple[list[Result], float]:
    """The results of all jobs in order, and the seconds that they took together."""

    async def run() -> tuple[list[Result], float]:
        results: list[Result] = [Result(0, "", "", 0.0)] * len(jobs)
        waiting = iter(range(len(jobs)))

        async def client() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=600) as http:
                for index in waiting:
                    begun = time.perf_counter()
                    reply = await http.post("/v1/chat/completions", content=jobs[index].body)
                    seconds = time.perf_counter() - begun
                    text = ""
                    if reply.status_code == 200:
                        text = reply.json()["choices"][0]["message"]["content"]
                    tower = reply.headers.get("x-craft-encoder", "")
                    results[index] = Result(reply.status_code, text, tower.partition(";")[2], seconds)

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return results, time.perf_counter() - begun

    return asyncio.run(run())


# The parts


def measure_load(args: argparse.Namespace, base: LVLM, encoders: dict[str, Path]) -> dict[str, Any]:
    """Many clients against one, and every answer against `LVLM.answer` of the encoder that was asked."""
    questions = craft.data.load_data("apparel").test
    samples = [questions[n % len(questions)] for n in range(args.requests // len(encoders))]
    jobs = jobs_of(base.name, list(encoders), samples)
    few = jobs_of(base.name, list(encoders), questions[-max(1, args.alone // len(encoders)) :])
    warm = jobs_of(base.name, list(encoders), questions[-200:-196])
    with craft_serve(base.name, encoders) as (url, running):
        ask_all(url, warm, 1)
        marks = [cpu_seconds(running)]
        alone, alone_seconds = ask_all(url, few[: len(few) // 2], 1)
        marks.append(cpu_seconds(running))
        results, seconds = ask_all(url, jobs, args.clients)
        marks.append(cpu_seconds(running))
        later, later_seconds = ask_all(url, few[len(few) // 2 :], 1)
        marks.append(cpu_seconds(running))
        memory = running.memory_info().rss
    used = (marks[2] - marks[1]) / len(results)
    used_alone = (marks[1] - marks[0] + marks[3] - marks[2]) / (len(alone) + len(later))
    rate = (len(alone) + len(later)) / (alone_seconds + later_seconds)
    times = sorted(result.seconds for result in results)
    wrong, differing = compared(base, encoders, samples, jobs, results)
    return {
        "requests": len(results),
        "clients": args.clients,
        "encoders": len(encoders),
        "errors": sum(result.status != 200 for result in results),
        "lost": sum(result.status == 0 for result in results),
        **wrong,
        "questions whose answer depends on the encoder": differing,
        "requests per second": round(len(results) / seconds, 2),
        "requests per second, one at a time": round(rate, 2),
        "ratio": round(len(results) / seconds / rate, 2),
        "asked ratio": 3,
        "CPU ms of the server per request": round(1000 * used, 1),
        "CPU ms of the server per request, one at a time": round(1000 * used_alone, 1),
        "median seconds": round(statistics.median(times), 3),
        "95th percentile seconds": round(times[int(0.95 * len(times))], 3),
        "median seconds, one at a time": round(statistics.median(r.seconds for r in alone + later), 4),
        "MiB resident afterwards": round(memory / 2**20),
    }


def cpu_seconds(running: psutil.Process) -> float:
    """The CPU time that a process has used, in all its threads."""
    times = running.cpu_times()
    return times.user + times.system


def compared(
    base: LVLM,
    encoders: dict[str, Path],
    samples: Sequence[Sample],
    jobs: Sequence[Job],
    results: Sequence[Result],
) -> tuple[dict[str, int], int]:
    """How many answers are wrong or of another tower; and how many questions tell the towers apart."""
    wrong = other = 0
    answers: list[list[str]] = []
    for name, folder in encoders.items():
        lvlm = base.with_encoder(folder)
        digest = read_json(folder / "craft.json")["tower"]
        expected = lvlm.answer([s.image for s in samples], [s.prompt() for s in samples], LENGTH)
        answers.append(expected)
        for job, result in zip(jobs, results, strict=True):
            if job.encoder != name or result.status != 200:
                continue
            other += result.tower != digest
            if result.text != expected[job.number]:  # perhaps a tie in the batch of this comparison
                sample = samples[job.number]
                wrong += result.text != lvlm.answer([sample.image], [sample.prompt()], LENGTH)[0]
    differing = sum(len(set(row)) > 1 for row in zip(*answers, strict=True))
    return {"answers unlike LVLM.answer": wrong, "answered by another encoder": other}, differing


def measure_memory(args: argparse.Namespace, base: LVLM, encoders: dict[str, Path]) -> dict[str, Any]:
    """One server with all encoders loaded, against a server for each; each has answered every encoder."""
    samples = craft.data.load_data("apparel").test[:8]

    def resident(folders: dict[str, Path]) -> int:
        with craft_serve(base.name, folders) as (url, running):
            ask_all(url, jobs_of(base.name, list(folders), samples), 4)
            return running.memory_info().rss

    together = resident(encoders)
    apart = [resident({name: folder}) for name, folder in encoders.items()]
    tower = sum(weights.nbytes for weights in base.visual.vision_tower.parameters())
    rest = sum(weights.nbytes for weights in base.parameters()) - tower
    count = len(encoders)
    large, small = (
        SEVEN_B["LLM"] * SEVEN_B["bytes per weight"],
        SEVEN_B["tower"] * SEVEN_B["bytes per weight"],
    )
    return {
        "MiB resident, one server": round(together / 2**20),
        "MiB resident, a server for each": [round(rss / 2**20) for rss in apart],
        "share": round(together / sum(apart), 3),
        "asked share": 0.4,
        "share of weights alone": round(((count + 1) * tower + rest) / (count * (tower + rest)), 3),
        "7B": SEVEN_B,
        "share of weights alone, 7B, calculated": round(
            ((count + 1) * small + large) / (count * (small + large)), 3
        ),
    }


def measure_front(args: argparse.Namespace, base: LVLM, encoders: dict[str, Path]) -> dict[str, Any]:
    """The same question to the engine, embedded already, and to the front before it, in turns."""
    name, folder = next(iter(encoders.items()))
    lvlm = base.with_encoder(folder)
    samples = craft.data.load_data("apparel").test[: args.alone]
    jobs = sorted(jobs_of(base.name, [name], samples), key=lambda job: job.number)
    bodies = [engine_body(lvlm, sample) for sample in samples]
    tower: list[float] = []
    words = (sys.executable, str(ROOT / "scripts" / "stand_in_engine.py"), base.name)
    times: dict[str, list[float]] = {"engine": [], "front": [], "front, image seen before": []}
    with ExitStack() as stack:
        engine, _ = stack.enter_context(process(*words, ready="/v1/models"))
        front, _ = stack.enter_context(craft_serve(base.name, {name: folder}, "--engine", engine))
        http = stack.enter_context(httpx.Client(timeout=600))
        asks: dict[str, Callable[[int], httpx.Response]] = {
            "engine": lambda n: http.post(f"{engine}/v1/completions", content=bodies[n]),
            "front": lambda n: http.post(f"{front}/v1/chat/completions", content=jobs[n].body),
        }
        asks["front, image seen before"] = asks["front"]
        for number in range(len(samples)):
            for kind, ask in asks.items():
                begun = time.perf_counter()
                reply = ask(number)
                reply.raise_for_status()
                if number >= 3:  # the first ones load the encoder and open connections
                    times[kind].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            lvlm.visual.encode([samples[number].image], with_cls=False)
            tower.append(time.perf_counter() - begun)
    medians = {kind: 1000 * statistics.median(values) for kind, values in times.items()}
    rows = {}
    for kind in ("front", "front, image seen before"):
        added = statistics.median(
            1000 * (ours - bare) for ours, bare in zip(times[kind], times["engine"], strict=True)
        )
        rows[kind] = {
            "median ms": round(medians[kind], 1),
            "median ms added": round(added, 1),
            "percent added": round(100 * added / medians["engine"], 1),
        }
    return {
        "engine": "scripts/stand_in_engine.py",
        "requests": len(times["engine"]),
        "median ms, bare engine": round(medians["engine"], 1),
        "median ms, the tower alone, which the engine does not run": round(
            1000 * statistics.median(tower), 1
        ),
        **rows,
        "asked": "at most 10 ms or 15 percent",
    }


def engine_body(lvlm: LVLM, sample: Sample) -> bytes:
    """What the front sends to an engine for a question."""
    tokens = lvlm.visual.encode([sample.image], with_cls=False)
    with torch.no_grad():
        prompt = lvlm.backbone.inputs(tokens, [sample.prompt()])["inputs_embeds"][0]
    body = {"model": "the-llm", "prompt_embeds": packed(prompt), "max_tokens": LENGTH, "temperature": 0}
    return json.dumps(body | {"top_p": 1, "seed": 0, "n": 1, "stream": True}).encode()


def measure_ask(args: argparse.Namespace, base: LVLM, encoders: dict[str, Path]) -> dict[str, Any]:
    """`craft ask` over files against a loop over `LVLM.answer` with one of them, in turns."""
    from craft.recipes.ask import ask

    lvlm = base.with_encoder(next(iter(encoders.values())))
    questions = craft.data.load_data("apparel").test
    question = "What is shown in the image?"
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(args.pictures):
            paths.append(str(Path(folder) / f"{number:05}.png"))
            open_image(questions[number % len(questions)].image).save(paths[-1])
        lvlm.answer(paths[:2], [question] * 2, LENGTH)
        loop = loop_seconds = asked = 0.0
        written: list[str] = []
        for start in range(0, len(paths), 250):
            part = paths[start : start + 250]
            begun = time.perf_counter()
            ours = [row["answer"] for row in ask(lvlm, part, question=question, max_new_tokens=LENGTH).rows]
            asked += time.perf_counter() - begun
            some = range(0, len(part), max(1, len(paths) // args.alone))
            begun = time.perf_counter()
            written += [lvlm.answer([part[n]], [question], LENGTH)[0] for n in some]
            loop_seconds += time.perf_counter() - begun
            loop += sum(ours[n] == text for n, text in zip(some, written[-len(some) :], strict=True))
    rate, slow = len(paths) / asked, len(written) / loop_seconds
    return {
        "pictures": len(paths),
        "pictures of the loop": len(written),
        "answers of the loop that are equal": int(loop),
        "pictures per second": round(rate, 1),
        "pictures per second, loop": round(slow, 1),
        "ratio": round(rate / slow, 2),
        "asked ratio": 4,
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "load": measure_load,
    "memory": measure_memory,
    "front": measure_front,
    "ask": measure_ask,
}


def surroundings(command: str) -> dict[str, Any]:
    """What the numbers of a command depend on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    packages = ("torch", "transformers", "fastapi", "uvicorn")
    return {
        "commit": commit.stdout.strip(),
        "command": command,
        "machine": {
            "device": "cpu",
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads of PyTorch": torch.get_num_threads(),
            "load average at the start": [round(value, 1) for value in os.getloadavg()],
            "note": "other jobs ran beside; compare ratios, not times",
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def main() -> None:
    """Measure the parts, print each, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="craft-tiny/llama")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=200, help="requests one at a time")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/serving.json")
    args = parser.parse_args()
    base = craft.load(args.model, device="cpu", dtype="float32")
    result = read_json(args.out) if args.out.exists() else {}
    result |= {"model": args.model}
    command = shlex.join(["python", "scripts/measure_serve.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        encoders = {f"noise{n}": noisy(base, Path(folder) / f"noise{n}", n) for n in range(4)}
        for part in args.part:
            about = surroundings(command)
            result[part] = PARTS[part](args, base, encoders) | about
            print(json.dumps({part: result[part]}, indent=1), flush=True)
            write_json(args.out, result)


if __name__ == "__main__":
    main()
