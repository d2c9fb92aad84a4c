"""`craft compare`."""

from pathlib import Path
from typing import Any, Literal

from craft.cli.options import COMMON, Common
from craft.cli.output import percent, show_json, show_table, signed
from craft.core.errors import DataError


def compare(
    a: Path,
    b: Path,
    *,
    metric: Literal["strict", "lenient", "scored"] = "strict",
    common: Common = COMMON,
) -> None:
    """Compare two evaluations question by question: is B better than A, or is it luck?

    Both must have been asked the same questions: `craft eval --like ENCODER` asks the base tower those of an
    encoder. The p-value is McNemar's; where images have several questions or seeds, images are permuted.

    Args:
        a: a folder of `craft eval --out`, or a samples file in it.
        b: the other.
        metric: which mark: the paper's exact match, the lenient one, or the likeliest option's.
    """
    from craft.evaluation.compare import compare as run
    from craft.evaluation.report import samples_in

    first, second = samples_in(a), samples_in(b)
    if first.keys() != second.keys():
        alone = ", ".join(sorted(first.keys() ^ second.keys()))
        raise DataError(
            f"Only one of {a} and {b} has results on {alone}; compare evaluations of the same data."
        )
    found = {name: run(first[name], second[name], metric) for name in first}
    if common.json:
        told = {
            name: {part: None if one is None else one.to_json() for part, one in parts.items()}
            for name, parts in found.items()
        }
        show_json({"metric": metric, "a": str(a), "b": str(b), "comparisons": told})
        return
    rows, sections = [], []
    for name, parts in found.items():
        for part, one in parts.items():
            if one is not None:
                rows.append([name if part == "all" else f"  {part}", *_cells(one)])
        sections.append(len(rows) - 1)
    columns = ("data", "questions", "A", "B", "B - A", "95 % interval", "A alone", "B alone", "p")
    show_table(f"A = {a}, B = {b}: {metric}, in %", columns, rows, sections[:-1])
    tests = dict.fromkeys(one.test for parts in found.values() for one in parts.values() if one is not None)
    print(f"p: {'; '.join(tests)}. A alone: questions that only A has right.")


def _cells(one: Any) -> list[str]:
    low, high = one.interval
    return [
        str(one.questions),
        percent(one.a),
        percent(one.b),
        signed(one.difference),
        f"{signed(low)} to {signed(high)}",
        str(one.only_a),
        str(one.only_b),
        f"{one.p_value:.3f}" if one.p_value >= 0.001 else f"{one.p_value:.0e}",
    ]
