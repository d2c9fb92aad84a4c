"""The experiments that `python -m paper` can run, by name."""

from paper import benches, explained, figures, pruning, tables
from paper.pruned import pruned_cells
from paper.publish import Experiment
from paper.transfers import TABLE3, TABLE7

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
        lambda plan: pruned_cells(plan, pruning.FIG5),
        pruning.measure_fig5,
        pruning.fig5_page,
        pruning.fig5_picture,
    ),
    "fig7": Experiment(lambda _: [], figures.measure7, figures.page7, figures.draw),
    "pruning-ablation": Experiment(
        lambda plan: pruned_cells(plan, pruning.ABLATION.values()),
        pruning.measure_ablation,
        pruning.ablation_page,
    ),
}
"""By the name that the command line takes."""
