"""Is an answer right? Strict as in the paper (§4.1), and beside it a lenient reading and "unparseable"."""

import re
from collections.abc import Iterator, Sequence

from craft.data import LETTERS, Sample
from craft.data.spelling import normalise

_PREFIX = 3
"""A cut-short answer names an option from so many characters on."""

_SIGNS = ".,;:!?\"'()[]"
"""What does not count at the ends of a reply."""

_DIGITS = r"\d+(?:e[-+−]?\d+)?"
_NUMBER = re.compile(
    rf"(?:(?<!\w)[-−–])?(?:(?<![\w.])\.)?{_DIGITS}(?:[.,:/^'’−–-][-−]?{_DIGITS})*", re.IGNORECASE
)
"""A number with its sign and all that is joined to it: "-5", ".5", "5,000", "15:30", "2/5", "3-5"."""


def strict(prediction: str, answer: str) -> bool:
    """Exact match after normalising case and whitespace: the paper's accuracy. Source: §4.1."""
    return normalise(prediction) == normalise(answer)


def option_named(prediction: str, choices: Sequence[str], by_letter: bool = False) -> int | None:
    """Which option a reply names, by letter or by text; None where it names none, or several.

    Read are, in this order: the option's text alone; a letter alone or with punctuation ("B", "(b)",
    "B. coat"); "the answer is B", but not "the answer is a coat"; one option's text among other words ("It
    is a coat"); the beginning of exactly one option (the cap on tokens cuts long ones short). Numbers count
    whole: "1.5" and "-5" do not name "5".

    Args:
        prediction: the reply.
        choices: the options' texts.
        by_letter: a letter alone was asked for, and goes before an option's text: options may be letters.

    Source: ours.
    """
    if not choices:
        return None
    letters = LETTERS[: len(choices)].lower()
    lone = normalise(prediction).strip(" .:()[]")
    if by_letter and len(lone) == 1 and lone in letters:
        return letters.index(lone)
    said = _plain(prediction)
    texts = [_plain(choice) for choice in choices]
    whole = [normalise(choice) for choice in choices]  # options may differ in an article or a sign alone
    if (raw := normalise(prediction)) in whole:
        return whole.index(raw)
    if said and said in texts:
        return texts.index(said)
    found = re.match(rf"^[(\[]?([{letters}])(?:[.):\]]|$)", raw) or re.search(
        rf"(?i:\b(?:answer|option|choice)(?: is)?:?) \(?(?!a \w)([{letters}{letters.upper()}])\b",
        " ".join(prediction.split()),
    )
    if found:
        return letters.index(found[1].lower())
    spans = [(*span, i) for i, t in enumerate(texts) if t for span in spans_of(t, said)]
    inside = {i for a, b, i in spans if not any(c <= a and b <= d and (d - c) > (b - a) for c, d, _ in spans)}
    if inside:
        return inside.pop() if len(inside) == 1 else None
    long = len(said) >= _PREFIX
    begun = [i for i, t in enumerate(texts) if long and t.startswith(said) and not _splits(t, len(said))]
    return begun[0] if len(begun) == 1 else None


def lenient(prediction: str, sample: Sample) -> bool:
    """Whether the reply means the right answer: the right option by letter or text; for an open question, the
    answer's words with any punctuation and company. Numbers count whole: "1.5" is not "5". Source: ours."""
    if sample.choices:
        right = right_option(sample)
        return right is not None and option_meant(prediction, sample) == right
    wanted = _plain(sample.answer)
    return bool(wanted) and next(spans_of(wanted, _plain(prediction)), None) is not None


def unparseable(prediction: str, sample: Sample) -> bool:
    """Whether the reply names none of the options, or several (for an open question: says nothing).

    Source: ours."""
    if sample.choices:
        return option_meant(prediction, sample) is None
    return not _plain(prediction)


def option_meant(prediction: str, sample: Sample) -> int | None:
    """Which option of a sample a reply names, as `option_named`, read as its answer is worded."""
    by_letter = answered_by_letter(sample.answer, right_option(sample), sample.choices)
    return option_named(prediction, sample.choices, by_letter)


def answered_by_letter(answer: str, right: int | None, choices: Sequence[str]) -> bool:
    """Whether the right answer is its option's letter and not its text, which may be a letter too."""
    return (
        right is not None
        and strict(answer, LETTERS[right : right + 1])
        and not strict(answer, choices[right])
    )


def right_option(sample: Sample) -> int | None:
    """The index of the right option, from `correct`, else from the answer's text or letter."""
    if sample.correct is not None:
        return sample.correct
    return option_named(sample.answer, sample.choices)


def spans_of(words: str, said: str) -> Iterator[tuple[int, int]]:
    """Where these words stand in what was said (both normalised): (start, end) of each place that cuts no
    word and no number in two."""
    for found in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", said):
        if not _splits(said, found.start()) and not _splits(said, found.end()):
            yield found.span()


def _splits(text: str, place: int) -> bool:
    """Whether a number goes on across this place."""
    return any(number.start() < place < number.end() for number in _NUMBER.finditer(text))


def _plain(text: str) -> str:
    """Normalised, without articles in front and punctuation at the ends; the point of ".5" is none."""
    bare = normalise(text).rstrip(f" {_SIGNS}")
    bare = re.sub(rf"^(?:(?!(?<!\.)\.\d)[ {re.escape(_SIGNS)}])+", "", bare)
    return re.sub(r"^(?:an?|the) (?=\S)", "", bare)
