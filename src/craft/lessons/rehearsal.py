"""What `--dry-run` does: everything of a training step but the step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from craft.core.device import autocast, resolve_device, resolve_dtype
from craft.data import Sample
from craft.lessons.packing import Row, pack
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.models.recompute import Recompute, recompute
from craft.training.checks import check_gradients, freeze_report
from craft.training.config import AdaptConfig, AlignConfig, LoopConfig
from craft.training.lesson import Lesson
from craft.training.micro_batch import checkpointing, fitting
from craft.training.order import batch_indices, micro_batches

C = TypeVar("C", bound=AdaptConfig)


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found out.

    Attributes:
        table: who trains and who is frozen, as text.
        parameters: the same as rows (part, parameters, trainable).
        parts: the loss and its parts on the first batch; empty where there are sizes without values.
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


def rehearse_step(
    lvlm: LVLM, samples: Sequence[Sample], config: C, lesson: Callable[[LVLM, Sequence[Sample], C], Lesson]
) -> Rehearsal:
    """Build, freeze, take one batch of `lesson` forward and backward, check the gradients; change and write
    nothing.

    Raises:
        ConfigError, DataError, TrainingError: as training would.
    """
    bare = config.model_copy(update={"workers": 0})  # one batch, decoded here
    work, indices, parts, again = _one_step(lvlm, config, len(samples), lambda: lesson(lvlm, samples, bare))
    sizes = [work.batches.tokens(index) for index in indices]
    taken, answers = max(rows * tokens for rows, tokens, _ in sizes), max(size[2] for size in sizes)
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    count = len(indices)
    memory = estimate_memory(lvlm, count, taken, dtype, answers, again, search=work.search, mixed=work.mixed)
    longest = max(tokens for _, tokens, _ in sizes)
    return _told(lvlm, parts, memory, config, work.count or len(samples), longest)


def rehearse_alignment(
    lvlm: LVLM,
    rows: Sequence[Row],
    config: AlignConfig,
    lesson: Callable[[LVLM, Sequence[Row], AlignConfig], Lesson],
) -> Rehearsal:
    """The same for one stage of an alignment, which `lesson` makes.

    Raises:
        ConfigError, TrainingError: as training would.
    """
    work, indices, parts, again = _one_step(lvlm, config, len(rows), lambda: lesson(lvlm, rows, config))
    batch = work.batches.make(indices, 0)
    with torch.no_grad():
        labels = pack(lvlm.backbone, batch.tokens, batch.rows)["labels"]
    answers = -(-int((labels >= 0).sum()) // len(labels))
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    count, tokens = labels.shape
    memory = estimate_memory(lvlm, count, tokens, dtype, answers, again, search=None)
    return _told(lvlm, parts, memory, config, len(rows), tokens)


def rehearse_sizes(
    lvlm: LVLM, config: AlignConfig, stage: int, samples: int, tokens: int = 512, answers: int = 192
) -> Rehearsal:
    """The memory of one stage for a model on the meta device: sizes without values, so no step is taken.

    Args:
        samples: of the training set.
        tokens, answers: of one row; by default 256 of the image, 64 of the question, 192 of the answer.
    """
    freeze_all_but(lvlm, ["projector"] if stage == 1 else ["projector", "llm"])
    for parameter in lvlm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    rows = config.micro_batch if isinstance(config.micro_batch, int) else config.batch_size
    again = config.gradient_checkpointing
    again = True if again == "auto" else again  # there is no device to measure
    memory = estimate_memory(lvlm, rows, tokens, torch.bfloat16, answers, again, search=None)
    return _told(lvlm, {}, memory, config, samples, tokens)


def _one_step(
    lvlm: LVLM, config: LoopConfig, count: int, lesson: Callable[[], Lesson]
) -> tuple[Lesson, list[int], dict[str, float], Recompute]:
    """What trains, the samples of the first batch, the parts of its loss, and what of its layers ran again;
    gradients are checked and dropped."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    lvlm.to(device)
    work = lesson()
    count = work.count or count
    first = batch_indices(count, config.batch_size, 0, config.seed)
    again = checkpointing(lvlm, work, count, config, config.batch_size, dtype)

    def parts_of(indices: list[int]) -> dict[str, float]:
        for parameter in work.trained.values():
            parameter.grad = None
        with autocast(device, dtype), recompute(lvlm, again):
            loss, parts = work.objective(work.batches.make(indices, 0))
        loss.backward()
        return {name: float(value) for name, value in parts.items()}

    size = config.micro_batch
    if size == "auto":  # as in training: the whole batch, its half, …
        size = fitting(lambda samples: parts_of(first[:samples]), len(first))
    indices = micro_batches(first, 0, 1, size)[0]
    parts = parts_of(indices)
    check_gradients(lvlm)
    for parameter in work.trained.values():
        parameter.grad = None
    return work, indices, parts, again


def _told(
    lvlm: LVLM,
    parts: dict[str, float],
    memory: dict[str, int],
    config: LoopConfig,
    samples: int,
    tokens: int,
) -> Rehearsal:
    return Rehearsal(
        table=freeze_report(lvlm),
        parameters=parameter_table(lvlm),
        parts=parts,
        memory=memory,
        steps=config.steps(samples),
        samples=samples,
        tokens=tokens,
    )
