"""What a run trains and how: all that `fit` does not know itself."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from craft.quantize.search import Choice
from craft.training.image_cache import ImageCache


@dataclass(frozen=True)
class Share:
    """How much of a whole step's batch, over all processes, one micro-batch is: fractions in (0, 1].

    Attributes:
        samples: of its samples.
        answers: of its answer tokens.

    A mean over samples (or answer tokens) of the micro-batch times this is what it contributes to the mean
    over the whole batch, however unevenly that was divided.
    """

    samples: float = 1.0
    answers: float = 1.0


WHOLE = Share()


@runtime_checkable
class Batches(Protocol):
    """The training set as batches: pure functions of the step."""

    def make(self, indices: Sequence[int], step: int) -> Any:
        """The batch of these samples, on the device: a frozen dataclass.

        It has `ids`, for messages, and `share`, `WHOLE` at first.
        """
        ...

    def answer_tokens(self, batch: Any) -> int:
        """How many tokens of the batch are learned."""
        ...

    def length(self, index: int) -> int:
        """How much memory a sample takes compared with others, by any measure: that of its text."""
        ...

    def tokens(self, index: int) -> tuple[int, int, int]:
        """How many rows of the LLM a sample takes by itself, how many tokens the longest of them has, image
        included, and how many tokens are learned in all."""
        ...


def nothing() -> None:
    """What a lesson does where there is nothing to do."""


def _ignored(indices: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class Settled:
    """What a run on labelled pictures decides when it begins; a resumed run keeps it.

    Attributes:
        search: how codewords are found, and why so.
        blend: the share of what is trained that is kept, in (0, 1].
        retention: weight of the retention loss; None if the vision tower does not train, or in the record
            of a run that began before there was this loss.
    """

    search: Choice
    blend: float | None = None
    retention: float | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Settled | None":
        """What a run's `run.json` says, or None if the run has decided nothing yet."""
        if "search" not in record:
            return None
        return cls(Choice(**record["search"]), record.get("blend"), record.get("retention"))

    def to_record(self) -> dict[str, Any]:
        """The fields of `run.json`."""
        fields = {"search": asdict(self.search), "blend": self.blend, "retention": self.retention}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Lesson:
    """What one run trains.

    Attributes:
        objective: batch -> (loss, its parts by name); `objective.lvlm` is the model. Loss and parts are what
            the batch, by its `share`, contributes to those of the whole step: `fit` adds them up.
        trained: the parameters that train, by their names in the model; float32.
        batches: the training set.
        parts: the parts of the LVLM (as `craft.models.freezing` names them) whose bytes may change.
        probe: further figures for metrics.jsonl, asked for now and then.
        blend: trained weights become those to keep, in place: for each validation, which undoes it, and once
            behind the last step.
        finish: called once behind that.
        verb: what the progress bar says.
        images: the cache of decoded images, where one is used.
        ahead: told the samples of micro-batches that will be made soon.
        count: how many samples `batches` has, where that is not how many were given.
        settled: what was decided at the start, for run.json; None if there was nothing to decide.
        mixed: mixed pictures that the retention loss takes beside each image.
    """

    objective: nn.Module
    trained: dict[str, nn.Parameter]
    batches: Batches
    parts: Collection[str]
    probe: Callable[[], dict[str, float]] = dict
    blend: Callable[[], None] = nothing
    finish: Callable[[], None] = nothing
    verb: str = "training"
    images: ImageCache | None = None
    ahead: Callable[[Sequence[int]], None] = _ignored
    count: int | None = None
    settled: Settled | None = None
    mixed: float = 0.0

    @property
    def search(self) -> str:
        """How codewords are found, where features are quantised in training."""
        return "exact" if self.settled is None else self.settled.search.name
