"""What every reader returns: samples as they were found, before split, hold-out and options are settled."""

from dataclasses import dataclass, field

from craft.data.sample import Sample, Task


@dataclass
class Raw:
    """Samples as read. `split` is "" where the source does not say; a labelled sample without question and
    choices is to become a multiple-choice question.

    Attributes:
        name, task, domain, licence, source: as in `Data`.
        samples: everything that was found, in a stable order, with unique ids.
    """

    name: str
    task: Task
    domain: str
    samples: list[Sample] = field(default_factory=list)
    licence: str = ""
    source: str = ""
