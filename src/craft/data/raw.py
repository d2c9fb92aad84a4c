"""What every reader returns: samples as they were found, before split, hold-out and options are settled."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

from craft.data.sample import Sample, Task


@dataclass(frozen=True)
class TrainLimit:
    """A subset of the training samples, drawn once for all seeds.

    Attributes:
        count: how many.
        by: "image" counts distinct pictures and keeps all their questions; "question" counts samples.
    """

    count: int
    by: Literal["image", "question"] = "image"


@dataclass
class Raw:
    """Samples as read. `split` is "" where the source does not say; a labelled sample without question and
    choices is to become a multiple-choice question.

    Attributes:
        name, task, domain, licence, source, notes: as in `Data`.
        samples: everything that was found, in a stable order, with unique ids.
        train_limit: use a subset of the training samples.
        classes: the labels of what is drawn on demand; empty where samples are found.
        draw: draws the training samples again, without pictures and names of the given classes.
    """

    name: str
    task: Task
    domain: str
    samples: list[Sample] = field(default_factory=list)
    licence: str = ""
    source: str = ""
    notes: list[str] = field(default_factory=list)
    train_limit: TrainLimit | None = None
    classes: tuple[str, ...] = ()
    draw: Callable[[Collection[str]], list[Sample]] | None = None
