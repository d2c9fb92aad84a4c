"""The paper's tables and figures, each made by one command (`craft reproduce NAME`).

An experiment says which cells it asks for, measures them (each is kept on disk, so that nothing is done twice
and several processes can work), and makes page and pictures of the JSON-able result and of nothing else. So
the pages in docs/results can be made again from their JSON, and are never typed.
"""

from craft.experiments import benches, explained, figures, pruning, pruning_choices, tables
from craft.experiments.plan import Plan, plan_for
from craft.experiments.pruned import pruned_cells
from craft.experiments.publish import Experiment, publish, write_result
from craft.experiments.sweeps import LAMBDAS, OPEN
from craft.experiments.transfers import TABLE3, TABLE7
from craft.experiments.work import Work

EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(tables.cells1, tables.measure1, tables.page1),
    "table2": Experiment(explained.cells2, explained.measure2, explained.page2),
    "table3": Experiment(TABLE3.cells, TABLE3.measure, TABLE3.page),
    "table4": Experiment(lambda _: [], benches.measure, benches.page),
    "table5": Experiment(tables.cells5, tables.measure5, tables.page5),
    "table6": Experiment(tables.cells6, tables.measure6, tables.page6),
    "table7": Experiment(TABLE7.cells, TABLE7.measure, TABLE7.page),
    "fig2": Experiment(
        explained.cells_fig2, explained.measure_fig2, explained.page_fig2, explained.draw_fig2
    ),
    "fig4": Experiment(figures.cells4, figures.measure4, figures.page4, figures.draw),
    "fig5": Experiment(
        lambda plan: pruned_cells(plan, pruning.FIG5_WAYS),
        pruning.measure_fig5,
        pruning.fig5_page,
        pruning.fig5_picture,
    ),
    "fig7": Experiment(lambda _: [], figures.measure7, figures.page7, figures.draw),
    "lambdas": Experiment(LAMBDAS.cells, LAMBDAS.measure, LAMBDAS.page),
    "open-questions": Experiment(OPEN.cells, OPEN.measure, OPEN.page),
    "pruning-ablation": Experiment(
        lambda plan: pruned_cells(plan, pruning.ABLATION_WAYS.values()),
        pruning.measure_ablation,
        pruning.ablation_page,
    ),
    "pruning-choices": Experiment(
        lambda plan: pruned_cells(plan, pruning_choices.TRIED.values(), "validation"),
        pruning_choices.measure,
        pruning_choices.page,
    ),
}
"""What `craft reproduce` can make."""

__all__ = ["EXPERIMENTS", "Experiment", "Plan", "Work", "plan_for", "publish", "write_result"]
