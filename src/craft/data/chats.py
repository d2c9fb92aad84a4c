"""Whole conversations about one image, or none, to train a backbone on (§8).

The rows of a table (`craft.data.readers.tables`) are one of

    {"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]}
        LLaVA-CC3M-Pretrain-595K's chat.json, ShareGPT4V, LLaVA-Instruct-150K
    {"image", "caption"}                                       the same CC3M set's metadata.json
    {"messages": [{"role": "user", "content": "..."}, ...], "images": ["a.jpg"]}
    {"question", "answer"}                                     CRAFT's, without an image

Everything that `load_data` reads is accepted, too: a training sample is a conversation of one turn. A table
is read in this way if every row is a question about an image, or a labelled image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.core.progress import say
from craft.core.seeding import rng
from craft.data.check import Overlap, settle_overlap
from craft.data.images import ImageSource
from craft.data.load import is_tar, load_data, located, not_prepared
from craft.data.problems import Problems
from craft.data.readers.conversations import conversation, is_conversation, untagged
from craft.data.readers.pictures import one_picture, read_picture
from craft.data.readers.rows import Row, text_of
from craft.data.readers.tables import TABLES, check_images, read_rows
from craft.data.splits import SplitNames, split_called, split_names, unknown_splits

ASK_CAPTION = (
    "Describe the image briefly.",
    "Give a short caption for the picture.",
    "What does the picture show, in one sentence?",
    "Sum up the image in a few words.",
)
"""Questions for captions that come without one."""


@dataclass(frozen=True)
class Conversation:
    """Turns of question and answer about one image.

    Attributes:
        id: for messages and seeds.
        turns: (question, answer) pairs, without any image tag.
        image: the image, or its row in codes that exist already, or None for text alone.
        origin: file and entry ("chat.json, entry 12"), for messages.
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    image: ImageSource | int | None = field(default=None, compare=False, repr=False)
    origin: str = ""


def read_conversations(
    sources: Sequence[str | Path],
    root: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    *,
    splits: Sequence[str] = (),
    partial: bool = False,
    overlap: Overlap = "refuse",
) -> list[Conversation]:
    """All conversations of several sources, in their order.

    Args:
        sources: tables as above, embedded domains, benchmarks, folders of class folders.
        root: the folder that image paths start from; by default the file's own.
        seed: of `load_data`, and of the questions that go with bare captions.
        limit: at most this many from each source.
        splits, partial: of `load_data`.
        overlap: what happens to training images of `load_data` that stand in the test split too.

    Raises:
        DataError: nothing there, training images in the test split, a broken row, an empty answer, several
            images, an image that does not exist (the first few are named with file and row), or a tar.
    """
    conversations: list[Conversation] = []
    for source in sources:
        path = _table(source, root)
        if path is None:
            options = {"splits": splits, "partial": partial, "unseen_fraction": 0.0}
            data = settle_overlap(load_data(source, root, seed, limit=limit, **options), overlap)
            for caveat in data.caveats:
                say(f"note: {data.name}: {caveat}")
            conversations += [
                Conversation(s.id, ((s.prompt(), s.answer),), s.image, s.origin)
                for s in data.samples("train")
            ]
        else:
            base = path.parent if root is None else user_path(root)
            conversations += _read(path, base, seed, limit, split_names(splits))
    return conversations


def _table(source: str | Path, root: str | Path | None) -> Path | None:
    """The path of a table of conversations; None if the source is data for `load_data`."""
    path = located(source, None if root is None else user_path(root))
    if is_tar(path) and path.is_file():
        raise not_prepared(str(source), root)
    if path.suffix.lower() not in TABLES or not path.is_file():
        return None
    others = (row for row in read_rows(path, Problems("rows"), path.parent) if not _is_sample(row))
    return None if next(others, None) is None else path


def _is_sample(row: Row) -> bool:
    """Whether `load_data` reads such rows: a question about an image, or a labelled image."""
    fields = {name for name, value in row.values.items() if value is not None}
    pictured = not fields.isdisjoint(("image", "images", "file_name"))
    return pictured and ({"question", "answer"} <= fields or "label" in fields)


def _read(path: Path, base: Path, seed: int, limit: int | None, names: SplitNames) -> list[Conversation]:
    """The conversations of a table. Rows that say that they are not for training are left out."""
    problems, others = Problems("rows"), 0
    conversations: list[Conversation] = []
    for number, row in enumerate(read_rows(path, problems, base), start=1):
        if len(conversations) == limit:
            break  # the images of the remaining rows need not exist
        name = str(row.values.get("split") or "train")
        if (split := split_called(name, names)) is None:
            raise unknown_splits(f"{row.origin}: unknown split {name!r}; the table", [name])
        if split != "train":
            others += 1
            continue
        try:
            conversations.append(_conversation(row, f"{path.stem}:{number}", base, seed))
        except DataError as error:
            problems.add(error)
    problems.stop(len(conversations) + len(problems.messages))
    if others:
        say(f"left out: {others} rows of {path} that are not for training, by their column 'split'")
    if not conversations:
        raise DataError(f"{path} contains no conversation.")
    fix = "name another folder with --set root=FOLDER, put the files there, or leave these rows out"
    check_images(conversations, base, fix)
    return conversations


def _conversation(row: Row, default: str, base: Path, seed: int) -> Conversation:
    values, origin = row.values, row.origin
    key = str(values.get("id") or default)
    if is_conversation(values):
        image, turns = conversation(values, origin, text=True)
        return Conversation(key, tuple(turns), _picture(image, base, origin), origin)
    image = one_picture(values, origin)
    if "question" in values and "answer" in values:
        if values.get("choices"):
            raise _mixed(origin, "'choices'")
        question = untagged(text_of(values, "question", origin), int(image is not None), origin)
        turns = [(question, text_of(values, "answer", origin))]
    elif image is not None and ("caption" in values or "captions" in values):
        caption = values.get("caption") or values.get("captions")
        caption = caption[0] if isinstance(caption, list) and caption else caption
        caption = text_of({"caption": caption}, "caption", origin)
        turns = [(rng(seed, "caption", key).choice(ASK_CAPTION), caption)]
    elif image is not None and values.get("label") is not None:
        raise _mixed(origin, "a labelled image")
    else:
        raise DataError(
            f"{origin}: no conversation (fields: {', '.join(values) or 'none'}). A row has "
            "'conversations', 'messages', 'question' and 'answer', or 'image' and 'caption'."
        )
    return Conversation(key, tuple(turns), _picture(image, base, origin), origin)


def _picture(value: Any, base: Path, origin: str) -> ImageSource | None:
    return None if value is None else read_picture(value, base, origin)


def _mixed(origin: str, what: str) -> DataError:
    return DataError(
        f"{origin}: {what} in a table whose rows are not all questions about an image, or labelled images. "
        "Put such rows into a separate table."
    )
