"""`craft transfer`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from craft.cli.options import COMMON, Common, Flag, seeds_of
from craft.cli.show import percent, show_json, show_table, signed, spread

REHEARSED = 8
"""Questions per cell in a dry run."""

OneOrMore = Annotated[list[str], Parameter(consume_multiple=True, negative="")]


def transfer(
    *,
    encoders: OneOrMore,
    backbones: OneOrMore,
    data: str | None = None,
    keep_ratio: float = 1.0,
    limit: int | None = None,
    seeds: str | None = None,
    out: Path | None = None,
    root: Path | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 5,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Every adapted encoder with every backbone, beside zero-shot: the matrix of Table 3.

    Args:
        encoders: run folders; those that differ in their seed only share a row.
        backbones: shipped models, folders or hub ids of the encoders' codebook.
        data: as for `craft eval`; by default each encoder's own.
        keep_ratio: share of the visual tokens that the LLM sees.
        limit: at most this many questions per cell, evenly from the classes.
        seeds: of the questions, as in 0,1,2; by default each encoder's own.
        out: a folder for transfer.json.
        root: the folder that relative paths in the data start from.
        batch_size: questions per forward pass.
        max_new_tokens: cap on the length of an answer.
        dry_run: check that all fits together, and ask a few questions only; write nothing.
    """
    from craft.recipes.transfer import transfer as run

    matrix = run(
        encoders,
        backbones,
        data,
        seeds_of(seeds, common),
        keep_ratio,
        min(limit or REHEARSED, REHEARSED) if dry_run else limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        root=root,
        device=common.device,
        dtype=common.dtype,
    )
    if out is not None and not dry_run:
        from craft.core.files import write_json

        write_json(out / "transfer.json", matrix.to_json())
    if common.json:
        show_json(matrix.to_json())
    else:
        _show(matrix)
        if dry_run:
            print("A dry run: everything fits and answers; these few figures mean nothing.")


def _show(matrix: Any) -> None:
    """Accuracy and gain over zero-shot for each cell; below them seen and unseen classes."""
    table = {(cell["encoder"], cell["backbone"]): cell for cell in matrix.table()}
    rows: list[list[str]] = []
    sections: list[int] = []
    for row in matrix.rows:
        for name in ("accuracy", "seen", "unseen"):
            cells = []
            for column in matrix.columns:
                text = spread(table[row, column][name])
                if row != matrix.rows[0] and text != "-":
                    text += f" ({signed(matrix.gain(row, column, name))})"
                cells.append(text)
            if any(cell != "-" for cell in cells):
                rows.append([row if name == "accuracy" else f"  {name}", *cells])
        sections.append(len(rows) - 1)
    reports = matrix.cells[matrix.rows[0], matrix.columns[0]]
    chance = reports[0].chance
    title = "Strict accuracy, in brackets the gain over zero-shot"
    title += f"; chance {percent(chance)} %" if chance else ""
    show_table(title, ("encoder", *matrix.columns), rows, sections)
