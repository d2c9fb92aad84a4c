"""Is an answer right? Strict as in the paper (§4.1), and beside it a lenient reading and "unparseable"."""

import re
from collections.abc import Sequence

from craft.data import LETTERS, Sample
from craft.data.sample import normalise

_PREFIX = 3
"""A cut-short answer names an option from so many characters on."""


def strict(prediction: str, answer: str) -> bool:
    """Exact match after normalising case and whitespace: the paper's accuracy. Source: §4.1."""
    return normalise(prediction) == normalise(answer)


def option_named(prediction: str, choices: Sequence[str]) -> int | None:
    """Which option a reply names, by letter or by text; None where it names none, or several.

    Read are, in this order: the option's text alone; a letter alone or with punctuation ("B", "(b)",
    "B. coat"); "the answer is B", but not "the answer is a coat"; one option's text among other words ("It
    is a coat"); the beginning of exactly one option (the cap on tokens cuts long ones short).

    Source: ours.
    """
    if not choices:
        return None
    said = _plain(prediction)
    texts = [_plain(choice) for choice in choices]
    whole = [normalise(choice) for choice in choices]  # options may differ in an article or a sign alone
    if (raw := normalise(prediction)) in whole:
        return whole.index(raw)
    if said and said in texts:
        return texts.index(said)
    letters = LETTERS[: len(choices)].lower()
    found = re.match(rf"^[(\[]?([{letters}])(?:[.):\]]|$)", raw) or re.search(
        rf"(?i:\b(?:answer|option|choice)(?: is)?:?) \(?(?!a \w)([{letters}{letters.upper()}])\b",
        " ".join(prediction.split()),
    )
    if found:
        return letters.index(found[1].lower())
    spans = [(m.start(), m.end(), i) for i, t in enumerate(texts) if t for m in _words(t).finditer(said)]
    inside = {i for a, b, i in spans if not any(c <= a and b <= d and (d - c) > (b - a) for c, d, _ in spans)}
    if inside:
        return inside.pop() if len(inside) == 1 else None
    begun = [i for i, t in enumerate(texts) if len(said) >= _PREFIX and t.startswith(said)]
    return begun[0] if len(begun) == 1 else None


def lenient(prediction: str, sample: Sample) -> bool:
    """Whether the reply means the right answer: the right option by letter or text; for an open question, the
    answer's words with any punctuation and company. Source: ours."""
    if sample.choices:
        right = right_option(sample)
        return right is not None and option_named(prediction, sample.choices) == right
    wanted = _plain(sample.answer)
    return bool(wanted) and _words(wanted).search(_plain(prediction)) is not None


def unparseable(prediction: str, sample: Sample) -> bool:
    """Whether the reply names none of the options, or several (for an open question: says nothing).

    Source: ours."""
    if sample.choices:
        return option_named(prediction, sample.choices) is None
    return not _plain(prediction)


def right_option(sample: Sample) -> int | None:
    """The index of the right option, from `correct`, else from the answer's text or letter."""
    if sample.correct is not None:
        return sample.correct
    return option_named(sample.answer, sample.choices)


def _plain(text: str) -> str:
    """Normalised, without articles in front and punctuation at the ends."""
    bare = normalise(text).strip(" .,;:!?\"'()[]")
    return re.sub(r"^(?:an?|the) (?=\S)", "", bare)


def _words(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
