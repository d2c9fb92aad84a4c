"""Resumable training state as safetensors and JSON: trained weights, optimiser, schedule.

The order of samples and all random numbers are pure functions of seed and step, so they are not saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from craft.core.errors import CheckpointError, TrainingError
from craft.core.files import atomic_directory, read_json, remove_directory, write_json
from craft.core.records import Record, check_record
from craft.core.tensors import load_tensors, save_tensors

VERSION = 2


class _Group(Record):
    """What AdamW needs of its settings."""

    params: list[int]
    lr: float
    betas: list[float] = Field(min_length=2, max_length=2)
    eps: float
    weight_decay: float


class _Notes(Record):
    best_step: int | None
    best_score: float | None
    minutes: float = 0.0


class _State(Record):
    step: int = Field(ge=0)
    param_groups: list[_Group] = Field(min_length=1)
    scheduler: dict[str, Any]
    notes: _Notes


@dataclass(frozen=True)
class Checkpoint:
    """The state of training after a step.

    Attributes:
        step: the number of optimiser steps done.
        weights: the trained parameters by name.
        optimizer: a state dict for `Optimizer.load_state_dict`.
        scheduler: a state dict for the learning-rate schedule.
        notes: other plain values.
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
    """Write one checkpoint into `folder`, atomically, and return its path.

    Delete all older checkpoints except the newest `keep`, and all best weights except those of
    `notes["best_step"]`.
    """
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
    path = folder / f"step-{step:08d}"
    with atomic_directory(path) as building:
        save_tensors(building / "model.safetensors", weights)
        save_tensors(building / "optimizer.safetensors", moments)
        write_json(building / "state.json", state)
    keep_newest(folder, keep)
    _keep_best(folder, notes.get("best_step"))
    return path


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all checkpoints in `folder` except the newest `keep`."""
    for old in sorted(folder.glob("step-*"))[:-keep]:
        remove_directory(old)


def best_path(folder: Path, step: int) -> Path:
    """The path of the weights of `step`, if they are the best."""
    return folder / f"best-{step:08d}.safetensors"


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights of `step`, which are the best. (Version 0.1.0 wrote them under a name without the step.)

    Raises:
        CheckpointError: they are missing or damaged.
    """
    path, old = best_path(folder, step), folder / "best.safetensors"
    return load_tensors(old if old.is_file() and not path.is_file() else path)


def save_best(folder: Path, step: int, weights: Mapping[str, Tensor], checkpointed: int | None) -> None:
    """Write the weights of `step` as the best.

    The weights of step `checkpointed`, the best of the newest checkpoint, are not deleted: a run that is
    killed now resumes from them.
    """
    save_tensors(best_path(folder, step), weights)
    _keep_best(folder, step, checkpointed)


def _keep_best(folder: Path, *steps: int | None) -> None:
    current = {best_path(folder, step) for step in steps if step is not None}
    for path in set(folder.glob("best-*.safetensors")) - current:
        path.unlink()


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder`, or None.

    Raises:
        CheckpointError: it is damaged, or has another format.
    """
    path = max(folder.glob("step-*"), default=None)
    if path is None:
        return None
    file, fix = path / "state.json", f"delete {path} to use an older checkpoint"
    state = check_record(Record, read_json(file), file, fix)
    if state.get("format") != "craft-checkpoint" or state.get("version") != VERSION:
        raise CheckpointError(f"{path} is not a checkpoint of this version; delete it to use an older one.")
    check_record(_State, state, file, fix)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_tensors(path / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        if not index.isdecimal():
            raise CheckpointError(f"{path / 'optimizer.safetensors'} has a tensor {name!r}; {fix}.")
        moments.setdefault(int(index), {})[key] = value
    groups = [{**group, "betas": tuple(group["betas"])} for group in state["param_groups"]]
    return Checkpoint(
        step=state["step"],
        weights=load_tensors(path / "model.safetensors"),
        optimizer={"state": moments, "param_groups": groups},
        scheduler=state["scheduler"],
        notes=state["notes"],
    )


@torch.no_grad()
def put_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy saved weights into parameters, in place.

    Args:
        parameters: by name.
        weights: by the same names.
        origin: of the weights, for the message.

    Raises:
        TrainingError: names or shapes differ, because the run had another model or trained other parts.
    """
    if {n: t.shape for n, t in parameters.items()} != {n: t.shape for n, t in weights.items()}:
        raise TrainingError(
            f"{origin} does not fit this model; resume with the surrogate that the run began with."
        )
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
