"""Texts of the contrastive loss."""

import numpy as np
import pytest

from craft.data import Sample, class_text, declarative


def test_the_class_text_is_the_papers() -> None:
    assert class_text("flower", "orchid") == "An image of a flower, specifically a orchid."


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("What color is the car?", "Red", "The car is red."),  # the paper's example
        ("What colour are the walls?", "blue", "The walls are blue."),
        ("Is the car red?", "yes", "The car is red."),
        ("Is the car red?", "No", "The car is not red."),
        ("Is there a dog in the picture?", "yes.", "There is a dog in the picture."),
        ("Are there clouds?", "no", "There are not clouds."),
        ("How many apples are there?", "3", "There are 3 apples."),
        ("How many dogs are on the bed?", "Two", "There are two dogs on the bed."),
        ("Where is the cat?", "on the mat", "The cat is on the mat."),
        ("What is the title?", "USA Today", "The title is USA Today."),
        ("Two lines meet. What is the angle?", "a right angle", "The angle is a right angle."),
        ("Which organ  is shown?", "the liver", "Which organ is shown? the liver"),
        ("Name the plane.", "axial", "Name the plane. axial"),
    ],
)
def test_question_and_answer_as_a_statement(question: str, answer: str, statement: str) -> None:
    assert declarative(question, answer) == statement


def test_ground_truth_comes_first_and_uses_the_options_text() -> None:
    sample = Sample(
        "a",
        np.zeros((1, 1), np.uint8),
        "What color is the car?",
        "B",
        ("Red", "Blue"),
        captions=("a car",),
        correct=1,
    )
    assert sample.texts() == ("The car is blue.", "a car")
    assert sample.concept == "Blue"
