"""What `--dry-run` does: everything of a training step but the step."""

from collections.abc import Sequence
from dataclasses import dataclass

from craft.core.device import autocast, resolve_device, resolve_dtype
from craft.data import Sample
from craft.models.freezing import parameter_table
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.models.recompute import recompute
from craft.training.adaptation import adaptation
from craft.training.checks import check_gradients, freeze_report
from craft.training.config import AdaptConfig
from craft.training.order import batch_indices, micro_batches


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found out.

    Attributes:
        table: who trains and who is frozen, as text.
        parameters: the same as rows (part, parameters, trainable).
        parts: the loss and its parts on the first batch.
        memory: bytes of a step, from `craft.models.memory.estimate_memory`.
        steps, samples: of the run to come.
        tokens: of the longest sequence in the first batch, image included.
    """

    table: str
    parameters: list[tuple[str, int, int]]
    parts: dict[str, float]
    memory: dict[str, int]
    steps: int
    samples: int
    tokens: int


def rehearse_step(lvlm: LVLM, samples: Sequence[Sample], config: AdaptConfig, task: str) -> Rehearsal:
    """Build, freeze, take one batch forward and backward, check the gradients; change nothing.

    Raises:
        ConfigError, DataError, TrainingError: as training would.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    lvlm.to(device)
    lesson = adaptation(lvlm, samples, config, task)
    first = batch_indices(len(samples), config.batch_size, 0, config.seed)
    size = None if config.micro_batch == "auto" else config.micro_batch
    batch = lesson.batches.make(micro_batches(first, 0, 1, size)[0], 0)
    with autocast(device, dtype), recompute(lvlm, config.gradient_checkpointing):
        loss, parts = lesson.objective(batch)
    loss.backward()
    check_gradients(lvlm)
    for parameter in lesson.trained.values():
        parameter.grad = None
    texts = lvlm.backbone.inputs(None, batch.questions, batch.answers)["attention_mask"].shape[1]
    tokens = texts + lvlm.visual.grid[0] * lvlm.visual.grid[1]
    return Rehearsal(
        table=freeze_report(lvlm),
        parameters=parameter_table(lvlm),
        parts={name: float(value) for name, value in parts.items()},
        memory=estimate_memory(
            lvlm, len(batch.ids), tokens, dtype, gradient_checkpointing=config.gradient_checkpointing
        ),
        steps=config.steps(len(samples)),
        samples=len(samples),
        tokens=tokens,
    )
