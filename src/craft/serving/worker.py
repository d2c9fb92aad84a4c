"""The threads that compute: they encode the images of waiting requests per tower and answer them together.

Requests wait in a bounded queue. A thread takes as many as fit a batch; what arrives meanwhile is in the next
one. On a GPU one thread is enough. On a CPU two threads, each with half the cores, answer more than one with
all of them, because small matrix products do not fill the cores. Continuous batching and paging are left to
an engine (`craft.evaluation.engine`).
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from craft.core.errors import CraftError
from craft.core.progress import say
from craft.core.tokens import VisionTokens
from craft.formats.code_cache import ImageCodes
from craft.models.backbone import Segment
from craft.models.decoding import option_ids, prefill, score
from craft.models.lvlm import LVLM
from craft.models.sampling import AnswerText, Batch, End, Piece, Reason, Sampling
from craft.serving.codes import BoundedCodes, Key
from craft.serving.routing import route
from craft.serving.towers import Tower


@dataclass(frozen=True)
class Chosen:
    """The towers that answer, one for each image of the request (none for text alone)."""

    towers: tuple[Tower, ...]
    image_tokens: int
    prompt_tokens: int
    maps: tuple["CodeMap", ...] = ()


@dataclass(frozen=True)
class CodeMap:
    """How a tower read an image.

    Attributes:
        grid: (rows, columns) of the patches.
        codes: the level-1 code of each patch, in raster order.
        kept: the patches whose tokens the LLM reads.
    """

    grid: tuple[int, int]
    codes: list[int]
    kept: list[int]


@dataclass(frozen=True)
class Scores:
    """The log-probability of each option."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Embedded:
    """The prompt as embeddings `[T, h]` on the CPU, for an engine that answers it."""

    prompt: Tensor


@dataclass(frozen=True)
class Failed:
    """The request failed; nothing follows."""

    error: Exception


Event: TypeAlias = Chosen | Piece | End | Scores | Embedded | Failed

Entries: TypeAlias = dict[Key, tuple[Tensor, Tensor]]
"""The codes and residuals that a batch needs."""


@dataclass(eq=False)
class Request:
    """A question to the LLM.

    Attributes:
        pieces: token ids around the images, one piece more than there are images.
        images: (hash of the pixels, RGB image).
        towers: the tower of each image; empty with `routes`.
        routes: the adapted towers to choose from by code priors, for the model "auto"; None otherwise.
        samplings: one per wanted answer.
        question, options: with options, the question whose options are scored instead of writing an answer.
        keep_ratio: the share of visual tokens that the LLM reads.
        embed_only: stop at the embeddings, because an engine answers.
        send: takes the events, from the worker's thread.
        deadline: `time.monotonic()` after which nobody waits for the answer.
        cancelled: set when the client has gone.
    """

    pieces: Sequence[list[int]]
    images: Sequence[tuple[str, Image.Image]]
    towers: Sequence[Tower]
    send: Callable[[Event], None]
    samplings: Sequence[Sampling] = (Sampling(),)
    routes: Sequence[Tower] | None = None
    question: str = ""
    options: Sequence[str] = ()
    keep_ratio: float = 1.0
    embed_only: bool = False
    deadline: float = float("inf")
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more."""
        return self.cancelled.is_set() or time.monotonic() > self.deadline


class Worker:
    """Answers requests in threads of its own.

    Args:
        base: the LLM with its base tower.
        codes: the cache of codes.
        batch_size: the most answers that are written together.
        window: seconds to wait for further requests when there is room in a batch; not before an engine.
        waiting: the most requests in the queue.
        margin: of routing, in nats per token.
        threads: batches that are answered at the same time; they share PyTorch's threads.

    Raises (from `submit`):
        queue.Full: too many requests wait.
    """

    def __init__(
        self,
        base: Tower,
        codes: BoundedCodes | None = None,
        *,
        batch_size: int = 32,
        window: float = 0.005,
        waiting: int = 256,
        margin: float = 0.0,
        threads: int = 1,
    ) -> None:
        self.base = base
        self.lvlm = base.lvlm
        self.codes = BoundedCodes() if codes is None else codes
        self.batch_size = batch_size
        self.window = window
        self.margin = margin
        self.encoded = 0
        self._queue: queue.Queue[Request | None] = queue.Queue(waiting)
        self._cores = max(1, torch.get_num_threads() // threads)
        self._threads = [
            threading.Thread(target=self._run, name=f"craft-worker-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> "Worker":
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            queue.Full: too many requests wait.
        """
        self._queue.put_nowait(request)

    @property
    def queued(self) -> int:
        """The number of requests that wait."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self, timeout: float = 60.0) -> None:
        """Answer what waits, then end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _run(self) -> None:
        if len(self._threads) > 1:
            torch.set_num_threads(self._cores)  # of this thread
        for batch in self._batches():
            live = [request for request in batch if not request.gone]
            try:
                self._answer(live)
            except Exception as error:  # the server must stay alive: each request is told, and logged
                say(f"a batch of {len(live)} requests failed: {type(error).__name__}: {error}")
                for request in live:
                    request.send(Failed(error))

    def _batches(self) -> Iterator[list[Request]]:
        """The requests that one thread answers together, up to the end of the queue."""
        held: Request | None = None
        ended = False
        while not ended or held is not None:
            first, held = held or self._queue.get(), None
            if first is None:
                return
            batch, room = [first], self.batch_size - len(first.samplings)
            until = time.monotonic() + (0.0 if first.embed_only else self.window)
            while room > 0 and not ended:
                try:
                    request = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if request is None:
                    ended = True
                elif len(request.samplings) > room:
                    held = request
                    break
                else:
                    batch.append(request)
                    room -= len(request.samplings)
            yield batch

    @torch.no_grad()
    def _answer(self, requests: list[Request]) -> None:
        entries: Entries = {}
        self._route([request for request in requests if request.routes is not None], entries)
        self._encode(
            [(tower, *image) for r in requests for tower, image in zip(r.towers, r.images, strict=True)],
            entries,
        )
        ready: list[tuple[Request, list[Segment]]] = []
        for request in requests:
            try:
                ready.append((request, self._row(request, entries)))
            except CraftError as error:  # its own fault, not that of the others
                request.send(Failed(error))
        for request, row in ready:
            if request.embed_only:
                prompt = self.lvlm.backbone.splice([row], "left")["inputs_embeds"][0]
                request.send(Embedded(prompt.cpu()))
        if scored := [one for one in ready if one[0].options]:
            self._score(*zip(*scored, strict=True))
        if written := [one for one in ready if not one[0].options and not one[0].embed_only]:
            self._write(*zip(*written, strict=True))

    def _route(self, requests: Sequence[Request], entries: Entries) -> None:
        """Choose the tower of each image of requests to the model "auto"."""
        base = self.base
        self._encode([(base, *image) for request in requests for image in request.images], entries)
        for request in requests:
            towers = {tower.name: tower for tower in request.routes or ()}
            domains = {name: tower.domain for name, tower in towers.items() if tower.domain is not None}
            chosen = []
            for digest, _ in request.images:
                codes = entries[base.hash, digest][0].long()
                name = route(codes, domains, self.margin)
                chosen.append(base if name is None else towers[name])
            request.towers = chosen

    def _encode(self, wanted: Sequence[tuple[Tower, str, Image.Image]], entries: Entries) -> None:
        """Add the codes of images to `entries`; those not in the cache are encoded, per tower together."""
        groups: dict[str, tuple[Tower, dict[str, Image.Image]]] = {}
        for tower, digest, image in wanted:
            key = (tower.hash, digest)
            if key in entries:
                continue
            if (entry := self.codes.get(key)) is not None:
                entries[key] = entry
                continue
            groups.setdefault(tower.hash, (tower, {}))[1].setdefault(digest, image)
        for tower, images in groups.values():
            visual = tower.lvlm.visual
            tokens = visual.encode(list(images.values()), batch_size=self.batch_size, with_cls=False)
            codes, residual = tokens.codes.to(torch.int32).cpu(), tokens.residual.float().cpu()
            self.encoded += len(images)
            for digest, *entry in zip(images, codes.unbind(), residual.unbind(), strict=True):
                entries[tower.hash, digest] = (entry[0], entry[1])
                self.codes.put((tower.hash, digest), *entry)

    def _row(self, request: Request, entries: Entries) -> list[Segment]:
        """The request's prompt as segments, its images read by the backbone."""
        row: list[Segment] = [torch.tensor(request.pieces[0], dtype=torch.long)]
        maps = []
        for tower, (digest, _), piece in zip(request.towers, request.images, request.pieces[1:], strict=True):
            whole = self._tokens(tower, digest, entries)
            tokens = tower.lvlm.visible(whole, request.keep_ratio)
            maps.append(CodeMap(whole.grid, whole.codes[0, :, 0].tolist(), tokens.positions[0].tolist()))
            row += [self.lvlm.backbone.read(tokens)[0], torch.tensor(piece, dtype=torch.long)]
        length = sum(len(segment) for segment in row)
        count = sum(len(map.kept) for map in maps)
        request.send(Chosen(tuple(request.towers), count, length, tuple(maps)))
        return row

    def _tokens(self, tower: Tower, digest: str, entries: Entries) -> VisionTokens:
        codes, residual = entries[tower.hash, digest]
        images = ImageCodes(
            tower.lvlm.visual, codes[None], residual[None], torch.zeros(1, dtype=torch.long), (digest,)
        )
        return images.tokens()

    def _score(self, requests: Sequence[Request], rows: Sequence[list[Segment]]) -> None:
        """Send the log-probability of each option."""
        backbone = self.lvlm.backbone
        reading = prefill(backbone, backbone.splice(rows, "left"))
        ids = [option_ids(backbone, r.question, r.options, bool(r.images)) for r in requests]
        for request, values in zip(requests, score(backbone, reading, ids), strict=True):
            request.send(Scores(tuple(values)))

    def _write(self, requests: Sequence[Request], rows: Sequence[list[Segment]]) -> None:
        """Write all answers together, and send every piece of text as it comes."""
        owners = [(request, n) for request in requests for n in range(len(request.samplings))]
        prompts = [rows[i] for i, request in enumerate(requests) for _ in request.samplings]
        samplings = [request.samplings[n] for request, n in owners]
        batch = Batch(self.lvlm.backbone, prompts, samplings)
        texts = [AnswerText(self.lvlm.backbone, sampling.stop) for sampling in samplings]
        while not batch.finished:
            before = list(batch.done)
            for row, token in batch.step():
                request, number = owners[row]
                request.send(Piece(number, texts[row].add(token.id), token))
                batch.done[row] = batch.done[row] or texts[row].stopped or request.gone
            for row, (request, number) in enumerate(owners):
                if batch.done[row] and not before[row]:
                    request.send(Piece(number, texts[row].close(), None))
                    reason: Reason = "stop" if batch.ended[row] or texts[row].stopped else "length"
                    request.send(End(number, reason, len(batch.ids[row])))


def check_options(lvlm: LVLM, question: str, options: Sequence[str], image: bool) -> None:
    """Check that options can be scored, before a request is queued.

    Raises:
        CraftError: fewer than two, repeated or empty ones; or the tokenizer joins one with the prompt.
    """
    if len(options) < 2 or len(set(options)) < len(options) or not all(option.strip() for option in options):
        raise CraftError("`options` needs at least two different texts, none of them empty.")
    option_ids(lvlm.backbone, question, options, image)
