"""`craft bench`: speed, memory and FLOPs at the paper's sizes."""

from pathlib import Path
from typing import Any, Literal

from craft.cli.options import COMMON, Common, Count, Flag, Limit, Several
from craft.cli.output import show_json, show_pairs, show_table

Size = Literal["tiny", "reduced", "real"]


def train(
    *, size: Size = "reduced", repeats: Count = 3, ways: Several = None, threads: Limit = None,
    out: Path | None = None, common: Common = COMMON,
) -> None:  # fmt: skip
    """Table 4: CRAFT with a small and with the large LLM against tuning the large one; each lever. One run.

    Args:
        size: tiny (seconds), reduced (a quarter of every width and depth: for a processor), or real (a GPU).
        repeats: runs of each way; the fastest counts.
        ways: only those with one of these words in their name (--ways LoRA --ways "small LLM").
        threads: of torch, on a processor.
        out: write the numbers as JSON here.
    """
    from functools import partial

    from craft.experiments.bench.train import measure

    found = _measured(partial(measure, ways=tuple(ways or ())), size, repeats, threads, out, common)
    if found is None:
        return
    _table("Training (Table 4)", [_without(row, "questions/s") for row in found["rows"]])
    _table("Levers, CRAFT with the small LLM", [_without(row, "images/s", "MFU") for row in found["levers"]])
    show_pairs(found["ratios"])
    if found["calculated"]:
        _table("Calculated at real size, nothing measured", found["calculated"]["levers"])
        show_pairs({k: v for k, v in found["calculated"].items() if k != "levers"})


def infer(
    *, size: Size = "reduced", repeats: Count = 5, threads: Limit = None, out: Path | None = None,
    common: Common = COMMON,
) -> None:  # fmt: skip
    """Table 4: time and FLOPs of answering by keep ratio, at batch 1 and 16.

    Args:
        size: as for `craft bench train`.
        repeats: runs of each way; the fastest counts.
        threads: of torch, on a processor.
        out: write the numbers as JSON here.
    """
    from craft.experiments.bench.infer import measure

    found = _measured(measure, size, repeats, threads, out, common)
    if found is not None:
        _table("Answering (Table 4)", found["rows"])


def search(
    *, size: Size = "real", repeats: Count = 5, threads: Limit = None, out: Path | None = None,
    common: Common = COMMON,
) -> None:  # fmt: skip
    """Every search for codewords against the reference formulation.

    Args:
        size: as for `craft bench train`; real needs no GPU here.
        repeats: runs of each way; the fastest counts.
        threads: of torch, on a processor.
        out: write the numbers as JSON here.
    """
    from craft.experiments.bench.search import measure

    found = _measured(measure, size, repeats, threads, out, common)
    if found is not None:
        _table("Residual search", found["rows"])
        show_pairs(found["facts"])


def loading(
    *, data: str | None = None, root: str | None = None, limit: Limit = None, workers: int = 2,
    tower: float = 400.0, size: Size = "real", repeats: Count = 3, threads: Limit = None,
    out: Path | None = None, common: Common = COMMON,
) -> None:  # fmt: skip
    """Images/s into the vision tower: decoded as they are needed, or ahead in processes.

    Args:
        data: your own, as `craft adapt` takes it; by default JPEGs are made.
        root: where a benchmark lies; else what relative paths in the data start from.
        limit: at most this many pictures; by default 480.
        workers: processes that decode ahead; 0 leaves them out.
        tower: images/s that the tower takes at most; a pause stands for it.
        size: as for `craft bench train`: of the tower's input, and of what is made.
        repeats: runs of each way; the fastest counts.
        threads: of torch.
        out: write the numbers as JSON here.
    """
    from functools import partial

    from craft.experiments.bench.data import measure

    given = partial(measure, data=data, root=root, limit=limit, workers=workers, tower=tower)
    found = _measured(given, size, repeats, threads, out, common)
    if found is not None:
        _table("Loading images", found["rows"])
        show_pairs({name: str(value) for name, value in found["facts"].items()})


def plan(
    *,
    gpus: str = "8xA100-40",
    surrogate: str = "qwen2-0.5b",
    batch: int = 24,
    tune: Literal["vision", "projector", "lora"] = "vision",
    parallel: Literal["ddp", "fsdp2"] = "ddp",
    gradient_checkpointing: Literal["false", "selective", "true"] = "false",
    all_logits: Flag = False,
    mfu: float = 0.4,
    images: Count = 10_000,
    llm_bits: Literal[4, 8] | None = None,
    paper: Flag = False,
    common: Common = COMMON,
) -> None:
    """Time and memory of a training run on GPUs that you do not have yet. Calculated, not measured.

    Args:
        gpus: how many and which: 8xA100-40, H100-80, 4xRTX4090-24, ...
        surrogate: an LLM of the paper: qwen2-0.5b, qwen2-1.5b, qwen2.5-0.5b, qwen2.5-3b, llama2-7b.
        batch: images per step, over all GPUs.
        tune: what trains: the vision tower (CRAFT), the projector, or LoRA on the LLM.
        parallel: how GPUs share the work.
        gradient_checkpointing: of tower and LLM, as in the settings of `craft adapt`.
        all_logits: with the loss of transformers' `labels=`.
        mfu: the share of the data sheet's FLOP/s that you expect to reach.
        images: per epoch.
        llm_bits: the frozen LLM's linear maps in 4 or 8 bits.
        paper: instead, Table 4's rows beside what is calculated for them.
    """
    from craft.experiments.bench.plan import Run, against_paper
    from craft.experiments.bench.plan import plan as calculate

    if paper:
        rows = against_paper()
        show_json(rows) if common.json else _table("Memory per GPU, Table 4", rows)
        return
    again: Any = {"false": False, "true": True}.get(gradient_checkpointing, gradient_checkpointing)
    sharing = (parallel, again, True)
    found = calculate(Run(gpus, surrogate, batch, tune, *sharing, all_logits, mfu, images, llm_bits))
    if common.json:
        show_json(found)
        return
    memory = [(part, f"{value:,}") for part, value in found["memory MiB per GPU"].items()]
    memory.append(("total", f"{found['total MiB per GPU']:,}"))
    show_table("Memory per GPU (calculated)", ("part", "MiB"), memory, sections=[len(memory) - 2])
    names = ("fits", "s per step", "bound by", "images/s", "minutes per epoch")
    show_pairs({name: str(found[name]) for name in names})


def _measured(
    measure: Any, size: Size, repeats: int, threads: int | None, out: Path | None, common: Common
) -> dict[str, Any] | None:
    """What was measured, and written; None where it was printed as JSON."""
    import torch

    from craft.core.device import resolve_device
    from craft.core.files import check_writable, write_json

    if out is not None:
        check_writable(out)
    if threads is not None:
        torch.set_num_threads(threads)
    found = measure(size, resolve_device(common.device), repeats)
    if out is not None:
        write_json(out, found)
    if common.json:
        show_json(found)
        return None
    return found


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


_SHORT = {"estimate MiB": "estimate", "s per step": "s", "GFLOP per image": "GFLOP/image"}
_UNSEEN = ("cpu ms", "s by FLOPs", "search TFLOP", "projector TFLOP")


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    """All but what only the JSON has; the same on a terminal and in a file."""
    if not rows:
        return
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _UNSEEN]
    head = [_SHORT.get(name, name) for name in names]
    show_table(title, head, [[str(row.get(name, "")) for name in names] for row in rows])
