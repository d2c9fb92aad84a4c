"""What a benchmark of the paper is, and how a copy of it is read (§4.1, §11)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.data.benchmarks.reading import Note
from craft.data.hub import HUB, hub_folder
from craft.data.parquet import Row, parquet_files, read_parquet
from craft.data.raw import Raw, TrainLimit
from craft.data.sample import Sample, Task


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it is, where it comes from, and how its copies are read.

    Attributes:
        name: what `--data` takes.
        title: as its authors call it.
        task: "classification" (becomes four options, with class hold-out) or "vqa".
        domain: what the images are of, in words, for the texts of the contrastive loss.
        licence: as its authors state it.
        source: who made it, and where that is published.
        get: how to get it, in a sentence.
        layout: the files of the original, as they lie below `--root`.
        sizes: how many questions (or images, see `counted`) each split has; "all" where there is no official
            split.
        classes: how many classes; 0 where there are none.
        original: reads the original layout below a folder; yields nothing where that layout is not there.
        copy: makes samples of one row of a hub copy.
        hub: ids of hub copies that `copy` can read.
        refused: ids of hub copies that cannot be used, and why.
        train_limit: the subset that training uses (OCR-VQA).
        counted: what `sizes` counts.
    """

    name: str
    title: str
    task: Task
    domain: str
    licence: str
    source: str
    get: str
    layout: str
    sizes: Mapping[str, int]
    classes: int
    original: Callable[[Path, Note], Iterable[Sample]] = field(repr=False)
    copy: Callable[[Row, Note], Iterable[Sample]] = field(repr=False)
    hub: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    train_limit: TrainLimit | None = None
    counted: Literal["questions", "images"] = "questions"

    def load(self, root: str | Path | None) -> Raw:
        """Every sample of the copy in `root`: the original layout, or a hub copy's parquet files.

        Args:
            root: a folder, or "hub:OWNER/NAME", which downloads that copy.

        Raises:
            DataError: no root; nothing of the benchmark there; a file of it is missing, or not what it
                should be.
        """
        if root is None:
            raise DataError(f"{self.title} needs a folder: --root DIR. {self.how_to_get()}")
        if str(root).startswith(HUB):
            for id, why in self.refused.items():
                if str(root).removeprefix(HUB).startswith(id):
                    raise DataError(f"the hub copy {id} cannot be used: {why}. {self.how_to_get()}")
            folder = hub_folder(str(root))
        else:
            folder = user_path(root)
            if not folder.is_dir():
                raise DataError(f"the folder {folder} does not exist. {self.how_to_get()}")
        notes: dict[str, None] = {}  # in order, each once

        def note(text: str) -> None:
            notes[text] = None

        samples = list(self.original(folder, note))
        if not samples and (configurations := parquet_files(folder)):
            if len(configurations) > 1:
                raise DataError(
                    f"{root} holds several configurations of {self.title}: "
                    f"{', '.join(sorted(configurations))}. Give one of them as --root."
                )
            rows = read_parquet(next(iter(configurations.values())), folder, folder)
            samples = [sample for row in rows for sample in self.copy(row, note)]
        if not samples:
            raise DataError(f"{self.title} is not in {root}. Expected {self.layout}. {self.how_to_get()}")
        return Raw(
            self.name,
            self.task,
            self.domain,
            samples,
            self.licence,
            self.source,
            notes=list(notes),
            train_limit=self.train_limit,
        )

    def how_to_get(self) -> str:
        """Where the files come from, in one or two sentences."""
        copies = f" Or a hub copy: --root {HUB}{f' or {HUB}'.join(self.hub)}." if self.hub else ""
        return f"To get it: {self.get}{copies}"
