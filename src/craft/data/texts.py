"""Texts for the contrastive loss that a model writes: captions of images, and question-answer pairs as
statements (§3.2). They go to a JSONL file that a user can read, correct and continue.
"""

import hashlib
import io
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from craft.core.errors import ConfigError, DataError
from craft.core.progress import track
from craft.core.service import PATIENCE, Service, Write
from craft.core.store import JsonLog
from craft.data.captions import declarative
from craft.data.images import image_bytes_hash, image_key, open_image
from craft.data.sample import Sample

CAPTION_PROMPTS = (
    "Describe this image in one sentence.",
    "In one sentence, say what this image shows, with its most telling details.",
    "Write a short caption for this image: its main subject, then what is notable about it.",
)
"""The prompts of the first, second and third caption of an image. Source: ours; the paper gives no
prompt."""

STATEMENT_PROMPT = (
    "Rewrite this question and its answer as one short declarative sentence. Keep every fact and add none. "
    "Reply with the sentence alone.\nQ: {question}\nA: {answer}"
)
"""The prompt of a statement. Source: the task and its example are from §3.2, the wording is ours."""

LONGEST = 768
"""The most pixels of the longer side of an image that is sent."""


@dataclass(frozen=True)
class Request:
    """One text to be written.

    Attributes:
        key: a hash of the model, the prompts and the image; equal requests have equal keys.
        rows: the `id` or `image` of each row that gets the text.
        field: "captions" or "statement".
        prompts: the prompts for the model; each gives one text.
        sample: the sample whose image is sent with the prompts; None sends none.
    """

    key: str
    rows: tuple[dict[str, str], ...]
    field: str
    prompts: tuple[str, ...]
    sample: Sample | None = None


def caption_requests(samples: Sequence[Sample], model: str, count: int = 1) -> Iterator[Request]:
    """A request for `count` captions of each distinct image, however many copies of it there are. Rows name
    files by their paths, and other images by the ids of their samples.

    Raises:
        ConfigError: more captions than there are prompts.
        DataError: an image cannot be read.
    """
    if not 1 <= count <= len(CAPTION_PROMPTS):
        raise ConfigError(f"--count must be 1 to {len(CAPTION_PROMPTS)}, not {count}.")
    prompts, hashes = CAPTION_PROMPTS[:count], dict[Hashable, str]()
    copies: dict[str, list[Sample]] = {}
    for sample in samples:
        is_file, key = isinstance(sample.image, str), image_key(sample.image)
        if is_file and key in hashes:
            continue  # one row is for all samples of a file
        if key not in hashes:
            hashes[key] = image_bytes_hash(sample.image)
        copies.setdefault(hashes[key], []).append(sample)
    for digest, group in copies.items():
        rows = tuple({"image": s.image} if isinstance(s.image, str) else {"id": s.id} for s in group)
        yield Request(_key(model, prompts, digest), rows, "captions", prompts, group[0])


def statement_requests(samples: Sequence[Sample], model: str) -> Iterator[Request]:
    """A request for each sample without a label; labelled images have their class text."""
    for sample in samples:
        if sample.label is None:
            prompt = STATEMENT_PROMPT.format(question=sample.question, answer=sample.answer_text)
            yield Request(_key(model, (prompt,), ""), ({"id": sample.id},), "statement", (prompt,))


def rule_statements(samples: Sequence[Sample]) -> list[dict[str, str]]:
    """The rows of `statement_requests`, by the fixed rules of `declarative`, without a model."""
    return [
        {"id": sample.id, "statement": declarative(sample.question, sample.answer_text), "model": "rules"}
        for sample in samples
        if sample.label is None
    ]


def write_texts(requests: Iterable[Request], service: Service, out: str | Path, progress: bool = True) -> int:
    """Have a model write every text that is not in the file yet; return the number of added rows.

    Rows are added in order, each as soon as its text arrives, so that the same command continues after an
    interruption. Rows that were corrected by hand stay as they are.

    Raises:
        ConfigError: no SDK, no key, or a service that cannot be reached or refuses every call.
        DataError: some texts could not be written (the others are), `PATIENCE` in a row could not, or the
            file contains something else.
    """
    out = Path(out)
    log = _log(out)
    missing = (
        (request, tuple(row for row in request.rows if request.key + _subject(row) not in log.values))
        for request in requests
    )
    remaining = [replace(request, rows=rows) for request, rows in missing if rows]
    if not remaining:
        return 0
    write, failed, done, in_a_row = service.start(), list[str](), 0, 0
    log.append([])  # the file, before a text is paid for
    results = _in_order(remaining, write, service.concurrency)
    shown = track(results, f"asking {service.model}", len(remaining)) if progress else results
    for request, texts in shown:
        if isinstance(texts, DataError):
            failed.append(f"that{_subject(request.rows[0])}: {texts}")
            in_a_row += 1
            if in_a_row == PATIENCE:
                raise DataError(
                    f"{service.model} failed to write {PATIENCE} texts in a row; the last was {failed[-1]}. "
                    f"Correct the cause. The texts so far are in {out}; the same command continues."
                )
            continue
        in_a_row = 0
        written = {request.field: list(texts) if request.field == "captions" else texts[0]}
        signature = {"model": service.model, "key": request.key}
        log.append({**row, **written, **signature} for row in request.rows)
        done += len(request.rows)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(remaining)} texts could not be written: {'; '.join(failed[:3])}. The "
            f"others are in {out}; run the same command again for these."
        )
    return done


def _in_order(
    requests: Sequence[Request], write: Write, concurrency: int
) -> Iterator[tuple[Request, tuple[str, ...] | DataError]]:
    """Send several requests at once; yield the texts in order."""

    def ask(request: Request) -> tuple[str, ...] | DataError:
        try:
            picture = None if request.sample is None else _png(request.sample)
            return tuple(write(prompt, picture) for prompt in request.prompts)
        except DataError as error:
            return error

    waiting: deque[tuple[Request, Future[tuple[str, ...] | DataError]]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    try:
        for request in requests:
            waiting.append((request, pool.submit(ask, request)))
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


def _log(path: Path) -> JsonLog[None]:
    """The rows that the file has already.

    Raises:
        DataError: it contains something else.
    """

    def damaged(number: int) -> DataError:
        return DataError(f"{path}:{number} was not written by this command. Choose another file.")

    return JsonLog(path, lambda row: (row["key"] + _subject(row), None), damaged)


def _subject(row: Mapping[str, object]) -> str:
    return f" of {row.get('id', row.get('image'))}"


def _key(model: str, prompts: tuple[str, ...], picture: str) -> str:
    return hashlib.sha256(repr((model, prompts, picture)).encode("utf-8")).hexdigest()[:32]
