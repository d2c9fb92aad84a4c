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
        # OCR-VQA
        ("What is the title of this book? ", "The Art of War", "The title of this book is The Art of War."),
        ("Who is the author of this book?", "Voltaire", "The author of this book is Voltaire."),
        ("Who wrote this book?", "Voltaire", "Voltaire wrote this book."),
        ("What type of book is this?", "Cookbooks", "The type of book is cookbooks."),
        ("Is this a pedagogy book?", "No", "This is not a pedagogy book."),
        ("Is this book related to Law?", "Yes", "This book is related to Law."),
        # VQA-RAD: where the noun ends is not always told by the words around it
        ("Is the trachea midline?", "Yes", "The trachea is midline."),
        ("Is the mass in the left lung?", "no", "The mass is not in the left lung."),
        ("Is there evidence of an aneurysm?", "yes", "There is evidence of an aneurysm."),
        ("Is the cardiac silhouette enlarged?", "yes", "Is the cardiac silhouette enlarged? yes"),
        ("Are regions of the brain infarcted?", "no", "Are regions of the brain infarcted? no"),
        ("Does the left lung show a mass?", "no", "Does the left lung show a mass? no"),
        ("Where is the lesion located?", "Left lobe", "The lesion is located left lobe."),
        ("What organ is shown in the scan?", "Liver", "The organ that is shown in the scan is liver."),
        # others
        ("Does the dog bark?", "no", "The dog does not bark."),
        ("Does the man wear a hat?", "yes", "The man does wear a hat."),
        ("Is the man wearing a hat?", "yes", "The man is wearing a hat."),
        ("What is the man doing?", "running", "What is the man doing? running"),
        ("What is abnormal?", "the heart", "What is abnormal? the heart"),
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
