"""The transfer matrix of Tables 3 and 7: reports by data set, encoder and backbone; its page and heat map."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_bytes, atomic_write_text, write_json
from craft.core.text import percent, signed, table_row
from craft.evaluation.metrics import grouped_interval
from craft.evaluation.report import Report, caveats_of, merge
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

    def figure(self, name: str = "accuracy") -> float | None:
        """The mean of one figure over seeds; None if a report lacks it."""
        spread = merge(self.reports)[name]
        return None if spread is None else float(spread["mean"])

    def gain(self, name: str = "accuracy") -> dict[str, Any] | None:
        """Adapted minus zero-shot, as fractions.

        Returns:
            Mean, standard deviation and number of seeds, and the 95 % bootstrap interval of the mean over
            paired questions, resampled within each seed. None for the base encoder, and if there are no such
            questions.
        """
        if self.encoder == ZERO_SHOT:
            return None
        differences = [
            _marks(after, name) - _marks(before, name)
            for after, before in zip(self.reports, self.zero_shot, strict=True)
        ]
        if not all(len(difference) for difference in differences):
            return None
        means = [float(difference.mean()) for difference in differences]
        return {
            "mean": statistics.fmean(means),
            "std": statistics.stdev(means) if len(means) > 1 else 0.0,
            "interval": list(grouped_interval(differences)),
            "runs": len(means),
        }

    def to_json(self) -> dict[str, Any]:
        """The names, the mean and spread of every figure over seeds, and the gains."""
        return {
            "data": self.data,
            "encoder": self.encoder,
            "backbone": self.backbone,
            "diagonal": self.diagonal,
            **merge(self.reports),
            **({"caveats": self.caveats} if self.caveats else {}),
            "interval": list(grouped_interval([_marks(report, "accuracy") for report in self.reports])),
            "gain": {name: self.gain(name) for name in GROUPS},
        }


def _marks(report: Report, group: str) -> np.ndarray:
    """1 for a correct answer and 0 for a wrong one, float64 `[questions]`, over one of `GROUPS`."""
    return np.array(
        [row["strict"] for row in report.samples if group == "accuracy" or row["seen"] == (group == "seen")],
        dtype=np.float64,
    )


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
        spread = None if cell is None else cell.gain(name)
        return None if spread is None else spread["mean"]

    def summary(self) -> list[dict[str, Any]]:
        """Mean gains over cells, on and off the diagonal, for each data set and for "all" of them."""
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
        gains = {name: _measured(cell.gain(name) for cell in cells) for name in GROUPS}
        if not gains["accuracy"]:
            return None
        return {
            "data": data,
            "diagonal": diagonal,
            "cells": len(cells),
            "positive": sum(gain > 0 for gain in gains["accuracy"]),
            "lowest": min(gains["accuracy"]),
            **{name: statistics.fmean(values) if values else None for name, values in gains.items()},
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


def _measured(gains: Iterable[dict[str, Any] | None]) -> list[float]:
    return [gain["mean"] for gain in gains if gain is not None]


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
                row.append(_mean_accuracy(measured) if len(measured) == len(cells) else "-")
            rows.append(row)
    heads = ["backbone", "encoder adapted with", *matrix["data"], *(["mean"] if several else [])]
    return _table(heads, rows)


def _accuracy(cell: Record | None) -> str:
    if cell is None:
        return "-"
    spread, gain = cell["accuracy"], cell["gain"]["accuracy"]
    text = percent(spread["mean"]) + (f" ± {percent(spread['std'])}" if spread["runs"] > 1 else "")
    return text if gain is None else f"{text} ({signed(gain['mean'])})"


def _mean_accuracy(cells: list[Record]) -> str:
    mean = sum(cell["accuracy"]["mean"] for cell in cells) / len(cells)
    gains = [gain["mean"] for cell in cells if (gain := cell["gain"]["accuracy"]) is not None]
    return percent(mean) + (f" ({signed(sum(gains) / len(gains))})" if gains else "")


def _gains(matrix: Record) -> str:
    intro = (
        "Points over zero-shot [95 % bootstrap interval over questions], for all classes, those that "
        "training had (seen), and those held out of it (unseen)."
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
            *(signed(row[name]) for name in GROUPS),
            f"{row['positive']} of {row['cells']}",
            signed(row["lowest"]),
        ]
        for row in matrix["summary"]
    ]
    return _table(["data", "backbone", "all", "seen", "unseen", "cells above zero-shot", "lowest"], rows)


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
            panel.accuracy[i, j] = np.mean([cell.figure() or 0.0 for cell in cells])
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
