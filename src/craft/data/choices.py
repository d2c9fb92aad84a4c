"""Options: classification as four-option multiple choice, after FOCI (§4.1, §11), and the options and answers
of a user's rows."""

import ast
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from craft.core.errors import DataError
from craft.core.seeding import rng
from craft.data.sample import LETTERS, Sample
from craft.data.spelling import brief, normalise
from craft.data.splits import OPTIONS

AnswerWith = Literal["letter", "option"]
Distractors = Literal["random", "hard"]

QUESTION = "Which of these choices is shown in the image?"
"""The question of a classification sample. Source: FOCI's evaluation prompt."""

DIRECTIVES: dict[str, str] = {
    "letter": "Answer in one letter only.",
    "option": "Answer with the option only.",
    "open": "Answer as succinctly as possible.",
    "reasons": "Justify your answer.",
}
"""The closing line for each kind of answer. Source: §4.3; "option" is ours."""


def multiple_choice(
    item: Sample,
    class_names: Sequence[str],
    distractors: Distractors = "random",
    *,
    seed: int = 0,
    answer_with: AnswerWith = "option",
    similarity: np.ndarray | None = None,
    exclude: Collection[str] = (),
) -> Sample:
    """The labelled `item` as a question with four lettered options, exactly one of them correct.

    Distractors and order depend on (seed, sample id) alone, not on the order of samples or of `class_names`.
    With fewer than four classes there are as many options as classes. A sample that has distractors
    (from an option file) gets the last three of them that are allowed, and random ones if there are too few.

    Args:
        item: a sample with a label; its own question stays, if it has one.
        class_names: every class an option may name, the label included.
        distractors: "random", or "hard": the classes whose names are most similar to the label's.
        similarity: [C, C] similarities in the order of `class_names`; needed for "hard".
        exclude: classes that must not be distractors (for training: the held-out ones).

    Raises:
        DataError: no label, a label that is not in `class_names`, an unknown kind of distractor or answer,
            "hard" without a `similarity` of the right shape, or no class that can be a distractor.

    Source: FOCI (four options per image, hard = most similar texts); seeding per sample id is ours.
    """
    label, origin = item.label, item.origin or item.id
    if label is None or label not in class_names:
        raise DataError(f"{origin}: the label {label!r} is not one of the {len(class_names)} classes.")
    others = sorted({name for name in class_names if name != label and name not in exclude})
    if not others:
        raise DataError(f"{origin}: no other class than '{label}' can be an option; use at least two.")
    count = min(OPTIONS - 1, len(others))
    if item.distractors:
        preset = [name for name in item.distractors if name in others][-count:]
        rest = [name for name in others if name not in preset]
        wrong = preset + rng(seed, "distractors", item.id).sample(rest, count - len(preset))
    elif distractors == "random":
        wrong = rng(seed, "distractors", item.id).sample(others, count)
    elif distractors == "hard":
        wrong = _most_similar(label, others, list(class_names), similarity)[:count]
    else:
        raise DataError(f"distractors must be 'random' or 'hard', not {distractors!r}.")
    options = sorted([label, *wrong])
    rng(seed, "order of options", item.id).shuffle(options)
    return replace(
        item,
        question=item.question or QUESTION,
        choices=tuple(options),
        answer=answer_for(options, label, answer_with),
        correct=options.index(label),
        directive=DIRECTIVES[answer_with] if item.directive is None else item.directive,
    )


def answer_for(options: Sequence[str], right: str, answer_with: AnswerWith) -> str:
    """The letter or the text of the option `right`.

    Raises:
        DataError: `answer_with` is neither "letter" nor "option".
    """
    if answer_with == "letter":
        return LETTERS[list(options).index(right)]
    if answer_with == "option":
        return right
    raise DataError(f"answer_with must be 'letter' or 'option', not {answer_with!r}.")


def _most_similar(
    label: str, others: list[str], names: list[str], similarity: np.ndarray | None
) -> list[str]:
    if similarity is None or np.shape(similarity) != (len(names), len(names)):
        actual = "there is none" if similarity is None else f"this one has shape {np.shape(similarity)}"
        raise DataError(
            f"hard distractors need a [{len(names)}, {len(names)}] similarity of the class names, and "
            f"{actual}. Pass `similarity`, or use random distractors."
        )
    row = np.asarray(similarity, dtype=np.float64)[names.index(label)]
    return sorted(others, key=lambda name: (-row[names.index(name)], name))


_BARE_LIST = re.compile(r"""['"]\s+['"]""")
"""Two texts without a comma between them, as NumPy prints an array; Python would join them to one text."""

_LETTERED = re.compile(r"\(?([A-Za-z])(?:\)|[.):]|$)\s*(.*)", re.DOTALL)
"""A letter as people write it ("B", "(B)", "B.", "B: elm"), and the text after it."""


_LETTER_NAME = re.compile(r"(?:option|choice|opt)[ _-]?([A-Za-z])|([A-Z])")
"""The name of a column that holds an option."""


def list_in_text(text: str, name: str, origin: str) -> list[Any] | None:
    """The list that a text is, in JSON or as Python prints it (MMMU, `DataFrame.to_csv`); None if it is none.

    Args:
        text: the value of a field.
        name, origin: the field and its row, for messages.

    Raises:
        DataError: it is a list of texts without commas, as NumPy prints it.
    """
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    try:
        return list(json.loads(stripped))
    except (ValueError, RecursionError):
        pass
    if _BARE_LIST.search(stripped):
        raise DataError(
            f"{origin}: '{name}' is a list without commas, as NumPy prints an array ({brief(text)}). "
            "Write it as JSON."
        )
    try:
        return list(ast.literal_eval(stripped))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def lettered_options(values: Mapping[str, Any], origin: str) -> list[Any] | None:
    """The options that `values` has under letters (columns `A`, `B`, … as in MMBench, or `option_a`, …; or a
    mapping): all from A on that are not None. None if there are fewer than two.

    Raises:
        DataError: one is missing between others.
    """
    options = {}
    for name, value in values.items():
        if value is not None and (match := _LETTER_NAME.fullmatch(name)):
            options[(match[1] or match[2]).upper()] = value
    if not {"A", "B"} <= options.keys():
        return None
    letters = "".join(sorted(options))
    if letters != LETTERS[: len(letters)]:
        raise DataError(f"{origin}: there are options {', '.join(letters)}. Fill in those between them.")
    return [options[letter] for letter in letters]


def correct_option(choices: Sequence[str], answer: str, origin: str) -> int:
    """The index of the choice that the answer names by its text or its letter ("B", "(B)", "B. elm").

    Raises:
        DataError: it names none of them.
    """
    if answer in choices:
        return choices.index(answer)
    alike = [normalise(choice) for choice in choices]
    if normalise(answer) in alike:
        return alike.index(normalise(answer))
    if match := _LETTERED.fullmatch(answer):
        index, text = LETTERS.index(match[1].upper()), normalise(match[2])
        if index < len(choices) and text in ("", alike[index]):
            return index
    fix = "Use the text of an option, or its letter."
    if answer.isdigit():
        fix = f"If it is a position, CRAFT does not guess whether the first is 0 or 1. {fix}"
    raise DataError(f"{origin}: the answer {brief(answer)} is not one of the choices {list(choices)}. {fix}")
