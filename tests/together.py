"""Several processes of one run over gloo, forked from a server that has imported everything once."""

import multiprocessing
import os
import queue
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PRELOAD = [
    "builders",
    "tiny_data",
    "together",
    "craft.training.run_folder",
    "accelerate",
    "torch.distributed.fsdp",
]


def together(count: int, work: Callable[..., Any], *args: Any, **environment: str) -> list[Any]:
    """`work(*args)` in `count` processes as torchrun would start them; what each returns, or its exception.

    `work` belongs to a module that can be imported with tests/ on the path.
    """
    context = multiprocessing.get_context("forkserver")
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (str(TESTS), before) if part)
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
    answers = context.Queue()
    started = []
    try:
        for rank in range(count):
            place = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            started.append(context.Process(target=_one, args=(answers, rank, place, work, args)))
            started[-1].start()
        told: dict[int, Any] = {}
        deadline = time.monotonic() + 280
        while len(told) < count and time.monotonic() < deadline:
            over = not any(process.is_alive() for process in started)
            try:  # read before they end: they wait until what they say is read
                told |= dict([answers.get(timeout=0.2)])
            except queue.Empty:
                if over:
                    break
    finally:
        os.environ["PYTHONPATH"] = before
        for process in started:
            process.kill()
    return [told.get(rank) for rank in range(count)]


def _one(answers: Any, rank: int, place: dict[str, str], work: Callable[..., Any], args: Any) -> None:
    os.environ.update(place)
    import torch

    torch.set_num_threads(1)
    try:
        result = work(*args)
    except Exception as error:
        result = error
    answers.put((rank, result))
    answers.close()
    answers.join_thread()
    os._exit(0)  # as a process does that has said what it had to say


def train(
    out: str, settings: dict[str, Any], resume: bool = False, spoil: int | None = None
) -> dict[str, Any]:
    """`fit` on the tiny LVLM and the tiny data; its losses, and hashes of every part.

    Args:
        out: the run folder.
        settings: of `AdaptConfig`.
        resume: continue the run in it.
        spoil: the process in which the first training image cannot be read.
    """
    from builders import tiny_lvlm
    from craft.core.processes import rank
    from craft.lessons.adapt import adaptation
    from craft.models.freezing import part_hashes
    from craft.training.config import AdaptConfig
    from craft.training.engine import join_processes
    from craft.training.fit import fit
    from craft.training.run_folder import RunFolder
    from tiny_data import tiny_data

    join_processes("cpu")
    lvlm, samples = tiny_lvlm(), tiny_data().train
    if spoil is not None and rank() == spoil:
        samples = [type(sample)(**{**sample.__dict__, "image": b"no picture"}) for sample in samples]
    config = AdaptConfig.build(settings, {"out": out})
    run = RunFolder(out)
    run.open(config, resume=resume)
    fit(lvlm, samples, config, run, make_lesson=adaptation, resume=resume)
    lines = [{k: v for k, v in line.items() if k != "samples_per_s"} for line in run.metrics()]
    tower = {name: value.numpy() for name, value in lvlm.visual.vision_tower.state_dict().items()}
    return {"lines": lines, "hashes": part_hashes(lvlm), "tower": tower, "record": run.record}


def trouble(out: str, settings: dict[str, Any], how: str) -> dict[str, Any]:
    """As `train`, but at its second step process 1 has an "error", or vanishes without a word."""
    from craft.core.errors import DataError
    from craft.core.processes import rank
    from craft.lessons.batches import ImageBatches

    make = ImageBatches.make

    def or_not(self: Any, indices: Any, step: int) -> Any:
        if step == 1 and rank() == 1:
            if how == "error":
                raise DataError("the picture has gone")
            os._exit(1)
        return make(self, indices, step)

    ImageBatches.make = or_not  # type: ignore[method-assign]
    return train(out, settings)


def joint(stumbles: dict[int, str]) -> str:
    """Twice `on_main` within `jointly`, where some processes fail "before", "between" or "within" them."""
    from craft.core.errors import DataError
    from craft.core.processes import everyone, jointly, on_main, rank
    from craft.training.engine import join_processes

    join_processes("cpu")

    def stumble(place: str) -> str:
        if stumbles.get(rank()) == place:
            raise DataError(f"{place} in {rank()}")
        return place

    def work() -> str:
        stumble("before")
        on_main(lambda: stumble("within"))
        stumble("between")
        return on_main(lambda: "all is well")

    try:
        return jointly(work, "the start")
    except Exception as error:
        assert everyone("still in step") == ["still in step"] * 2
        return str(error)


def fitting_into(gibibytes: float, most: int) -> int:
    """What `fitting` finds where a sample takes a GiB and the process may have so many more of them."""
    import resource

    import torch

    from craft.training.micro_batch import fitting

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return fitting(lambda size: torch.empty(size, 2**30, dtype=torch.uint8), most)


def aligned(llm: str, visual: str, chat: str, out: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`craft.align` on files; the losses of both stages, and a hash of the backbone."""
    from craft.core.tensors import hash_tensors
    from craft.recipes.align import align
    from craft.training.run_folder import RunFolder

    result = align(llm, visual, chat, "both", out, **settings)
    lines = [line["loss"] for n in (1, 2) for line in RunFolder(result.out / f"stage-{n}").metrics()]
    backbone = result.lvlm.backbone
    state = {**backbone.projector.state_dict(), **backbone.llm.state_dict()}
    return {"losses": lines, "hash": hash_tensors(state)}
