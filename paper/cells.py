"""What is measured, as data: a method, a domain, a seed, a backbone. Tables are made of cells."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

ZERO_SHOT, CRAFT = "zero-shot", "craft"


@dataclass(frozen=True)
class Method:
    """How an LVLM was made.

    Attributes:
        name: "zero-shot", "craft", or a key of `craft.recipes.baseline.METHODS`.
        model: what is trained; of "craft" the surrogate. Empty for "zero-shot".
        settings: of the training, on top of the plan's, as pairs of dotted name and value.
        fraction: share of the codebook's codewords that remain (Table 6).
    """

    name: str = ZERO_SHOT
    model: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    fraction: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        measure: a key of `paper.measures.MEASURES`.
        domain: the data that the method was adapted to.
        seed: of training, held-out classes and questions.
        backbone: the LVLM that answers; for a baseline the one that was trained.
        method: how the LVLM was made.
        questions: the data set of the questions.
        limit: the largest number of questions; None is all.
        detail: further arguments of the measure, as text.
    """

    measure: str
    domain: str
    seed: int
    backbone: str
    method: Method
    questions: str
    limit: int | None
    detail: str = ""


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def plain(name: str) -> str:
    """The last part of a name or path, fit for a file's name."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name.rstrip("/").rpartition("/")[2])


def marks_of(result: dict[str, Any]) -> np.ndarray:
    """The answers of a cell: float64, 1 for a correct one and 0 for a wrong one."""
    return np.frombuffer(result["marks"].encode(), dtype=np.uint8).astype(np.float64) - ord("0")
