"""Answers token by token, greedy or sampled, for batches whose rows have settings of their own.

batch = Batch(backbone, rows, samplings)   # rows: segments, as `Backbone.splice` takes them
while not batch.finished:
    for row, token in batch.step(): ...    # the caller may set batch.done[row] to end a row early
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from craft.models.backbone import Backbone, Segment
from craft.models.decoding import Reading, prefill
from craft.models.prompts import decode

TIES = {torch.float32: 64, torch.float16: 4, torch.bfloat16: 2}
"""A lead of fewer rounding errors than this counts as a tie, and the row is computed again alone.

One rounding error is that of the LLM's dtype at the largest logit. On craft-tiny, other batches and shared
images move a logit by at most 12 rounding errors in float32 and 0.95 in bfloat16.
"""


def close_call(dtype: torch.dtype) -> float:
    """The lead, as a fraction of the largest absolute logit, below which rounding may decide."""
    return TIES.get(dtype, 64) * torch.finfo(dtype).eps


@dataclass(frozen=True)
class Sampling:
    """How an answer is written.

    Attributes:
        max_new_tokens: its maximum length in tokens, at least 1.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_p: sample from the likeliest tokens that have this probability together, in (0, 1].
        seed: of the row's random numbers, which no other row of the batch influences.
        stop: texts at which the answer ends; they are not part of it.
        logprobs: the number of alternatives to report for each token; None reports no probabilities.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A written token.

    Attributes:
        id: its number.
        logprob: its log-probability under the LLM, at temperature 1; None if not wanted.
        top: the likeliest tokens with their log-probabilities, as many as `Sampling.logprobs`.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


Reason = Literal["stop", "length"]
"""Why an answer ended: by its end token or a stop text, or at its maximum length."""


@dataclass(frozen=True)
class Piece:
    """Text that was added to answer number `index`, and the token behind it (None for the last text)."""

    index: int
    text: str
    token: Token | None


@dataclass(frozen=True)
class End:
    """Answer number `index` is complete."""

    index: int
    reason: Reason
    tokens: int


class Batch:
    """Rows that are written together.

    A greedy row gets the tokens that it gets alone: when two tokens are as close as rounding, the row is
    computed again alone.

    Args:
        backbone: reads the rows and writes the answers.
        rows: per answer its prompt, as segments for `Backbone.splice`.
        samplings: per answer its settings.

    Attributes:
        done: per row whether it has ended; the caller may set it.
        ended: per row whether the LLM wrote its end token.
        ids: per row the token ids so far, without the end token.
    """

    @torch.no_grad()
    def __init__(
        self, backbone: Backbone, rows: Sequence[Sequence[Segment]], samplings: Sequence[Sampling]
    ) -> None:
        self.backbone = backbone
        self.rows = rows
        self.samplings = samplings
        self.done = [False] * len(rows)
        self.ended = [False] * len(rows)
        self.ids: list[list[int]] = [[] for _ in rows]
        self.reading = prefill(backbone, backbone.splice(rows, "left"))
        self._ends = backbone.end_ids()
        self._random = [torch.Generator().manual_seed(sampling.seed) for sampling in samplings]
        self._lead = close_call(backbone.embeddings.weight.dtype)
        self._chosen: list[int] = []

    @property
    def finished(self) -> bool:
        """Whether all rows are done."""
        return all(self.done)

    @torch.no_grad()
    def step(self) -> Iterator[tuple[int, Token]]:
        """Write one token of each row that is not done.

        Yields:
            (row, token) of the rows that wrote a token; a row that wrote its end token is done.
        """
        if self._chosen:
            self.reading = advance(self.backbone, self.reading, self._chosen)
        logits = self.reading.logits
        best = logits.topk(2, dim=-1)
        leads = ((best.values[:, 0] - best.values[:, 1]) / logits.abs().amax(dim=-1)).tolist()
        self._chosen = best.indices[:, 0].tolist()
        for row, sampling in enumerate(self.samplings):
            if self.done[row]:
                continue
            scores = logits[row]
            if sampling.temperature > 0:
                self._chosen[row] = draw(scores, sampling, self._random[row])
            elif leads[row] < self._lead and len(self.rows) > 1:
                scores = self._alone(row)
                self._chosen[row] = int(scores.argmax())
            token = self._chosen[row]
            if token in self._ends:
                self.done[row] = self.ended[row] = True
                continue
            self.ids[row].append(token)
            self.done[row] = len(self.ids[row]) >= sampling.max_new_tokens
            yield row, describe(token, scores, sampling.logprobs)

    def _alone(self, row: int) -> Tensor:
        """The logits `[V]` of a row's next token, computed without the other rows."""
        reading = prefill(self.backbone, self.backbone.splice([self.rows[row]], "left"))
        for token in self.ids[row]:
            reading = advance(self.backbone, reading, [token])
        return reading.logits[0]


@torch.no_grad()
def advance(backbone: Backbone, reading: Reading, tokens: Sequence[int]) -> Reading:
    """Read one more token per row; the key/value cache is shared with `reading` and grows in place."""
    chosen = torch.tensor(tokens, dtype=torch.long, device=backbone.device)
    mask = torch.cat([reading.mask, reading.mask.new_ones(len(tokens), 1)], dim=1)
    inputs = reading.following(backbone.embeddings(chosen[:, None]), mask, reading.last + 1)
    return prefill(backbone, inputs, reading.cache)


def draw(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """A token drawn from logits `[V]` at `sampling`'s temperature and top_p."""
    probabilities = (logits.cpu().double() / sampling.temperature).softmax(dim=-1)
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)  # the likeliest one always stays
    threshold = torch.rand(1, generator=random, dtype=torch.float64) * ordered.sum()
    index = int(torch.searchsorted(ordered.cumsum(dim=-1), threshold, right=True))
    return int(tokens[min(index, int((ordered > 0).sum()) - 1)])


def describe(token: int, logits: Tensor, alternatives: int | None) -> Token:
    """A token with its log-probability and the likeliest alternatives."""
    if alternatives is None:
        return Token(token)
    values = logits.log_softmax(dim=-1)
    best = values.topk(alternatives) if alternatives else None
    top = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(values[token]), top)


class AnswerText:
    """The text of an answer that grows token by token.

    The pieces that `add` and `close` return are together the answer as `LVLM.answer` returns it, up to the
    first stop text.

    Attributes:
        text: the answer as far as it was returned.
        stopped: whether a stop text occurred; nothing follows it.
    """

    def __init__(self, backbone: Backbone, stop: Sequence[str] = ()) -> None:
        self._tokenizer = backbone.tokenizer
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that one more token adds; "" while a character or a stop text may be incomplete."""
        self._ids.append(token)
        whole = self._cut(decode(self._tokenizer, self._ids))
        if self.stopped:
            return self._return(whole)
        if whole.endswith("\ufffd"):  # a character of several tokens
            return ""
        held = max((overlap(whole, stop) for stop in self._stop), default=0)
        return self._return(whole[: len(whole) - held])

    def close(self) -> str:
        """The rest of the text, at the end of the answer."""
        return self._return(self._cut(decode(self._tokenizer, self._ids)))

    def _cut(self, whole: str) -> str:
        positions = [at for at in (whole.find(stop) for stop in self._stop) if at >= 0]
        self.stopped = bool(positions)
        return whole[: min(positions)] if positions else whole

    def _return(self, whole: str) -> str:
        piece = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += piece
        return piece


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
