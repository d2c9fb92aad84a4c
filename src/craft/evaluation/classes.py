"""Where the mistakes are: figures per class, and which option is taken for which."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from craft.evaluation.matching import answered_by_letter, option_named
from craft.evaluation.metrics import mean


def class_table(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Figures of every class, the worst first.

    Args:
        samples: rows of `Report.samples`; those without a label are left out.

    Returns:
        Per class: label, seen, count, and the shares strict, lenient and unparseable. Source: ours.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in samples:
        if row.get("label") is not None:
            rows.setdefault(str(row["label"]), []).append(row)
    table = [
        {
            "label": label,
            "seen": all(row["seen"] for row in found),
            "count": len(found),
            **{name: mean([row[name] for row in found]) for name in ("strict", "lenient", "unparseable")},
        }
        for label, found in rows.items()
    ]
    return sorted(table, key=lambda row: (row["strict"], row["label"]))


def confusion(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Which wrong option was named in place of which right one, the most frequent first.

    A wrong option can be named only where it was offered, so both are counted: a class that is offered rarely
    and named each time is the one that the LVLM cannot tell apart.

    Args:
        samples: rows of `Report.samples`; those without options are left out.

    Returns:
        Per pair that occurred: correct, named (None where the reply names no option), count, and offered, the
        number of questions on which that mistake was possible. Source: ours.
    """
    named: Counter[tuple[str, str | None]] = Counter()
    offered: Counter[tuple[str, str | None]] = Counter()
    for row in samples:
        if not row["choices"]:
            continue
        right, choices = str(row["correct"]), row["choices"]
        place = choices.index(right) if right in choices else None
        by_letter = answered_by_letter(str(row.get("answer")), place, choices)
        which = option_named(row["prediction"], choices, by_letter)
        said = None if which is None else choices[which]
        if said != right:
            named[right, said] += 1
        offered.update((right, choice) for choice in {*choices, None} if choice != right)
    pairs = sorted(named, key=lambda pair: (-named[pair], pair[0], pair[1] or ""))
    return [
        {"correct": right, "named": said, "count": named[right, said], "offered": offered[right, said]}
        for right, said in pairs
    ]
