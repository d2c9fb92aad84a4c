"""What is measured, as data: a method, a domain, a seed, a backbone. Tables are made of cells."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

ZERO_SHOT, CRAFT = "zero-shot", "craft"


@dataclass(frozen=True)
class Method:
    """How an LVLM came to be.

    Attributes:
        name: "zero-shot", "craft", or a key of `craft.recipes.baseline.METHODS`.
        model: what trains, with "craft" the surrogate; empty for "zero-shot".
        settings: of the training, on top of the plan's, as pairs of dotted name and value.
        fraction: share of the codebook's codewords that are left (Table 6).
    """

    name: str = ZERO_SHOT
    model: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    fraction: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        measure: a key of `craft.experiments.measures.MEASURES`.
        domain: what the method was adapted to.
        seed: of training, held-out classes and questions.
        backbone: the LVLM that answers; of a baseline the one that was trained.
        method: how it came to be.
        asked: the data set of the questions.
        limit: at most so many questions; None is all.
        detail: what else the measure wants to know, as text.
    """

    measure: str
    domain: str
    seed: int
    backbone: str
    method: Method
    asked: str
    limit: int | None
    detail: str = ""


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def plain(name: str) -> str:
    """The last part of a name or path, as part of a file's name."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name.rstrip("/").rpartition("/")[2])
