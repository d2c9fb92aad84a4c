"""What a run trains and how: all that `fit` does not know itself."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from craft.training.image_cache import ImageCache


@runtime_checkable
class Batches(Protocol):
    """The training set as batches: pure functions of the step. A batch has `ids`, for messages."""

    def indices(self, step: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        """This process's micro-batches of step number `step` (from 0)."""
        ...

    def make(self, indices: Sequence[int], step: int) -> Any:
        """The batch of these samples, on the device."""
        ...


def _nothing() -> None: ...


@dataclass(frozen=True)
class Lesson:
    """What one run trains.

    Attributes:
        objective: batch -> (loss, its parts by name); `objective.lvlm` is the model.
        trained: the parameters that train, by name; float32.
        batches: the training set.
        parts: the parts of the LVLM (as `craft.models.freezing` names them) whose bytes may change.
        probe: further figures for metrics.jsonl, asked for now and then.
        finish: called once behind the last step, when the weights to keep are in place.
        verb: what the progress bar says.
        images: the cache of decoded images, where one is used.
    """

    objective: nn.Module
    trained: dict[str, nn.Parameter]
    batches: Batches
    parts: Collection[str]
    probe: Callable[[], dict[str, float]] = dict
    finish: Callable[[], None] = _nothing
    verb: str = "training"
    images: ImageCache | None = None
