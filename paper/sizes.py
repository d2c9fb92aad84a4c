"""The paper's plan without its checkpoints: what there is to do, and what a step takes, from sizes alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from craft.core.files import user_path
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.models.paper_sizes import LLMS, paper_lvlm
from craft.training.config import AdaptConfig
from paper.cells import CRAFT, Cell
from paper.estimate import trainings
from paper.plan import Plan

DEVICES = 8
"""GPUs of the paper's machine: eight A100 with 40 GB (§4.5)."""

TEXT = 120
"""Tokens of a question with its options and answer, at most, for the estimate."""

_NAMES = {"vila-u-7b": "paper/llama2-7b"} | {name.removeprefix("paper/"): name for name in LLMS}


@dataclass(frozen=True)
class Step:
    """One training step of a surrogate of the paper.

    Attributes:
        model: its name in the plan.
        parameters, trained: how many there are, and how many are trained.
        micro_batch: samples per device.
        memory: bytes per device.
        logits: shape of the answers' logits.
    """

    model: str
    parameters: int
    trained: int
    micro_batch: int
    memory: int
    logits: tuple[int, ...]


def is_there(name: str) -> bool:
    """Whether a model of a plan can be loaded from disk."""
    return user_path(name).is_dir()


def rehearse(name: str, config: AdaptConfig, devices: int = DEVICES) -> Step | None:
    """A step forward and backward without values, which raises if a shape does not fit. None if the model's
    size is unknown.

    Args:
        name: of a model whose folder has the name of a size of the paper, as in `checkpoints/qwen2-0.5b`.
        config: of the training.
        devices: that share a batch.
    """
    size = _NAMES.get(Path(name).name.lower())
    if size is None:
        return None
    lvlm = paper_lvlm(size)
    freeze_all_but(lvlm, ["vision_tower", "log_temperature"])
    micro = -(-config.batch_size // devices)
    logits = _one_step(lvlm, micro)
    rows = parameter_table(lvlm)
    patches = lvlm.visual.grid[0] * lvlm.visual.grid[1]
    checkpointing = config.gradient_checkpointing
    memory = estimate_memory(
        lvlm,
        micro,
        TEXT + patches,
        torch.bfloat16,
        gradient_checkpointing=True
        if checkpointing == "auto"
        else checkpointing,  # there is no device to measure
        search=config.search,
    )
    total, trained = sum(row[1] for row in rows), sum(row[2] for row in rows)
    return Step(name, total, trained, micro, memory["total"], logits)


def _one_step(lvlm: LVLM, batch: int) -> tuple[int, ...]:
    """Forward and backward of Eq. 2 on the meta device."""
    size = lvlm.visual.image_size
    with torch.device("meta"):
        tokens = lvlm.visual(torch.empty(batch, 3, size, size))
        projected = lvlm.backbone.read(tokens)
        text = torch.empty(TEXT, dtype=torch.long)
        spliced = lvlm.backbone.splice([[projected[row], text] for row in range(batch)])
        length = spliced["inputs_embeds"].shape[1]
        spliced["attention_mask"] = torch.empty(batch, 1, length, length, dtype=torch.bool)  # has no values
        logits = lvlm.backbone.lm_head(lvlm.backbone.hidden_states(spliced)[:, -3:])
        logits.float().sum().backward()
    return tuple(logits.shape)


def counted(cells: Iterable[Cell]) -> tuple[int, int]:
    """How many different trainings and cells there are."""
    cells = set(cells)
    return len(trainings(cells)), len(cells)


def surrogates(plan: Plan, cells: Iterable[Cell]) -> list[str]:
    """The surrogates that cells need, in the plan's order."""
    used = {cell.method.model for cell in cells if cell.method.name == CRAFT}
    return [name for name in plan.surrogates if name in used]
