"""Cells in several processes, and how long they will take."""

import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from craft.core.errors import ConfigError
from craft.core.files import read_json
from craft.core.interrupt import Interrupted
from craft.core.processes import follow_parent, orphaned
from craft.core.progress import say
from craft.experiments.bench.measure import matmul_rate
from craft.experiments.cells import ZERO_SHOT, Cell, Method
from craft.experiments.plan import Plan
from craft.experiments.pruned import check_priors
from craft.experiments.work import Work

SECONDS = {
    "training": 430.0,
    "training llm-lora": 430.0,
    "answers": 6.0,
    "codes": 6.0,
    "judged": 170.0,
    "pruned": 8.0,
}
"""Seconds of one training and one cell of each measure with the shipped models on a CPU core of `RATE`: with
this machine's rate a guess, until the work folder holds measured ones."""

STEPS = {"training": 200, "training llm-lora": 60}
"""Of such a training; `BEFORE` seconds of it do not depend on them."""

BEFORE = 50.0

RATE = 34e9
"""FLOP/s of that core in a product of float32 matrices."""

Training = tuple[str, int, Method]


@dataclass(frozen=True)
class Estimate:
    """What a set of cells asks for.

    Attributes:
        trainings, cells: all of them.
        trainings_left, cells_left: those that are not there yet, or of other weights or questions.
        seconds: of what is left, one after the other.
        longest: of these, what one domain and seed ask for: they stay in one process.
        measured: whether every figure behind it was measured in this work folder, not guessed.
    """

    trainings: int
    cells: int
    trainings_left: int
    cells_left: int
    seconds: float
    longest: float
    measured: bool

    def time(self, jobs: int = 1) -> float:
        """Seconds with so many jobs."""
        return max(self.seconds / jobs, self.longest)

    def line(self, jobs: int = 1) -> str:
        """In words."""
        minutes = self.time(jobs) / 60
        time = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
        base = "by what was measured here" if self.measured else "partly by guess, for a CPU core a job"
        return (
            f"{self.trainings_left} of {self.trainings} trainings and {self.cells_left} of {self.cells} "
            f"cells are left: about {time} with {jobs} job{'s' if jobs > 1 else ''} ({base})"
        )


def trainings(cells: Iterable[Cell]) -> list[Training]:
    """The trainings that cells ask for, each once."""
    found = {(cell.domain, cell.seed, cell.method): 0 for cell in cells if cell.method.name != ZERO_SHOT}
    return list(found)


def estimate(work: Work, cells: Sequence[Cell]) -> Estimate:
    """How much there is to do. Models and questions are loaded for it, since a training or a cell belongs to
    them; nothing is trained.

    Raises:
        CraftError: a model or data set is missing, or a model has no general prior and one is asked for.
    """
    cells = list(dict.fromkeys(cells))
    check_priors(work, cells)
    wanted = {work.place(*one): one for one in trainings(cells)}  # two settings may come to the same
    missing = [one for one in wanted.values() if not work.is_trained(*one)]
    waiting = [cell for cell in cells if not work.is_measured(cell)]
    known = measured_seconds(work.plan.work)
    needed = [
        *((domain, seed, _kind(method.name)) for domain, seed, method in missing),
        *((cell.domain, cell.seed, cell.measure) for cell in waiting),
    ]
    guessed = {name for *_, name in needed} - {*known}
    slower = RATE / _core_rate() if guessed else 1.0
    known |= {name: _guess(name, work.plan) * slower for name in guessed}
    groups: dict[tuple[str, int], float] = defaultdict(float)
    for domain, seed, name in needed:
        groups[domain, seed] += known[name]
    seconds, longest = sum(groups.values(), 0.0), max(groups.values(), default=0.0)
    return Estimate(len(wanted), len(cells), len(missing), len(waiting), seconds, longest, not guessed)


def _guess(name: str, plan: Plan) -> float:
    """`SECONDS`, for as many steps as the plan's trainings have."""
    settings = {"training": plan.adapt, "training llm-lora": plan.lora}.get(name, {})
    steps = settings.get("max_steps")
    if steps is None:
        return SECONDS[name]
    return BEFORE + (SECONDS[name] - BEFORE) * steps / STEPS[name]


@cache
def _core_rate() -> float:
    """FLOP/s of one core of this machine, now."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return matmul_rate(torch.device("cpu"), torch.float32)
    finally:
        torch.set_num_threads(threads)


def measured_seconds(folder: Path) -> dict[str, float]:
    """Median seconds of trainings and cells in a work folder, by measure."""
    found: dict[str, list[float]] = defaultdict(list)
    for path in folder.glob("times/*.json"):
        found[_kind("llm-lora" if "llm-lora" in path.name else "")].append(read_json(path)["seconds"])
    for path in folder.glob("cells/*.json"):
        told = read_json(path)
        found[told["measure"]].append(told["seconds"])
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _kind(method: str) -> str:
    """What a training counts as: the LLM of LLM LoRA is larger than all others."""
    return "training llm-lora" if method == "llm-lora" else "training"


def fill_all(plan: Plan, cells: Sequence[Cell], jobs: int) -> None:
    """Measure cells in several processes. Those of one domain and seed share trainings, so they stay in one
    process; no two processes write one file.

    Args:
        plan: the plan.
        cells: what to measure, in this order; what is there is not measured again.
        jobs: processes at once.

    Raises:
        CraftError: as measuring in this process would; what others measured is kept.
        ConfigError: a process was killed.
    """
    import torch

    groups = _waiting(plan, cells)
    if not groups:
        return
    torch.cuda.empty_cache()  # of models that were loaded to look; the processes need the memory
    threads = max(1, (os.cpu_count() or 1) // jobs)
    count, context = min(jobs, len(groups)), get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=follow_parent) as pool:
        waiting = {pool.submit(_fill, plan, group, threads): key for key, group in groups.items()}
        try:
            for number, one in enumerate(as_completed(waiting), start=1):
                one.result()
                domain, seed = waiting[one]
                say(f"{number} of {len(groups)} done: {domain}, seed {seed}")
        except BrokenProcessPool as error:
            raise ConfigError(
                "A process that measured was killed, probably because memory ran out. What was measured is "
                f"kept: give the same command again, with fewer --jobs than {jobs}."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _waiting(plan: Plan, cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    """The cells that are to be measured, by domain and seed."""
    groups: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    work = Work(plan)
    for cell in dict.fromkeys(cells):
        if not work.is_measured(cell):
            groups[cell.domain, cell.seed].append(cell)
    return groups


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """The cells of an experiment so that a process makes each LVLM once."""
    return sorted(cells, key=lambda cell: (repr(cell.method), cell.backbone))


def _fill(plan: Plan, cells: Sequence[Cell], threads: int) -> None:
    """What a process does."""
    import torch

    from craft.experiments.measures import fill

    torch.set_num_threads(threads)
    work = Work(plan)
    try:
        for cell in cells:
            fill(work, cell)
    except Interrupted:
        if orphaned():
            os._exit(130)  # the pool would wait for more work, from nobody
        raise
