"""How a reply is read: options, replies and what they claim; docs/evaluation.md states the rules."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft.core.store import json_lines
from craft.data import LETTERS, Sample
from craft.evaluation.matching import lenient, option_named, strict, unparseable
from craft.evaluation.reading import claims
from craft.evaluation.report import read_samples

ROOT = Path(__file__).parents[2]
TREES = ("oak", "elm", "maple", "ash")
CLOTHES = ("T-shirt", "coat", "shirt", "rain coat")
NESTED = ("maple", "red maple", "not sure", "sugar maple tree")
TUMOR = ("no tumor", "tumor")
YES = ("yes", "no")
NUMBERS = ("5", "50", "-5", "1,000")
UNITS = ("5 cm", "50%", "7 mm", "-5 °C")
NINE = (*(f"bird{number}" for number in range(8)), "wren")
LINES = ("z-line", "pylorus", "dyed resection margins", "ulcerative colitis")
VITAMINS = ("hepatitis A", "hepatitis B", "vitamin C", "none of the above")
LETTERED = ("X", "Y", "A", "B")

NOTHING, TWO = "nothing", "contradictory"

REPLIES: dict[tuple[str, ...], dict[str, str]] = {
    TREES: {
        # a letter alone, in every dress
        **dict.fromkeys(
            ("B", "b", "B.", "(B)", "b)", "[B]", "B:", "B!", " B \n", "'B'", '"B"', "“B”", "‘B’", "B,"),
            "elm",
        ),
        **dict.fromkeys(
            ("**B**", "__B__", "*B*", "`B`", "***B***", "# B", "> B", "- B", "* B", "• B"), "elm"
        ),
        **dict.fromkeys(("**B.**", "**(B)**", "```\nB\n```", "**B.** elm", "**B**. elm", "<b>B</b>"), "elm"),
        **dict.fromkeys(
            ("Ｂ", "（B）", "（Ｂ）", "Ｂ．", "【B】", "「B」", "𝐁", "Ⓑ", "⒝", "B\u200b", "\ufeffB"), "elm"
        ),
        **dict.fromkeys(
            (r"\boxed{B}", r"$\boxed{B}$", r"\boxed{\text{B}}", r"\boxed{\textbf{B}. elm}"), "elm"
        ),
        **dict.fromkeys(
            (r"\text{B}", r"$B$", r"\(B\)", r"\[ \boxed{B} \]", r"$$\boxed{\mathrm{B}}$$"), "elm"
        ),
        **dict.fromkeys(
            ("B</s>", "B<|im_end|>", "<answer>B</answer>", "<|begin_of_box|>B<|end_of_box|>"), "elm"
        ),
        # a letter and its text
        **dict.fromkeys(
            ("B. elm", "B) elm", "(B) elm", "(b) elm", "B: elm", "B - elm", "B – elm", "B — elm"), "elm"
        ),
        **dict.fromkeys(
            ("B elm", "B, elm", "B = elm", "elm (B)", "B (elm)", "B.elm", "**B. elm**", "B-elm"), "elm"
        ),
        **dict.fromkeys(("B\nelm", "B.\n\nelm", "Option B: elm", "B. An elm.", "B. It is an elm."), "elm"),
        # a letter with its reason
        **dict.fromkeys(
            (
                "B\nBecause of the leaves.",
                "B. Because of the leaves.",
                "B because the leaves are rough",
                "B, since an oak has lobes",
                "B - the leaves are rough",
                "B) The leaves are rough.",
                "B: the leaves are rough",
                "(B) because of the bark",
                "B, not A",
                "B (not A)",
                "B rather than A",
                "B instead of C",
                "B, as A is too round",
                "B. A is wrong because its leaves are lobed.",
                "B, and not C.",
                "B it is.",
            ),
            "elm",
        ),
        # phrases
        **dict.fromkeys(
            (
                "The answer is B",
                "The answer is B.",
                "The correct answer is **B**",
                "The correct answer is **B**.",
                "The correct answer is: B",
                "The correct answer is (B) elm.",
                "**Answer:** B",
                "**Answer: B**",
                "Answer: B",
                "answer: b",
                "Answer：B",
                "Answer - B",
                "Answer – B",
                "Answer — B",
                "Answer = B",
                "Answer -> B",
                "Answer B",
                "Ans: B",
                "Answer is option B",
                "The answer is option (B).",
                "The answer would be B.",
                "The answer to the question is B.",
                "My answer is B",
                "The right choice is B.",
                "The correct option is B",
                "The best answer here is B.",
                "Final answer: B",
                "### Final Answer\n**B**",
                "Option B",
                "option b",
                "Choice B.",
                "Option B is correct.",
                "B is correct",
                "B is the correct answer.",
                "B is the best choice.",
                "I pick B",
                "I choose B.",
                "I'd go with B",
                "I’d go with option B",
                "I would select (B).",
                "I think B",
                "I think the answer is B",
                "I believe it is B.",
                "I'd say B",
                "Definitely B",
                "Probably B.",
                "It's B",
                "It’s B.",
                "It is B.",
                "It must be B",
                "Must be B",
                "This is B.",
                "So B.",
                "Therefore, B",
                "Sure! B",
                "Sure, the answer is B.",
                "Not sure, but B",
                "If I had to guess, B.",
                "The answer is \\text{B}.",
                "The answer is $B$.",
                "✅ B",
                "👉 B",
            ),
            "elm",
        ),
        # JSON
        **dict.fromkeys(
            (
                '{"answer": "B"}',
                '{"answer": "b"}',
                '{"answer": "elm"}',
                '{"answer":"B"',
                '```json\n{"answer": "B"}\n```',
                '{"choice": "B", "confidence": 0.9}',
                '{"reason": "A is tempting", "answer": "B"}',
                "{'answer': 'B'}",
                '{"final_answer": "B"}',
                '{"answer": ["B"]}',
                '{"answer": "B. elm"}',
            ),
            "elm",
        ),
        # reasoning first
        **dict.fromkeys(
            (
                "<think>A? No.</think>B",
                "<think>\nIt could be A or C.\n</think>\n\nB",
                "the leaf is like an oak</think>\nB",
                "<thinking>A</thinking> The answer is B.",
                "◁think▷A◁/think▷B",
                "[THINK]A or C[/THINK]B",
                "<reasoning>It is an oak.</reasoning><answer>B</answer>",
                "<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>",
                "The image shows a leaf next to an oak. Therefore, the answer is B.",
                "Option A is wrong; the answer is B",
                "Option A is wrong. The answer is B.",
                "A is wrong, the answer is B",
                "A is wrong and the answer is B.",
                "A and C are wrong, so B",
                "Neither A nor C, so B",
                "Not A, but B",
                "The answer is not A but B.",
                "Answer: A is tempting. Answer: B",
                "Answer: A seems likely at first. Final answer: B",
                "A is tempting, but B is correct.",
                "While A is tempting, B is the right answer.",
                "Let me see. An oak has lobes. \\boxed{B}",
                "Is it A? No, it is B.",
                "Could it be an oak? No, it is an elm.",
                "A) oak\nB) elm\nC) maple\nD) ash\n\nThe answer is B.",
                "Options: A. oak B. elm C. maple D. ash. Answer: B",
                "~~A~~ B",
                "There is no doubt that the answer is B.",
                "Without a doubt, B",
                "Only B is correct.",
                "A ✗\nB ✓",
                "elm (correct), oak (incorrect)",
                "I would have said oak, but it's an elm",
                "The answer isn't A, C, or D, so it's B.",
                "Correct Answer: B) elm\n\nExplanation: A) oak has lobes. C) maple is palmate.",
                "Final Answer: The final answer is $\\boxed{B}$. I hope it is correct.",
            ),
            "elm",
        ),
        # texts
        **dict.fromkeys(
            (
                "elm",
                "Elm.",
                "ELM",
                "an elm",
                "It is an elm",
                "It is an elm tree",
                "The answer is elm.",
                "**elm**",
                "ｅｌｍ",
                "e\u200blm",
                "a leaf of an elm",
                "I see an elm",
                "This is an elm, not an oak.",
                "This is an elm, it isn't an oak.",
                "An elm rather than an oak",
                "Unlike an oak, this is an elm.",
                "It's not an oak; it's an elm.",
                "It is not an oak, it is an elm.",
                "It is not an oak but an elm.",
                "Not an oak. It is an elm.",
                "It cannot be an oak, so it is an elm",
                "It can’t be an oak, so it’s an elm.",
                "It is an elm because an oak has lobes",
                "There is no doubt it is an elm",
                "It can be none other than an elm",
            ),
            "elm",
        ),
        # as chat models write
        **dict.fromkeys(
            (
                "Oak can be excluded. Maple as well. That leaves elm.",
                "By process of elimination: B",
                "I lean towards B",
                "Final: B",
                "Assistant: B",
                "From the given options (oak, elm, maple, ash), elm is the best match.",
                "Among oak, elm, maple, and ash, this is an elm.",
                "This appears to be an elm (Ulmus americana).",
                "B. If the leaf were lobed, it would be A.",
                "Unless I'm mistaken, it is an elm.",
                "I am unable to see the bark, but the answer is B.",
                "On second thought, B",
                "At first glance it's an oak, but it is an elm.",
                "Not an oak, but rather an elm.",
                "Many would answer A. They would be wrong. It is B.",
            ),
            "elm",
        ),
        "A": "oak",
        "a": "oak",
        "A.": "oak",
        "(a)": "oak",
        "a) oak": "oak",
        "Answer: a": "oak",
        "The answer is A": "oak",
        "The answer is a.": "oak",
        "A because of its lobes": "oak",
        "A is correct": "oak",
        "A, because the leaves are lobed": "oak",
        # nothing: articles, other words, other languages, no claim, truncated
        **dict.fromkeys(
            (
                "",
                " ",
                "...",
                "A dog is in the picture",
                "A leaf.",
                "a leaf",
                "It is a",
                "The answer is a",
                "The answer is",
                "E",
                "Z.",
                "birch",
                "elms",
                "The elms",
                "elmtree",
                "I don't know",
                "I cannot tell",
                "none of the above",
                "None of A, B, C or D",
                "all of the above",
                "<think>It is B, B, B",
                "<think>The answer is B.",
                "<think>B</think>",
                "It is not an elm",
                "It is not an elm: the bark is smooth",
                "It isn't an elm",
                "It isn’t an elm.",
                "It isnt an elm",
                "It cannot be an elm",
                "This can't be an elm",
                "not elm",
                "No elm",
                "no, not an elm",
                "Not B",
                "Not B.",
                "The answer is not B",
                "The answer isn't B.",
                "B is wrong",
                "B is not the answer",
                "Option B is wrong",
                "Option B can be ruled out.",
                "B is incorrect",
                "Neither A nor B",
                "Neither an oak nor an elm",
                "I don't think it is an elm",
                "I doubt it is an elm",
                "I would not pick B",
                "It is anything but an elm",
                "everything except B",
                "unlike an elm",
                "rather than an elm",
                "instead of B",
                "An elm would not have such leaves.",
                "An elm is unlikely",
                "The wrong answer is B",
                "Is it an elm?",
                "Is B the answer?",
                "A is tempting",
                "❌ A ✅ B",
                "B ❌",
                "✗ elm",
                "an elm, or not",
                "elm (wrong)",
                "elm: incorrect",
                "The elm isn't shown.",
                "It is less likely to be an elm",
                "This isn't an oak or an elm",
                "Anything but B",
                "It's **not** an elm",
                "Answer: A is tempting.",
                "It depends on whether it is an elm",
                "Es ist keine elm",
                "Die Antwort ist nicht B",
                "答案是B",
                "La respuesta es B",
                "vitamin B",
                "It looks like a plan B situation",
                "grade B leaves",
                '{"answer": null}',
                '{"A": 0.1, "B": 0.9}',
                "A: 0.2, B: 0.8",
                "B's leaves are rough",
                "AB",
                "ABCD",
                "e.g. a leaf",
                # denied afterwards, or without a verb
                "B. That is wrong.",
                "elm, but that is incorrect",
                "$\\boxed{B}$ is wrong.",
                "elm unlikely",
                "elm: excluded",
                "elm... NOT!",
                "elm is what most would say",
                # other words that deny
                "The least likely answer is B",
                "It fails to be an elm.",
                "mimics an elm",
                # conditions, other views, refusals
                "If the leaves are serrated, it is an elm.",
                "If the leaf is lobed, it's A; otherwise, B.",
                "It is an elm if the leaf is rough",
                "Many people would say it is an elm.",
                "At first I thought it was an elm",
                "Unable to determine. An elm has serrated leaves.",
                # other languages
                "答案不是 B",
                "这不是 elm",
                "A、B 都不对",
                "B：错",
                "elm ではありません",
                "Это не elm",
                "To nie jest elm",
                "Bu elm değil",
                # compounds and possessives
                "an elm-like leaf",
                "non-elm",
                "wych-elm",
                "elm's",
            ),
            NOTHING,
        ),
        # contradictory
        **dict.fromkeys(
            (
                "A or B",
                "either A or B",
                "Either A or B.",
                "Both A and B",
                "A and B",
                "A/B",
                "A, B",
                "A B C D",
                "A, B, C, D",
                "The answer is A or B",
                "The answer is either A or B.",
                "The answer is A and B.",
                "Answer: A, B",
                '{"answer": ["A", "B"]}',
                "oak or elm",
                "It is an oak or an elm",
                "an oak and an elm",
                "B. oak",
                "(B) oak",
                "B: oak",
                "A. It is an elm.",
                "B… no wait, C",
                "B... no wait, C",
                "B. No wait, C.",
                "B. Actually, C",
                "B, sorry, C",
                "The answer is B. Wait, the answer is C.",
                "Answer: B. Answer: C",
                "B. The answer is C.",
                "Elm. It is an oak.",
                "elm\noak",
                "It is an oak. It is an elm.",
                r"\boxed{A} \boxed{B}",
                "Both A and B are correct.",
                "maybe A, maybe B",
                "A: The tree is an elm.",
                "elm, just kidding, oak",
            ),
            TWO,
        ),
    },
    CLOTHES: {
        "rain coat": "rain coat",
        "It is a rain coat": "rain coat",
        "a raincoat": NOTHING,
        "rain co": "rain coat",
        "ra": NOTHING,
        "coats": NOTHING,
        "t shirt": "T-shirt",
        "T‑shirt": "T-shirt",
        "tshirt": NOTHING,
        "a dress": NOTHING,
        "a coat": "coat",
        "A coat": "coat",
        "the shirt": "shirt",
        "It is not a coat but a rain coat": "rain coat",
        "It is a rain coat, not a coat": "rain coat",
        "coat with a shirt": "coat",
        "A shirt under a coat": TWO,
    },
    NESTED: {
        "maple": "maple",
        "red maple": "red maple",
        "It is a red maple.": "red maple",
        "a red\nmaple": "red maple",
        "not sure": "not sure",
        "I'm not sure": "not sure",
        "It is not a red maple": NOTHING,
        "It is not a red maple but a maple": "maple",
        "sugar maple": "sugar maple tree",
        "red maple or maple": TWO,
    },
    TUMOR: {
        "There is no tumor": "no tumor",
        "no tumor": "no tumor",
        "No tumor is visible.": "no tumor",
        "tumor": "tumor",
        "There is a tumor": "tumor",
        "There is not a tumor": NOTHING,
        "no evidence of a tumor": NOTHING,
        "I see no sign of tumor": NOTHING,
        "No tumor. There is a tumor.": TWO,
        **dict.fromkeys(
            ("tumor-free", "free of tumor", "negative for tumor", "Tumor: absent", "tumor not seen"), NOTHING
        ),
        "A": "no tumor",
        "The answer is A.": "no tumor",
    },
    YES: {
        **dict.fromkeys(
            ("yes", "Yes.", "YES", "**Yes**", "Yes, there is no doubt", "Yes, there is no tumor."), "yes"
        ),
        **dict.fromkeys(
            ("Yes, it is", "Yes it is", "Yes there is", "The answer is yes", "I would say yes"), "yes"
        ),
        **dict.fromkeys(("Yes, without a doubt.", "Definitely yes", "Absolutely. Yes.", "A"), "yes"),
        **dict.fromkeys(
            ("no", "No.", "No, there is no doubt", "No, it isn't", "No it is not", "B", "so no"), "no"
        ),
        **dict.fromkeys(
            ("No, yes", "Yes and no", "yes or no", "Yes. No.", "Yes, no", "Yes. Actually, no."), TWO
        ),
        **dict.fromkeys(
            ("maybe", "There is no tumor", "no tumor", "No evidence of", "I cannot say yes"), NOTHING
        ),
        **dict.fromkeys(("There is no", "The image shows no", "No hay tumor", "No (不是)"), NOTHING),
        **dict.fromkeys(("No, that's not correct", "No. This is incorrect.", "Unfortunately, no."), "no"),
        **dict.fromkeys(("not yes", "no doubt", "nope", "It is not clear", "The answer is not no"), NOTHING),
    },
    NUMBERS: {
        **dict.fromkeys(
            ("5", "5.", "(5)", "It is 5", "**5**", "$5$", r"\boxed{5}", "５", "There are 5 of them."), "5"
        ),
        **dict.fromkeys(("-5", "−5", "–5", "It is −5.", "－5"), "-5"),
        **dict.fromkeys(
            ("1000", "1,000", "It is 1000.", "1 000", "1'000", "1\u202f000", "１，０００", "1{,}000"), "1,000"
        ),
        **dict.fromkeys(
            ("1.5", "15", "5.5", "15:30", "1/5", "10000", "1,0000", "5,0", "five", "not 5"), NOTHING
        ),
        **dict.fromkeys(("5 or 50", "5 and -5"), TWO),
        **dict.fromkeys(("2 + 3 = 5", "10 - 5 -> 5", "55 - 50 = 5", "≈ 5"), "5"),
        **dict.fromkeys(("minus 5", "≥5", "> 4 and < 5", "5%", "5 °", "5+", "5 or more", "over 5"), NOTHING),
        **dict.fromkeys(("5 thousand", "3 to 5", "5 + 5", "5 x 2", "√5", "5 ½", "5 1/2"), NOTHING),
    },
    UNITS: {
        **dict.fromkeys(("5 cm", "It is 5 cm long", "5 cm."), "5 cm"),
        **dict.fromkeys(
            ("50%", "50 %", "50 percent", "50 per cent", "50\u00a0%", "50％", r"50\%", "about 50 %"), "50%"
        ),
        **dict.fromkeys(("-5 °C", "−5 °C", "-5 ℃"), "-5 °C"),
        **dict.fromkeys(("5 mm", "15 cm", "5", "150%"), NOTHING),
        **dict.fromkeys(("5 cm²", "5 cm/s", "5 cm or more", "3 to 5 cm", "5 cm to 7 mm"), NOTHING),
    },
    NINE: {
        "I": "wren",
        "I.": "wren",
        "The answer is I": "wren",
        "Option I": "wren",
        "I think it is a bird": NOTHING,
        "I see nothing": NOTHING,
        "I pick B": "bird1",
        "I think it's a wren": "wren",
        "A bird, I think": NOTHING,
    },
    LINES: {
        **dict.fromkeys(
            ("z-line", "z line", "Z-Line", "Z line.", "the z‑line", "z_line", "z–line"), "z-line"
        ),
        "dyed-resection-margins": "dyed resection margins",
        "dyed resection": "dyed resection margins",
        "ulcerative\ncolitis": "ulcerative colitis",
        "zline": NOTHING,
    },
    VITAMINS: {
        "hepatitis B": "hepatitis B",
        "It is hepatitis B.": "hepatitis B",
        "vitamin C": "vitamin C",
        "C": "vitamin C",
        "none of the above": "none of the above",
        "None of the above.": "none of the above",
        "A. hepatitis A": "hepatitis A",
        "It contains vitamin C, so C": "vitamin C",
        "hepatitis": NOTHING,
        "vitamin D": NOTHING,
    },
    ("Alzheimer's disease", "Crohn’s disease"): {
        "Alzheimer’s disease": "Alzheimer's disease",
        "It is Alzheimer's disease": "Alzheimer's disease",
        "Crohn's disease": "Crohn’s disease",
        "not Crohn's disease": NOTHING,
    },
    ("don't know", "left", "right"): {
        "I don’t know": "don't know",
        "The right answer is left": "left",
        "right": "right",
        "left or right": TWO,
    },
    ("true", "false"): {
        "True": "true",
        "It is true.": "true",
        "It is not true": NOTHING,
        "false, not true": "false",
    },
    LETTERED: {
        "A": "A",
        "B": "B",
        "y": "Y",
        "The letter is X.": "X",
        "C": "A",
        "It is a Y": "Y",
        "X or Y": TWO,
    },
    ("x²", "x2", "x"): {"x²": "x²", "x2": "x2", "It is x².": "x²", "x^2": "x²"},
    ("none", "one", "two"): {
        **dict.fromkeys(("one", "There is one.", "It is one"), "one"),
        **dict.fromkeys(("the second one", "The one on the left", "two hundred", "Which one"), NOTHING),
    },
    ("oak", "oak", "elm"): {"A": "oak", "B": "oak", "oak": "oak", "C": "elm", "A or B": "oak"},
}

CASES = [
    (choices, reply, expected) for choices, replies in REPLIES.items() for reply, expected in replies.items()
]


def name_of(claimed: set[int], choices: tuple[str, ...]) -> str:
    """What was read, in the words of the table."""
    return choices[min(claimed)] if len(claimed) == 1 else TWO if claimed else NOTHING


@pytest.mark.parametrize("choices, reply, expected", CASES, ids=[repr(case[1])[:60] for case in CASES])
def test_a_reply_is_read_as_the_table_says(choices, reply, expected):
    assert name_of(claims(reply, choices), choices) == expected
    for index, choice in enumerate(choices):
        asked = Sample("1", b"", "Which?", choice, choices=choices, correct=index)
        assert lenient(reply, asked) is (choice == expected)
        assert unparseable(reply, asked) is (expected in (NOTHING, TWO))


@pytest.mark.parametrize(
    "said, repeated, expected",
    [
        ("", "it is A ", "oak"),
        ("", "A or B ", TWO),
        ("", "is it ", NOTHING),
        ("elm", ", elm", "elm"),
        ("B", " or", "elm"),
    ],
)
def test_a_reply_that_goes_on_without_end_is_read(said, repeated, expected):
    """Small LLMs do this; a pattern that tries every way of reading it would never end."""
    assert name_of(claims(said + repeated * 1500, TREES), TREES) == expected


def test_stored_replies_are_marked_by_the_rules_of_now(tmp_path):
    """An earlier version read nothing in "**B**", and an elm in "not an elm"."""
    row = {"prompt": "Which?", "answer": "elm", "strict": False, "choices": list(TREES), "correct": "elm"}
    old = [
        {**row, "id": "1", "prediction": "**B**", "lenient": False, "unparseable": True, "agrees": False},
        {**row, "id": "2", "prediction": "not an elm", "lenient": True, "unparseable": False, "agrees": None},
    ]
    path = tmp_path / "samples-0.jsonl"
    path.write_text(json_lines([{**one, "scores": [0.1, 0.9, 0.2, 0.3]} for one in old]))
    marks = [(one["lenient"], one["unparseable"], one["agrees"], one["strict"]) for one in read_samples(path)]
    assert marks == [(True, False, True, False), (False, True, None, False)]
    foreign = {"id": "3", "prompt": "?", "answer": "elm", "prediction": "**B**", "strict": False}
    path.write_text(json_lines([foreign]))
    assert read_samples(path) == [foreign]


def test_the_examples_of_the_documentation():
    """The table of docs/evaluation.md has what is read as an elm in its second column, and other replies in
    its third."""
    table = re.findall(r"^\| \d+\. .*$", (ROOT / "docs/evaluation.md").read_text("utf-8"), re.MULTILINE)
    assert len(table) == 15
    for row in table:
        _, _, elms, others, _ = row.split("|")
        for column, is_elm in ((elms, True), (others, False)):
            for reply in re.findall(r"`([^`]+)`", column):
                assert (claims(reply.replace("\\n", "\n"), TREES) == {1}) is is_elm, reply


DRESSES = (
    "  {}\n",
    "**{}**",
    "`{}`",
    "# {}",
    "> {}",
    "\n\n{}\n\n",
    "- {}",
    "*{}*",
    "__{}__",
    "```\n{}\n```",
    "<b>{}</b>",
)


@pytest.mark.parametrize("choices", [TREES, CLOTHES, NESTED, TUMOR, YES, NUMBERS, UNITS, LINES])
@pytest.mark.parametrize("dress", DRESSES)
def test_white_space_and_markdown_around_a_reply_change_nothing(choices, dress):
    for reply in REPLIES[choices]:
        if reply.strip() and "```" not in reply:
            assert claims(dress.format(reply.strip()), choices) == claims(reply, choices), reply


SENTENCES = (
    "{}",
    "It is {}.",
    "not {}",
    "It is {}, not {}.",
    "{} or {}",
    "It is not {}. It is {}.",
    "unlike {}, {}",
)
TEXTS = (
    "elm",
    "red maple",
    "maple",
    "no tumor",
    "tumor",
    "5",
    "50%",
    "z-line",
    "Alzheimer's disease",
    "not sure",
)


@given(st.permutations(TEXTS), st.sampled_from(SENTENCES), st.sampled_from(TEXTS), st.sampled_from(TEXTS))
def test_the_order_of_the_options_is_of_no_account(order, sentence, one, other):
    reply = sentence.format(one, other)
    read = {order[index] for index in claims(reply, order)}
    assert read == {TEXTS[index] for index in claims(reply, TEXTS)}


@given(
    st.permutations("ABCD"),
    st.sampled_from(["{}", "{}.", "({})", "The answer is {}", "{}\nBecause", "not {}"]),
)
def test_letters_follow_the_places_of_the_options(order, form):
    for index, letter in enumerate(LETTERS[:4]):
        read = claims(form.format(letter), tuple(f"word {one}" for one in order), by_letter=True)
        assert read == (set() if form == "not {}" else {index})


@given(st.sampled_from(CASES), st.sampled_from(CASES))
def test_an_exact_match_is_a_lenient_match(one, two):
    """Whatever a strict mark is given for is not refused by the other one."""
    (choices, _, _), (_, reply, _) = one, two
    for text in (*choices, reply):
        assert not text.strip() or lenient(text, Sample("1", b"", "Which?", text))
    for index, choice in enumerate(choices):
        asked = Sample("1", b"", "Which?", choice, choices=choices, correct=index)
        assert strict(choice, asked.answer) and lenient(choice, asked)


@given(st.text(max_size=60), st.sampled_from([TREES, YES, NUMBERS, TUMOR]))
def test_any_text_can_be_read(reply, choices):
    assert claims(reply, choices) <= set(range(len(choices)))
    assert option_named(reply, choices) in (None, *range(len(choices)))


@pytest.mark.parametrize(
    "reply, answer, right, empty",
    [
        ("Yes, there is no doubt", "no", False, False),
        ("Yes, there is no doubt", "yes", True, False),
        ("No, yes", "yes", False, True),
        ("No, yes", "no", False, True),
        ("No, there is nothing to see", "No", True, False),
        ("There is no fracture", "no", False, True),
        ("maybe", "yes", False, True),
        ("It is false.", "false", True, False),
        ("It is not a pneumothorax", "pneumothorax", False, False),
        ("There is no pneumothorax.", "pneumothorax", False, False),
        ("There isn’t a pneumothorax", "pneumothorax", False, False),
        ("a large pneumothorax", "pneumothorax", True, False),
        ("in the left lung, not the right", "right", False, False),
        ("in the left lung, not the right", "left lung", True, False),
        ("<think>left lung</think>right lung", "left lung", False, False),
        ("<think>left lung", "left lung", False, True),
        ("**Left lung**", "left lung", True, False),
        ("1000", "1,000", True, False),
        ("about 1,000 cells", "1000", True, False),
        ("1,000,000", "1000", False, False),
        ("50 %", "50%", True, False),
        ("−5", "-5", True, False),
        ("−5", "5", False, False),
        ("the Z line", "z-line", True, False),
        ("Alzheimer’s", "Alzheimer's", True, False),
        ("between 5 and 10", "5", False, False),
        ("more than 5", "5", False, False),
        ('{"answer": "left lung"}', "left lung", True, False),
        ("rain", "rain coat", False, False),
        ("E. coli", "E. coli", True, False),
    ],
)
def test_open_questions_are_read_by_the_same_rules(reply, answer, right, empty):
    asked = Sample("1", b"", "Which?", answer)
    assert lenient(reply, asked) is right
    assert unparseable(reply, asked) is empty
