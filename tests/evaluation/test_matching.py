"""Strict, lenient and unparseable answers, by example."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft.data import Sample
from craft.evaluation.matching import lenient, option_meant, option_named, strict, unparseable
from craft.evaluation.report import confusion

CHOICES = ("T-shirt", "coat", "shirt", "rain coat")


def sample(answer="coat", correct=1, choices=CHOICES):
    return Sample("1", b"", "Which?", answer, choices=choices, correct=correct)


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("coat", "coat", True),
        (" Coat\n", "coat", True),
        ("rain  coat", "Rain Coat", True),
        ("coat.", "coat", False),
        ("B", "coat", False),
        ("", "coat", False),
    ],
)
def test_strict_is_exact_after_case_and_whitespace(said, wanted, right):
    assert strict(said, wanted) is right


@pytest.mark.parametrize(
    ("said", "option"),
    [
        ("coat", 1),
        ("B", 1),
        ("b.", 1),
        ("(B)", 1),
        ("B. coat", 1),
        ("B) coat", 1),
        ("B: coat", 1),
        ("The answer is B", 1),
        ("The answer is coat.", 1),
        ("Answer: D", 3),
        ("It is a coat", 1),
        ("a coat", 1),
        ("rain coat", 3),
        ("a rain coat!", 3),
        ("T-shirt", 0),
        ("a T-shirt", 0),
        ("rain co", 3),
        ("A", 0),
        ("a dress", None),  # the article is not the letter
        ("The answer is a coat", 1),
        ("the answer is a dress", None),
        ("The answer is A because of its sleeves", 0),
        ("Answer: a", 0),
        ("coat or shirt", None),
        ("dress", None),
        ("E", None),
        ("", None),
        ("coats", None),
        ("ra", None),  # too short to be the beginning of an option
    ],
)
def test_option_named(said, option):
    assert option_named(said, CHOICES) == option
    assert unparseable(said, sample()) is (option is None)
    assert lenient(said, sample()) is (option == 1)


@given(st.sampled_from(CHOICES), st.booleans())
def test_every_option_names_itself(choice, lower):
    assert option_named(choice.lower() if lower else choice, CHOICES) == CHOICES.index(choice)


def test_options_that_differ_in_punctuation_or_article_alone():
    signs = ("?", "!", ".")
    assert [option_named(said, signs) for said in ("?", "!", ".", "", "B")] == [0, 1, 2, None, 1]
    assert [option_named(said, ("The Who", "Who")) for said in ("the who", "who")] == [0, 1]


def test_one_letter_may_be_written_as_two_characters():
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert strict(composed, apart) and option_named(composed, ("bar", apart)) == 1


def test_letters_as_answers():
    asked = sample(answer="B")
    assert strict("b", asked.answer) and lenient("coat", asked) and lenient("B.", asked)
    assert lenient("B", sample(answer="B", correct=None))  # a JSONL may not say which option is right


@given(st.permutations("ABCD"), st.integers(0, 3), st.sampled_from(["{}", "{}.", "({})", " {}\n"]))
def test_letters_as_answers_where_options_are_letters(choices, right, form):
    """Hand-written letters, say: "B" is an option's text too, and it was the letter that was asked for."""
    asked = sample(answer="ABCD"[right], correct=right, choices=tuple(choices))
    by_letter = choices[right] != "ABCD"[right]
    for place, letter in enumerate("ABCD"):
        said = form.format(letter)
        meant = place if by_letter else choices.index(letter)
        assert option_meant(said, asked) == meant and lenient(said, asked) is (meant == right)
    row = {"answer": asked.answer, "correct": choices[right], "choices": choices, "prediction": asked.answer}
    assert confusion([row]) == []


def test_open_questions():
    asked = Sample("1", b"", "Where?", "the left lung")
    assert lenient("In the left lung.", asked) and lenient("Left lung", asked)
    assert not lenient("right lung", asked) and not unparseable("right lung", asked)
    assert unparseable(" . ", asked) and not lenient("", asked)
    assert not lenient("yes", Sample("1", b"", "?", "ye"))


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        *((said, "5", True) for said in ("5", "It is 5.", "5, I think", "(5)", "5: five", "Answer:5", "$5")),
        *((said, "5", True) for said in ("5-year-old", "room A-5", "...5", "5.", "2 or 5", "5 - or so")),
        *((said, "5", False) for said in ("1.5", "It is 1.5.", "-5", "\u22125", "15:30", "5:30", "5,000")),
        *(
            (said, "5", False)
            for said in ("5.5", ".5", "it is .5", "2/5", "5/2", "1,5", "10-5", "3\u20135", "55")
        ),
        *((said, "5", False) for said in ("1e-5", "10^5", "5'000", "2020-05-5")),
        *((said, "1.5", True) for said in ("1.5", "about 1.5 metres", "1.5.")),
        *((said, "1.5", False) for said in ("21.5", "1.55", "-1.5", "0.1.5")),
        *((said, "-5", True) for said in ("-5", "It is -5 degrees")),
        *((said, "-5", False) for said in ("5", "3-5", "-5.5", "-50")),
        ("at 15:30.", "15:30", True),
        ("at 15:30:20", "15:30", False),
        ("room 5", "room 5", True),
        ("room 5.2", "room 5", False),
    ],
)
def test_numbers_match_whole(said, wanted, right):
    assert lenient(said, Sample("1", b"", "How many?", wanted)) is right
    assert strict(said, wanted) is (said == wanted)
    choices = (wanted, "seven", "9")
    assert lenient(said, sample(wanted, 0, choices)) is right
    assert unparseable(said, sample(wanted, 0, choices)) is not right


def test_a_number_that_is_cut_short_is_another_number():
    assert option_named("150", ("1500", "2 metres")) is None
    assert option_named("12.5", ("12.50 euros", "9 euros")) is None
    assert option_named("1500 me", ("1500 metres", "2 metres")) == 0
    assert option_named("It is 1.5", ("5", "1.5", "7")) == 1
