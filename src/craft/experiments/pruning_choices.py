"""How the settings of pruning were chosen: on validation images, one change at a time; then the test."""

import numpy as np

from craft.experiments.pruned import How
from craft.experiments.pruning import averages, measured, points
from craft.experiments.publish import Data, footer, percent, table
from craft.experiments.work import Work

RATIOS = (0.6, 0.4, 0.2)
"""Where the choice matters."""

VARIANTS: dict[str, How] = {
    "as it is: δ 1, β ½, 4 neighbours, packed": How(),
    "δ 0.1": How(options=(("delta", 0.1),)),
    "δ 4": How(options=(("delta", 4.0),)),
    "δ 100: rarity hardly counts": How(options=(("delta", 100.0),)),
    "β 0: residual alone": How(options=(("beta", 0.0),)),
    "β 1: isolation alone": How(options=(("beta", 1.0),)),
    "1 neighbour": How(options=(("neighbours", 1),)),
    "general prior": How(prior="general"),
    "positions kept": How(keep_positions=True),
}
"""By name; the keep ratio is filled in."""

BASE = next(iter(VARIANTS))


def at(how: How, ratio: float) -> How:
    """The same way at a keep ratio."""
    return How(how.strategy, ratio, how.prior, how.keep_positions, how.options)


TRIED = {"no pruning": How()} | {
    f"{name} at {ratio:g}": at(how, ratio) for name, how in VARIANTS.items() for ratio in RATIOS
}
"""What is asked about validation images."""


def measure(work: Work) -> Data:
    """All variants on validation images; the best of them and the present one on test images."""
    tried = measured(work, TRIED, "validation")
    score = {
        name: float(np.mean([averages(tried, f"{name} at {ratio:g}") for ratio in RATIOS]))
        for name in VARIANTS
    }
    best = max(VARIANTS, key=lambda name: (score[name], name == BASE))
    chosen = {"no pruning": How()} | {
        f"{name} at {ratio:g}": at(VARIANTS[name], ratio)
        for name in {BASE: 0, best: 0}
        for ratio in (0.8, *RATIOS)
    }
    return {"validation": tried, "score": score, "best": best, "test": measured(work, chosen)}


def page(data: Data) -> str:
    """The choice as Markdown."""
    tried, test, best = data["validation"], data["test"], data["best"]
    rows = [
        [name, *(percent(averages(tried, f"{name} at {ratio:g}")) for ratio in RATIOS), f"{100 * score:.1f}"]
        for name, score in sorted(data["score"].items(), key=lambda pair: -pair[1])
    ]
    asked = [
        [name, *(percent(averages(test, f"{name} at {ratio:g}")) for ratio in (0.8, *RATIOS))]
        for name in dict.fromkeys((BASE, best))
    ]
    losses = [
        [name, *(points(test, f"{name} at {ratio:g}", "no pruning") for ratio in (0.8, *RATIOS))]
        for name in dict.fromkeys((BASE, best))
    ]
    count = tried["rows"][0]["count"]
    parts = [
        "# How the settings of pruning were chosen\n",
        "The strategy is `full` throughout. One setting is changed at a time; validation images are training "
        f"images of seen classes that no adaptation used ({count} per domain and seed). Strict accuracy in "
        "percent, mean over domains and backbones ± standard deviation over seeds.\n",
        table(["setting", *(f"{ratio:g}" for ratio in RATIOS), "mean"], rows) + "\n",
        f"Without pruning: {percent(averages(tried, 'no pruning'))}. The best on validation images is "
        f'"{best}". On test images, accuracy and points lost against no pruning '
        f"({percent(averages(test, 'no pruning'))}) [95 % interval]:\n",
        table(["setting", "0.8", *(f"{ratio:g}" for ratio in RATIOS)], asked) + "\n",
        table(["setting", "0.8", *(f"{ratio:g}" for ratio in RATIOS)], losses) + "\n",
        footer(data),
    ]
    return "\n".join(parts)
