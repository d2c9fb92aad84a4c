"""The paper's tables and figures, each measured by one function (`craft reproduce NAME`).

An experiment is three functions: `measure` makes a JSON-able result of a `Plan`, `page` and `picture` make
Markdown and PNG of that result and nothing else. So the pages in docs/results can be made again from their
JSON, and are never typed.
"""

from craft.experiments import pruning, pruning_choices
from craft.experiments.publish import Experiment, publish
from craft.experiments.work import Plan, Work

EXPERIMENTS: dict[str, Experiment] = {
    "fig5": Experiment(pruning.measure_fig5, pruning.fig5_page, pruning.fig5_picture),
    "pruning-ablation": Experiment(pruning.measure_ablation, pruning.ablation_page),
    "pruning-choices": Experiment(pruning_choices.measure, pruning_choices.page),
}
"""What `craft reproduce` can make."""

__all__ = ["EXPERIMENTS", "Experiment", "Plan", "Work", "publish"]
