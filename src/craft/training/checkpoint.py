"""Resumable training state as safetensors + JSON: weights that train, optimiser, schedule.

Order of data and random numbers are pure functions of seed and step, so they need not be saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.core.errors import CheckpointError, TrainingError
from craft.core.files import atomic_directory, read_json, remove_directory, write_json
from craft.core.tensors import load_tensors, save_tensors

VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """What `load_latest` found.

    Attributes:
        step: optimiser steps done.
        weights: the parameters that train, by name.
        optimizer: a state dict for `Optimizer.load_state_dict`.
        scheduler: a state dict for the learning-rate schedule.
        notes: further plain values that were saved.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    notes: dict[str, Any]


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    notes: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write one checkpoint below `folder`, whole or not at all, and delete all but the newest `keep`; of the
    best weights, all but those of `notes["best_step"]`."""
    moments = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer["state"].items()
        for name, value in state.items()
    }
    state = {
        "format": "craft-checkpoint",
        "version": VERSION,
        "step": step,
        "param_groups": optimizer["param_groups"],
        "scheduler": dict(scheduler),
        "notes": dict(notes),
    }
    place = folder / f"step-{step:08d}"
    with atomic_directory(place) as building:
        save_tensors(building / "model.safetensors", weights)
        save_tensors(building / "optimizer.safetensors", moments)
        write_json(building / "state.json", state)
    keep_newest(folder, keep)
    _keep_best(folder, notes.get("best_step"))
    return place


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all checkpoints below `folder` but the newest `keep`."""
    for old in sorted(folder.glob("step-*"))[:-keep]:
        remove_directory(old)


def best(folder: Path, step: int) -> Path:
    """Where the weights of `step` lie, if they are the best."""
    return folder / f"best-{step:08d}.safetensors"


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights of `step`, which are the best; version 0.1.0 wrote them under a name without the step.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    place, old = best(folder, step), folder / "best.safetensors"
    return load_tensors(old if old.is_file() and not place.is_file() else place)


def save_best(folder: Path, step: int, weights: Mapping[str, Tensor], noted: int | None) -> None:
    """Write the weights of `step` as the best. Those of step `noted`, which the newest checkpoint has for the
    best, stay: a run that is killed goes on from there."""
    save_tensors(best(folder, step), weights)
    _keep_best(folder, step, noted)


def _keep_best(folder: Path, *steps: int | None) -> None:
    kept = {best(folder, step) for step in steps if step is not None}
    for place in set(folder.glob("best-*.safetensors")) - kept:
        place.unlink()


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint below `folder`, or None.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    place = found[-1]
    state = read_json(place / "state.json")
    if state.get("format") != "craft-checkpoint" or state.get("version") != VERSION:
        raise CheckpointError(f"{place} is no checkpoint of this version; delete it to use an older one.")
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_tensors(place / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    groups = [{**group, "betas": tuple(group["betas"])} for group in state["param_groups"]]
    return Checkpoint(
        step=state["step"],
        weights=load_tensors(place / "model.safetensors"),
        optimizer={"state": moments, "param_groups": groups},
        scheduler=state["scheduler"],
        notes=state["notes"],
    )


@torch.no_grad()
def put_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Copy saved weights into parameters, in place.

    Raises:
        TrainingError: names or shapes differ: the run had another model, or trained other parts.
    """
    if {n: t.shape for n, t in parameters.items()} != {n: t.shape for n, t in weights.items()}:
        raise TrainingError(f"{where} does not fit this model; resume with the surrogate the run began with.")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
