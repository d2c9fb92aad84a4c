"""`craft transfer`."""

from pathlib import Path
from typing import Any

from craft.cli.options import COMMON, Common, Count, Flag, Limit, Settings, Several, seeds_of, settings_of
from craft.cli.output import show_json, show_table, size, spread
from craft.core.text import percent, signed

REHEARSED = 8
"""Questions per cell in a dry run."""


def transfer(
    *,
    encoders: Several = None,
    surrogates: Several = None,
    backbones: Several = None,
    data: Several = None,
    keep_ratio: float = 1.0,
    limit: Limit = None,
    seeds: str | None = None,
    out: Path | None = None,
    work: Path | None = None,
    root: Path | None = None,
    batch_size: Count = 64,
    max_new_tokens: Count = 5,
    settings: Settings = None,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Every adapted encoder with every backbone, beside zero-shot: the matrix of Tables 3 and 7.

    Args:
        encoders: run folders; those that differ in their seed only are averaged.
        surrogates: instead of encoders: LVLMs to adapt one with, for every data set and seed.
        backbones: shipped models, folders or hub ids of the same codebook; by default the surrogates.
        data: as for `craft eval`, by default each encoder's own; with surrogates one or several data sets, by
            default every embedded domain.
        keep_ratio: share of the visual tokens that the LLM sees.
        limit: at most this many questions per cell, evenly from the classes.
        seeds: of the questions, as in 0,1,2; by default each encoder's own. With surrogates of the
            adaptations too; by default 0,1,2.
        out: a folder for transfer.json, transfer.md and a heat map, transfer.png.
        work: a folder for adapted encoders, codes and answers. The same command goes on with what is there;
            by default runs/transfer with surrogates, else nothing is kept.
        root: where a benchmark lies; else what relative paths in the data start from.
        batch_size: questions per forward pass.
        max_new_tokens: cap on the length of an answer.
        settings: NAME=VALUE, a setting of the adaptations, as for `craft adapt`; may be given several times.
        dry_run: check that all fits together: one step with every surrogate on every data set, or a few
            questions to every backbone; write nothing.
    """
    from craft.core.errors import ConfigError
    from craft.core.files import check_writable
    from craft.recipes.transfer import transfer as run
    from craft.training.config import AdaptConfig

    chosen, config = seeds_of(seeds, common), AdaptConfig.build(None, settings_of(settings, common))
    if settings and not surrogates:
        raise ConfigError("--set is for the adaptations that --surrogates asks for; leave it out.")
    if out is not None:
        check_writable(out / "transfer.json")
    if dry_run and surrogates:
        config = config if root is None else AdaptConfig.build(config, {"data.root": str(root)})
        _rehearse(surrogates, backbones or surrogates, data, config, common)
        return
    matrix = run(
        encoders or (),
        backbones or (),
        data,
        chosen,
        keep_ratio,
        min(limit or REHEARSED, REHEARSED) if dry_run else limit,
        surrogates=surrogates or (),
        work=None if dry_run else work,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        root=root,
        device=common.device,
        dtype=common.dtype,
        config=config,
    )
    written = matrix.save(out) if out is not None and not dry_run else []
    if common.json:
        show_json(matrix.to_json())
        return
    for name in matrix.data:
        _show(matrix, name)
    _show_means(matrix)
    for path in written:
        print(path)
    if dry_run:
        print("A dry run: everything fits and answers; these few figures mean nothing.")


def _show(matrix: Any, data: str) -> None:
    """Accuracy and gain over zero-shot for each cell; below them seen and unseen classes."""
    table = {(cell["encoder"], cell["backbone"]): cell for cell in matrix.table() if cell["data"] == data}
    rows: list[list[str]] = []
    sections: list[int] = []
    for encoder in matrix.encoders:
        for name in ("accuracy", "seen", "unseen"):
            cells = []
            for backbone in matrix.backbones:
                cell = table.get((encoder, backbone))
                text = "-" if cell is None else spread(cell[name])
                gain = None if cell is None else cell["gain"][name]
                cells.append(text if gain is None else f"{text} ({signed(gain['mean'])})")
            if any(cell != "-" for cell in cells):
                rows.append([encoder if name == "accuracy" else f"  {name}", *cells])
        sections.append(len(rows) - 1)
    chances = {
        report.chance for key, cell in matrix.cells.items() if key[0] == data for report in cell.reports
    }
    title = f"{data}: strict accuracy, in brackets the gain over zero-shot"
    title += f"; chance {percent(chances.pop())} %" if len(chances) == 1 and None not in chances else ""
    show_table(title, ("encoder", *matrix.backbones), rows, sections)


def _show_means(matrix: Any) -> None:
    """Mean gains on and off the diagonal."""
    rows = [
        [
            found["data"],
            "same LLM" if found["diagonal"] else "another LLM",
            *(signed(found[name]) for name in ("accuracy", "seen", "unseen")),
            f"{found['positive']} of {found['cells']}",
        ]
        for found in matrix.summary()
    ]
    if rows:
        columns = ("data", "backbone", "all", "seen", "unseen", "above zero-shot")
        show_table("Mean gain over zero-shot", columns, rows)


def _rehearse(
    surrogates: list[str],
    backbones: list[str],
    data: list[str] | None,
    config: Any,
    common: Common,
) -> None:
    """One batch with every surrogate on every data set; every backbone is loaded."""
    from craft.data import EMBEDDED
    from craft.formats.load import load
    from craft.models.lvlm import LVLM
    from craft.recipes.adapt import rehearse

    makers = {name: load(name, common.device, common.dtype) for name in surrogates}
    for name in backbones:
        lvlm = makers.get(name) or load(name, common.device, common.dtype)
        for maker in makers.values():
            LVLM(maker.visual, lvlm.backbone, lvlm.name)  # one codebook, or an error
    rows = []
    for source in data or list(EMBEDDED):
        for name, maker in makers.items():
            found = rehearse(maker, source, config=config)
            cells = (found.samples, found.steps, f"{found.parts['loss']:.3f}", size(found.memory["total"]))
            rows.append([source, name, *map(str, cells)])
    columns = ("data", "surrogate", "samples", "steps", "loss", "memory")
    if common.json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    show_table("Encoders to adapt, for every seed", columns, rows)
    print("A dry run: nothing was written. Leave --dry-run out to adapt and ask.")
