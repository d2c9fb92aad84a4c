"""Four options: properties that must hold for every class list, seed and sample."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft.core.errors import DataError
from craft.data import DIRECTIVES, LETTERS, QUESTION, Sample, held_out_classes, multiple_choice

PIXEL = np.zeros((1, 1), np.uint8)
NAMES = st.lists(st.text("abcdefg -", min_size=1, max_size=6), min_size=2, max_size=15, unique=True)


def item(label: str, id: str = "x") -> Sample:
    return Sample(id, PIXEL, "", "", label=label)


@settings(max_examples=150, deadline=None)
@given(
    names=NAMES, pick=st.integers(0), seed=st.integers(0, 99), id=st.text(max_size=5), letter=st.booleans()
)
def test_distinct_options_exactly_one_right(
    names: list[str], pick: int, seed: int, id: str, letter: bool
) -> None:
    label = names[pick % len(names)]
    way = "letter" if letter else "option"
    asked = multiple_choice(item(label, id), names, seed=seed, answer_with=way)
    assert len(asked.choices) == len(set(asked.choices)) == min(4, len(names))
    assert set(asked.choices) <= set(names) and asked.choices.count(label) == 1
    assert asked.answer_text == label and asked.correct == asked.choices.index(label)
    assert asked.answer == (LETTERS[asked.correct] if letter else label)
    assert asked == multiple_choice(item(label, id), names[::-1], seed=seed, answer_with=way)


@settings(max_examples=80, deadline=None)
@given(names=NAMES, pick=st.integers(0), seed=st.integers(0, 99), hard=st.booleans())
def test_excluded_classes_are_never_offered(names: list[str], pick: int, seed: int, hard: bool) -> None:
    held = held_out_classes(names, 0.4, seed)
    seen = sorted(set(names) - set(held))
    label = seen[pick % len(seen)]
    if len(seen) < 2:
        return
    matrix = np.random.default_rng(seed).random((len(names), len(names)))
    kind = "hard" if hard else "random"
    asked = multiple_choice(item(label), names, kind, seed=seed, similarity=matrix, exclude=held)
    assert not set(asked.choices) & set(held)
    assert len(asked.choices) == min(4, len(seen))


@settings(max_examples=100, deadline=None)
@given(names=NAMES, fraction=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_held_out_classes_are_a_function_of_the_set(names: list[str], fraction: float, seed: int) -> None:
    held = held_out_classes(names, fraction, seed)
    assert held == held_out_classes(names[::-1], fraction, seed) == tuple(sorted(held))
    assert set(held) <= set(names)
    assert len(names) - len(held) >= min(4, len(names))


def test_a_fifth_of_the_classes_is_held_out() -> None:
    counts = {c: len(held_out_classes([str(n) for n in range(c)])) for c in (2, 4, 5, 8, 10, 102, 120)}
    assert counts == {2: 0, 4: 0, 5: 1, 8: 2, 10: 2, 102: 20, 120: 24}
    drawn = {held_out_classes("abcdefghij", seed=seed) for seed in range(20)}
    assert len(drawn) > 10
    with pytest.raises(DataError, match="fraction"):
        held_out_classes("abcdef", 1.0)


def test_letters_and_distractors_are_uniform() -> None:
    names = list("abcdefghij")
    asked = [multiple_choice(item("c", f"s{n}"), names, answer_with="letter") for n in range(2000)]
    letters = Counter(sample.answer for sample in asked)
    assert set(letters) == set("ABCD")
    assert sum((n - 500) ** 2 / 500 for n in letters.values()) < 16.3  # chi squared, 3 degrees, p = 0.001
    wrong = Counter(name for sample in asked for name in sample.choices if name != "c")
    assert set(wrong) == set(names) - {"c"}
    assert all(abs(n - 2000 / 3) < 100 for n in wrong.values())


def test_hard_distractors_are_the_most_similar_names() -> None:
    names = ["oak", "ash", "elm", "fir", "yew"]
    matrix = np.zeros((5, 5))
    matrix[0] = [1.0, 0.9, 0.1, 0.8, 0.7]
    assert set(multiple_choice(item("oak"), names, "hard", similarity=matrix).choices) == {
        "oak",
        "ash",
        "fir",
        "yew",
    }
    asked = multiple_choice(item("oak"), names, "hard", similarity=matrix, exclude=["ash"])
    assert set(asked.choices) == {"oak", "fir", "yew", "elm"}


def test_the_exact_prompt() -> None:
    asked = multiple_choice(
        item("coat", "apparel/test/00001"), ["coat", "bag", "dress", "shirt"], answer_with="letter"
    )
    lines = asked.prompt().split("\n")
    assert lines[0] == QUESTION == "Which of these choices is shown in the image?"
    assert [line[:3] for line in lines[1:5]] == ["A. ", "B. ", "C. ", "D. "]
    assert {line[3:] for line in lines[1:5]} == {"coat", "bag", "dress", "shirt"}
    assert lines[5] == DIRECTIVES["letter"] == "Answer in one letter only."
    assert asked.prompt("Justify your answer.").endswith("\nJustify your answer.")
    assert asked.prompt("") == "\n".join(lines[:5])
    assert replace(asked, choices=(), directive="").prompt() == QUESTION
    by_option = multiple_choice(item("coat"), ["coat", "bag"])
    assert by_option.prompt().endswith("Answer with the option only.")


def test_letters_as_option_texts_do_not_confuse_the_answer() -> None:
    for n in range(10):
        asked = multiple_choice(item("A", str(n)), ["A", "B", "C", "D"], answer_with="letter")
        assert asked.answer_text == "A" and asked.choices[LETTERS.index(asked.answer)] == "A"


@pytest.mark.parametrize(
    ("label", "names", "options", "words"),
    [
        ("pine", ["oak", "ash"], {}, "'pine' is not one of the 2 classes"),
        ("oak", ["oak"], {}, "no other class"),
        ("oak", ["oak", "ash"], {"exclude": ["ash"]}, "no other class"),
        ("oak", ["oak", "ash"], {"distractors": "hard"}, "hard distractors.*similarity"),
        ("oak", ["oak", "ash"], {"distractors": "hard", "similarity": np.eye(3)}, r"shape \(3, 3\)"),
    ],
)
def test_mistakes_are_named(label: str, names: list[str], options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        multiple_choice(item(label), names, **options)
