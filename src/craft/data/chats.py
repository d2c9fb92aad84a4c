"""Whole conversations about one image, or none: what a backbone is trained on (§8).

Read are tables (`craft.data.tables`) whose rows hold

    {"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]}
        LLaVA-CC3M-Pretrain-595K's chat.json, ShareGPT4V, LLaVA-Instruct-150K
    {"image", "caption"}                                       the same CC3M set's metadata.json
    {"messages": [{"role": "user", "content": "..."}, ...], "images": ["a.jpg"]}
    {"question", "answer"}                                     ours, without an image

and all that `load_data` reads: a training sample is one turn. That is also how a table is read in which every
row is a question about an image, or a labelled image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.core.seeding import rng
from craft.data.conversations import conversation
from craft.data.folder import is_text
from craft.data.images import ImageSource
from craft.data.load import load_data
from craft.data.parquet import Row
from craft.data.problems import Problems
from craft.data.questions import read_picture
from craft.data.tables import TABLES, read_rows

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
        image: the image, or its row in codes that are at hand already, or None for text alone.
        origin: where it was read ("chat.json, entry 12"), for messages.
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    image: ImageSource | int | None = field(default=None, compare=False, repr=False)
    origin: str = ""


def read_conversations(
    sources: Sequence[str | Path], root: str | Path | None = None, seed: int = 0, limit: int | None = None
) -> list[Conversation]:
    """All conversations of several sources, in their order.

    Args:
        sources: tables as above, embedded domains, benchmarks, folders of class folders.
        root: folder that image paths start from; by default the file's own.
        seed: of what `load_data` draws, and of the questions put to bare captions.
        limit: at most this many from each source.

    Raises:
        DataError: nothing there, a broken row, an empty answer, several images, an image that does not exist;
            the first few are named with file and row.
    """
    found: list[Conversation] = []
    for source in sources:
        path = _table(source, root)
        if path is None:
            data = load_data(source, root=root, seed=seed, limit=limit, unseen_fraction=0.0)
            found += [
                Conversation(s.id, ((s.prompt(), s.answer),), s.image, s.origin)
                for s in data.samples("train")
            ]
        else:
            base = path.parent if root is None else user_path(root)
            found += _read(path, base, seed, limit)
    return found


def _table(source: str | Path, root: str | Path | None) -> Path | None:
    """The table of conversations that is meant, or None for what `load_data` knows."""
    path = user_path(source)
    if not path.exists() and root is not None:
        path = user_path(root) / path
    if path.suffix.lower() not in TABLES or not path.is_file():
        return None
    strange = (row for row in read_rows(path, Problems("rows"), path.parent) if not _for_adapt(row))
    return None if next(strange, None) is None else path


def _for_adapt(row: Row) -> bool:
    """Whether `load_data` knows such rows: a question about an image, or a labelled image."""
    told = {name for name, value in row.values.items() if value is not None}
    return {"image", "question", "answer"} <= told or {"image", "label"} <= told


def _read(path: Path, base: Path, seed: int, limit: int | None) -> list[Conversation]:
    problems = Problems("rows")
    found: list[Conversation] = []
    for read, row in enumerate(read_rows(path, problems, base), start=1):
        if len(found) == limit:
            break  # the pictures of the others need not be there
        try:
            found.append(_conversation(row, f"{path.stem}:{read}", base, seed))
        except DataError as error:
            problems.add(error)
    problems.stop(len(found) + len(problems.found))
    if not found:
        raise DataError(f"{path} holds no conversation.")
    named = [c for c in found if isinstance(c.image, str)]
    missing = [c for c in named if not Path(str(c.image)).is_file()]
    if missing:
        shown = "; ".join(f"{c.image} ({c.origin})" for c in missing[:3])
        raise DataError(
            f"{len(missing)} of {len(named)} images do not exist: {shown}. Paths start from {base}; name "
            "another folder with --set root=FOLDER, put the files there, or leave these rows out."
        )
    return found


def _conversation(row: Row, default: str, base: Path, seed: int) -> Conversation:
    values, origin = row.values, row.origin
    key = str(values.get("id") or default)
    image: Any = values.get("image")
    if "conversations" in values or "messages" in values:
        image, turns = conversation(values, origin, text=True)
    elif "question" in values and "answer" in values:
        if values.get("choices"):
            raise _apart(origin, "'choices'")
        turns = [(_text(values["question"], origin), _text(values["answer"], origin))]
    elif image is not None and ("caption" in values or "captions" in values):
        caption = values.get("caption") or values.get("captions")
        caption = caption[0] if isinstance(caption, list) and caption else caption
        turns = [(rng(seed, "caption", key).choice(ASK_CAPTION), _text(caption, origin))]
    elif image is not None and values.get("label") is not None:
        raise _apart(origin, "a labelled image")
    else:
        raise DataError(
            f"{origin}: no conversation in it (fields: {', '.join(values) or 'none'}). A row has "
            "'conversations', 'messages', 'question' and 'answer', or 'image' and 'caption'."
        )
    if image is not None:
        image = read_picture(image, base, origin)
    return Conversation(key, tuple(turns), image, origin)


def _apart(origin: str, what: str) -> DataError:
    return DataError(
        f"{origin}: {what} in a table whose rows are not all questions about an image, or labelled images. "
        "Put such rows into a table of their own."
    )


def _text(value: Any, origin: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{origin}: an empty question or answer ({value!r}). Fill it in, or drop the row.")
    if not is_text(value):
        raise DataError(f"{origin}: question or answer holds half a character ({value!r}). Correct it.")
    return value.strip()
