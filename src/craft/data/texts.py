"""Texts for the contrastive loss, written by a model: captions of images, and question-answer pairs as
statements (§3.2). Kept in a JSONL file that can be read, corrected, and gone on with.
"""

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError, DataError
from craft.core.progress import track
from craft.data.captions import declarative
from craft.data.images import image_bytes_hash, image_key, open_image
from craft.data.sample import Sample
from craft.data.service import Service, Write

CAPTION_PROMPTS = (
    "Describe this image in one sentence.",
    "In one sentence, say what this image shows, with its most telling details.",
    "Write a short caption for this image: its main subject, then what is notable about it.",
)
"""What a captioning model is asked; a second and third caption come of the second and third. Source: ours;
the paper gives no prompt."""

STATEMENT_PROMPT = (
    "Rewrite this question and its answer as one short declarative sentence. Keep every fact and add none. "
    "Reply with the sentence alone.\nQ: {question}\nA: {answer}"
)
"""Source: the task and its example are §3.2's, the wording is ours."""

LONGEST = 768
"""Pixels of the longer side of a picture that is sent."""


@dataclass(frozen=True)
class Wish:
    """One text to be written.

    Attributes:
        key: of the model, the prompt and what it is about; the same wish has the same key.
        rows: what each finished row says besides: `id` or `image`. Several have the same text.
        field: "captions" or "statement".
        prompts: what the model is asked; each gives one text.
        sample: whose picture is sent with the prompts; None sends none.
    """

    key: str
    rows: tuple[dict[str, str], ...]
    field: str
    prompts: tuple[str, ...]
    sample: Sample | None = None


def caption_wishes(samples: Sequence[Sample], model: str, count: int = 1) -> Iterator[Wish]:
    """A wish for each distinct picture, wherever and however often it lies: `count` captions. Files are named
    by their paths, other pictures by the ids of their samples.

    Raises:
        ConfigError: more captions than there are prompts.
        DataError: a picture cannot be read.
    """
    if not 1 <= count <= len(CAPTION_PROMPTS):
        raise ConfigError(f"--count must be 1 to {len(CAPTION_PROMPTS)}, not {count}.")
    prompts, hashes = CAPTION_PROMPTS[:count], dict[Any, str]()
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        file, place = isinstance(sample.image, str), image_key(sample.image)
        if file and place in hashes:
            continue  # one row is for all samples of a file
        if place not in hashes:
            hashes[place] = image_bytes_hash(sample.image)
        found.setdefault(hashes[place], []).append(sample)
    for digest, alike in found.items():
        rows = tuple({"image": s.image} if isinstance(s.image, str) else {"id": s.id} for s in alike)
        yield Wish(_key(model, prompts, digest), rows, "captions", prompts, alike[0])


def statement_wishes(samples: Sequence[Sample], model: str) -> Iterator[Wish]:
    """A wish for each sample with an answer; labelled pictures have their class text."""
    for sample in samples:
        if sample.label is None:
            prompt = STATEMENT_PROMPT.format(question=sample.question, answer=sample.answer_text)
            yield Wish(_key(model, (prompt,), ""), ({"id": sample.id},), "statement", (prompt,))


def rule_statements(samples: Sequence[Sample]) -> list[dict[str, str]]:
    """The rows that `statement_wishes` would give, by the fixed rules of `declarative`; no model is asked."""
    return [
        {"id": sample.id, "statement": declarative(sample.question, sample.answer_text), "model": "rules"}
        for sample in samples
        if sample.label is None
    ]


def write_texts(wishes: Iterable[Wish], service: Service, out: str | Path, progress: bool = True) -> int:
    """Have every text written that is not in the file yet; return how many rows were added.

    Rows are added to the file in order, each as soon as its text is there, so that the same command goes on
    after an interruption. Rows that were corrected by hand are kept as they are.

    Raises:
        ConfigError: no SDK, no key, or a service that cannot be reached or turns every call down.
        DataError: some texts could not be written (the others are), or the file holds something else.
    """
    out = Path(out)
    told = _kept(out)
    open_rows = ((w, tuple(row for row in w.rows if w.key + _place(row) not in told)) for w in wishes)
    left = [replace(wish, rows=rows) for wish, rows in open_rows if rows]
    if not left:
        return 0
    write, failed, done = service.start(), list[str](), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", encoding="utf-8", newline="\n") as file:
        results = _in_order(left, write, service.concurrency)
        shown = track(results, f"asking {service.model}", len(left)) if progress else results
        for wish, texts in shown:
            if isinstance(texts, DataError):
                failed.append(f"that{_place(wish.rows[0])}: {texts}")
                continue
            value = list(texts) if wish.field == "captions" else texts[0]
            for row in wish.rows:
                row = {**row, wish.field: value, "model": service.model, "key": wish.key}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            done += len(wish.rows)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(left)} texts could not be written: {'; '.join(failed[:3])}. The others "
            f"are in {out}; the same command tries these again."
        )
    return done


def _in_order(
    wishes: Sequence[Wish], write: Write, concurrency: int
) -> Iterator[tuple[Wish, tuple[str, ...] | DataError]]:
    """Ask for several texts at once; give them back in order."""

    def ask(wish: Wish) -> tuple[str, ...] | DataError:
        try:
            picture = None if wish.sample is None else _png(wish.sample)
            return tuple(write(prompt, picture) for prompt in wish.prompts)
        except DataError as error:
            return error

    waiting: deque[tuple[Wish, Future[tuple[str, ...] | DataError]]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    try:
        for wish in wishes:
            waiting.append((wish, pool.submit(ask, wish)))
            if len(waiting) > concurrency:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _png(sample: Sample) -> bytes:
    image = open_image(sample.image, sample.origin)
    image.thumbnail((LONGEST, LONGEST))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _kept(path: Path) -> set[str]:
    """The keys of the rows that a file holds. A last row that was cut short is taken off; one that lacks the
    end of its line, as an editor may leave it, gets that."""
    if not path.is_file():
        return set()
    content, keys = path.read_bytes(), set[str]()
    *lines, last = content.split(b"\n")
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        try:
            row = json.loads(line)
            keys.add(row["key"] + _place(row))
        except (ValueError, KeyError, TypeError) as error:
            torn = number > len(lines) and isinstance(error, ValueError)
            if not torn or not b'{"i'.startswith(line[:3]):  # so our rows begin
                told = f"{path}:{number} is no text of this command. Choose another file."
                raise DataError(told) from error
            os.truncate(path, len(content) - len(last))
            return keys
    if last:
        with open(path, "ab") as file:
            file.write(b"\n")
    return keys


def _place(row: dict[str, Any]) -> str:
    return f" of {row.get('id', row.get('image'))}"


def _key(model: str, prompts: tuple[str, ...], about: str) -> str:
    return hashlib.sha256(repr((model, prompts, about)).encode("utf-8")).hexdigest()[:32]
