"""A reply as plain text: rules 1, 2 and 12 of "How a reply is read" in docs/evaluation.md."""

import re
import unicodedata

from craft.data.spelling import normalise

FIRST_MARK = 0xF0000
"""Code points from here on stand for options; texts lose them."""

JOINT = "‐"
"""The hyphen of a compound. An option within a longer compound is another word: "tumor-free"."""

_SIGNS = ".,;:!?\"'()[]"
"""Characters that are ignored at both ends of a reply and of an option."""

_THINK = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
_OPENED, _CLOSED = rf"[<\[◁]{_THINK}[>\]▷]", rf"[<\[◁]/{_THINK}[>\]▷]"
_STYLES = r"text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|operatorname|emph"
_TAGS = (
    "s|b|i|u|a|em|strong|p|span|div|code|pre|su[bp]|[uo]l|li|h[1-6]|font|answer|bos|eos|pad|unk|end_of_turn"
)
_FINAL = r"\nfinal answer: \1\n"
_VERBS = r"is|are|was|were|do|does|did|wo|would|could|should|has|have|had"

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–−", "-"),
        **dict.fromkeys("—―", " - "),
        **dict.fromkeys("‘’‚‛ʼ´′", "'"),
        **dict.fromkeys("“”„‟«»「」『』", '"'),
        **dict.fromkeys("【〔〖〈《", "["),
        **dict.fromkeys("】〕〗〉》", "]"),
        **dict.fromkeys("→⇒➔➜", "->"),
        "。": ". ",
        "、": ", ",
        "⁄": "/",
    }
)

_REWRITES = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # rule 1: reasoning
        (rf"(?s){_OPENED}.*?{_CLOSED}", " "),
        (rf"(?s)^.*{_CLOSED}|{_OPENED}.*$", " "),
        (r"(?s)^.*<\|channel\|>final<\|message\|>", ""),
        # rule 2: LaTeX, tags, Markdown, JSON
        (r"\{,\}", ","),
        (rf"\\(?:{_STYLES})\s*\{{([^{{}}]*)\}}", r"\1"),
        (r"\$*\\f?boxed\s*\{([^{}]*)\}?\$*", "<answer>\\1</answer>"),
        (r"\\[()\[\]]|\\[,;:! ]", " "),
        (r"\\([%$#&_{}])", r"\1"),
        (r"(?s)(?:<answer>|<\|begin_of_box\|>)(.*?)(?:</answer>|<\|end_of_box\|>|$)", _FINAL),
        (r"<br ?/?>|</p>|</li>|```\w*|[{}]", "\n"),
        (rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>|<\|[^<>|]*\|>", " "),
        (r"<(\w[^<>\n]*)>", r"[\1]"),
        (r"\$?\$(?=\S)([^$\n]{0,200}[^\s$])\$\$?(?!\d)", r"\1"),
        (r"~~[^~]*~~|(?:^|(?<=[\n.;]))[^\n.;]*[❌✗✘✖][^\n.;]*|[✅✓✔☑]", " "),
        (r"(?<!\w)[*_`]+(?=\S)|(?<=\S)[*_`]+(?!\w)", ""),
        (r"(?m)^\s*(?:[-*+•>#]+\s+)+", ""),
        # rule 2: contractions and quotation marks
        (r"\bcan(?:no|'?)t\b", "can not"),
        (rf"\b({_VERBS})n'?t\b", r"\1 not"),
        (r"\b(it|that|this|here|there|answer)'s\b", r"\1 is"),
        (r"\"|(?<!\w)'|'(?!\w)", ""),
        # rules 2 and 12: hyphens and numbers
        (r"(?<=\d) ?(?:%|percent\b|per cent\b)", "%"),
        (r"_", " "),
        (r"(?<=[^\W\d])(?<!\de)(?<!\b(?-i:[A-Z]))-(?=\w)", JOINT),
        (r"(?<=\b(?-i:[A-Z]))-(?=\w)|(?<=\d)-(?=[^\W\d])", " "),
        (r"[^\S\n]+", " "),
        (r" ?\n\s*", "\n"),
    )
)
_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:[,' ]\d{2,3})*[,' ]\d{3}(?!\w|,\d)")
_RAISED, _WHOLE = re.compile("[²³¹⁰⁴-⁹⁺⁻]+"), re.compile("[^¼-¾⅐-⅟]+")


def plain(text: str) -> str:
    """A text without reasoning, markup and typographic variants; letter case and line ends stay."""
    text = _RAISED.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    text = _WHOLE.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text).translate(_CHARACTERS)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf" and ord(char) < FIRST_MARK)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), text).strip()


def core(text: str) -> str:
    """Plain text without a leading article and without punctuation at its ends; ".5" keeps its point."""
    bare = plain(text).replace(JOINT, " ").rstrip(f" \n{_SIGNS}")
    bare = re.sub(rf"^(?:(?!(?<!\.)\.\d)[ \n{re.escape(_SIGNS)}])+", "", bare)
    return re.sub(r"^(?:an?|the) (?=\S)", "", normalise(bare))


# --- numbers ----------------------------------------------------------------------------------------------

_DIGITS = r"\d+(?:e[-+]?\d+)?"
MANY = r"(?:hundred|thousand|million|billion|dozen)\b"
_NUMBER = re.compile(
    r"(?:(?:(?<![-=])>|[<≤≥±√]) ?|\b(?:minus|negative|over|under|above|below|up to|at least|at most) )?"
    rf"(?:(?<!\w)-)?(?:(?<![\w.])\.)?{_DIGITS}"
    rf"(?:(?:[.,:/^'-]-?| ?[+*×÷±/] ?| - | (?:to|minus|plus|times|x) )\.?{_DIGITS}| \d+/\d+| ?[¼-¾⅐-⅞])*"
    rf"(?: ?[%°]|\+| {MANY}| or (?:more|less|fewer)\b)?",
    re.IGNORECASE,
)
"""A number with its sign and everything that makes it another one: "-5", ".5", "15:30", "2/5", "3 to 5",
"5 + 2", "≥5", "5%", "5 or more"."""


def splits_number(text: str, position: int) -> bool:
    """Whether `position` lies inside a number."""
    near = slice(max(0, position - 60), position + 60)
    offset = position - near.start
    return any(number.start() < offset < number.end() for number in _NUMBER.finditer(text[near]))
