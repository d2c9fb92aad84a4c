"""A judge by rules: the same verdict every time, without a model, for tests and for machines without one.

It scores Correctness and Presence. Whether an explanation is relevant, true to the picture or too long takes
someone who understands it; these rules leave it out and say so.
"""

import re
from collections.abc import Sequence

from craft.data.spelling import normalise
from craft.evaluation.judge import BINARY, Case, Judge, Reply
from craft.evaluation.matching import option_named, spans_of

RULES = 4
"""Version of the rules: it is part of the key under which verdicts and table cells are kept. To be raised
whenever a reply may get another verdict, that is also after a change of `craft.evaluation.matching` or of
`craft.data.spelling.normalise`; else verdicts of before are taken for those of now."""

NEW_WORDS = 3
"""So many different words beyond question, options, answer and phrases of answering make a justification."""

NOTE = (
    "judged by fixed rules: Correctness and Presence only; Relevance, Faithfulness, Verbosity and Overall "
    "need a judge that reads and sees"
)

_JOINT = "\ue000"  # a private-use character stands for a space where no sentence ends

_PHRASES = frozenset(
    re.findall(
        r"\S+",
        """the an it is its it's this that these those there in on of to and or as at be was are my your you
        answer answers option options choice choices correct right because since so therefore image picture
        photo shown shows show justify""",
    )
)


def offline_judge() -> Judge:
    """The judge by rules."""
    return Judge(
        "offline rules", {"judge": "offline", "rules": RULES}, lambda: _ask, BINARY, sees=False, note=NOTE
    )


def settles_on_the_truth(case: Case) -> bool:
    """Whether the first sentence that names one option names the right one; for an open question, whether the
    first sentence has the right answer's words. Source: ours."""
    sentences = _sentences(case.response, (*case.options, case.truth))
    if not case.options:
        wanted = normalise(case.truth).rstrip(" .")
        return bool(wanted and sentences) and any(spans_of(wanted, normalise(sentences[0])))
    right = option_named(case.truth, case.options)
    named = (option_named(sentence, case.options) for sentence in sentences)
    return right is not None and next((found for found in named if found is not None), None) == right


def _sentences(text: str, names: Sequence[str]) -> list[str]:
    """The sentences of a text; none ends within one of the names ("St. Bernard", "No. 4")."""
    dotted = [r"\s+".join(map(re.escape, name.split())) for name in names if re.search(r"[.!?;]\s", name)]
    if dotted:
        longest = "|".join(sorted(dotted, key=len, reverse=True))
        whole = rf"(?<!\w)(?:{longest})"
        text = re.sub(whole, lambda found: _JOINT.join(found[0].split()), text, flags=re.IGNORECASE)
    parts = re.split(r"(?<=[.!?;])\s+|\n+", text.strip())
    return [part.replace(_JOINT, " ") for part in parts if part]


def justifies(case: Case) -> bool:
    """Whether the response has at least `NEW_WORDS` different words that are neither the question's, nor the
    options', nor phrases of answering. Source: ours."""
    given = _words([case.task, *case.options, case.truth]) | _PHRASES
    return len(_words([case.response]) - given) >= NEW_WORDS


def _ask(case: Case) -> Reply:
    return Reply(
        "ok", {"correctness": settles_on_the_truth(case), "presence": justifies(case)}, model="rules"
    )


def _words(texts: Sequence[str]) -> set[str]:
    """Words of two letters and more, in lower case."""
    return {word for text in texts for word in re.findall(r"[^\W\d_][\w']*[^\W_]", text.casefold())}
