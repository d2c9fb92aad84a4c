"""Is an answer correct? The paper's exact match (§4.1), a lenient match, and "unparseable"."""

import re
from collections.abc import Iterator, Sequence

from craft.data import LETTERS, Sample
from craft.data.spelling import normalise

_PREFIX = 3
"""A truncated answer names an option if it has at least this many characters."""

_SIGNS = ".,;:!?\"'()[]"
"""Characters that are ignored at both ends of a reply."""

_DIGITS = r"\d+(?:e[-+−]?\d+)?"
_NUMBER = re.compile(
    rf"(?:(?<!\w)[-−–])?(?:(?<![\w.])\.)?{_DIGITS}(?:[.,:/^'’−–-][-−]?{_DIGITS})*", re.IGNORECASE
)
"""A number with its sign and everything attached to it: "-5", ".5", "5,000", "15:30", "2/5", "3-5"."""


def strict(prediction: str, answer: str) -> bool:
    """Exact match after normalising case and whitespace, which is the paper's accuracy. Source: §4.1."""
    return normalise(prediction) == normalise(answer)


def option_named(prediction: str, choices: Sequence[str], by_letter: bool = False) -> int | None:
    """The option that a reply names, by letter or by text; None if it names none or several.

    The reply is tried in this order: the text of an option alone; a letter alone or with punctuation ("B",
    "(b)", "B. coat"); "the answer is B", but not "the answer is a coat"; the text of one option among other
    words ("It is a coat"); the beginning of exactly one option (the maximum length truncates long options).
    Numbers match only as a whole: "1.5" and "-5" do not name "5".

    Args:
        by_letter: the question asks for a letter, so a letter alone is tried before the options' texts, which
            may be letters too.

    Source: ours.
    """
    if not choices:
        return None
    letters = LETTERS[: len(choices)].lower()
    lone = normalise(prediction).strip(" .:()[]")
    if by_letter and len(lone) == 1 and lone in letters:
        return letters.index(lone)
    reply = _plain(prediction)
    texts = [_plain(choice) for choice in choices]
    whole = [normalise(choice) for choice in choices]  # options may differ only in an article or a sign
    if (raw := normalise(prediction)) in whole:
        return whole.index(raw)
    if reply and reply in texts:
        return texts.index(reply)
    letter = re.match(rf"^[(\[]?([{letters}])(?:[.):\]]|$)", raw) or re.search(
        rf"(?i:\b(?:answer|option|choice)(?: is)?:?) \(?(?!a \w)([{letters}{letters.upper()}])\b",
        " ".join(prediction.split()),
    )
    if letter:
        return letters.index(letter[1].lower())
    spans = [(start, end, i) for i, text in enumerate(texts) if text for start, end in spans_of(text, reply)]
    named = {i for start, end, i in spans if not _inside_longer(start, end, spans)}
    if named:
        return named.pop() if len(named) == 1 else None
    if len(reply) < _PREFIX:
        return None
    begun = [i for i, text in enumerate(texts) if text.startswith(reply) and not _splits(text, len(reply))]
    return begun[0] if len(begun) == 1 else None


def lenient(prediction: str, sample: Sample) -> bool:
    """Whether the reply means the correct answer.

    It does if it names the correct option by letter or text or, for an open question, if it contains the
    words of the answer. Numbers match only as a whole: "1.5" is not "5". Source: ours.
    """
    if sample.choices:
        right = right_option(sample)
        return right is not None and option_meant(prediction, sample) == right
    answer = _plain(sample.answer)
    return bool(answer) and next(spans_of(answer, _plain(prediction)), None) is not None


def unparseable(prediction: str, sample: Sample) -> bool:
    """Whether the reply names none or several of the options; for an open question, whether it is empty.

    Source: ours.
    """
    if sample.choices:
        return option_meant(prediction, sample) is None
    return not _plain(prediction)


def option_meant(prediction: str, sample: Sample) -> int | None:
    """The option of a sample that a reply names (`option_named`), by letter if the sample's answer is one."""
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


def spans_of(words: str, text: str) -> Iterator[tuple[int, int]]:
    """The (start, end) of each occurrence of `words` in `text` that splits no word and no number.

    Both are normalised."""
    for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text):
        if not _splits(text, match.start()) and not _splits(text, match.end()):
            yield match.span()


def _inside_longer(start: int, end: int, spans: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a longer span covers this one, as "ankle boot" covers "boot"."""
    return any(first <= start and end <= last and last - first > end - start for first, last, _ in spans)


def _splits(text: str, position: int) -> bool:
    """Whether `position` lies inside a number."""
    return any(number.start() < position < number.end() for number in _NUMBER.finditer(text))


def _plain(text: str) -> str:
    """Normalised text without a leading article and without punctuation at its ends; ".5" keeps its point."""
    bare = normalise(text).rstrip(f" {_SIGNS}")
    bare = re.sub(rf"^(?:(?!(?<!\.)\.\d)[ {re.escape(_SIGNS)}])+", "", bare)
    return re.sub(r"^(?:an?|the) (?=\S)", "", bare)
