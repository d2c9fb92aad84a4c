"""`craft.transfer`: every adapted encoder with every backbone, beside zero-shot (Table 3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.progress import say
from craft.data import Data
from craft.evaluation import Report, merge
from craft.models.artefact import Artefact, load_artefact
from craft.models.load import load
from craft.models.lvlm import LVLM
from craft.recipes.evaluate import evaluate

ZERO_SHOT = "zero-shot"


@dataclass
class TransferMatrix:
    """Reports by encoder (row) and backbone (column).

    Attributes:
        rows: "zero-shot", then the encoders.
        columns: the backbones.
        cells: (row, column) -> one report per seed.
    """

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], list[Report]] = field(repr=False)

    def figure(self, row: str, column: str, name: str = "accuracy") -> float | None:
        """The mean of one figure over seeds; None where a report lacks it."""
        found = merge(self.cells[row, column])[name]
        return None if found is None else float(found["mean"])

    def gain(self, row: str, column: str, name: str = "accuracy") -> float | None:
        """Adapted minus zero-shot, asked the same questions with the same unseen classes."""
        after = self.figure(row, column, name)
        pairs = [report.settings["zero_shot"][name] for report in self.cells[row, column]]
        known = [value for value in pairs if value is not None]
        return None if after is None or len(known) < len(pairs) else after - sum(known) / len(known)

    def table(self) -> list[dict[str, Any]]:
        """One dict per cell: encoder, backbone, and every figure's mean and spread."""
        return [
            {"encoder": row, "backbone": column, **merge(self.cells[row, column])}
            for row in self.rows
            for column in self.columns
        ]

    def to_json(self, samples: bool = False) -> dict[str, Any]:
        """A JSON-able dict of everything."""
        cells = [
            {"encoder": row, "backbone": column, "reports": [report.to_json(samples) for report in reports]}
            for (row, column), reports in self.cells.items()
        ]
        return {"encoders": self.rows, "backbones": self.columns, "table": self.table(), "cells": cells}


def transfer(
    encoders: Sequence[str | Path | Artefact],
    backbones: Sequence[str | Path | LVLM],
    data: str | Path | Data | None = None,
    seeds: Sequence[int] | None = None,
    keep_ratio: float = 1.0,
    limit: int | None = None,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 5,
    root: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> TransferMatrix:
    """Evaluate every encoder with every backbone; encoders that differ in their seed only share a row.

    Args:
        encoders: run folders or artefacts.
        backbones: names, folders or loaded LVLMs.
        data: None is each encoder's own.
        seeds: of the questions; None is each encoder's own.
        keep_ratio, limit, batch_size, max_new_tokens, root, device, dtype: as in `evaluate`.

    Raises:
        ConfigError: there is no encoder or no backbone.
        CodebookMismatchError, CheckpointError, DataError: as `evaluate`; before the first question is asked
            where a codebook does not fit.

    Source: Table 3.
    """
    if not encoders or not backbones:
        raise ConfigError("transfer needs at least one encoder and one backbone.")
    artefacts = [e if isinstance(e, Artefact) else load_artefact(e) for e in encoders]
    lvlms = [b if isinstance(b, LVLM) else load(b, device, dtype) for b in backbones]
    for lvlm in lvlms:
        for artefact in artefacts:
            lvlm.with_encoder(artefact)  # a wrong codebook shows before the hours of asking
    names = _row_names(artefacts)
    rows = [ZERO_SHOT, *dict.fromkeys(names)]
    columns = [lvlm.name for lvlm in lvlms]
    cells: dict[tuple[str, str], list[Report]] = {(row, column): [] for row in rows for column in columns}
    for lvlm in lvlms:
        asked: dict[Any, Report] = {}
        for name, artefact in zip(names, artefacts, strict=True):
            for seed in seeds or [None]:
                common: dict[str, Any] = {
                    "data": data,
                    "keep_ratio": keep_ratio,
                    "seed": seed,
                    "limit": limit,
                    "batch_size": batch_size,
                    "max_new_tokens": max_new_tokens,
                    "root": root,
                }
                key = (seed, *_question_key(artefact))
                if key not in asked:
                    say(f"{lvlm.name}, zero-shot")
                    asked[key] = evaluate(lvlm, like=artefact, **common)
                    cells[ZERO_SHOT, lvlm.name].append(asked[key])
                say(f"{lvlm.name} with {name}")
                report = evaluate(lvlm, artefact, **common)
                before = asked[key].to_json()
                report.settings["zero_shot"] = {k: v for k, v in before.items() if k != "settings"}
                cells[name, lvlm.name].append(report)
    for column in columns:
        for report in cells[ZERO_SHOT, column]:
            own = report.to_json()
            report.settings["zero_shot"] = {k: v for k, v in own.items() if k != "settings"}
    return TransferMatrix(rows, columns, cells)


def _question_key(artefact: Artefact) -> tuple[Any, ...]:
    """What settles the questions that an encoder is asked, and their unseen classes."""
    told = artefact.manifest.get("data") or {}
    return (
        told.get("name"),
        told.get("fingerprint"),
        artefact.manifest.get("seed"),
        tuple(artefact.manifest.get("held_out") or ()),
    )


def _row_names(artefacts: Sequence[Artefact]) -> list[str]:
    """The surrogate and data of each encoder; where two of a kind share a seed, the folder's name as well."""
    kinds = [(_kind(artefact), artefact.manifest.get("seed")) for artefact in artefacts]
    return [
        kind if kinds.count((kind, seed)) == 1 else f"{kind} ({_folder(artefact)})"
        for (kind, seed), artefact in zip(kinds, artefacts, strict=True)
    ]


def _kind(artefact: Artefact) -> str:
    told = artefact.manifest.get("data") or {}
    return f"{artefact.manifest.get('surrogate') or 'adapted'} on {told.get('name', 'its data')}"


def _folder(artefact: Artefact) -> str:
    folder = artefact.folder
    return folder.parent.name if folder.name == "encoder" else folder.name
