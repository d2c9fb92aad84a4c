"""The transfer matrix of Tables 3 and 7: reports by data set, encoder and backbone; its page and heat map."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_bytes, atomic_write_text, write_json
from craft.core.text import percent, signed, table_row
from craft.evaluation.metrics import (
    ONE_SEED,
    SEVERAL_SEEDS,
    Group,
    images_of,
    interval,
    means_of_seeds,
    spread,
)
from craft.evaluation.report import Report, caveats_of, interval_of, merge
from craft.pages.figure import png_of

ZERO_SHOT = "zero-shot"
"""The name of the base encoder, which was not adapted."""

GROUPS = ("accuracy", "seen", "unseen")
"""The figures whose gains are reported: over all questions, and over those about seen and unseen classes."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class TransferCell:
    """One encoder with one backbone on one data set.

    Attributes:
        data: name of the data set.
        encoder: name of the encoder, which is that of its surrogate.
        backbone: name of the backbone.
        diagonal: whether the encoder was adapted with this backbone's LLM.
        reports: one per seed.
        zero_shot: reports of the base tower on the same questions in the same order, one per seed.
    """

    data: str
    encoder: str
    backbone: str
    diagonal: bool
    reports: list[Report] = field(repr=False)
    zero_shot: list[Report] = field(repr=False)

    @property
    def caveats(self) -> list[str]:
        """What must be said of the data ("partial: 6 of 10 classes")."""
        return caveats_of(self.reports)

    @property
    def accuracy(self) -> float:
        """The mean accuracy over seeds."""
        return statistics.fmean(report.accuracy for report in self.reports)

    def figure(self, name: str = "accuracy") -> float | None:
        """The mean of one figure over seeds; None if a report lacks it."""
        over_seeds = merge(self.reports)[name]
        return None if over_seeds is None else float(over_seeds["mean"])

    def gain(self, name: str = "accuracy") -> dict[str, Any] | None:
        """Adapted minus zero-shot on the same questions, as fractions.

        Returns:
            Mean and standard deviation over seeds, their number (`runs`), and the 95 % interval of the mean.
            None for the base encoder, and if there are no such questions.
        """
        if (groups := self.differences(name)) is None:
            return None
        total = spread([float(np.mean(group.values)) for group in groups]) or {}
        return {**total, "interval": list(interval(groups, (-1.0, 1.0)))}

    def differences(self, name: str = "accuracy") -> list[Group] | None:
        """Adapted minus zero-shot for every question, one group per seed; None as for `gain`."""
        if self.encoder == ZERO_SHOT:
            return None
        groups = []
        for number, (after, before) in enumerate(zip(self.reports, self.zero_shot, strict=True)):
            rows, base = _rows(after, name), _rows(before, name)
            values = [float(row["strict"]) - one["strict"] for row, one in zip(rows, base, strict=True)]
            seed = after.settings.get("seed", number)
            groups.append(Group(values, images_of(rows), seed, 1 / len(self.reports)))
        return groups if all(len(group.values) for group in groups) else None

    def to_json(self) -> dict[str, Any]:
        """The names, the mean and spread of every figure over seeds, and the gains."""
        return {
            "data": self.data,
            "encoder": self.encoder,
            "backbone": self.backbone,
            "diagonal": self.diagonal,
            **merge(self.reports),
            **({"caveats": self.caveats} if self.caveats else {}),
            "interval": interval_of(self.reports),
            "gain": {name: self.gain(name) for name in GROUPS},
        }


def _rows(report: Report, group: str) -> list[dict[str, Any]]:
    """The answers over one of `GROUPS`."""
    return [row for row in report.samples if group == "accuracy" or row["seen"] == (group == "seen")]


@dataclass
class TransferMatrix:
    """Reports by data set, encoder and backbone.

    Attributes:
        data: names of the data sets.
        encoders: "zero-shot", then the adapted encoders by the names of their surrogates.
        backbones: names of the LVLMs that answer.
        cells: (data, encoder, backbone) -> cell; combinations that were not measured are absent.
        settings: seeds, limits, commit, versions.
    """

    data: list[str]
    encoders: list[str]
    backbones: list[str]
    cells: dict[tuple[str, str, str], TransferCell] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)

    def figure(self, data: str, encoder: str, backbone: str, name: str = "accuracy") -> float | None:
        """The mean of one figure over seeds; None if it was not measured."""
        cell = self.cells.get((data, encoder, backbone))
        return None if cell is None else cell.figure(name)

    def gain(self, data: str, encoder: str, backbone: str, name: str = "accuracy") -> float | None:
        """Adapted minus zero-shot on the same questions, mean over seeds; None if it was not measured."""
        cell = self.cells.get((data, encoder, backbone))
        gain = None if cell is None else cell.gain(name)
        return None if gain is None else gain["mean"]

    def summary(self) -> list[dict[str, Any]]:
        """Mean gains over cells, on and off the diagonal, for each data set and for "all" of them.

        Each row also has, under "over seeds", the standard deviation over seeds of each mean, their number,
        and the mean's 95 % interval.
        """
        names = [*self.data, *(["all"] if len(self.data) > 1 else [])]
        rows = [self._mean_gains(name, diagonal) for name in names for diagonal in (True, False)]
        return [row for row in rows if row is not None]

    def _mean_gains(self, data: str, diagonal: bool) -> dict[str, Any] | None:
        """One row of `summary`; None if there are no such cells."""
        cells = [
            cell
            for cell in self.cells.values()
            if cell.encoder != ZERO_SHOT and cell.diagonal == diagonal and data in (cell.data, "all")
        ]
        measured = {name: [g for cell in cells if (g := cell.differences(name))] for name in GROUPS}
        gains = {
            name: [statistics.fmean(float(np.mean(group.values)) for group in groups) for groups in lists]
            for name, lists in measured.items()
        }
        if not gains["accuracy"]:
            return None
        return {
            "data": data,
            "diagonal": diagonal,
            "cells": len(cells),
            "positive": sum(gain > 0 for gain in gains["accuracy"]),
            "lowest": min(gains["accuracy"]),
            **{name: statistics.fmean(values) if values else None for name, values in gains.items()},
            "over seeds": {name: _over_seeds([*itertools.chain(*lists)]) for name, lists in measured.items()},
        }

    def table(self) -> list[dict[str, Any]]:
        """One dict per cell: see `TransferCell.to_json`."""
        return [cell.to_json() for cell in self.cells.values()]

    def to_json(self, samples: bool = False) -> dict[str, Any]:
        """Everything as a JSON-able dict; with `samples`, every answer too."""
        reports = [
            {
                "data": cell.data,
                "encoder": cell.encoder,
                "backbone": cell.backbone,
                "reports": [report.to_json(samples) for report in cell.reports],
            }
            for cell in self.cells.values()
        ]
        return {
            "settings": self.settings,
            "data": self.data,
            "encoders": self.encoders,
            "backbones": self.backbones,
            "summary": self.summary(),
            "table": self.table(),
            "cells": reports,
        }

    def to_markdown(self) -> str:
        """The matrix as a page: accuracies, gains with intervals, seen and unseen classes, means."""
        return matrix_page(self.to_json())

    def save(self, folder: str | Path) -> list[Path]:
        """Write transfer.json, transfer.md and transfer.png, a heat map.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        folder = Path(folder)
        write_json(folder / "transfer.json", self.to_json())
        atomic_write_text(folder / "transfer.md", self.to_markdown())
        draw_heat_map(self, folder / "transfer.png")
        return [folder / f"transfer.{kind}" for kind in ("json", "md", "png")]


def _over_seeds(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Standard deviation over seeds, their number, and the 95 % interval of a mean over cells."""
    if not groups:
        return None
    seeds = spread(means_of_seeds(groups)) or {}
    return {
        "std": seeds["std"],
        "runs": seeds["runs"],
        "interval": list(interval(groups, (-1.0, 1.0))),
    }


# The page


def matrix_page(matrix: Record) -> str:
    """The Markdown page of a matrix.

    Args:
        matrix: what `TransferMatrix.to_json` returned, or transfer.json.

    Source: the layout of Tables 3 and 7.
    """
    parts = ["# Transfer matrix", _about(matrix), _accuracies(matrix), "## Gains", _gains(matrix)]
    parts += ["## Means over cells", _means(matrix)]
    return "\n\n".join(parts) + "\n"


def _about(matrix: Record) -> str:
    settings = matrix["settings"]
    chances = {report["chance"] for cell in matrix["cells"] for report in cell["reports"]}
    chance = sorted(value for value in chances if value is not None)
    lines = [
        "Strict exact match in percent, mean ± standard deviation over seeds; in brackets the gain over "
        "zero-shot on the same questions. A star: the encoder was adapted with this backbone's own LLM."
    ]
    if chance:
        lines.append(
            f"A blind guess scores {' to '.join(percent(c) for c in {chance[0]: 0, chance[-1]: 0})}."
        )
    limit = settings.get("limit")
    lines.append(
        f"Seeds: {', '.join(map(str, settings.get('seeds', [])))}. "
        f"Test questions per seed: {'all' if limit is None else f'at most {limit}'}. "
        f"Commit: {', '.join(settings.get('commits') or []) or 'not in a checkout'}."
    )
    caveats = [f"{cell['data']}: {text}" for cell in matrix["table"] for text in cell.get("caveats", ())]
    lines += [f"Note: {caveat}." for caveat in dict.fromkeys(caveats)]
    lines.append(f"Made by `{settings['command']}`." if settings.get("command") else "")
    return "\n".join(line for line in lines if line)


def _accuracies(matrix: Record) -> str:
    """A row per backbone and encoder, zero-shot first; a column per data set, and their mean."""
    several = len(matrix["data"]) > 1
    table = {(cell["data"], cell["encoder"], cell["backbone"]): cell for cell in matrix["table"]}
    rows = []
    for backbone in matrix["backbones"]:
        for encoder in matrix["encoders"]:
            cells = [table.get((data, encoder, backbone)) for data in matrix["data"]]
            diagonal = any(cell is not None and cell["diagonal"] for cell in cells) and encoder != ZERO_SHOT
            row = [backbone, encoder + (" *" if diagonal else ""), *map(_accuracy, cells)]
            if several:
                measured = [cell for cell in cells if cell is not None]
                row.append(_mean_accuracy(matrix, measured) if len(measured) == len(cells) else "-")
            rows.append(row)
    heads = ["backbone", "encoder adapted with", *matrix["data"], *(["mean"] if several else [])]
    return _table(heads, rows)


def _accuracy(cell: Record | None) -> str:
    if cell is None:
        return "-"
    gain, text = cell["gain"]["accuracy"], _with_deviation(cell["accuracy"])
    return text if gain is None else f"{text} ({signed(gain['mean'])})"


def _mean_accuracy(matrix: Record, cells: list[Record]) -> str:
    """The mean over data sets, with the deviation of this mean over seeds, and the mean gain."""
    names = [(cell["data"], cell["encoder"], cell["backbone"]) for cell in cells]
    by_seed: dict[Any, list[float]] = {}
    for cell in matrix["cells"]:
        if (cell["data"], cell["encoder"], cell["backbone"]) in names:
            for report in cell["reports"]:
                by_seed.setdefault(report["settings"].get("seed"), []).append(report["accuracy"])
    complete = all(len(values) == len(cells) for values in by_seed.values())
    over_seeds = spread([statistics.fmean(values) for values in by_seed.values()]) if complete else None
    mean = sum(cell["accuracy"]["mean"] for cell in cells) / len(cells)
    text = _with_deviation({**(over_seeds or {"std": 0.0, "runs": 1}), "mean": mean})
    gains = [gain["mean"] for cell in cells if (gain := cell["gain"]["accuracy"]) is not None]
    return text + (f" ({signed(sum(gains) / len(gains))})" if gains else "")


def _with_deviation(figure: Record) -> str:
    return percent(figure["mean"]) + (f" ± {percent(figure['std'])}" if figure["runs"] > 1 else "")


def _gains(matrix: Record) -> str:
    intro = (
        f"Points over zero-shot [95 % interval, {_covers(matrix)}], for all classes, those that training had "
        "(seen), and those held out of it (unseen)."
    )
    rows = []
    for cell in matrix["table"]:
        gains = [cell["gain"][name] for name in GROUPS]
        if gains[0] is not None:
            star = " *" if cell["diagonal"] else ""
            rows.append([cell["data"], cell["encoder"] + star, cell["backbone"], *map(_with_interval, gains)])
    return f"{intro}\n\n" + _table(
        ["data", "encoder adapted with", "backbone", "all", "seen", "unseen"], rows
    )


def _covers(matrix: Record) -> str:
    """What the intervals cover. Older matrices name it themselves, or have none over seeds."""
    if not any("over seeds" in row for row in matrix["summary"]):
        return "over questions; the spread of seeds is not in it"
    if "intervals" in matrix:
        return matrix["intervals"]
    seeds = {report["settings"].get("seed") for cell in matrix["cells"] for report in cell["reports"]}
    return SEVERAL_SEEDS if len(seeds) > 1 else ONE_SEED


def _with_interval(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "-"
    low, high = gain["interval"]
    return f"{signed(gain['mean'])} [{signed(low)}, {signed(high)}]"


def _means(matrix: Record) -> str:
    rows = [
        [
            row["data"],
            "same LLM" if row["diagonal"] else "another LLM",
            *(_mean_gain(row, name) for name in GROUPS),
            f"{row['positive']} of {row['cells']}",
            signed(row["lowest"]),
        ]
        for row in matrix["summary"]
    ]
    return f"Points over zero-shot [95 % interval, {_covers(matrix)}].\n\n" + _table(
        ["data", "backbone", "all", "seen", "unseen", "cells above zero-shot", "lowest"], rows
    )


def _mean_gain(row: Record, name: str) -> str:
    """A mean over cells, with its interval if the matrix has one."""
    over_seeds = row.get("over seeds", {}).get(name)
    return signed(row[name]) if over_seeds is None else _with_interval({**over_seeds, "mean": row[name]})


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(map(table_row, [head, ["---"] * len(head), *rows]))


# The heat map

_ACROSS = 3  # panels in a row
_GREY = "#eef0f2"
_CAPTION = "Rows: who adapted the encoder. Columns: who answers (framed: the same LLM). Strict accuracy in %."


@dataclass(frozen=True, eq=False)
class _Panel:
    """What one panel shows: accuracy and gain `[encoders, backbones]`, NaN if not measured; bool diagonal."""

    title: str
    accuracy: np.ndarray
    gain: np.ndarray
    diagonal: np.ndarray


def draw_heat_map(matrix: TransferMatrix, path: str | Path) -> Path:
    """Write the heat map as PNG: a panel per data set, and one for their mean.

    Colours are gains over zero-shot in points, on one scale for all panels; zero-shot itself is grey. A frame
    marks encoders that were adapted with the backbone's own LLM. The same matrix gives the same bytes.

    Raises:
        ConfigError: the path cannot be written to.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    panels = [_panel(matrix, name, [name]) for name in matrix.data]
    if len(matrix.data) > 1:
        panels.append(_panel(matrix, "mean", matrix.data))
    gains = np.concatenate([100 * panel.gain[np.isfinite(panel.gain)] for panel in panels])
    limit = max(5.0, float(np.abs(gains).max())) if gains.size else 5.0
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    side = 1.15 * len(matrix.backbones) + 1.5
    figure = Figure(
        figsize=(side * across + 1, (0.62 * len(matrix.encoders) + 1.2) * down + 0.4),
        dpi=120,
        layout="constrained",
    )
    axes = figure.subplots(down, across, squeeze=False)
    norm = TwoSlopeNorm(0.0, -limit, limit)
    image: Any = None
    for panel, panel_axes in zip(panels, axes.flat, strict=False):
        image = _draw_panel(panel_axes, matrix, panel, norm)
    for unused in axes.flat[len(panels) :]:
        unused.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("gain over zero-shot (points)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(_CAPTION, fontsize=10)
    atomic_write_bytes(path, png_of(figure))
    return Path(path)


def _panel(matrix: TransferMatrix, title: str, names: Sequence[str]) -> _Panel:
    """Means over data sets."""
    shape = (len(matrix.encoders), len(matrix.backbones))
    panel = _Panel(title, np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, bool))
    for i, encoder in enumerate(matrix.encoders):
        for j, backbone in enumerate(matrix.backbones):
            cells = [cell for name in names if (cell := matrix.cells.get((name, encoder, backbone)))]
            if len(cells) < len(names):
                continue
            panel.accuracy[i, j] = np.mean([cell.accuracy for cell in cells])
            panel.diagonal[i, j] = cells[0].diagonal
            if encoder != ZERO_SHOT:
                panel.gain[i, j] = np.mean([(cell.gain() or {"mean": np.nan})["mean"] for cell in cells])
    return panel


def _draw_panel(axes: Any, matrix: TransferMatrix, panel: _Panel, norm: Any) -> Any:
    from matplotlib.patches import Rectangle

    image = axes.imshow(100 * panel.gain, cmap="RdBu", norm=norm, aspect="auto")
    axes.set_facecolor(_GREY)
    axes.set_title(panel.title, fontsize=11, fontweight="bold")
    axes.set_xticks(range(len(matrix.backbones)), _short_names(matrix.backbones), fontsize=9)
    axes.set_yticks(range(len(matrix.encoders)), _short_names(matrix.encoders), fontsize=9)
    axes.tick_params(length=0)
    for (i, j), value in np.ndenumerate(panel.accuracy):
        if np.isnan(value):
            continue
        gain = panel.gain[i, j]
        dark = np.isfinite(gain) and abs(norm(100 * gain) - 0.5) > 0.33
        text = percent(value) + ("" if np.isnan(gain) else f"\n{signed(float(gain))}")
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        if panel.diagonal[i, j] and np.isfinite(gain):
            axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, linewidth=1.4))
    return image


def _short_names(names: Sequence[str]) -> list[str]:
    """The names without the folder that all models share ("craft-tiny/")."""
    models = [name for name in names if name != ZERO_SHOT]
    folders = {name.rpartition("/")[0] for name in models}
    return [name.rpartition("/")[2] if len(folders) == 1 else name for name in names]
