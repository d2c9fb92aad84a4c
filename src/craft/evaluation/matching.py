"""Is an answer correct? The paper's exact match (§4.1), a lenient match, and "unparseable"."""

from collections.abc import Mapping, Sequence
from typing import Any

from craft.data import LETTERS, Sample
from craft.data.spelling import normalise
from craft.evaluation.plain import core
from craft.evaluation.reading import claims

_PAIRS = (("yes", "no"), ("true", "false"))
"""Answers to an open question that are read as the two options of a question without letters."""


def strict(prediction: str, answer: str) -> bool:
    """Exact match after normalising case and whitespace, which is the paper's accuracy. Source: §4.1."""
    return normalise(prediction) == normalise(answer)


def lenient(prediction: str, sample: Sample) -> bool:
    """Whether the reply claims the correct answer: the correct option by letter or text or, for an open
    question, the words of the answer. Source: ours; docs/evaluation.md has the rules."""
    if not sample.choices:
        return says(prediction, sample.answer)
    right, meant = right_option(sample), option_meant(prediction, sample)
    return right is not None and meant is not None and strict(sample.choices[meant], sample.choices[right])


def unparseable(prediction: str, sample: Sample) -> bool:
    """Whether the reply claims none or several of the options; for an open question, whether it is empty or,
    if the answer is yes or no, claims neither or both. Source: ours."""
    if sample.choices:
        return option_meant(prediction, sample) is None
    pair = _pair(sample.answer)
    return len(claims(prediction, pair, lettered=False)) != 1 if pair else not core(prediction)


def remarked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row of `Report.samples`, with the marks that its reply gets by the rules of now. A strict mark
    never changes. Rows of another origin, without these marks, stay as they are."""
    if not {"lenient", "unparseable", "choices", "correct"} <= row.keys():
        return dict(row)
    choices, reply = tuple(map(str, row["choices"])), str(row["prediction"])
    correct = choices.index(row["correct"]) if row["correct"] in choices else None
    sample = Sample(str(row["id"]), b"", "", str(row["answer"]), choices=choices, correct=correct)
    marks = {"lenient": lenient(reply, sample), "unparseable": unparseable(reply, sample)}
    if row.get("agrees") is not None:
        likeliest = max(range(len(choices)), key=row["scores"].__getitem__)
        marks["agrees"] = option_meant(reply, sample) == likeliest
    return {**row, **marks}


def says(prediction: str, answer: str) -> bool:
    """Whether a reply to an open question claims the answer, among other words or alone. Source: ours."""
    pair = _pair(answer)
    right = pair.index(core(answer)) if pair else 0
    return bool(answer.strip()) and claims(prediction, pair or (answer,), lettered=False) == {right}


def option_named(prediction: str, choices: Sequence[str], by_letter: bool = False) -> int | None:
    """The option that a reply claims, by letter or by text; None if it claims none or several. Of equal
    options, the first. See `craft.evaluation.reading.claims`. Source: ours."""
    claimed = claims(prediction, choices, by_letter)
    return claimed.pop() if len(claimed) == 1 else None


def option_meant(prediction: str, sample: Sample) -> int | None:
    """The option of a sample that a reply claims (`option_named`), by letter if its answer is one."""
    by_letter = answered_by_letter(sample.answer, right_option(sample), sample.choices)
    return option_named(prediction, sample.choices, by_letter)


def answered_by_letter(answer: str, right: int | None, choices: Sequence[str]) -> bool:
    """Whether the answer is the letter of the correct option, and not its text, which may be a letter too."""
    return (
        right is not None
        and strict(answer, LETTERS[right : right + 1])
        and not strict(answer, choices[right])
    )


def right_option(sample: Sample) -> int | None:
    """The index of the correct option, from `correct`, or else from the answer's text or letter."""
    if sample.correct is not None:
        return sample.correct
    return option_named(sample.answer, sample.choices)


def _pair(answer: str) -> tuple[str, ...]:
    """The two possible answers to a yes/no question; () if the answer is neither of such two."""
    return next((pair for pair in _PAIRS if core(answer) in pair), ())
