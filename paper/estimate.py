"""What remains to be done, and how long it takes."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from craft.core.files import read_json
from paper.cells import ZERO_SHOT, Cell, Method
from paper.pruned import check_priors
from paper.work import Work

Training = tuple[str, int, Method]


@dataclass(frozen=True)
class Estimate:
    """What a set of cells needs.

    Attributes:
        trainings, cells: all of them.
        trainings_left, cells_left: those that are missing, or of other weights or questions.
        seconds: for what remains, by the median times in this work folder; None if nothing of that kind
            was measured there yet.
    """

    trainings: int
    cells: int
    trainings_left: int
    cells_left: int
    seconds: float | None

    @property
    def time(self) -> str:
        """The time in words."""
        if self.seconds is None:
            return "unknown"
        minutes = self.seconds / 60
        return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"

    @property
    def line(self) -> str:
        """The estimate in words."""
        known = self.seconds is not None
        return (
            f"{self.trainings_left} of {self.trainings} trainings and {self.cells_left} of {self.cells} "
            f"cells remain: {f'about {self.time}' if known else 'the time is unknown so far'}"
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
    kinds = [*(_kind(method.name) for *_, method in missing), *(cell.measure for cell in waiting)]
    medians = measured_seconds(work.plan.work)
    seconds = sum(medians[kind] for kind in kinds) if {*kinds} <= {*medians} else None
    return Estimate(len(folders), len(cells), len(missing), len(waiting), seconds)


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
