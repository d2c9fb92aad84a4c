"""Ask an LVLM a list of questions: in batches of similar length, with each image read once."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from craft.core.errors import CraftError
from craft.core.progress import track
from craft.evaluation.engine import write_all
from craft.formats.code_cache import ImageCodes
from craft.models.decoding import largest, option_ids, read, score, write
from craft.models.lvlm import LVLM
from craft.models.prompts import decode
from craft.models.sampling import Sampling, close_call


@dataclass
class Replies:
    """What an LVLM replied to a list of questions.

    Attributes:
        texts: the greedy answer to each question; empty if none was generated.
        scores: the log-probabilities of each question's options; empty if it has none.
        alone: the indices of the questions that were asked again alone (see `craft.models.sampling.TIES`).
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
    engine: str | None = None,
) -> Replies:
    """Ask all questions, one image each.

    The reply to a question depends neither on the other questions nor on `batch_size`. If rounding in another
    batch could change a reply, CRAFT asks that question again alone, as `LVLM.answer` does with one question.

    Args:
        lvlm: the model; only its backbone runs.
        options: the answers to score for each question; None scores nothing.
        max_new_tokens: the maximum length of an answer; 0 generates none.
        keep_ratio, keep_positions: as for `LVLM.answer`.
        engine: the address of an engine that writes the answers (`craft.evaluation.engine`).

    Raises:
        CraftError: the LVLM cannot prune to `keep_ratio`, or an option's probability is undefined; or the
            engine is asked for options or kept positions, or cannot be reached.
    """
    backbone = lvlm.backbone
    lvlm.check_keep_ratio(keep_ratio)
    if engine is not None:
        if options is not None or keep_positions:
            raise CraftError(
                "An engine writes answers; it scores no options, and it counts positions itself."
            )
        texts = _by_engine(lvlm, images, questions, engine, max_new_tokens, keep_ratio)
        return Replies(texts, [[] for _ in texts])
    option_tokens = [
        option_ids(backbone, question, texts) if texts else []
        for question, texts in zip(questions, options or [()] * len(questions), strict=True)
    ]
    tie = close_call(backbone.embeddings.weight.dtype)
    replies = Replies([""] * len(questions), [[]] * len(questions))

    def ask_together(batch: Sequence[int]) -> list[int]:
        """Ask the questions of one batch; return the indices of those that were too close to call."""
        first_question = {int(images.rows[index]): index for index in reversed(batch)}
        image_number = {row: number for number, row in enumerate(first_question)}
        tokens = lvlm.visible(images.tokens(first_question.values()), keep_ratio)
        image_of = [image_number[int(images.rows[index])] for index in batch]
        texts = [questions[index] for index in batch]
        room = max(max_new_tokens, *(len(ids) for index in batch for ids in option_tokens[index]), 0)
        reading = read(backbone, tokens, texts, image_of, keep_positions, room)
        scale = largest(reading.logits).tolist()
        ids, leads = write(backbone, reading, max_new_tokens)
        scores = score(backbone, reading, [option_tokens[index] for index in batch])
        close = []
        for number, index in enumerate(batch):
            replies.texts[index] = decode(backbone.tokenizer, ids[number])
            replies.scores[index] = scores[number]
            best = sorted(scores[number], reverse=True)[:2]
            lead = min(leads[number], (best[0] - best[1]) / scale[number] if len(best) == 2 else 1.0)
            if lead < tie:
                close.append(index)
        return close

    lengths = [len(backbone.tokenizer(question)["input_ids"]) for question in questions]
    batches = plan(images.rows.tolist(), lengths, batch_size)
    for batch in track(batches, f"asking {lvlm.name}") if progress and len(batches) > 1 else batches:
        if (close := ask_together(batch)) and len(batch) > 1:
            for index in close:
                ask_together([index])
            replies.alone += close
    replies.alone.sort()
    return replies


def _by_engine(
    lvlm: LVLM, images: ImageCodes, questions: Sequence[str], engine: str, length: int, keep_ratio: float
) -> list[str]:
    """The answers of an engine, whose prompts are embedded here."""
    backbone = lvlm.backbone
    prompts = []
    for index, question in enumerate(questions):
        tokens = lvlm.visible(images.tokens([index]), keep_ratio)
        prompts.append(backbone.inputs(tokens, [question])["inputs_embeds"][0])
    return write_all(engine, prompts, [Sampling(max_new_tokens=length)] * len(prompts))


def plan(images: Sequence[Hashable], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group questions into batches: by image, and images by the length of their longest question.

    Returns:
        Batches of question indices; every question is in one batch.
    """
    longest: dict[Hashable, tuple[int, int]] = {}
    for number, (image, length) in enumerate(zip(images, lengths, strict=True)):
        most, first = longest.get(image, (0, number))
        longest[image] = (max(most, length), first)
    order = sorted(range(len(images)), key=lambda number: (*longest[images[number]], lengths[number], number))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
