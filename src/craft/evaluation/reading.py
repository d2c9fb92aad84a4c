"""Which options does a reply claim? The rules are the table "How a reply is read" in docs/evaluation.md.

`plain` removes reasoning and markup. `_marked` replaces each mention of an option by one character. The
patterns of `_CLAIMS` find what is claimed around these characters, and the strongest kind of claim decides.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from craft.data.sample import LETTERS
from craft.data.spelling import normalise
from craft.evaluation.plain import FIRST_MARK, JOINT, MANY, core, plain, splits_number

_PREFIX = 3
"""A truncated reply names an option if it has at least this many characters."""

_TEXT, _LETTER = FIRST_MARK, 0x100000
"""The marks of an option that is named by text, or by letter: these code points plus the option's index."""

# --- marks (rules 10 to 12) ---------------------------------------------------------------------------------

_T, _L, _X = "[\U000f0000-\U000ffffd]", "[\U00100000-\U0010fffd]", "[\U000f0000-\U0010fffd]"

_WORDS = {"no", "one", "all", "none", "both", "other"}
"""Options that are such a word are named by the word alone, not by the word before another ("no tumor")."""

_PARTS = r"because|since|as|or|and|nor|but|not|rather|instead|due|it|there|this|that|they|i|we|you|the"
_GOES_ON = re.compile(rf"(?! (?!(?:{_PARTS})\b)[\w{_X[1:-1]}])", re.IGNORECASE)
"""What may follow such a word."""
_OTHER_QUANTITY = re.compile(r"\^|/[^\W\d]| (?:or (?:more|less)|to \d)")
"""What makes another quantity of one with a unit: "5 cm^2", "5 cm/s", "5 cm or more"."""
_FROM = re.compile(r"\d ?[^\W\d]{0,3} to $")
_NOT_AFTER = {
    "one": re.compile(
        r"\b(?:the|this|that|which|each|any|every|other|right|correct|best|first|second|last|\w+rd|\w+th) $",
        re.IGNORECASE,
    ),
    "no": re.compile(
        r"\b(?:shows?|ha[sd]|have|see|with|contains?|there (?:is|are|was|were)) $", re.IGNORECASE
    ),
}
"""What such a word is not an option after: "the correct one", a truncated "There is no"."""

_AFTER = (
    rf" ?(?:$|\n|[^\w\s'(]|\((?:{_X}|not\b|because\b)|{_X})| [A-Z]\b(?!')"
    r"| (?:or|and|nor|but|because|is|rather|instead"
)
_AFTER_LETTER = {
    "A": re.compile(
        rf"{_AFTER}|since|as|due|not|with|over|it is|are|was|has|seems?|looks?|fits|matches|would|could|can|"
        r"may|might|must|should)\b"
    ),
    "I": re.compile(rf"{_AFTER})\b"),
}
"""What follows the letters A and I, as opposed to the article and the pronoun."""

_LABEL_BEFORE = re.compile(r"\b(?:answer|option|choice|letter|label)(?: ?[:=>-] ?| )[(\[]?$", re.IGNORECASE)


@dataclass(frozen=True)
class _Names:
    """How the options of a question may be named.

    Attributes:
        texts: the marks by `core` of a text; several if options differ only in what `core` ignores.
        pattern: finds the texts; None if there are none.
        letters: the option's index by letter, in lower case.
    """

    texts: dict[str, str]
    pattern: re.Pattern[str] | None
    letters: dict[str, int]


@lru_cache(maxsize=1024)
def _names(choices: tuple[str, ...], by_letter: bool, lettered: bool) -> _Names:
    first = {normalise(choice): index for index, choice in reversed(list(enumerate(choices)))}
    letters = dict[str, int]()
    if lettered:
        letters = {
            letter.lower(): first[normalise(choice)] for letter, choice in zip(LETTERS, choices, strict=False)
        }
    texts = dict[str, str]()
    for index in first.values():
        text = core(choices[index])
        if len(text) == 1 and text.upper() in LETTERS:
            letters = letters if by_letter else {**letters, text: index}
        elif text:
            texts[text] = texts.get(text, "") + chr(_TEXT + index)
    longest_first = sorted(texts, key=len, reverse=True)
    words = "|".join(rf"[\s{JOINT}]".join(map(re.escape, text.split())) for text in longest_first)
    pattern = rf"(?<![\w{JOINT}])(?:(?:an?|the) )?({words})(?!['{JOINT}]?\w| {MANY})"
    return _Names(texts, re.compile(pattern, re.IGNORECASE) if texts else None, letters)


def _marked(text: str, names: _Names) -> str:
    """Plain text with each mention of an option replaced by its mark."""

    def by_text(match: re.Match[str]) -> str:
        key = normalise(match[1].replace(JOINT, " "))
        start, end = match.span(1)
        if splits_number(text, start) or splits_number(text, end):
            return match[0]
        if key in _WORDS and not _GOES_ON.match(text, end):
            return match[0]
        if key in _NOT_AFTER and _NOT_AFTER[key].search(text[: match.start()]):
            return match[0]
        if any(map(str.isdigit, key)) and (_OTHER_QUANTITY.match(text, end) or _FROM.search(text[:start])):
            return match[0]
        return names.texts.get(key, match[0])

    if names.pattern is not None:
        text = names.pattern.sub(by_text, text)
    if not names.letters:
        return text

    def by_letter(match: re.Match[str]) -> str:
        letter = match[0]
        if letter in "AI" and not _AFTER_LETTER[letter].match(text, match.end()):
            return letter
        if letter in "ai" and not _is_letter(text, *match.span()):
            return letter
        return chr(_LETTER + names.letters[letter.lower()])

    some = "".join(names.letters)
    return re.sub(rf"(?<![\w'])(?<!\w\.)[{some}{some.upper()}](?![\w'+#])(?!\.\w\b)", by_letter, text)


def _is_letter(text: str, start: int, end: int) -> bool:
    """Whether "a" or "i" is a letter here, and no article that ends a truncated reply ("It is a")."""
    if start == 0 or _LABEL_BEFORE.search(text[:start]):
        return re.match(r"$|[.:)\],;\n]", text[end:]) is not None
    return re.match(r"[)\]]|\.(?=\s|$)", text[end:]) is not None


# --- claims (rules 3 to 7) ----------------------------------------------------------------------------------

_NOT_VERB = (
    r"(?! ?(?:is|are|was|were|has|have|had|does|do|did|can|could|would|should|may|might|must|will|seems?|"
    r"looks?|appears?|being|leaves)\b)"
)
_ITEM = rf"(?:[(\[]?{_L}[ .):,\]=(-]{{0,4}}{_T}{_NOT_VERB}|[(\[]?{_X}[)\]]?)"
_AND = (
    r"(?: ?[,/&+|] ?(?:and |or )?| (?:or|and|nor|and/or|plus|vs\.?|versus) | ?)"
    r"(?:(?:option|choice|answer|also|even|maybe|perhaps|possibly|probably) ){0,3}"
)
_ALL = rf"(?:either |both )?{_ITEM}(?:{_AND}{_ITEM}){{0,25}}"
_LIST = (
    rf"(?:either |both )?{_ITEM}{_NOT_VERB}(?:{_AND}{_ITEM}{_NOT_VERB}){{0,25}}"
    rf"(?!(?:{_AND}{_ITEM}){{1,25}} (?:are|were|do|have)\b)"
)
_END = (
    r"(?= ?(?:$|[.,;:!?)\n(\[-]|because\b|since\b|as\b|due\b|given\b|for\b|rather\b|instead\b|not\b|"
    r"and not\b|over\b|i (?:think|guess|believe)\b|with\b|it is\b|there \w+\b|this is\b))"
)
_SURELY = (
    r"clearly|definitely|certainly|obviously|probably|likely|possibly|surely|presumably|apparently|actually|"
    r"undoubtedly|therefore|thus|indeed|rather|most likely|most probably|maybe|perhaps|also|just|simply|only"
)
_SO = (
    rf"(?:(?:well|ok|okay|yes|sure|so|hmm+|um|{_SURELY}|i (?:would )?(?:say|think|believe|guess)|i'd say|"
    r"my guess|it is|it must be|it could be|that is|this is|must be|looks like)[ ,:.-]{1,4}){0,5}"
)
_FILL = (
    rf"(?:(?:{_SURELY}|option|choice|letter|answer|number|the|an?|that|it is|this is|called)"
    r"[ :]{1,2}){0,5}"
)
_LABEL = (
    r"answer|option|choice|letter|label|selection|response|prediction|pick|solution|guess|conclusion|verdict|"
    r"result|output|diagnosis|classification|category|class|(?:right|correct|best) one|correct|ans|assistant"
)
_IS = r"(?:\b(?:is|are|was|be|being)\b:?| ?[:=>-]+)"
_PICK = (
    r"prefer|pick|picked|choose|chose|choosing|select|selected|go(?:ing)? (?:with|for)|opt(?:ing)? for|"
    r"vote(?: for)?|settle (?:on|for)|answer(?: with)?|lean(?:ing)? towards?|(?:that|which|this) leaves"
)
_SHOWN = (
    r"is|are|was|be|been|shows?|showing|depicts?|depicting|displays?|looks? like|resembles?|represents?|"
    r"means|called|(?:identified|classified|recogni[sz]ed|known) as|say|think|believe|guess|suspect|equals?|"
    r"so|thus|therefore|hence|-?[=>]|(?<!anything )(?<!nothing )(?<!all )(?<!everything )but"
)
_CHANGE = (
    r"wait|actually|sorry|oops|correction|just kidding|i meant?|scratch that|on second thoughts?|make that|"
    r"or rather|no(?=,)"
)
_START = r"(?:^|[.!;\n]) ?"

_CLAIMS: tuple[tuple[str, ...], ...] = (
    # rule 4
    (rf"\bfinal(?: (?:answer|choice|decision)\b(?: {_IS})?[ :]*|: ?){_FILL}{_LIST}",),
    # rule 5
    (
        rf"\b(?:{_LABEL})\b[^.;!?\n{_X[1:-1]}]{{0,60}}?{_IS} ?{_FILL}{_LIST}",
        rf"\b(?:answer|option|choice|letter) {_LIST}{_END}",
        rf"{_ALL} (?:is|are|was|would be|seems|must be|looks)"
        rf"(?: (?:{_SURELY}|the|my|our|most|best|right|correct)){{0,5}} "
        r"(?:correct|right(?! ?\w)|best|answer|choice|true|option)\b",
        rf"{_ALL} ?[:(=-] ?(?:true|right|correct)\b(?! ?\w)",
        rf"\b(?:{_PICK}) {_FILL}{_LIST}",
        rf"^{_SO}{_LIST}{_END}",
        rf"{_START}{_SO}{_LIST} ?(?=[.!;\n]|$)",
        rf"(?:{_START}|, |\b(?:but|so|and) ){_SO}(?:it|this|that|these|those|they|there) "
        rf"(?:is|are|was|must be) {_FILL}{_LIST}",
        rf"\b(?:{_CHANGE})[ ,:.-]+(?:no[ ,]+)?{_FILL}{_LIST}",
    ),
    # rule 6
    (rf"(?:\b|(?<=[ \n]))(?:{_SHOWN}) ?{_FILL}{_LIST}",),
)
"""What claims an option: patterns by strength, of which the first that claims something decides."""
_TIERS = tuple(tuple(re.compile(one, re.IGNORECASE) for one in tier) for tier in _CLAIMS)

# --- denials (rule 8) ---------------------------------------------------------------------------------------

_BREAK = re.compile(
    r"[;:!?\n]|\.(?=\s|$)|,? (?:(?<!anything )(?<!nothing )(?<!all )(?<!everything )but|so|therefore|thus|"
    r"hence|instead(?! of)|however|yet|then)\b|, (?:it|this|these|the|i|my|we|which|there|and)\b|"
    r"\band (?:it|this|the|so|is|therefore|thus)\b| - |>",
    re.IGNORECASE,
)
"""Where a clause ends, and with it the reach of a negation."""

_FOREIGN_NOT = r"nicht|kein\w*|nie|pas|non(?!‐)|não|geen|niet|ikke|inte|ei|nem|değil|tidak|bukan|không"
"""The word "not" in languages with Latin letters."""

_DENIED_BEFORE = re.compile(
    r"\b(?:not|never|no(?!,| (?:wait|actually|sorry|it|this|that|the)\b)|none|nothing|neither|nor|without|"
    r"rather than|instead of|unlike|than|except|other than|opposed to|differ\w* from|compared (?:to|with)|"
    r"contrast to|between|far from|(?:anything|everything|all) but|hardly|barely|scarcely|unlikely|less|"
    r"least|worst|impossible|wrong|incorrect|false|lack\w*|absen\w+|free of|negative for|fail(?:s|ed|ing)?|"
    r"rul(?:e[sd]?|ing) out|eliminat\w+|reject\w*|exclud\w+|dismiss\w*|discard\w*|avoid\w*|mimic\w*|r/o|"
    rf"den(?:y|ie[ds])|mist(?:aken?|ook)|confus\w+|whether|doubt|{_FOREIGN_NOT})\b",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|suppos(?:e|ing)|assuming|at first|initially|originally|used to|(?:i|we|had) thought|"
    r"(?:many|most|some|people|others|they|you|(?:some)?one (?=would|could|might|may))"
    r"(?: (?:people|observers|of \w+|would|could|might|may|will|often|also)){0,3} "
    r"(?:say|think|believe|guess|answer|call|choose|pick|select|assume|expect|mistake))\b",
    re.IGNORECASE,
)
"""A condition or another view: nothing in the rest of its sentence is claimed, except after "but"."""

_WRONG = (
    r"incorrect|wrong|false|impossible|unlikely|implausible|improbable|out|excluded|ruled out|eliminated|"
    r"rejected|less likely|negative|absent|not (?:seen|shown|visible|present|possible|likely|correct|right)"
)
_SENTENCE = re.compile(r"[!?\n]|\.(?=\s|$)|\b(?:but|however|yet|actually)\b", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"\s(?:(?:is|are|was|were|be|been|being|would|could|can|should|may|might|must|does|do|did|will|wo|seems?|"
    rf"looks?|sounds?|has|have|to) )+(?:(?:{_SURELY}|both|all|quite|very|the|an?) )*"
    rf"(?:not|never|no longer|tempting|least|{_WRONG})\b"
    r"|[ .,!-]{1,5}not(?= ?(?:$|[.!;\n]))"
    r"| (?:is|was) what [^.;!?\n]{0,15}\b(?:most|many|some|people|others|avoid|reject|exclude)\b"
    rf"|,? or not\b| ?[ :,(=-] ?(?:{_WRONG}|no|none)\b(?= ?(?:$|[.!;)\n]))| (?:false|wrong)\b"
    r"|[^.;!?\n]{0,30},? but (?:it )?(?:is|was|are) not(?: one| it| really)?(?= ?(?:$|[.!;\n]))"
    rf"|[^.;!?\n]{{0,40}} (?:if|unless|{_FOREIGN_NOT})\b",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    rf"{_X}[^.;!?\n{_X[1:-1]}]{{0,30}}[.,;!\n] ?(?:(?:but|and|which|that|this|it|they) )*"
    rf"(?:(?:is|was|would be|are|seems) )?(?:{_SURELY} )?(?:{_WRONG})(?= ?(?:$|[.!;)\n]))",
    re.IGNORECASE,
)
"""A claim that the next words take back: "B. That is wrong." """

_REFUSED = re.compile(
    r"\b(?:unable to|sorry|as an ai|language model|(?:can|could|do|does|did) not (?:clearly )?(?:see|tell|"
    r"know|determine|identify|recogni[sz]e|help|assist|answer|say|provide|make out))\b",
    re.IGNORECASE,
)
"""In a reply with such words a mention is no claim."""

_OTHER_SCRIPT = re.compile(r"[\u0400-\u1cff\u3040-\u9fff\uac00-\ud7af]")
"""Letters whose language has other words for "not"."""

_IDIOMS = re.compile(
    r"\b(?:there is |i have |with )?(?:no|without(?: an?| any)?|beyond(?: an?| any)?) (?:doubt|question)\b"
    r"(?: that)?|\bnot (?:only|just|merely|simply)\b|\bif (?:i (?:had|have) to \w+|forced(?: to \w+)?|"
    r"anything|i(?: am|'m) not mistaken),?|\bunless i(?: am|'m) mistaken,?|\bmore or less\b|"
    r"\bby (?:the )?(?:process of )?elimination\b|"
    r"\b(?:(?:can|could) not be anything|none|nothing) (?:but|other than)\b",
    re.IGNORECASE,
)
"""Phrases with a negation that deny nothing."""

# --- one reply ----------------------------------------------------------------------------------------------

_REPEATED = re.compile(rf"({_X})(?:[ ,]+\1)+")
_QUESTIONS = re.compile(r"[^.!?\n]*\?")
_ITEMISED = re.compile(
    rf"(?:(?:^|(?<=[\n:;,.])) ?[(\[]?({_L})[.):\]]+|(?<= )[(\[]?({_L})[.):\]]+(?= ?{_T})) ?{_T}?"
)
_ENUMERATED = re.compile(rf"[(\[]?{_X}(?:,? ?(?:(?:and|or) )?{_X}){{2,25}}[)\]]?")
_NO_WORDS = re.compile(
    r"\b(?:or|and|but|either|both|also|option|choice|answer|letter)\b|[\W]+", re.IGNORECASE
)


def claims(reply: str, choices: Sequence[str], by_letter: bool = False, lettered: bool = True) -> set[int]:
    """The options that a reply claims: none if it cannot be read, several if it contradicts itself.

    Equal options count as the first of them.

    Args:
        reply: any text.
        choices: the options.
        by_letter: the question asks for a letter, so a letter is not the text of an option that is a letter.
        lettered: the options have letters.

    Source: ours.
    """
    whole = [normalise(choice) for choice in choices]
    names = _names(tuple(choices), by_letter, lettered)
    # rule 3
    raw = normalise(reply)
    letter = raw.strip(" .:()[]")
    if by_letter and letter in names.letters:
        return {names.letters[letter]}
    if raw in whole:
        return {whole.index(raw)}
    bare = core(reply)
    if bare in names.texts:
        return _options(names.texts[bare])
    # rules 1, 2 and 10 to 12
    text = _IDIOMS.sub(" ", _marked(plain(reply), names))
    text = _REPEATED.sub(r"\1", text)
    if _OTHER_SCRIPT.search(text):  # rule 13
        return set()
    if not names.texts.keys() & {"yes", "no"}:
        text = _RETRACTED.sub("", text)
    marks = re.findall(_X, text)
    if marks and not _NO_WORDS.sub("", text):
        return _options(marks)
    # rule 14, or rules 4 to 9
    begun = _begun(bare, names.texts) if lettered else set[int]()
    return begun or (_decided(text, len(set(whole))) if marks else set())


def _decided(text: str, number: int) -> set[int]:
    """What is claimed of so many options, by the strongest kind of claim (rules 4 to 7 and 9)."""
    text = _QUESTIONS.sub(" ", _without_items(text, number)).strip()
    for tier in _TIERS:
        claimed = _claimed(text, tier)
        if claimed and tier is not _TIERS[0]:  # a later statement can contradict it
            first = min(claimed)
            claimed |= {start: marks for start, marks in _claimed(text, _TIERS[-1]).items() if start > first}
        if claimed:
            return _options(claimed.values())
    mentions = list(re.finditer(_X, text))
    if _REFUSED.search(text) or any(_denied(text, *mention.span()) for mention in mentions):
        return set()
    return _options(re.findall(_T, text))


def _claimed(text: str, patterns: Sequence[re.Pattern[str]]) -> dict[int, str]:
    """The marks of the claims that nothing denies, by the position of the first."""
    claimed = dict[int, str]()
    for match in (match for pattern in patterns for match in pattern.finditer(text)):
        first = re.search(_X, match[0])
        if first is not None and not _denied(text, match.start() + first.start(), match.end()):
            start = match.start() + first.start()
            claimed[start] = claimed.get(start, "") + match[0]
    return claimed


def _without_items(text: str, number: int) -> str:
    """Text without the options, if it repeats them: "A. elm, B. oak", or "(elm, oak, ash)" of three."""
    items = [min(_options(match[0])) for match in _ITEMISED.finditer(text)]
    if items[:2] == [0, 1]:
        text = _ITEMISED.sub(" ", text)
    rest = _ENUMERATED.sub(lambda part: " " if len(_options(part[0])) == number else part[0], text)
    return rest if re.search(_X, rest) else text


def _options(marks: Iterable[str]) -> set[int]:
    """The options of some marks."""
    points = [ord(char) for char in "".join(marks)]
    return {point - (_LETTER if point >= _LETTER else _TEXT) for point in points if point >= _TEXT}


def _denied(text: str, start: int, end: int) -> bool:
    """Whether the words before `start` or after `end` deny a claim between them (rule 8)."""
    before = text[max(0, start - 200) : start]
    clause, sentence = _BREAK.split(before)[-1], _SENTENCE.split(before)[-1]
    if _DENIED_BEFORE.search(clause) or _SUPPOSED.search(sentence):
        return True
    return _DENIED_AFTER.match(text, end) is not None


def _begun(bare: str, texts: Mapping[str, str]) -> set[int]:
    """The only option that begins with these words, which the maximum length has cut off."""
    if len(bare) < _PREFIX:
        return set()
    begun = [text for text in texts if text.startswith(bare) and not splits_number(text, len(bare))]
    return _options(texts[begun[0]]) if len(begun) == 1 else set()
