"""Every question of a list to an LVLM: batches of similar length, each image read once, replies in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from craft.core.progress import track
from craft.formats.code_cache import ImageCodes
from craft.models.decoding import option_ids, read, score, write
from craft.models.lvlm import LVLM
from craft.models.prompts import decode

TIES = {torch.float32: 64, torch.float16: 4, torch.bfloat16: 2}
"""A lead of fewer rounding errors than this, of the LLM's dtype and the largest logit, is no lead: the
question is asked again alone. Measured on craft-tiny, other batches and shared images move a logit by at most
12 rounding errors in float32 and 0.95 in bfloat16."""


@dataclass
class Replies:
    """What an LVLM replied to a list of questions.

    Attributes:
        texts: per question the greedy answer; empty where none was written.
        scores: per question the log-probabilities of its options; empty where it has none.
        alone: numbers of the questions that were asked again by themselves (see `TIES`).
    """

    texts: list[str]
    scores: list[list[float]]
    alone: list[int] = field(default_factory=list)


def ask(
    lvlm: LVLM,
    images: ImageCodes,
    questions: Sequence[str],
    options: Sequence[Sequence[str]] | None = None,
    *,
    max_new_tokens: int = 5,
    keep_ratio: float = 1.0,
    keep_positions: bool = False,
    batch_size: int = 64,
    progress: bool = True,
) -> Replies:
    """Ask all questions, one image each.

    The reply to a question does not depend on the other questions, nor on `batch_size`: what rounding in
    another batch could have changed is asked again alone, as `LVLM.answer` would with one question.

    Args:
        lvlm: the model; only its backbone runs.
        images: the questions' images, encoded.
        questions: the texts, as many as images.
        options: per question the answers to score; None scores nothing.
        max_new_tokens: the cap on an answer; 0 writes none.
        keep_ratio, keep_positions: as `LVLM.answer` takes them.
        batch_size: questions per forward pass.
        progress: show it.

    Raises:
        CraftError: `keep_ratio` cannot be served, or an option's probability is not defined.
    """
    backbone = lvlm.backbone
    lvlm.check_keep_ratio(keep_ratio)
    wanted = [
        option_ids(backbone, question, some) if some else []
        for question, some in zip(questions, options or [()] * len(questions), strict=True)
    ]
    dtype = backbone.embeddings.weight.dtype
    close_call = TIES.get(dtype, 64) * torch.finfo(dtype).eps
    found = Replies([""] * len(questions), [[]] * len(questions))

    def go(chosen: Sequence[int]) -> list[int]:
        """Ask some of the questions together; the numbers of those that were too close to call."""
        first = {int(images.rows[index]): index for index in reversed(chosen)}
        place = {row: number for number, row in enumerate(first)}
        tokens = lvlm.visible(images.tokens(first.values()), keep_ratio)
        image_of = [place[int(images.rows[index])] for index in chosen]
        some = [questions[index] for index in chosen]
        room = max(max_new_tokens, *(len(ids) for index in chosen for ids in wanted[index]), 0)
        reading = read(backbone, tokens, some, image_of, keep_positions, room)
        scale = reading.logits.abs().amax(dim=-1).tolist()
        ids, leads = write(backbone, reading, max_new_tokens)
        scores = score(backbone, reading, [wanted[index] for index in chosen])
        close = []
        for number, index in enumerate(chosen):
            found.texts[index] = decode(backbone.tokenizer, ids[number])
            found.scores[index] = scores[number]
            best = sorted(scores[number], reverse=True)[:2]
            lead = min(leads[number], (best[0] - best[1]) / scale[number] if len(best) == 2 else 1.0)
            if lead < close_call:
                close.append(index)
        return close

    lengths = [len(backbone.tokenizer(question)["input_ids"]) for question in questions]
    batches = plan(images.rows.tolist(), lengths, batch_size)
    for batch in track(batches, f"asking {lvlm.name}") if progress and len(batches) > 1 else batches:
        if (close := go(batch)) and len(batch) > 1:
            for index in close:
                go([index])
            found.alone += close
    found.alone.sort()
    return found


def plan(images: Sequence[Any], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Which questions to ask together: those of one image, and images whose questions are about as long.

    Args:
        images: per question what tells its image.
        lengths: per question its length.
        batch_size: questions per batch.

    Returns:
        Batches of question numbers; every question once.
    """
    longest: dict[Any, tuple[int, int]] = {}
    for number, (image, length) in enumerate(zip(images, lengths, strict=True)):
        most, first = longest.get(image, (0, number))
        longest[image] = (max(most, length), first)
    order = sorted(range(len(images)), key=lambda number: (*longest[images[number]], lengths[number], number))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
