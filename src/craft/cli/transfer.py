"""`craft transfer`."""

from pathlib import Path
from typing import Any

from craft.cli.flags import config_of, takes
from craft.cli.options import COMMON, Common, Flag
from craft.cli.output import show_json, show_line, show_table, size, spread
from craft.core.lock import locked
from craft.core.text import percent, signed
from craft.evaluation.config import TransferConfig

REHEARSED = 8
"""Questions per cell in a dry run."""


@takes(TransferConfig)
def transfer(*, flags: Any = None, dry_run: Flag = False, common: Common = COMMON) -> None:
    """Evaluate every adapted encoder with every backbone, and zero-shot: the matrix of Tables 3 and 7.

    Give settings of the adaptations as --adapt.batch_size 24, or as --set max_steps=100 if no other setting
    has that last name.

    Args:
        dry_run: check that everything fits: run one step with every surrogate on every data set, or ask every
            backbone a few questions; write nothing.
    """
    config: TransferConfig = config_of(TransferConfig, flags, common)
    from craft.recipes.transfer import transfer as run

    if dry_run and config.surrogates:
        _rehearse(config, common)
        return
    if dry_run:
        limit = min(config.ask.limit or REHEARSED, REHEARSED)
        ask = config.ask.model_copy(update={"limit": limit})
        config = config.model_copy(update={"ask": ask, "work": None, "out": None})
    with locked(config.out):
        matrix = run(config=config)
        written = [] if config.out is None else matrix.save(Path(config.out))
        if config.out is not None:
            config.save(Path(config.out) / "config.resolved.yaml")
    if common.json:
        show_json(matrix.to_json())
        return
    for name in matrix.data:
        _show(matrix, name)
    _show_means(matrix)
    for path in written:
        show_line(path)
    if dry_run:
        show_line("A dry run: everything fits and answers; these few figures mean nothing.")


def _show(matrix: Any, data: str) -> None:
    """Accuracy and gain over zero-shot for each cell; below them seen and unseen classes, and H of both."""
    table = {(cell["encoder"], cell["backbone"]): cell for cell in matrix.table() if cell["data"] == data}
    rows: list[list[str]] = []
    sections: list[int] = []
    for encoder in matrix.encoders:
        labels = {"accuracy": encoder, "seen": "  seen", "unseen": "  unseen", "harmonic": "  H"}
        for name, label in labels.items():
            cells = []
            for backbone in matrix.backbones:
                cell = table.get((encoder, backbone))
                text = "-" if cell is None else spread(cell[name])
                gain = None if cell is None else cell["gain"].get(name)
                cells.append(text if gain is None else f"{text} ({signed(gain['mean'])})")
            if any(cell != "-" for cell in cells):
                rows.append([label, *cells])
        sections.append(len(rows) - 1)
    chances = {
        report.chance for key, cell in matrix.cells.items() if key[0] == data for report in cell.reports
    }
    title = f"{data}: strict accuracy, in brackets the gain over zero-shot"
    title += f"; chance {percent(chances.pop())} %" if len(chances) == 1 and None not in chances else ""
    show_table(title, ("encoder", *matrix.backbones), rows, sections)
    caveats = [
        caveat for (name, _, _), cell in matrix.cells.items() if name == data for caveat in cell.caveats
    ]
    for caveat in dict.fromkeys(caveats):
        show_line(f"note: {data}: {caveat}")


def _show_means(matrix: Any) -> None:
    """Mean gains on and off the diagonal."""
    from craft.evaluation.metrics import ONE_SEED, SEVERAL_SEEDS

    summary = matrix.summary()
    rows = [
        [
            mean["data"],
            "same LLM" if mean["diagonal"] else "another LLM",
            *(_with_interval(mean, name) for name in ("accuracy", "seen", "unseen")),
            f"{mean['positive']} of {mean['cells']}",
        ]
        for mean in summary
    ]
    if rows:
        columns = ("data", "backbone", "all", "seen", "unseen", "above zero-shot")
        seeds = {mean["over seeds"]["accuracy"]["runs"] for mean in summary}
        covers = ONE_SEED if seeds == {1} else SEVERAL_SEEDS
        show_table(f"Mean gain over zero-shot [95 % interval; {covers}]", columns, rows)


def _with_interval(mean: dict[str, Any], name: str) -> str:
    if mean[name] is None:
        return "-"
    low, high = mean["over seeds"][name]["interval"]
    return f"{signed(mean[name])} [{signed(low)}, {signed(high)}]"


def _rehearse(config: Any, common: Common) -> None:
    """One batch with every surrogate on every data set; every backbone is loaded."""
    from craft.data import EMBEDDED
    from craft.formats.load import load
    from craft.models.lvlm import LVLM
    from craft.recipes.adapt import rehearse
    from craft.recipes.transfer import adaptation_settings

    makers = {name: load(name, config.device, config.dtype) for name in config.surrogates}
    for name in config.backbones or config.surrogates:
        lvlm = makers.get(name) or load(name, config.device, config.dtype)
        for maker in makers.values():
            LVLM(maker.visual, lvlm.backbone, lvlm.name)  # one codebook, or an error
    rows = []
    for source in config.data or EMBEDDED:
        for name, maker in makers.items():
            step = rehearse(maker, source, config=adaptation_settings(config))
            cells = (step.samples, step.steps, f"{step.parts['loss']:.3f}", size(step.memory["total"]))
            rows.append([source, name, *map(str, cells)])
    columns = ("data", "surrogate", "samples", "steps", "loss", "memory")
    if common.json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    show_table("Encoders to adapt, for every seed", columns, rows)
    show_line("A dry run: nothing was written. Leave --dry-run out to adapt and ask.")
