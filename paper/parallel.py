"""What is left to do, and cells in several processes."""

import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from craft.core.errors import ConfigError
from craft.core.files import read_json
from craft.core.processes import follow_parent, orphaned
from craft.core.progress import say
from craft.training.interrupt import Interrupted
from paper.cells import ZERO_SHOT, Cell, Method
from paper.plan import Plan
from paper.pruned import check_priors
from paper.work import Work

Training = tuple[str, int, Method]


@dataclass(frozen=True)
class Estimate:
    """What a set of cells needs.

    Attributes:
        trainings, cells: all of them.
        trainings_left, cells_left: those that are missing, or of other weights or questions.
        seconds: of what is left, one after the other, by the median of what this work folder holds; None if
            nothing of that kind was measured there yet.
        longest: of these, the seconds of one domain and seed: one process does them.
    """

    trainings: int
    cells: int
    trainings_left: int
    cells_left: int
    seconds: float | None
    longest: float

    def time(self, jobs: int = 1) -> str:
        """The time with so many jobs, in words."""
        if self.seconds is None:
            return "unknown"
        minutes = max(self.seconds / jobs, self.longest) / 60
        return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"

    def line(self, jobs: int = 1) -> str:
        """In words."""
        time = "the time is unknown before one of each was measured here"
        if self.seconds is not None:
            time = f"about {self.time(jobs)} with {jobs} job{'s' if jobs > 1 else ''}"
        return (
            f"{self.trainings_left} of {self.trainings} trainings and {self.cells_left} of {self.cells} "
            f"cells are left: {time}"
        )


def trainings(cells: Iterable[Cell]) -> list[Training]:
    """The trainings that cells need, each once."""
    needed = {(cell.domain, cell.seed, cell.method): 0 for cell in cells if cell.method.name != ZERO_SHOT}
    return list(needed)


def estimate(work: Work, cells: Sequence[Cell]) -> Estimate:
    """How much there is to do. Models and questions are loaded for it, since a training or a cell belongs to
    them; nothing is trained.

    Raises:
        CraftError: a model or data set is missing, or a cell needs a general prior that a model lacks.
    """
    cells = list(dict.fromkeys(cells))
    check_priors(work, cells)
    folders = {work.run_folder(*one): one for one in trainings(cells)}  # two settings may mean the same
    missing = [one for one in folders.values() if not work.is_trained(*one)]
    waiting = [cell for cell in cells if not work.is_measured(cell)]
    needed = [
        *((domain, seed, _kind(method.name)) for domain, seed, method in missing),
        *((cell.domain, cell.seed, cell.measure) for cell in waiting),
    ]
    seconds: float | None = None
    groups: dict[tuple[str, int], float] = defaultdict(float)
    medians = measured_seconds(work.plan.work)
    if all(kind in medians for *_, kind in needed):
        for domain, seed, kind in needed:
            groups[domain, seed] += medians[kind]
        seconds = sum(groups.values(), 0.0)
    longest = max(groups.values(), default=0.0)
    return Estimate(len(folders), len(cells), len(missing), len(waiting), seconds, longest)


def measured_seconds(folder: Path) -> dict[str, float]:
    """Median seconds of trainings and cells in a work folder, by measure."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for path in folder.glob("times/*.json"):
        seconds[_kind("llm-lora" if "llm-lora" in path.name else "")].append(read_json(path)["seconds"])
    for path in folder.glob("cells/*.json"):
        record = read_json(path)
        seconds[record["measure"]].append(record["seconds"])
    return {name: statistics.median(values) for name, values in seconds.items()}


def _kind(method: str) -> str:
    """What a training counts as: the LLM of LLM LoRA is larger than all others."""
    return "training llm-lora" if method == "llm-lora" else "training"


def fill_all(plan: Plan, cells: Sequence[Cell], jobs: int) -> None:
    """Measure cells in several processes. Cells of one domain and seed share trainings, so one process
    measures them; no two processes write one file.

    Args:
        plan: the plan.
        cells: what to measure, in this order; what is stored is not measured again.
        jobs: processes at once.

    Raises:
        CraftError: as measuring in this process would; the results of the other processes are stored.
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
                "A measuring process was killed, probably because memory ran out. All results so far are "
                f"stored: give the same command again, with fewer --jobs than {jobs}."
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
    """The cells of an experiment, ordered so that a process makes each LVLM once."""
    return sorted(cells, key=lambda cell: (repr(cell.method), cell.backbone))


def _fill(plan: Plan, cells: Sequence[Cell], threads: int) -> None:
    """What a process does."""
    import torch

    from paper.measures import fill

    torch.set_num_threads(threads)
    work = Work(plan)
    try:
        for cell in cells:
            fill(work, cell)
    except Interrupted:
        if orphaned():
            os._exit(130)  # the pool would wait for more work, from nobody
        raise
