"""A judge that follows fixed rules: always the same verdict, without a model, for tests and offline machines.

It scores Correctness and Presence. Only a judge that understands an explanation can say whether it is
relevant, faithful to the image or too long; the rules leave these dimensions out and say so.
"""

import re
from collections.abc import Sequence

from craft.evaluation.matching import option_named, says
from craft.judging.cases import BINARY, Case, Judge, Reply

RULES = 5
"""Version of the rules, part of the key of stored verdicts and table cells. Raise it whenever some response
may get another verdict, which includes changes of `craft.evaluation.reading` and
`craft.data.spelling.normalise`; otherwise old verdicts are taken for new ones."""

NEW_WORDS = 3
"""A justification has at least this many different words beyond question, options, answer and answering
phrases."""

NOTE = (
    "judged by fixed rules: Correctness and Presence only; Relevance, Faithfulness, Verbosity and Overall "
    "need a judge that reads and sees"
)

_JOINT = "\ue000"  # a private-use character replaces a space at which no sentence ends

_PHRASES = frozenset(
    re.findall(
        r"\S+",
        """the an it is its it's this that these those there in on of to and or as at be was are my your you
        answer answers option options choice choices correct right because since so therefore image picture
        photo shown shows show justify""",
    )
)


def offline_judge() -> Judge:
    """The judge that follows rules."""
    return Judge(
        "offline rules", {"judge": "offline", "rules": RULES}, lambda: _ask, BINARY, sees=False, note=NOTE
    )


def settles_on_the_truth(case: Case) -> bool:
    """Whether the response claims the right option and no other, as `craft eval` reads replies; for an open
    question, whether its first sentence claims the right answer. Source: ours."""
    if case.options:
        right, settled = (option_named(text, case.options) for text in (case.truth, case.response))
        return settled is not None and settled == right
    sentences = _sentences(case.response, (case.truth,))
    return bool(sentences) and says(sentences[0], case.truth)


def _sentences(text: str, names: Sequence[str]) -> list[str]:
    """The sentences of a text; none ends within one of the names ("St. Bernard", "No. 4")."""
    dotted = [r"\s+".join(map(re.escape, name.split())) for name in names if re.search(r"[.!?;]\s", name)]
    if dotted:
        longest_first = "|".join(sorted(dotted, key=len, reverse=True))
        pattern = rf"(?<!\w)(?:{longest_first})"
        text = re.sub(pattern, lambda match: _JOINT.join(match[0].split()), text, flags=re.IGNORECASE)
    parts = re.split(r"(?<=[.!?;])\s+|\n+", text.strip())
    return [part.replace(_JOINT, " ") for part in parts if part]


def justifies(case: Case) -> bool:
    """Whether the response has at least `NEW_WORDS` different words that occur neither in the question, nor
    in the options, nor in answering phrases. Source: ours."""
    expected = _words([case.task, *case.options, case.truth]) | _PHRASES
    return len(_words([case.response]) - expected) >= NEW_WORDS


def _ask(case: Case) -> Reply:
    return Reply(
        "ok", {"correctness": settles_on_the_truth(case), "presence": justifies(case)}, model="rules"
    )


def _words(texts: Sequence[str]) -> set[str]:
    """Words of two letters or more, in lower case."""
    return {word for text in texts for word in re.findall(r"[^\W\d_][\w']*[^\W_]", text.casefold())}
