"""Development records, apart from the paper's experiments: `python -m paper.development NAME`.

Their results are in docs/results: `lambdas` (the weights of the losses), `open-questions` (what the paper
leaves open) and `pruning-choices` (how the settings of pruning were chosen).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paper.accuracy import Line, accuracies, cells_of, classes, covers, how, measured
from paper.accuracy import ahead as lines_ahead
from paper.cells import CRAFT, Cell, Method
from paper.plan import Plan
from paper.pruned import Pruning, pruned_cells
from paper.pruning import ahead, averages
from paper.pruning import measured as measured_pruning
from paper.publish import Data, Experiment, footer, percent, table
from paper.work import Work

PROGRAM = "python -m paper.development"


@dataclass(frozen=True)
class Sweep:
    """Lines with different settings; the others are compared with the first.

    Attributes:
        title: of the page.
        about: what is changed, and what the paper says about it.
        settings: of each line, by its label.
    """

    title: str
    about: str
    settings: dict[str, tuple[tuple[str, Any], ...]]

    def lines(self, plan: Plan) -> list[Line]:
        """A line per setting, with the plan's first surrogate and backbone."""
        surrogate, backbone = plan.surrogates[0], plan.backbones[0]
        return [
            Line(label, Method(CRAFT, surrogate, settings), backbone)
            for label, settings in self.settings.items()
        ]

    def cells(self, plan: Plan) -> list[Cell]:
        """The cells of the sweep."""
        return cells_of(plan, self.lines(plan))

    def measure(self, work: Work) -> Data:
        """All lines."""
        return measured(work, self.lines(work.plan), than=next(iter(self.settings)))

    def page(self, data: Data) -> str:
        """The sweep as Markdown."""
        over = covers(data)
        parts = [
            f"# {self.title}\n",
            how(data),
            self.about + "\n",
            accuracies(data) + "\n",
            f"Points ahead of the first line, {data['than']} [95 % interval, {over}]:\n",
            lines_ahead(data, data["than"]) + "\n",
            "## Seen and unseen classes, codes\n",
            classes(data) + "\n",
            footer(data),
        ]
        return "\n".join(parts)


def _weights(contrastive: float = 0.0, commitment: float = 0.1) -> tuple[tuple[str, float], ...]:
    """Both weights, whatever the plan's are: a plan of the paper's scale has λ_con 1."""
    return (("losses.contrastive.weight", contrastive), ("losses.commitment.weight", commitment))


LAMBDAS = Sweep(
    "The weights of the losses",
    "One weight is changed at a time. The paper takes λ_commit 0.1, and λ_con 1 for classification and 0.1 "
    "for VQA (§4.1); it prints no sweep. No line has the retention loss.",
    {
        "λ_con 0, λ_commit 0.1": _weights(),
        "λ_con 0.1": _weights(contrastive=0.1),
        "λ_con 1": _weights(contrastive=1.0),
        "λ_commit 0.01": _weights(commitment=0.01),
        "λ_commit 1": _weights(commitment=1.0),
    },
)
"""One weight at a time."""

OPEN = Sweep(
    "What the paper leaves open",
    "Is it the codebook alone, or do the losses that regulate the tower matter too? And does the whole "
    "tower have to be tuned? The second line is Vision FT with the codebook: CRAFT without commitment and "
    "contrastive term. The third tunes the tower's layers by LoRA. The last two keep 30 % and all of the "
    "tuning on every domain (the first keeps 30 % if training has fewer than 30 classes, else all). None "
    "has the retention loss, which is not in the paper.",
    {
        "CRAFT without retention": (),
        "without commitment": _weights(commitment=0.0),
        "LoRA on the tower": (("trainable", "lora"),),
        "blend 0.3": (("blend", 0.3),),
        "blend 1": (("blend", 1.0),),
    },
)
"""Questions that the paper does not ask."""


# The settings of pruning: one change at a time on validation images, then the test


RATIOS = (0.6, 0.4, 0.2)
"""Keep ratios at which the choice matters."""

VARIANTS: dict[str, Pruning] = {
    "as it is: δ 1, β ½, 4 neighbours, packed": Pruning(),
    "δ 0.1": Pruning(options=(("delta", 0.1),)),
    "δ 4": Pruning(options=(("delta", 4.0),)),
    "δ 100: rarity hardly counts": Pruning(options=(("delta", 100.0),)),
    "β 0: residual alone": Pruning(options=(("beta", 0.0),)),
    "β 1: isolation alone": Pruning(options=(("beta", 1.0),)),
    "1 neighbour": Pruning(options=(("neighbours", 1),)),
    "general prior": Pruning(prior="general"),
    "positions kept": Pruning(keep_positions=True),
}
"""By name, for every keep ratio."""

BASE = next(iter(VARIANTS))

TRIED = {"no pruning": Pruning()} | {
    f"{name} at {ratio:g}": replace(pruning, keep=ratio)
    for name, pruning in VARIANTS.items()
    for ratio in RATIOS
}
"""The prunings that are measured on validation images."""


def measure_choices(work: Work) -> Data:
    """All variants on validation images; the best of them and the present one on test images."""
    tried = measured_pruning(work, TRIED, "validation")
    score = {
        name: float(np.mean([averages(tried, f"{name} at {ratio:g}") for ratio in RATIOS]))
        for name in VARIANTS
    }
    best = max(VARIANTS, key=lambda name: (score[name], name == BASE))
    chosen = {"no pruning": Pruning()} | {
        f"{name} at {ratio:g}": replace(VARIANTS[name], keep=ratio)
        for name in {BASE: 0, best: 0}
        for ratio in (0.8, *RATIOS)
    }
    return {"validation": tried, "score": score, "best": best, "test": measured_pruning(work, chosen)}


def page_choices(data: Data) -> str:
    """The choice as Markdown."""
    tried, test, best = data["validation"], data["test"], data["best"]
    rows = [
        [name, *(percent(averages(tried, f"{name} at {ratio:g}")) for ratio in RATIOS), f"{100 * score:.1f}"]
        for name, score in sorted(data["score"].items(), key=lambda pair: -pair[1])
    ]
    ratios, names = (0.8, *RATIOS), dict.fromkeys((BASE, best))
    tested = [
        [name, *(percent(averages(test, f"{name} at {ratio:g}")) for ratio in ratios)] for name in names
    ]
    losses = [
        [name, *(ahead(test, f"{name} at {ratio:g}", "no pruning") for ratio in ratios)] for name in names
    ]
    counts = sorted({row["count"] for row in tried["rows"]})
    count, over = " to ".join(map(str, {counts[0]: 0, counts[-1]: 0})), covers(test)
    parts = [
        "# How the settings of pruning were chosen\n",
        "The strategy is `full` throughout. One setting is changed at a time; validation images are training "
        f"images of seen classes that no adaptation used ({count} per domain and seed). Strict accuracy in "
        "percent, mean over domains and backbones ± standard deviation over seeds.\n",
        table(["setting", *(f"{ratio:g}" for ratio in RATIOS), "mean"], rows) + "\n",
        f"Without pruning: {percent(averages(tried, 'no pruning'))}. The best on validation images is "
        f'"{best}". On test images, accuracy and points lost against no pruning '
        f"({percent(averages(test, 'no pruning'))}) [95 % interval, {over}]:\n",
        table(["setting", *(f"{ratio:g}" for ratio in ratios)], tested) + "\n",
        table(["setting", *(f"{ratio:g}" for ratio in ratios)], losses) + "\n",
        footer(data),
    ]
    return "\n".join(parts)


DEVELOPMENT: dict[str, Experiment] = {
    "lambdas": Experiment(LAMBDAS.cells, LAMBDAS.measure, LAMBDAS.page, program=PROGRAM),
    "open-questions": Experiment(OPEN.cells, OPEN.measure, OPEN.page, program=PROGRAM),
    "pruning-choices": Experiment(
        lambda plan: pruned_cells(plan, TRIED.values(), "validation"),
        measure_choices,
        page_choices,
        program=PROGRAM,
    ),
}
"""By the name that the command line takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the development records; it takes the flags of `python -m paper`.

    Returns:
        The exit status, as of `craft`.
    """
    from paper.cli import run_experiments

    return run_experiments(lambda: DEVELOPMENT, PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
