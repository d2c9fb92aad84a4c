"""A benchmark of the paper (§4.1, §11), and what the readers of copies share."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.data.choices import DIRECTIVES
from craft.data.images import ImageSource
from craft.data.readers.packed import parquet_files, read_parquet
from craft.data.readers.rows import Row
from craft.data.readers.scan import folders_in
from craft.data.sample import Raw, Sample, Task, distinct
from craft.data.spelling import normalise, squeezed
from craft.data.splits import LEFT_OUT, SPLIT_NAMES, SplitNames, file_splits


@dataclass(frozen=True)
class Note:
    """Takes sentences about what was left out or chosen while reading, each once.

    Attributes:
        splits: what the names of splits mean.
        sentences: in order.
    """

    splits: SplitNames = field(default_factory=lambda: SPLIT_NAMES)
    sentences: dict[str, None] = field(default_factory=dict)

    def __call__(self, sentence: str) -> None:
        """Add a sentence."""
        self.sentences[sentence] = None


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
        original: reads the original layout below a folder; yields nothing if the folder has another layout.
        copy: makes samples of one row of a hub copy.
        classes: the number of classes; 0 if there are none.
        hub: ids of hub copies that `copy` can read.
        refused: ids of hub copies that cannot be used, and why.
        train_limit: training uses at most this many images (OCR-VQA).
        counted: what `sizes` counts.
        caveats: sentences about the samples of a copy that every report on them must say.
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
    original: Callable[[Path, Note], Iterable[Sample]] = field(repr=False)
    copy: Callable[[Row, Note], Iterable[Sample]] = field(repr=False)
    classes: int = 0
    hub: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    train_limit: int | None = None
    counted: Literal["questions", "images"] = "questions"
    caveats: Callable[[Sequence[Sample]], list[str]] = field(default=lambda _: [], repr=False)

    def load(self, root: str | Path | None, names: SplitNames = SPLIT_NAMES, partial: bool = False) -> Raw:
        """Every sample of the copy in `root`: the original layout, or a hub copy's parquet files.

        Args:
            root: the folder.
            names: what the names of splits mean.
            partial: accept fewer classes than the benchmark has.

        Raises:
            DataError: no root, or no such folder; nothing of the benchmark in it; a file of it is missing or
                damaged; splits with unknown names; fewer or more classes than the benchmark has.
        """
        if root is None:
            raise DataError(f"{self.title} needs a folder: --root DIR. {self.how_to_get()}")
        folder = user_path(root)
        if not folder.is_dir():
            raise DataError(f"the folder {folder} does not exist. {self.how_to_get()}")
        _names_in.cache_clear()  # the folder may have changed
        note = Note(names)
        samples = list(self.original(folder, note))
        if not samples and (configurations := parquet_files(folder)):
            if len(configurations) > 1:
                raise DataError(
                    f"{root} has several configurations of {self.title}: "
                    f"{', '.join(sorted(configurations))}. Use one of them as --root."
                )
            splits = file_splits(next(iter(configurations.values())), folder, names)
            samples = [
                sample
                for path, split in splits.items()
                if split != LEFT_OUT
                for row in read_parquet(path, split, folder)
                for sample in self.copy(row, note)
            ]
        if not samples:
            raise DataError(f"{self.title} is not in {root}. Expected {self.layout}. {self.how_to_get()}")
        caveats = [*self._classes_missing(samples, root, partial), *self._far_fewer(samples)]
        return Raw(
            self.name,
            self.task,
            self.domain,
            samples,
            self.licence,
            self.source,
            notes=list(note.sentences),
            train_limit=self.train_limit,
            caveats=caveats + self.caveats(samples),
        )

    def _classes_missing(self, samples: Sequence[Sample], root: str | Path, partial: bool) -> list[str]:
        """The caveat that classes are missing.

        Raises:
            DataError: they are missing and `partial` is False, or there are more than the benchmark has.
        """
        count = len({sample.label for sample in samples}) if self.classes else 0
        if count == self.classes:
            return []
        share = f"{count} of {self.classes} classes"
        if count > self.classes:
            raise DataError(
                f"{root} is not {self.title}: it has {count} classes, and {self.title} has "
                f"{self.classes}. Name the folder itself as the data instead: --data {root}."
            )
        if not partial:
            raise DataError(
                f"{root} has only {share} of {self.title}, so results on it are not those of the benchmark. "
                "Complete the copy, or use --partial, and every report says so (commands without --partial "
                f"read what `craft data prepare {self.name} --root DIR --partial` wrote). {self.how_to_get()}"
            )
        return [f"partial: {share}"]

    def _far_fewer(self, samples: Sequence[Sample]) -> list[str]:
        """The caveat that there are fewer than half of the benchmark's images or questions."""
        images = self.counted == "images" or self.task == "classification"
        count = len(distinct(samples)) if images else len(samples)
        total = sum(self.sizes.values())
        return [f"partial: {count} of {total} {'images' if images else 'questions'}"] * (2 * count < total)

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


def row_id(row: Row) -> str:
    """An id from the position of a row: "test-00000.parquet, row 7"; "test/0000.parquet, row 7"."""
    *_, folder, name = ("", *Path(row.origin).parts)
    return f"{folder}/{name}" if name.partition(".")[0].isdigit() else name


def column(row: Row, *names: str) -> Any:
    """The value of the first of these columns that a row has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if name in row.values:
            return row.values[name]
    raise DataError(
        f"{row.origin}: there is no column '{names[0]}', only {', '.join(row.values)}. Use another copy."
    )


_COPIES = re.compile(r"[ _-]?(\(\d+\)|copy( \d+)?)$", re.IGNORECASE)
"""What a browser or a file manager adds to the name of a second download: " (1)", " copy"."""


def _alike(name: str) -> str:
    """What names that mean one file share: letter case, spaces, underscores and " (1)" do not count."""
    stem, _, ending = name.rpartition(".")
    stem, ending = (stem, ending) if stem else (name, "")
    return f"{squeezed(_COPIES.sub('', stem))}.{ending.lower()}"


@functools.lru_cache(maxsize=4096)
def _names_in(folder: Path) -> dict[str, list[Path]]:
    """The contents of a folder by `_alike`."""
    contents: dict[str, list[Path]] = {}
    try:
        for path in sorted(folder.iterdir()):
            contents.setdefault(_alike(path.name), []).append(path)
    except NotADirectoryError:
        pass
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror or error}.") from error
    return contents


def entry(folder: Path, name: str) -> Path | None:
    """The file or folder `name` of a folder, which may be spelled in another way ("Images", "setid (1).mat").

    Raises:
        DataError: there are several, and none is spelled exactly so.
    """
    if (folder / name).exists():
        return folder / name
    others = _names_in(folder).get(_alike(name), [])
    if len(others) > 1:
        raise DataError(
            f"{folder} has {len(others)} files for {name}: {', '.join(path.name for path in others)}. Rename "
            "the right one, or remove the others."
        )
    return others[0] if others else None


def inside(folder: Path, name: str) -> Path:
    """The path of a file below a folder ("n02085620-Chihuahua/x.jpg"), each part as `entry` finds it; as
    written if it does not exist."""
    path = folder
    if (folder / name).exists():
        return folder / name
    for part in Path(name).parts:
        if (below := entry(path, part)) is None:
            return folder / name
        path = below
    return path


def find_below(root: Path, *names: str, depth: int = 3) -> Path | None:
    """The first file with one of these names (see `entry`) in `root`, or up to `depth` folders deeper."""
    layer = [root]
    for _ in range(depth + 1):
        for name in names:
            for folder in layer:
                if (path := entry(folder, name)) is not None:
                    return path
        layer = [child for folder in layer for child in folders_in(folder)]
        if len(layer) > 2000:  # thousands of folders hold classes or images, not the file
            return None
    return None


def need_below(root: Path, title: str, name: str, partner: Path) -> Path:
    """`find_below`, for a file that must exist because another one does.

    Raises:
        DataError: it does not exist.
    """
    path = find_below(root, name)
    if path is None:
        raise DataError(f"{title}: {partner} exists, but {name} is missing. Put it next to it.")
    return path


def image_folder(root: Path, title: str, name: str, partner: Path, first: str) -> Path:
    """The folder `name` of images, or the folder below it (zips nest them) that has the image `first`.

    Raises:
        DataError: there is no folder of this name.
    """
    outer = need_below(root, title, name, partner)
    layer = [outer]
    for _ in range(3):
        for folder in layer:
            if inside(folder, first).exists():
                return folder
        layer = [child for folder in layer for child in folders_in(folder)][:2000]
    return outer


def read_annotations(path: Path, kind: Any) -> Any:
    """A JSON file of annotations.

    Args:
        path: the file.
        kind: the type of its content, as pydantic checks it.

    Raises:
        DataError: it cannot be read, is not JSON, or has other content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        TypeAdapter(kind).validate_python(content)
        return content
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        fault = " / ".join(map(str, (*first["loc"], first["msg"])))
        raise DataError(f"{path} is damaged or another file ({fault}). Copy it again.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}). Copy the file again.") from error


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file.

    Raises:
        DataError: it cannot be read.
    """
    from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True, chars_as_strings=True)
    except Exception as error:  # the reader may raise anything on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not a MATLAB file ({reason}). Copy the file again.") from error


def choice_sample(sample: Sample, choices: Sequence[Any], answer: Any, note: Note) -> Iterator[Sample]:
    """A question that has its options. Nothing, with a note, if two options read the same, because then no
    answer is correct by its words alone.

    Args:
        sample: image and question, without an answer.
        choices: the options.
        answer: the index of the correct option, also as text, or the option itself.
        note: takes notes.

    Raises:
        DataError: the answer is none of the options.
    """
    options = tuple(" ".join(str(choice).split()) for choice in choices)
    if len(set(map(normalise, options))) < len(options) or len(options) < 2:
        note("left out: questions whose options are not distinct")
        return
    if isinstance(answer, str) and answer in options:
        answer = options.index(answer)
    if isinstance(answer, str) and answer.strip().isdigit():
        answer = int(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise DataError(f"{sample.origin}: the answer {answer!r} is none of the {len(options)} options.")
    question = sample.question.strip()
    yield replace(sample, question=question, answer=options[answer], choices=options, correct=answer)


def open_sample(
    id: str, image: ImageSource, question: object, answer: object, split: str, origin: str, kind: str = ""
) -> Iterator[Sample]:
    """A question with a free, short answer.

    Raises:
        DataError: question or answer is empty.
    """
    question, answer = " ".join(str(question).split()), " ".join(str(answer).split())
    if not question or not answer:
        raise DataError(f"{origin}: the {'answer' if question else 'question'} is empty.")
    directive = DIRECTIVES["open"]
    yield Sample(id, image, question, answer, split=split, origin=origin, kind=kind, directive=directive)
