"""`python -m paper bench`: speed, memory and FLOPs at the paper's sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, Parameter

from craft.cli.options import COMMON, Common, Count, Flag, Limit, Several
from craft.cli.output import show_json, show_pairs, show_table

Size = Literal["tiny", "reduced", "real"]


@Parameter(name="*")
@dataclass(frozen=True)
class Measuring:
    """Flags of every benchmark that measures.

    Attributes:
        threads: of torch, on a processor.
        out: write the numbers as JSON to this file.
    """

    threads: Limit = None
    out: Path | None = None

    def result(
        self, measure: Callable[..., dict[str, Any]], size: Size, repeats: int, common: Common
    ) -> dict[str, Any] | None:
        """Measure, and write the result. None if it was printed as JSON."""
        import torch

        from craft.core.device import resolve_device
        from craft.core.files import check_writable, write_json

        if self.out is not None:
            check_writable(self.out)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        result = measure(size, resolve_device(common.device), repeats)
        if self.out is not None:
            write_json(self.out, result)
        if common.json:
            show_json(result)
            return None
        return result


MEASURING = Measuring()
"""The flags if none is given."""


def train(
    *,
    size: Size = "reduced",
    repeats: Count = 3,
    ways: Several = None,
    flags: Measuring = MEASURING,
    common: Common = COMMON,
) -> None:
    """Table 4: CRAFT with a small and with the large LLM against tuning the large one, and each speed-up.

    Args:
        size: tiny (seconds), reduced (a quarter of every width and depth: for a processor), or real (a GPU).
        repeats: runs of each method; the fastest counts.
        ways: only those with one of these words in their name (--ways LoRA --ways "small LLM").
    """
    from functools import partial

    from paper.bench.train import measure

    result = flags.result(partial(measure, names=tuple(ways or ())), size, repeats, common)
    if result is None:
        return
    _table("Training (Table 4)", [_without(row, "questions/s") for row in result["rows"]])
    _table("CRAFT with the small LLM", [_without(row, "images/s", "MFU") for row in result["levers"]])
    show_pairs(result["ratios"])


def infer(
    *, size: Size = "reduced", repeats: Count = 5, flags: Measuring = MEASURING, common: Common = COMMON
) -> None:
    """Table 4: time and FLOPs of answering by keep ratio, at batch 1 and 16.

    Args:
        size: as for train.
        repeats: runs of each keep ratio; the fastest counts.
    """
    from paper.bench.infer import measure

    result = flags.result(measure, size, repeats, common)
    if result is not None:
        _table("Answering (Table 4)", result["rows"])


def search(
    *, size: Size = "real", repeats: Count = 5, flags: Measuring = MEASURING, common: Common = COMMON
) -> None:
    """Every search for codewords against the reference formulation.

    Args:
        size: as for train; real needs no GPU here.
        repeats: runs of each search; the fastest counts.
    """
    from paper.bench.search import measure

    result = flags.result(measure, size, repeats, common)
    if result is not None:
        _table("Residual search", result["rows"])
        show_pairs(result["facts"])


@Parameter(name="*")
@dataclass(frozen=True)
class Loading:
    """What is loaded, and how.

    Attributes:
        data: your data, as `craft adapt` takes it; by default JPEGs are made.
        root: the folder of a benchmark; else the base of relative paths in the data.
        limit: at most this many images; by default 480.
        workers: processes that decode ahead; 0 leaves them out.
        tower: images/s that the tower takes at most; a pause takes its place.
    """

    data: str | None = None
    root: str | None = None
    limit: Limit = None
    workers: int = 2
    tower: float = 400.0


def loading(
    *,
    size: Size = "real",
    repeats: Count = 3,
    source: Loading = Loading(),
    flags: Measuring = MEASURING,
    common: Common = COMMON,
) -> None:
    """Images/s into the vision tower: decoded as they are needed, or ahead in processes.

    Args:
        size: as for train: of the tower's input, and of the images that are made.
        repeats: runs of each loader; the fastest counts.
    """
    from functools import partial

    from paper.bench.data import Source, measure

    result = flags.result(partial(measure, source=Source(**vars(source))), size, repeats, common)
    if result is not None:
        _table("Loading images", result["rows"])
        show_pairs({name: str(value) for name, value in result["facts"].items()})


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """The run to plan.

    Attributes:
        gpus: how many and which: 8xA100-40, H100-80, 4xRTX4090-24, ...
        surrogate: an LLM of the paper: qwen2-0.5b, qwen2-1.5b, qwen2.5-0.5b, qwen2.5-3b, llama2-7b.
        batch: images per step, over all GPUs.
        tune: what is trained: the vision tower (CRAFT), the projector, or LoRA on the LLM.
        parallel: how GPUs share the work.
        gradient_checkpointing: of tower and LLM, as in the settings of `craft adapt`.
        all_logits: with the loss of transformers' `labels=`.
        mfu: the share of the data sheet's FLOP/s that you expect to reach.
        images: per epoch.
        llm_bits: 4 or 8 bits for the linear maps of the frozen LLM.
    """

    gpus: str = "8xA100-40"
    surrogate: str = "qwen2-0.5b"
    batch: int = 24
    tune: Literal["vision", "projector", "lora"] = "vision"
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    gradient_checkpointing: Literal["false", "selective", "true"] = "false"
    all_logits: Flag = False
    mfu: float = 0.4
    images: Count = 10_000
    llm_bits: Literal[4, 8] | None = None


def plan(*, training: Training = Training(), paper: Flag = False, common: Common = COMMON) -> None:
    """Time and memory of a training run on GPUs that you do not have yet. Calculated, not measured.

    Args:
        paper: instead, show Table 4's memory next to the calculated memory.
    """
    from paper.bench.plan import Run, against_paper
    from paper.bench.plan import plan as calculate

    if paper:
        rows = against_paper()
        show_json(rows) if common.json else _table("Memory per GPU, Table 4", rows)
        return
    settings: dict[str, Any] = dict(vars(training))
    again = settings.pop("gradient_checkpointing")
    settings["checkpointing"] = {"false": False, "true": True}.get(again, again)
    result = calculate(Run(trains=settings.pop("tune"), **settings))
    if common.json:
        show_json(result)
        return
    memory = [(part, f"{value:,}") for part, value in result["memory MiB per GPU"].items()]
    memory.append(("total", f"{result['total MiB per GPU']:,}"))
    show_table("Memory per GPU (calculated)", ("part", "MiB"), memory, sections=[len(memory) - 2])
    names = ("fits", "s per step", "bound by", "images/s", "minutes per epoch")
    show_pairs({name: str(result[name]) for name in names})


bench = App(name="bench", help="Speed, memory and FLOPs at the paper's sizes.")
for _verb in (train, infer, search, plan):
    bench.command(_verb)
bench.command(loading, name="data")


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


_SHORT = {"estimate MiB": "estimate", "s per step": "s", "GFLOP per image": "GFLOP/image"}
_HIDDEN = ("cpu ms", "s by FLOPs")


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows, without the columns that only the JSON has."""
    if not rows:
        return
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _HIDDEN]
    head = [_SHORT.get(name, name) for name in names]
    show_table(title, head, [[str(row.get(name, "")) for name in names] for row in rows])
