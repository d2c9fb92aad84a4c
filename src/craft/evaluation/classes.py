"""The mistakes in detail: marks per class, and which wrong options an LVLM names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from craft.evaluation.matching import answered_by_letter, option_named
from craft.evaluation.metrics import mean


def class_table(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The marks of every class, worst class first.

    Args:
        samples: rows of `Report.samples`; rows without a label are skipped.

    Returns:
        For each class its label, seen, count, and the shares strict, lenient and unparseable. Source: ours.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in samples:
        if row.get("label") is not None:
            rows.setdefault(str(row["label"]), []).append(row)
    table = [
        {
            "label": label,
            "seen": all(row["seen"] for row in members),
            "count": len(members),
            **{name: mean([row[name] for row in members]) for name in ("strict", "lenient", "unparseable")},
        }
        for label, members in rows.items()
    ]
    return sorted(table, key=lambda row: (row["strict"], row["label"]))


def confusion(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Which wrong option was named instead of which correct one, most frequent pair first.

    A reply can name a wrong option only if the question offers it, so both are counted. A class that is
    offered rarely and named every time is one that the LVLM cannot tell apart.

    Args:
        samples: rows of `Report.samples`; rows without options are skipped.

    Returns:
        For each pair that occurred: correct, named (None if the reply names no option), count, and offered,
        the number of questions on which that mistake was possible. Source: ours.
    """
    named: Counter[tuple[str, str | None]] = Counter()
    offered: Counter[tuple[str, str | None]] = Counter()
    for row in samples:
        if not row["choices"]:
            continue
        right, choices = str(row["correct"]), row["choices"]
        right_index = choices.index(right) if right in choices else None
        by_letter = answered_by_letter(str(row.get("answer")), right_index, choices)
        index = option_named(row["prediction"], choices, by_letter)
        option = None if index is None else choices[index]
        if option != right:
            named[right, option] += 1
        offered.update((right, choice) for choice in {*choices, None} if choice != right)
    pairs = sorted(named, key=lambda pair: (-named[pair], pair[0], pair[1] or ""))
    return [
        {"correct": right, "named": option, "count": named[right, option], "offered": offered[right, option]}
        for right, option in pairs
    ]
