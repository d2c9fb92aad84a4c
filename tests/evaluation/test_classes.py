"""Figures per class, and which option is taken for which."""

from craft.evaluation.report import class_table, confusion


def row(label, prediction, choices=("coat", "bag", "boot", "hat"), seen=True):
    """One answer of the questions below."""
    return {
        "label": label,
        "correct": label,
        "prediction": prediction,
        "choices": list(choices),
        "strict": prediction == label,
        "lenient": prediction.strip(".") == label,
        "unparseable": prediction.strip(".") not in choices,
        "seen": seen,
    }


ROWS = [
    row("coat", "coat"),
    row("coat", "bag"),
    row("coat", "A bag."),
    row("coat", "coat."),
    row("bag", "bag", seen=False),
    row("bag", "something else", seen=False),
    row("bag", "hat", ("bag", "hat", "coat", "boot"), seen=False),
    row("hat", "hat"),
]


def test_classes_come_worst_first():
    table = class_table(ROWS)
    assert [(r["label"], r["count"], r["strict"]) for r in table] == [
        ("coat", 4, 0.25),
        ("bag", 3, 1 / 3),
        ("hat", 1, 1.0),
    ]
    assert table[0]["lenient"] == 0.5 and table[1]["seen"] is False
    assert class_table([{**ROWS[0], "label": None}]) == []


def test_confusion_counts_what_was_named_and_what_was_offered():
    assert confusion(ROWS) == [
        {"correct": "coat", "named": "bag", "count": 2, "offered": 4},
        {"correct": "bag", "named": None, "count": 1, "offered": 3},
        {"correct": "bag", "named": "hat", "count": 1, "offered": 3},
    ]
    assert confusion([{**ROWS[0], "choices": []}]) == []
