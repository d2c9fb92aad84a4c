"""A `Lesson` tells `craft.training.fit` what a run trains and how."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from craft.models.lvlm import LVLM
from craft.quantize.search import Choice
from craft.training.image_cache import ImageCache


@dataclass(frozen=True)
class Share:
    """The fraction of a step's batch, over all processes, that is in one micro-batch; both in (0, 1].

    Attributes:
        samples: the fraction of the batch's samples.
        answers: the fraction of its answer tokens.

    The mean over the samples (or answer tokens) of a micro-batch times this fraction is its contribution to
    the mean over the whole batch, even if the micro-batches differ in size.
    """

    samples: float = 1.0
    answers: float = 1.0


WHOLE = Share()


@runtime_checkable
class Batches(Protocol):
    """The training set as batches, each a pure function of the step."""

    def make(self, indices: Sequence[int], step: int) -> Any:
        """The batch of these samples, on the device: a frozen dataclass.

        It has `ids`, for messages, and `share`, initially `WHOLE`.
        """
        ...

    def answer_tokens(self, batch: Any) -> int:
        """The number of tokens in the batch that have a loss."""
        ...

    def length(self, index: int) -> int:
        """A measure of a sample's memory relative to other samples, such as the length of its text."""
        ...

    def tokens(self, index: int) -> tuple[int, int, int]:
        """The size of one sample.

        Returns:
            The number of LLM rows, the number of tokens in the longest (including the image), and the number
            of tokens with a loss in all of them.
        """
        ...


class Objective(nn.Module, ABC):
    """The loss of a batch, as a module that data parallelism can wrap.

    Attributes:
        lvlm: the model that trains.
    """

    lvlm: LVLM

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with gradient) and its parts by name, detached.

        Both are contributions of the batch to those of the whole step (see `Share`); `fit` adds them up.
        """


def do_nothing() -> None:
    """The default of `Lesson.blend` and `Lesson.finish`."""


def _ignore(indices: Sequence[int]) -> None: ...


def _unchanged(batch: Any, whole: Sequence[int], step: int) -> Any:
    return batch


@dataclass(frozen=True)
class Settled:
    """The choices that a run on labelled images makes at its start; a resumed run keeps them.

    Attributes:
        search: the search for codewords, and the reason for it.
        blend: the share of the trained weights in the result, in (0, 1].
        retention: the weight of the retention loss; None if the vision tower does not train, or if a version
            without this loss started the run.
        table: how gradients pass the LLM's token table (`craft.lessons.table_rule`); None if it reads what a
            projector makes of z̃.
    """

    search: Choice
    blend: float | None = None
    retention: float | None = None
    table: dict[str, Any] | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Settled | None":
        """The choices in a run's `run.json`, or None if the run has not made them yet."""
        if "search" not in record:
            return None
        search = Choice(**record["search"])
        return cls(search, record.get("blend"), record.get("retention"), record.get("table"))

    def to_record(self) -> dict[str, Any]:
        """The fields of `run.json`."""
        fields = {**asdict(self), "search": asdict(self.search)}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Lesson:
    """What one run trains, and by which objective.

    Attributes:
        objective: the loss of a batch.
        trained: the parameters that train, float32, by their names in the model.
        batches: the training set.
        parts: the parts of the LVLM (as `craft.models.freezing` names them) whose bytes may change.
        probe: returns further metrics for metrics.jsonl; called every `probe_every` steps.
        blend: replaces the trained weights, in place, by those of the result. `fit` calls it for each
            validation, which restores them, and once after the last step.
        finish: called once after the last `blend`.
        verb: the label of the progress bar.
        images: the cache of decoded images, if the lesson has one.
        complete: micro-batch, samples of the step's whole batch, step -> the micro-batch with what its loss
            needs from the whole batch.
        expect: called with the samples of micro-batches that `batches` will make soon.
        count: the number of samples in `batches`; None if it is that of the training set.
        settled: the choices made at the start, for run.json; None if there were none.
        mixed: the number of mixed images per training image, for the retention loss.
    """

    objective: Objective
    trained: dict[str, nn.Parameter]
    batches: Batches
    parts: Collection[str]
    probe: Callable[[], dict[str, float]] = dict
    blend: Callable[[], None] = do_nothing
    finish: Callable[[], None] = do_nothing
    verb: str = "training"
    images: ImageCache | None = None
    complete: Callable[[Any, Sequence[int], int], Any] = _unchanged
    expect: Callable[[Sequence[int]], None] = _ignore
    count: int | None = None
    settled: Settled | None = None
    mixed: float = 0.0

    @property
    def search(self) -> str:
        """The name of the search for codewords in training (`craft.quantize.search.SEARCHES`)."""
        return "exact" if self.settled is None else self.settled.search.name
