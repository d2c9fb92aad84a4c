"""Ground-truth texts of the contrastive loss: the text that goes with an image (§3.2, §11)."""

import re


def class_text(domain: str, label: str) -> str:
    """The text of a classification sample.

    Source: §3.2, "An image of a {domain}, specifically a {label}." The paper prints "a" before every label.
    """
    return f"An image of a {domain}, specifically a {label}."


_DETERMINERS = "the|this|that|these|those|a|an|his|her|their|its"
_AFTER_NOUN = "a|an|the|in|on|at|to|from|with|by|under|behind|near|above|below|inside|outside|very|not"
"""Words that end a noun phrase: they can follow a noun without being a part of it."""

_NOUN = rf"(?P<subject>(?:(?:{_DETERMINERS}) )?\w+)"
_BE, _DO = r"(?P<verb>is|are|was|were)", r"(?P<verb>can|does|do|did|has|have)"
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), template)
    for pattern, template in (
        (rf"what colou?r {_BE} (?P<subject>.+)", "{subject} {verb} {answer}"),
        (rf"how many (?P<subject>.+?) {_BE} (?P<rest>.+)", "there {verb} {answer} {subject} {rest}"),
        (r"who (?P<verb>wrote|made|drew|took|\w+ed) (?P<rest>.+)", "{name} {verb} {rest}"),
        (rf"who {_BE} (?P<subject>(?:{_DETERMINERS}) .+)", "{subject} {verb} {name}"),
        (
            rf"what (?P<subject>(?:type|kind|sort) of .+) {_BE} (?:this|that|it)",
            "the {subject} {verb} {answer}",
        ),
        (
            rf"what (?P<subject>\w+(?: \w+)?) {_BE} (?P<rest>(?:shown|pictured|depicted|seen)(?: .+)?)",
            "the {subject} that {verb} {rest} {verb} {answer}",
        ),
        (rf"where {_BE} (?P<subject>.+) (?P<rest>located|found)", "{subject} {verb} {rest} {answer}"),
        (
            rf"(?:what|where) {_BE} (?P<subject>(?:{_DETERMINERS}|it)(?: .+)?(?<!ing))",
            "{subject} {verb} {answer}",
        ),
    )
)
_YES_NO = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_BE} (?P<subject>there|it|he|she|they) (?P<rest>.+)",
        rf"{_BE} (?P<subject>this|that|these|those) (?P<rest>(?:a|an|the) .+)",
        rf"{_BE} {_NOUN} (?P<rest>\w+|(?:{_AFTER_NOUN}|\w+ing|\w+ed) .+)",
        rf"{_DO} {_NOUN} (?P<rest>\w+|\w+ (?:{_AFTER_NOUN}) .+)",
    )
)


def declarative(question: str, answer: str) -> str:
    """Rewrite a question and its answer as one statement, by a few fixed rules.

    "What color is the car?" + "Red" -> "The car is red."; a yes/no question becomes the statement or its
    negation; any other question is kept: "{question} {answer}". A question whose subject cannot be separated
    from its predicate ("Is the cardiac silhouette enlarged?") is kept, too. Deterministic; uses no model.

    Source: §3.2 asks for the statement; the paper uses an LLM, the rules are ours.
    """
    question = " ".join(question.split())
    answer = " ".join(answer.split()).rstrip(".")
    last = re.split(r"(?<=[.?!]) ", question)[-1]  # the question itself, after any context sentences
    body = last.rstrip("?. ")
    if answer.lower() in ("yes", "no"):
        for pattern in _YES_NO:
            if match := pattern.fullmatch(body):
                negation = " not" if answer.lower() == "no" else ""
                statement = f"{match['subject']} {match['verb'].lower()}{negation} {match['rest']}"
                return _sentence(statement.replace("there are there", "there are"))
    else:
        for pattern, template in _RULES:
            if match := pattern.fullmatch(body):
                parts = match.groupdict()
                rest = parts.get("rest", "")
                statement = template.format(
                    subject=parts.get("subject", ""),
                    name=answer,
                    verb=parts["verb"].lower(),
                    rest="" if rest == "there" else rest,
                    answer=_lower_first(answer),
                )
                return _sentence(statement)
    return f"{question} {answer}"


def _lower_first(word: str) -> str:
    """ "Red" -> "red", but "USA", "McDonald" and "X" stay."""
    return word[0].lower() + word[1:] if len(word) > 1 and word[1:].islower() else word


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + "."
