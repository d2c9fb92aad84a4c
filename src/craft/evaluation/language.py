"""Does an LLM keep its language? Its perplexity on held-out text, and its answers to a few instructions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from craft.core.errors import DataError
from craft.models.backbone import Backbone
from craft.models.context import context_of
from craft.models.decoding import generate

TEXTS = (
    "The tide goes out twice a day, and with it the small boats of the harbour settle on the mud. By noon "
    "the gulls walk where the water was deep in the morning, picking at shells. Nobody is in a hurry. The "
    "men who mend the nets sit with their backs to the wall, out of the wind, and talk about the price of "
    "diesel.",
    "To make a simple bread, mix five hundred grams of flour with a teaspoon of salt and a little yeast. "
    "Add warm water and knead the dough until it is smooth. Cover the bowl with a cloth and let it rest for "
    "an hour. Shape it, let it rise again, and bake it in a hot oven until the crust sounds hollow.",
    "A bicycle stays upright because its rider steers, without thinking, into the direction of the fall. "
    "The front wheel turns a little, the path curves, and the curve lifts the frame again. At low speed "
    "these corrections become large, which is why it is hard to ride slowly along a straight line.",
    "The committee met on Tuesday to discuss the new library. Several members asked whether the building "
    "could stay open in the evening, since many people work during the day. The treasurer answered that the "
    "cost of heating and staff would have to be found elsewhere, and proposed to begin with two evenings a "
    "week.",
    "Plants take carbon dioxide from the air and water from the soil, and with the energy of sunlight they "
    "build sugar. Part of the sugar is burned at once, part is stored as starch, and part becomes "
    "cellulose, the stuff of stems and leaves. The oxygen that we breathe is what is left over.",
    "She had kept the letter in a drawer for eleven years before she opened it. The ink had turned brown, "
    "and the paper was soft at the folds. It said nothing that she did not know already, but it said it in "
    "his voice, and for a while she sat at the table and did not hear the telephone.",
    "If a program is slow, measure before you change anything. Most of the time is usually spent in a small "
    "part of the code, and that part is seldom where one expects it. A profile shows where the time goes; "
    "only then does it make sense to look for a better algorithm, or to do less work.",
    "The museum is closed on Mondays. Visitors who arrive by train should leave the station by the north "
    "exit and follow the river for about ten minutes. Children under twelve need no ticket. Large bags must "
    "be left in the cloakroom, and photographs may be taken without flash.",
)
"""Eight short texts on everyday subjects, written for this check. Source: ours."""

INSTRUCTIONS = (
    "Name three colours.",
    "What is the capital of France? Answer with one word.",
    "Write one sentence about the sea.",
    "Is ice colder than steam? Justify your answer.",
    "Give two reasons to drink water.",
    "What comes next: Monday, Tuesday, Wednesday? Answer with one word.",
)
"""Instructions that ask for short answers, a sentence, or reasons. Source: ours."""


@dataclass(frozen=True)
class Language:
    """How an LLM reads and writes text without an image.

    Attributes:
        perplexity: on `TEXTS`, per token.
        answers: its answers to `INSTRUCTIONS`, in that order.
    """

    perplexity: float
    answers: tuple[str, ...]


@torch.no_grad()
def check_language(backbone: Backbone, max_new_tokens: int = 40) -> Language:
    """The perplexity and the answers of a backbone, without images."""
    answers = generate(backbone, None, INSTRUCTIONS, max_new_tokens)
    return Language(perplexity(backbone, TEXTS), tuple(answers))


@torch.no_grad()
def perplexity(backbone: Backbone, texts: Sequence[str]) -> float:
    """exp of the mean cross-entropy over all tokens except each text's first, without a prompt format.

    Raises:
        DataError: a text is longer than the LLM's context.
    """
    context = context_of(backbone.llm)
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor(backbone.tokenizer(text)["input_ids"], dtype=torch.long)
        if context is not None and len(ids) > context:
            raise DataError(
                f"The text that begins {text[:40]!r} has {len(ids):,} tokens, and the LLM reads {context:,} "
                "(its context); shorten it, or use an LLM with a longer context."
            )
        logits = backbone.logits(backbone.splice([[ids]]))[0, :-1].float()
        total += float(F.cross_entropy(logits, ids[1:].to(logits.device), reduction="sum"))
        count += len(ids) - 1
    return float(torch.tensor(total / max(count, 1)).exp())
