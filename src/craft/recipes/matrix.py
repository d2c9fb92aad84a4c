"""The transfer matrix: reports by data, encoder and backbone, and what is said of them (Tables 3 and 7)."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_text, write_json
from craft.evaluation import Report, grouped_interval, merge

ZERO_SHOT = "zero-shot"
"""The encoder that was not adapted."""

GROUPS = ("accuracy", "seen", "unseen")
"""The figures whose gain is told."""


@dataclass(frozen=True)
class Cell:
    """One encoder with one backbone on one data set.

    Attributes:
        data, encoder, backbone: their names; the encoder's is its surrogate's.
        diagonal: whether this backbone's LLM is the one that the encoder was adapted with.
        reports: one per seed.
        zero_shot: the same questions with the base tower, in the same order.
    """

    data: str
    encoder: str
    backbone: str
    diagonal: bool
    reports: list[Report] = field(repr=False)
    zero_shot: list[Report] = field(repr=False)

    def figure(self, name: str = "accuracy") -> float | None:
        """The mean of one figure over seeds; None where a report lacks it."""
        found = merge(self.reports)[name]
        return None if found is None else float(found["mean"])

    def gain(self, name: str = "accuracy") -> dict[str, Any] | None:
        """Adapted minus zero-shot, in fractions: mean, deviation and number of the seeds, and the mean's 95 %
        bootstrap interval over the questions of each seed, answered before and after. None without questions.
        """
        if self.encoder == ZERO_SHOT:
            return None
        differences = [
            _marks(after, name) - _marks(before, name)
            for after, before in zip(self.reports, self.zero_shot, strict=True)
        ]
        if not all(len(found) for found in differences):
            return None
        means = [float(found.mean()) for found in differences]
        return {
            "mean": statistics.fmean(means),
            "std": statistics.stdev(means) if len(means) > 1 else 0.0,
            "interval": list(grouped_interval(differences)),
            "runs": len(means),
        }

    def to_json(self) -> dict[str, Any]:
        """Names, every figure's mean and spread over seeds, and the gains."""
        return {
            "data": self.data,
            "encoder": self.encoder,
            "backbone": self.backbone,
            "diagonal": self.diagonal,
            **merge(self.reports),
            "interval": list(grouped_interval([_marks(report, "accuracy") for report in self.reports])),
            "gain": {name: self.gain(name) for name in GROUPS},
        }


def _marks(report: Report, group: str) -> np.ndarray:
    """1 for a right answer, 0 for a wrong one: all questions, or those about seen or unseen classes."""
    return np.array(
        [row["strict"] for row in report.samples if group == "accuracy" or row["seen"] == (group == "seen")],
        dtype=np.float64,
    )


@dataclass
class TransferMatrix:
    """Reports by data, encoder and backbone.

    Attributes:
        data: names of the data sets.
        encoders: "zero-shot", then the adapted ones by their surrogates.
        backbones: the LVLMs that answer.
        cells: (data, encoder, backbone) -> cell; a combination that was not adapted is absent.
        settings: seeds, limits, commit, versions.
    """

    data: list[str]
    encoders: list[str]
    backbones: list[str]
    cells: dict[tuple[str, str, str], Cell] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)

    def figure(self, data: str, encoder: str, backbone: str, name: str = "accuracy") -> float | None:
        """The mean of one figure over seeds; None where it is not there."""
        cell = self.cells.get((data, encoder, backbone))
        return None if cell is None else cell.figure(name)

    def gain(self, data: str, encoder: str, backbone: str, name: str = "accuracy") -> float | None:
        """Adapted minus zero-shot on the same questions: the mean over seeds."""
        cell = self.cells.get((data, encoder, backbone))
        found = None if cell is None else cell.gain(name)
        return None if found is None else found["mean"]

    def summary(self) -> list[dict[str, Any]]:
        """Mean gains over cells, on and off the diagonal, for each data set and for "all" of them."""
        found = []
        for data in [*self.data, *(["all"] if len(self.data) > 1 else [])]:
            for diagonal in (True, False):
                cells = [
                    cell
                    for cell in self.cells.values()
                    if cell.encoder != ZERO_SHOT and cell.diagonal == diagonal and data in (cell.data, "all")
                ]
                gains = {name: _known(cell.gain(name) for cell in cells) for name in GROUPS}
                if not gains["accuracy"]:
                    continue
                found.append(
                    {
                        "data": data,
                        "diagonal": diagonal,
                        "cells": len(cells),
                        "positive": sum(gain > 0 for gain in gains["accuracy"]),
                        "lowest": min(gains["accuracy"]),
                        **{name: statistics.fmean(own) if own else None for name, own in gains.items()},
                    }
                )
        return found

    def table(self) -> list[dict[str, Any]]:
        """One dict per cell: see `Cell.to_json`."""
        return [cell.to_json() for cell in self.cells.values()]

    def to_json(self, samples: bool = False) -> dict[str, Any]:
        """A JSON-able dict of everything."""
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
        from craft.recipes.matrix_page import page

        return page(self.to_json())

    def save(self, folder: str | Path) -> list[Path]:
        """Write transfer.json, transfer.md and transfer.png, a heat map.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        from craft.recipes.heat_map import draw

        folder = Path(folder)
        write_json(folder / "transfer.json", self.to_json())
        atomic_write_text(folder / "transfer.md", self.to_markdown())
        draw(self, folder / "transfer.png")
        return [folder / f"transfer.{kind}" for kind in ("json", "md", "png")]


def _known(gains: Iterable[dict[str, Any] | None]) -> list[float]:
    return [gain["mean"] for gain in gains if gain is not None]
