"""Numbers that the documentation quotes, computed from docs/results.

A page quotes numbers between `<!-- numbers:NAME:begin -->` and `<!-- numbers:NAME:end -->`. The prose between
the markers is free; its numbers are not.
"""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from craft.evaluation.metrics import interval_over_seeds
from docs.reading import ROOT, script

RESULTS = ROOT / "docs" / "results"
question_error = script("measure_domains").question_error
SURROGATE, OTHER = "craft-tiny/qwen2", "craft-tiny/llama"


def load(name: str) -> Any:
    """The content of docs/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def regions(text: str) -> dict[str, str]:
    """The text between each pair of markers, by name."""
    pairs = re.findall(r"<!-- numbers:([\w-]+):begin -->(.*?)<!-- numbers:\1:end -->", text, re.DOTALL)
    return dict(pairs)


def numbers(text: str) -> set[str]:
    """Every number in a text, without its sign."""
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)", text))


def points(share: float) -> str:
    """A share as points with one decimal, without its sign."""
    return f"{abs(100 * share):.1f}"


def ends(what: str, interval: Sequence[float]) -> dict[str, str]:
    """Both ends of an interval of shares, without their signs."""
    return {f"{what}, {end}": points(value) for end, value in zip(("from", "to"), interval, strict=True)}


def over_seeds(what: str, values: Sequence[float], errors: Sequence[float] = ()) -> dict[str, str]:
    """A mean of shares over seeds, and the ends of its interval over seeds and, with `errors`, questions."""
    interval = interval_over_seeds(values, errors)
    assert interval is not None
    return {what: points(statistics.mean(values)), **ends(what, interval)}


def transfer() -> dict[str, str]:
    """The matrix of the two small surrogates, and what the pretrained LLM gains behind their encoders."""
    result = load("transfer/transfer")
    own, other = (row for row in result["summary"] if row["data"] == "all")
    answers = {
        (cell["data"], cell["encoder"], cell["backbone"]): [report["accuracy"] for report in cell["reports"]]
        for cell in result["cells"]
    }
    reader = "craft-tiny/smollm2"
    gains = [
        after - before
        for (data, encoder, backbone), accuracies in answers.items()
        if backbone == reader and encoder != "zero-shot"
        for after, before in zip(accuracies, answers[data, "zero-shot", reader], strict=True)
    ]
    assert own["positive"] + other["positive"] == own["cells"] + other["cells"], "not all cells gain"
    assert own["unseen"] < 0 and other["unseen"] < 0, "unseen classes do not lose any more"
    assert min(gains) > 0, "one encoder lowers the pretrained LLM"
    return {
        "gain of the surrogate's LLM": points(own["accuracy"]),
        "gain of other LLMs": points(other["accuracy"]),
        "cells": str(own["cells"] + other["cells"]),
        "unseen classes, the surrogate's LLM": points(own["unseen"]),
        "unseen classes, other LLMs": points(other["unseen"]),
        "mean gain of SmolLM2": points(sum(gains) / len(gains)),
        **ends("unseen classes, the surrogate's LLM", own["over seeds"]["unseen"]["interval"]),
        **ends("unseen classes, other LLMs", other["over seeds"]["unseen"]["interval"]),
        "encoders that SmolLM2 read": str(len(gains)),
        "smallest gain of SmolLM2": points(min(gains)),
    }


def without_smollm2(quoted: Mapping[str, str]) -> dict[str, str]:
    """The matrix without the pretrained LLM's row, which README leaves to docs/results."""
    return {what: number for what, number in quoted.items() if "SmolLM2" not in what}


def third_surrogate() -> dict[str, str]:
    """The matrix of SmolLM2 as the surrogate, and all cells of both matrices together."""
    two, third = (load(f"{name}/transfer")["summary"] for name in ("transfer", "transfer-smollm2"))
    own, other = (row for row in third if row["data"] == "all")
    wholes = [[row for row in summary if row["data"] == "all"] for summary in (two, third)]
    means = [
        sum(row["accuracy"] * row["cells"] for row in rows) / sum(row["cells"] for row in rows)
        for rows in zip(*wholes, strict=True)
    ]
    return {
        "gain of SmolLM2 itself": points(own["accuracy"]),
        "gain of the two small LLMs": points(other["accuracy"]),
        "cells that gain": str(own["positive"] + other["positive"]),
        "cells": str(own["cells"] + other["cells"]),
        "cells of both matrices": str(sum(row["cells"] for rows in wholes for row in rows)),
        "gain on the diagonal, both matrices": points(means[0]),
        "gain off the diagonal, both matrices": points(means[1]),
    }


def contrastive_cost() -> dict[str, str]:
    """What the paper's contrastive weight costs, by Table 5."""
    page = (RESULTS / "table5.md").read_text(encoding="utf-8").partition("Points ahead of")[2]
    ((cost, low, high),) = re.findall(
        r"^\| without contrastive \|.* \+([\d.]+) \[([\d.]+), ([\d.]+)\] \|$", page, re.MULTILINE
    )
    return {"cost of the contrastive loss": cost, "its cost, from": low, "its cost, to": high}


def codes_per_image() -> dict[str, str]:
    """How many codes an image has, and how often the quotas cannot keep one token of each, by Figure 5."""
    page = (RESULTS / "fig5.md").read_text(encoding="utf-8").partition("## How much there is")[2]
    rows = re.findall(r"^\| \w+ \| ([\d.]+) \| (\d+) % \|", page, re.MULTILINE)
    codes, beyond = ([float(cell) for cell in column] for column in zip(*rows, strict=True))
    return {
        "fewest codes": f"{min(codes):.0f}",
        "most codes": f"{max(codes):.0f}",
        "smallest share beyond the budget": f"{min(beyond):.0f}",
        "largest share beyond the budget": f"{max(beyond):.0f}",
    }


def with_deviation(gains: Sequence[float], scale: float = 1) -> str:
    """Mean points gained, and their standard deviation over hold-outs: "+1.2 ± 0.4"."""
    return f"{scale * sum(gains) / len(gains):+.1f} ± {scale * statistics.stdev(gains):.1f}"


def changes(runs: Sequence[Mapping[str, Any]], model: str, group: str) -> list[float]:
    """What a group of classes gains in each run of scripts/measure_domains.py, as fractions."""
    rows = [run["rows"][model] for run in runs]
    return [row["adapted"][group] - row["zero-shot"][group] for row in rows]


def question_errors(runs: Sequence[Mapping[str, Any]], model: str, group: str) -> list[float]:
    """The standard error over questions of each of `changes`."""
    return [question_error(run["rows"][model], group) for run in runs]


def mean_change(runs: Sequence[Mapping[str, Any]], model: str, group: str) -> float:
    """Mean points that a group of classes gains, over runs of scripts/measure_domains.py."""
    gained = changes(runs, model, group)
    return 100 * sum(gained) / len(gained)


def gain(runs: Sequence[Mapping[str, Any]], model: str) -> str:
    """Mean points that all classes gain."""
    return f"{mean_change(runs, model, 'accuracy'):.1f}"


def further_holdouts() -> dict[str, str]:
    """Seven further hold-outs of apparel: gains, and unseen classes before and after."""
    runs = load("apparel-seeds")["runs"]
    quoted = {f"gain of {model}": gain(runs, model) for model in (SURROGATE, OTHER)}
    for model in (SURROGATE, OTHER):
        for phase in ("zero-shot", "adapted"):
            unseen = [run["rows"][model][phase]["unseen"] for run in runs]
            quoted[f"unseen classes of {model}, {phase}"] = points(statistics.mean(unseen))
        quoted |= over_seeds(
            f"change of unseen classes of {model}",
            changes(runs, model, "unseen"),
            question_errors(runs, model, "unseen"),
        )
    return quoted


def all_holdouts() -> dict[str, str]:
    """Unseen classes of apparel over three and over ten hold-outs."""
    first, further = load("apparel")["runs"], load("apparel-seeds")["runs"]
    assert [run["seed"] for run in first + further] == list(range(10))
    quoted = {}
    for model, sign in ((SURROGATE, -1), (OTHER, 1)):
        for name, runs in (("three", first), ("ten", first + further)):
            gained = changes(runs, model, "unseen")
            assert sign * statistics.mean(gained) > 0, f"unseen classes on {model} changed direction"
            errors = question_errors(runs, model, "unseen")
            quoted |= over_seeds(f"unseen classes of {model} over {name}", gained, errors)
    for model in (SURROGATE, OTHER):
        quoted[f"gain of {model} over three"] = gain(first, model)
        quoted[f"gain of {model} over seven"] = gain(further, model)
    return quoted


def many_classes() -> dict[str, str]:
    """What the page on results says of sketch and scenes: means of both, and single encoders."""
    two, third = load("transfer/transfer"), load("transfer-smollm2/transfer")
    quoted = {}
    for name, diagonal in (("the surrogate's LLM", True), ("other LLMs", False)):
        rows = [
            row
            for row in two["summary"]
            if row["diagonal"] == diagonal and row["data"] in ("sketch", "scenes")
        ]
        for figure in ("accuracy", "unseen"):
            quoted[f"{figure}, {name}"] = points(statistics.mean(row[figure] for row in rows))
    for row in two["summary"] + third["summary"]:
        if row["data"] == "sketch":
            quoted[f"sketch, unseen, {row['cells']} cells"] = points(row["unseen"])
    scenes = {
        (cell["encoder"], cell["backbone"]): statistics.mean(report["accuracy"] for report in cell["reports"])
        for cell in two["cells"]
        if cell["data"] == "scenes"
    }
    for reader in (SURROGATE, "craft-tiny/smollm2"):
        quoted[f"llama's encoders behind {reader}"] = points(
            scenes[OTHER, reader] - scenes["zero-shot", reader]
        )
    return quoted


def weight_of_retention(weight: int) -> dict[str, str]:
    """How much lower or higher groups of classes of apparel are with another weight than with 3."""
    three, other = (
        [run for name in names for run in load(name)["runs"] if run["domain"] == "apparel"]
        for names in (["apparel", "apparel-seeds"], [f"retention-{weight}", f"retention-{weight}-seeds"])
    )
    quoted = {}
    for model in (SURROGATE, OTHER):
        for group in ("seen", "unseen"):
            pairs = zip(changes(other, model, group), changes(three, model, group), strict=True)
            errors = [  # zero-shot cancels out
                question_error(
                    {"adapted": a["rows"][model]["adapted"], "zero-shot": b["rows"][model]["adapted"]}, group
                )
                for a, b in zip(other, three, strict=True)
            ]
            quoted |= over_seeds(f"{group}, weight {weight}, {model}", [a - b for a, b in pairs], errors)
    return quoted


def rows_of_seeds(name: str, line: str, domains: Sequence[str] = ()) -> list[list[dict[str, Any]]]:
    """The rows of a line of a table for each seed."""
    rows = [
        row for row in load(name)["rows"] if row["line"] == line and (not domains or row["domain"] in domains)
    ]
    return [[row for row in rows if row["seed"] == seed] for seed in sorted({row["seed"] for row in rows})]


def means_of_seeds(name: str, line: str, figure: str, domains: Sequence[str] = ()) -> list[float]:
    """A figure of a line of a table for each seed, mean over domains; "unseen" is its change."""
    return [
        statistics.mean(row[figure] - (row["before"][figure] if figure == "unseen" else 0) for row in rows)
        for rows in rows_of_seeds(name, line, domains)
    ]


Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def errors_of_seeds(seeds: Sequence[Sequence[Pair]], group: str) -> list[float]:
    """The standard error over questions of each seed's mean difference over pairs of rows.

    Rows of one domain and seed have the same questions, so each domain counts once.
    """
    errors = []
    for pairs in seeds:
        of_domain: dict[str, list[float]] = {}
        for one, other in pairs:
            row = {
                phase: {**figures, "samples": figures["count"]}
                for phase, figures in (("adapted", one), ("zero-shot", other))
            }
            of_domain.setdefault(one["domain"], []).append(question_error(row, group))
        parts = [statistics.mean(values) for values in of_domain.values()]
        errors.append(math.hypot(*parts) / len(parts))
    return errors


def difference_of_lines(
    what: str, name: str, lines: tuple[str, str], figure: str, domains: Sequence[str] = ()
) -> dict[str, str]:
    """How far the first line is ahead of the second; for unseen classes of how much each changes."""
    one, other = (means_of_seeds(name, line, figure, domains) for line in lines)
    rows = zip(*(rows_of_seeds(name, line, domains) for line in lines), strict=True)
    errors = errors_of_seeds([list(zip(*both, strict=True)) for both in rows], figure)
    return over_seeds(what, [a - b for a, b in zip(one, other, strict=True)], errors)


def change_of_unseen(what: str, name: str, line: str) -> dict[str, str]:
    """How much unseen classes change with a line."""
    rows = [
        [(row, {**row["before"], "count": row["count"]}) for row in seed]
        for seed in rows_of_seeds(name, line)
    ]
    return over_seeds(what, means_of_seeds(name, line, "unseen"), errors_of_seeds(rows, "unseen"))


def against_a_continuous_model() -> dict[str, str]:
    """Table 1's lines beside each other; other data over seeds alone."""
    starts = ("zero-shot, continuous", "zero-shot")
    quoted = difference_of_lines("start", "table1", starts, "accuracy")
    for line in ("Vision FT", "CRAFT, craft-tiny/qwen2", "Projector FT"):
        quoted |= change_of_unseen(f"unseen, {line}", "table1", line)
    for line in ("Vision FT", "CRAFT, craft-tiny/qwen2"):
        quoted |= over_seeds(f"other data, {line}", means_of_seeds("table1", line, "general"))
    return quoted


def positions_kept() -> dict[str, str]:
    """How much more is kept at 0.2 if tokens stay at their positions."""
    rows = load("pruning-choices")["test"]["rows"]
    ways = ("positions kept at 0.2", "as it is: δ 1, β ½, 4 neighbours, packed at 0.2")
    pairs = [
        list(
            zip(
                *([r for r in rows if (r["way"], r["seed"]) == (way, seed)] for way in ways),
                strict=True,
            )
        )
        for seed in (0, 1, 2)
    ]
    gained = [statistics.mean(a["accuracy"] - b["accuracy"] for a, b in seed) for seed in pairs]
    return over_seeds("positions kept", gained, errors_of_seeds(pairs, "accuracy"))


def commitment_at_a_high_rate() -> dict[str, str]:
    """Points of seen classes that go without the commitment loss at ten times the learning rate, blend 1."""
    rates = [run for run in load("commitment")["runs"] if run["settings"]["learning_rate"] == 0.003]
    quoted = {}
    for seed in sorted({run["seed"] for run in rates}):
        for model in (SURROGATE, OTHER):
            with_loss, without = (
                next(
                    row["seen"]
                    for run in rates
                    if (run["seed"], run["settings"]["losses.commitment.weight"]) == (seed, weight)
                    for row in run["rows"]
                    if (row["backbone"], row["blend"]) == (model, 1.0)
                )
                for weight in (0.1, 0.0)
            )
            quoted[f"{model}, seed {seed}"] = f"{with_loss - without:.1f}"
    return quoted


def share_kept() -> dict[str, str]:
    """What keeping all of the training gains, and what unseen classes of apparel and digits lose."""
    rows = [row for row in load("open-questions")["rows"] if row["domain"] in ("apparel", "digits")]
    means = {
        (line, figure): statistics.mean(row[figure] for row in rows if row["line"] == line)
        for line in ("blend 1", "blend 0.3")
        for figure in ("accuracy", "unseen")
    }
    quoted = {"gain": points(means["blend 1", "accuracy"] - means["blend 0.3", "accuracy"])}
    for line in ("blend 1", "blend 0.3"):
        for domain in ("apparel", "digits"):
            changes = [
                row["unseen"] - row["before"]["unseen"]
                for row in rows
                if (row["line"], row["domain"]) == (line, domain)
            ]
            quoted[f"unseen {domain}, {line}"] = points(statistics.mean(changes))
    for domains, figure in (
        (("apparel", "digits"), "accuracy"),
        (("apparel", "digits"), "unseen"),
        (("scenes",), "accuracy"),
    ):
        quoted |= difference_of_lines(
            f"{figure}, {domains}, all kept or 0.3",
            "open-questions",
            ("blend 1", "blend 0.3"),
            figure,
            domains,
        )
    return quoted


def longer_training() -> dict[str, str]:
    """Unseen classes of apparel after 800 steps."""
    runs = load("apparel-800")["runs"]
    return {
        f"unseen, {model}": f"{abs(mean_change(runs, model, 'unseen')):.1f}" for model in (SURROGATE, OTHER)
    }


DERIVED = {
    "docs/results/README.md": (
        many_classes()
        | commitment_at_a_high_rate()
        | share_kept()
        | against_a_continuous_model()
        | weight_of_retention(1)
        | positions_kept()
    ),
    "docs/results/development.md": longer_training() | weight_of_retention(0) | all_holdouts(),
}
"""Numbers outside the regions that are computed from results: page -> what it is -> the number as text."""

QUOTED = {
    "README.md": {
        "results": further_holdouts() | without_smollm2(transfer()) | contrastive_cost(),
    },
    "docs/paper_map.md": {
        "contrastive": contrastive_cost(),
        "codes": codes_per_image(),
    },
    "docs/results/README.md": {
        "transfer": transfer(),
        "third-surrogate": third_surrogate(),
        "contrastive": contrastive_cost(),
        "apparel": all_holdouts(),
        "further-holdouts": further_holdouts(),
    },
}
"""What each page quotes: region -> what it is -> the number as text."""

ALLOWED = {
    ("README.md", "results"): {"500", "25", "95"},  # questions, chance, intervals
    ("docs/paper_map.md", "contrastive"): {"5"},  # Table 5
    ("docs/paper_map.md", "codes"): {"49", "0.2"},  # tokens per image, a keep ratio
    ("docs/results/README.md", "contrastive"): {"5", "0"},  # Table 5, the default
    ("docs/results/README.md", "further-holdouts"): {"3", "6", "7", "9"},  # seeds
    ("docs/results/README.md", "apparel"): {"25", "13.5", "0"},  # what was hoped for; no difference
    ("docs/results/README.md", "transfer"): {"0"},  # no difference
    ("docs/results/README.md", "third-surrogate"): {"13.5", "10"},  # what was hoped for
}
"""Numbers between the markers that are no results."""
