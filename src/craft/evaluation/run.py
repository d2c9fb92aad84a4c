"""Ask an LVLM every question of a list, and mark the answers."""

from collections.abc import Sequence
from typing import Any

from craft.core.errors import DataError
from craft.core.progress import say
from craft.data import LETTERS, Sample
from craft.evaluation.ask import Replies, ask
from craft.evaluation.config import EvalConfig, EvalSettings, Protocol
from craft.evaluation.engine import refuse_lora
from craft.evaluation.lengths import announce_long_answers, check_questions
from craft.evaluation.matching import (
    answered_by_letter,
    lenient,
    option_meant,
    right_option,
    strict,
    unparseable,
)
from craft.evaluation.report import Report
from craft.formats.code_cache import CodeCache, image_names
from craft.models.lvlm import LVLM
from craft.quantize import Continuous
from craft.quantize.search import Choice, search_for


def evaluate_lvlm(
    lvlm: LVLM,
    samples: Sequence[Sample],
    config: EvalSettings = None,
    *,
    settings: dict[str, Any] | None = None,
    progress: bool = True,
    cache: CodeCache | None = None,
    **overrides: Any,
) -> Report:
    """Answers to all samples, marked (§4.1).

    Every distinct image is encoded once, and read once for all of its questions; questions are batched by
    similar length. Results come back in the order of `samples`, and depend neither on the batch size nor on
    what was cached.

    Args:
        samples: with questions written.
        config: an `EvalConfig`, dict or YAML file. Of its settings `batch_size`, `max_new_tokens`,
            `keep_ratio` (by the code prior `lvlm.visual.prior`), `keep_positions`, `protocol` and `search`
            count here.
        settings: recorded in the report, which also names the search, unless that is "exact".
        cache: codes of images that were encoded before; new ones are added. None: a cache for this call.
        **overrides: any of these settings by name.

    Raises:
        DataError: an image cannot be read, "options" is asked of a question that has none, or a question with
            its answer is longer than the LLM's context.
        ConfigError: a setting is unknown or impossible, or the search does not run here.
        CraftError: `keep_ratio` is out of range, or there is no code prior for it; or the LLM counts
            positions itself, and `keep_positions` is wanted.
    """
    config = EvalConfig.build(config, overrides)
    lvlm.check_keep_ratio(config.keep_ratio)
    if config.engine is not None:
        refuse_lora(lvlm)
    lvlm.backbone.check_positions(config.keep_positions)
    bare = next((sample for sample in samples if not sample.choices), None)
    if config.protocol == "options" and bare is not None:
        raise DataError(
            f"The protocol 'options' needs questions with options, and {bare.id} has none; use 'generate'."
        )
    codebook = lvlm.visual.codebook
    if isinstance(codebook, Continuous):
        search = Choice("exact", "a continuous LVLM has no codebook")
    else:
        search = search_for(config.search, codebook)
    if config.search != "exact":
        say(f"search: {search.name} ({search.why})")
    check_questions(lvlm, samples, keep_ratio=1.0 if config.keep_positions else config.keep_ratio)
    if progress and config.protocol != "options":
        announce_long_answers(lvlm, samples, config.max_new_tokens)
    sources = [sample.image for sample in samples]
    images = (cache or CodeCache()).encode(lvlm.visual, sources, config.batch_size, progress, search.name)
    prompts = [sample.prompt() for sample in samples]
    replies = ask(
        lvlm,
        images,
        prompts,
        None if config.protocol == "generate" else [option_texts(sample) for sample in samples],
        max_new_tokens=0 if config.protocol == "options" else config.max_new_tokens,
        keep_ratio=config.keep_ratio,
        keep_positions=config.keep_positions,
        batch_size=config.batch_size,
        progress=progress,
        engine=config.engine,
    )
    names = [images.names[row] for row in images.rows.tolist()]
    rows = [
        {**_row(sample, prompts[index], replies, index, config.protocol), "image_hash": names[index]}
        for index, sample in enumerate(samples)
    ]
    record = {
        "protocol": config.protocol,
        "keep_ratio": config.keep_ratio,
        "keep_positions": config.keep_positions,
        "max_new_tokens": config.max_new_tokens,
        "asked_alone": len(replies.alone),
        **({} if search.name == "exact" else {"search": search.name}),
    }
    return Report.of(rows, {**record, **(settings or {})})


def option_texts(sample: Sample) -> list[str]:
    """The replies that would be right or wrong by the letter of the question: its letters, or its options."""
    if answered_by_letter(sample.answer, right_option(sample), sample.choices):
        return list(LETTERS[: len(sample.choices)])
    return list(sample.choices)


def answers_to(rows: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> bool:
    """Whether stored results are for exactly these questions, answers, images and unseen classes.

    Raises:
        DataError: an image cannot be read.
    """
    names = image_names([sample.image for sample in samples])
    wanted = [
        {"id": s.id, "prompt": s.prompt(), "answer": s.answer, **_about(s), "image_hash": name}
        for s, name in zip(samples, names, strict=True)
    ]
    return len(rows) == len(wanted) and all(
        row.items() >= one.items() for row, one in zip(rows, wanted, strict=True)
    )


def _about(sample: Sample) -> dict[str, Any]:
    """What a row says about its sample in addition to the question itself."""
    return {
        "seen": sample.seen,
        "label": sample.label,
        "correct": sample.answer_text,
        "choices": list(sample.choices),
    }


def _row(sample: Sample, prompt: str, replies: Replies, index: int, protocol: Protocol) -> dict[str, Any]:
    scores = replies.scores[index]
    likeliest = max(range(len(scores)), key=scores.__getitem__) if scores else None
    said = replies.texts[index]
    if protocol == "options" and likeliest is not None:
        said = option_texts(sample)[likeliest]
    row = {
        "id": sample.id,
        "prompt": prompt,
        "answer": sample.answer,
        "prediction": said,
        "strict": strict(said, sample.answer),
        "lenient": lenient(said, sample),
        "unparseable": unparseable(said, sample),
        **_about(sample),
    }
    if likeliest is not None:
        named = option_meant(said, sample)
        row |= {
            "scored": likeliest == right_option(sample),
            "agrees": None if protocol == "options" else likeliest == named,
            "scores": [round(score, 4) for score in scores],
        }
    return row
