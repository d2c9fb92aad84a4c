"""How many tokens an LLM can read, and which questions are longer."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from craft.core.errors import DataError
from craft.models.backbone import Backbone

_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
_SEAMS = 16  # upper bound of the additional tokens where a question joins the text around it
_SHOWN = 3

Asked = tuple[str, str, str | None]
"""The name of a question for messages, its text, and its answer, if that has to fit too."""


def context_of(llm: PreTrainedModel) -> int | None:
    """The number of positions for which an LLM was made; None if its config does not say, or with ALiBi."""
    config: Any = llm.config.get_text_config()
    sizes = [getattr(config, name, None) for name in _NAMES]
    size = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    if size is None or getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return size if not (original and factor) else max(size, int(original * factor))


def check_context(backbone: Backbone, asked: Iterable[Asked], image_tokens: int) -> None:
    """Refuse questions (and answers) that are longer than the LLM's context, before any work.

    Args:
        image_tokens: the number of visual tokens that each question has; 0 without an image.

    Raises:
        DataError: there are such questions; the first ones are named, with their length in tokens.
    """
    context = context_of(backbone.llm)
    if context is None:
        return

    def length(question: str, answer: str | None) -> int:
        prompt = backbone.tokenized(question, answer, image_tokens > 0)
        return len(prompt.before) + len(prompt.after) + len(prompt.answer) + image_tokens

    frame, total, long = length("?", "!") + _SEAMS, 0, list[str]()
    for name, question, answer in asked:
        total += 1
        if frame + len(f"{question}{answer or ''}".encode()) <= context:
            continue  # a token has at least one byte: saves tokenizing most questions
        if (size := length(question, answer)) > context:
            long.append(f"{name} ({size:,} tokens)")
    if long:
        subject = "questions are" if len(long) > 1 else "question is"
        image = f" with the {image_tokens} of its image" if image_tokens else ""
        raise DataError(
            f"{len(long)} of {total} {subject} longer{image} than the {context:,} tokens that the LLM reads "
            f"(its context): {', '.join(long[:_SHOWN])}{', …' if len(long) > _SHOWN else ''}. Shorten these "
            "questions and answers or leave them out, or use an LLM with a longer context."
        )
