"""A benchmark of the paper, and how a copy of it is read (§4.1, §11)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.data.benchmarks.reading import Note
from craft.data.readers.parquet import parquet_files, read_parquet
from craft.data.readers.rows import Row
from craft.data.sample import Raw, Sample, Task


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it is, where it comes from, and how its copies are read.

    Attributes:
        name: what `--data` takes.
        title: its authors' name for it.
        task: "classification" (becomes four options, with class hold-out) or "vqa".
        domain: what the images are of, in words, for the texts of the contrastive loss.
        licence: as its authors state it.
        source: who made it, and where that is published.
        get: how to get it, in a sentence.
        layout: the files of the original, relative to `--root`.
        sizes: the number of questions (or images, see `counted`) in each split; "all" if there is no official
            split.
        classes: the number of classes; 0 if there are none.
        original: reads the original layout below a folder; yields nothing if the folder has another layout.
        copy: makes samples of one row of a hub copy.
        hub: ids of hub copies that `copy` can read.
        refused: ids of hub copies that cannot be used, and why.
        train_limit: training uses at most this many images (OCR-VQA).
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
    train_limit: int | None = None
    counted: Literal["questions", "images"] = "questions"

    def load(self, root: str | Path | None) -> Raw:
        """Every sample of the copy in `root`: the original layout, or a hub copy's parquet files.

        Raises:
            DataError: no root, or no such folder; nothing of the benchmark in it; a file of it is missing or
                damaged.
        """
        if root is None:
            raise DataError(f"{self.title} needs a folder: --root DIR. {self.how_to_get()}")
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
                    f"{root} has several configurations of {self.title}: "
                    f"{', '.join(sorted(configurations))}. Use one of them as --root."
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
        if not self.hub:
            return f"To get it: {self.get}"
        roots = " or ".join(f"--root hub:{id}" for id in self.hub)
        return f"To get it: {self.get} Or use a hub copy: `craft data prepare {self.name}` with {roots}."

    def refuse_copy(self, id: str) -> None:
        """Check the id of a hub copy.

        Raises:
            DataError: it cannot be used.
        """
        for refused, reason in self.refused.items():
            if id.startswith(refused):
                raise DataError(f"the hub copy {refused} cannot be used: {reason}. {self.how_to_get()}")
