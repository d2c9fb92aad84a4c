"""`craft compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from craft.cli.options import COMMON, Common
from craft.cli.output import show_json, show_line, show_table
from craft.core.errors import DataError
from craft.core.text import percent, signed

if TYPE_CHECKING:
    from craft.evaluation.compare import Comparison


def compare(
    a: Path,
    b: Path,
    *,
    metric: Literal["strict", "lenient", "scored"] = "strict",
    common: Common = COMMON,
) -> None:
    """Compare two evaluations question by question: is B better than A, or is the difference chance?

    Both must have the same questions; `craft eval --like ENCODER` asks the base tower an encoder's questions.
    The p-value is that of McNemar's test; if images have several questions or seeds, images are permuted.

    Args:
        a: a folder of `craft eval --out`, or a samples file in it.
        b: the folder or file to compare with.
        metric: the mark to compare: exact match (as in the paper), lenient match, or the likeliest option.
    """
    from craft.evaluation.compare import compare as run
    from craft.evaluation.metrics import ONE_SEED, SEVERAL_SEEDS
    from craft.evaluation.report import caveats_in, samples_in

    first, second = samples_in(a), samples_in(b)
    if first.keys() != second.keys():
        alone = ", ".join(sorted(first.keys() ^ second.keys()))
        raise DataError(
            f"Only one of {a} and {b} has results on {alone}; compare evaluations of the same data."
        )
    caveats = list(dict.fromkeys([*caveats_in(a), *caveats_in(b)]))
    apart, unknown = _settings_apart(a, b, metric)
    comparisons = {name: run(first[name], second[name], metric) for name in first}
    if common.json:
        tables = {
            name: {group: None if result is None else result.to_json() for group, result in groups.items()}
            for name, groups in comparisons.items()
        }
        about = {"metric": metric, "a": str(a), "b": str(b), "other_settings": apart, "unknown": unknown}
        about |= {"caveats": caveats} if caveats else {}
        show_json({**about, "comparisons": tables})
        return
    rows, sections, tests = [], [], []
    for name, groups in comparisons.items():
        for group, result in groups.items():
            if result is not None:
                rows.append([name if group == "all" else f"  {group}", *_cells(result)])
                tests.append(result.test)
        sections.append(len(rows) - 1)
    columns = ("data", "questions", "A", "B", "B - A", "95 % interval", "A alone", "B alone", "p")
    show_table(f"A = {a}, B = {b}: {metric}, in %", columns, rows, sections[:-1])
    for caveat in caveats:
        show_line(f"note: {caveat}")
    show_line(f"p: {'; '.join(dict.fromkeys(tests))}. A alone: questions that only A answers correctly.")
    seeds = {result.seeds for groups in comparisons.values() for result in groups.values() if result}
    show_line(f"Intervals: {ONE_SEED if seeds == {1} else SEVERAL_SEEDS}.")
    for name, (of_a, of_b) in apart.items():
        show_line(f"A and B have other settings: {name} is {of_a} in A and {of_b} in B.")
    for path in unknown:
        show_line(
            f"{path} has no report.json for these answers, so its keep ratio and protocol are not known."
        )


def _settings_apart(
    a: Path, b: Path, metric: Literal["strict", "lenient", "scored"]
) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """The settings that differ, and the runs whose settings are not known.

    Raises:
        DataError: the marks of the runs measure different things.
    """
    from craft.evaluation.compare import other_settings
    from craft.evaluation.report import settings_in

    first, second = settings_in(a), settings_in(b)
    apart: dict[str, tuple[Any, Any]] = {}
    for name, of_seeds in first.items():
        for seed in of_seeds.keys() & second.get(name, {}).keys():
            apart |= other_settings(of_seeds[seed], second[name][seed], metric)
    return apart, [str(path) for path, known in ((a, first), (b, second)) if not known]


def _p_value(value: float) -> str:
    if value >= 0.001:
        return f"{value:.3f}"
    return f"{value:.0e}" if value > 1e-300 else "<1e-300"


def _cells(result: "Comparison") -> list[str]:
    low, high = result.interval
    return [
        str(result.questions),
        percent(result.a),
        percent(result.b),
        signed(result.difference),
        f"{signed(low)} to {signed(high)}",
        str(result.only_a),
        str(result.only_b),
        _p_value(result.p_value),
    ]
