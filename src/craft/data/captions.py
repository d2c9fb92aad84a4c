"""Ground-truth texts of the contrastive loss: what is written beside an image (§3.2, §11)."""

import re


def class_text(domain: str, label: str) -> str:
    """The text of a classification sample.

    Source: §3.2, "An image of a {domain}, specifically a {label}." The paper prints "a" whatever follows.
    """
    return f"An image of a {domain}, specifically a {label}."


_SUBJECT = r"(?P<subject>(?:(?:the|this|that|these|those|a|an|his|her|their|its) )?\w+)"
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), template)
    for pattern, template in (
        (r"what colou?r (?P<verb>is|are|was|were) (?P<subject>.+)", "{subject} {verb} {answer}"),
        (
            r"how many (?P<subject>.+?) (?P<verb>are|were) (?P<rest>.+)",
            "there {verb} {answer} {subject} {rest}",
        ),
        (r"(?:what|who|where) (?P<verb>is|are|was|were) (?P<subject>.+)", "{subject} {verb} {answer}"),
    )
)
_YES_NO = (
    re.compile(r"(?P<verb>is|are|was|were) (?P<subject>there) (?P<rest>.+)", re.IGNORECASE),
    re.compile(rf"(?P<verb>is|are|was|were|can|does|do|did|has|have) {_SUBJECT} (?P<rest>.+)", re.IGNORECASE),
)


def declarative(question: str, answer: str) -> str:
    """Rewrite a question and its answer as one statement, by a few fixed rules.

    "What color is the car?" + "Red" -> "The car is red."; yes/no questions become the statement or its
    negation; anything else keeps the words: "{question} {answer}". Deterministic; no model is asked.

    Source: §3.2 asks for the statement; the paper uses an LLM, the rules are ours.
    """
    asked = " ".join(question.split())
    said = " ".join(answer.split()).rstrip(".")
    last = re.split(r"(?<=[.?!]) ", asked)[-1]  # the question proper, after any context sentences
    body = last.rstrip("?. ")
    if said.lower() in ("yes", "no"):
        for pattern in _YES_NO:
            if found := pattern.fullmatch(body):
                negation = " not" if said.lower() == "no" else ""
                statement = f"{found['subject']} {found['verb'].lower()}{negation} {found['rest']}"
                return _sentence(statement.replace("there are there", "there are"))
    else:
        for pattern, template in _RULES:
            if found := pattern.fullmatch(body):
                parts = found.groupdict()
                rest = parts.get("rest", "")
                statement = template.format(
                    subject=parts["subject"],
                    verb=parts["verb"].lower(),
                    rest="" if rest == "there" else rest,
                    answer=_lower_first(said),
                )
                return _sentence(statement)
    return f"{asked} {said}"


def _lower_first(word: str) -> str:
    """ "Red" -> "red", but "USA", "McDonald" and "X" stay."""
    return word[0].lower() + word[1:] if len(word) > 1 and word[1:].islower() else word


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + "."
