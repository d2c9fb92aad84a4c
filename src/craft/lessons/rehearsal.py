"""The dry run: everything in a training step except the step of the optimiser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from craft.core.device import autocast, resolve_device, resolve_dtype
from craft.data import Sample
from craft.lessons.packing import PackedRow, pack
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.layers import Recompute, recompute
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.training.checks import check_gradients, freeze_report
from craft.training.config import AdaptConfig, AlignConfig, LoopConfig
from craft.training.lesson import Lesson
from craft.training.micro_batch import checkpointing, fitting
from craft.training.order import batch_indices, micro_batches

C = TypeVar("C", bound=AdaptConfig)


@dataclass(frozen=True)
class Rehearsal:
    """The result of a dry run.

    Attributes:
        table: the trainable and frozen parameters of each part, as text.
        parameters: the same as rows (part, parameters, trainable).
        parts: the loss and its parts on the first batch; empty for a model without weights.
        memory: the bytes of a step, by `craft.models.memory.estimate_memory`.
        steps: the optimiser steps of the run.
        samples: the size of its training set.
        tokens: the length of the longest sequence in the first batch, including the image.
    """

    table: str
    parameters: list[tuple[str, int, int]]
    parts: dict[str, float]
    memory: dict[str, int]
    steps: int
    samples: int
    tokens: int


def rehearse_step(
    lvlm: LVLM,
    samples: Sequence[Sample],
    config: C,
    make_lesson: Callable[[LVLM, Sequence[Sample], C], Lesson],
) -> Rehearsal:
    """Run one batch of a lesson forward and backward, and check the gradients; no weight changes.

    Args:
        lvlm: the model.
        samples: the training set.
        config: all settings.
        make_lesson: as for `craft.training.fit.fit`.

    Raises:
        ConfigError, DataError, TrainingError: as in training.
    """
    without_workers = config.model_copy(update={"workers": 0})  # for one batch
    step = _one_step(lvlm, config, len(samples), lambda: make_lesson(lvlm, samples, without_workers))
    lesson = step.lesson
    sizes = [lesson.batches.tokens(index) for index in step.indices]
    memory = estimate_memory(
        lvlm,
        len(step.indices),
        max(rows * tokens for rows, tokens, _ in sizes),
        resolve_dtype(config.dtype, resolve_device(config.device)),
        max(answers for _, _, answers in sizes),
        step.recompute,
        search=lesson.search,
        mixed=lesson.mixed,
    )
    longest = max(tokens for _, tokens, _ in sizes)
    return _rehearsal(lvlm, step.parts, memory, config, lesson.count or len(samples), longest)


def rehearse_alignment(
    lvlm: LVLM,
    rows: Sequence[PackedRow],
    config: AlignConfig,
    make_lesson: Callable[[LVLM, Sequence[PackedRow], AlignConfig], Lesson],
) -> Rehearsal:
    """The same for one stage of an alignment.

    Raises:
        ConfigError, TrainingError: as in training.
    """
    step = _one_step(lvlm, config, len(rows), lambda: make_lesson(lvlm, rows, config))
    batch = step.lesson.batches.make(step.indices, 0)
    with torch.no_grad():
        labels = pack(lvlm.backbone, batch.tokens, batch.rows)["labels"]
    answers = -(-int((labels >= 0).sum()) // len(labels))
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    count, tokens = labels.shape
    memory = estimate_memory(lvlm, count, tokens, dtype, answers, step.recompute, search=None)
    return _rehearsal(lvlm, step.parts, memory, config, len(rows), tokens)


def rehearse_sizes(
    lvlm: LVLM, config: AlignConfig, stage: int, samples: int, tokens: int = 512, answers: int = 192
) -> Rehearsal:
    """The memory of one stage for a model on the meta device. It has no weights, so no step is taken.

    Args:
        lvlm: the model.
        config: all settings.
        stage: 1 or 2.
        samples: the size of the training set.
        tokens: the length of a row: by default 256 of the image, 64 of the question, 192 of the answer.
        answers: the number of its answer tokens.
    """
    freeze_all_but(lvlm, ["projector"] if stage == 1 else ["projector", "llm"])
    for parameter in lvlm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    rows = config.micro_batch if isinstance(config.micro_batch, int) else config.batch_size
    recompute_mode = config.gradient_checkpointing
    if recompute_mode == "auto":
        recompute_mode = True  # the meta device has no memory to measure
    memory = estimate_memory(lvlm, rows, tokens, torch.bfloat16, answers, recompute_mode, search=None)
    return _rehearsal(lvlm, {}, memory, config, samples, tokens)


@dataclass(frozen=True)
class _FirstStep:
    """The first micro-batch of a run.

    Attributes:
        lesson: what trains.
        indices: the samples of the micro-batch.
        parts: the loss and its parts.
        recompute: the parts of the layers that ran again in the backward pass.
    """

    lesson: Lesson
    indices: list[int]
    parts: dict[str, float]
    recompute: Recompute


def _one_step(lvlm: LVLM, config: LoopConfig, count: int, make_lesson: Callable[[], Lesson]) -> _FirstStep:
    """Run the first micro-batch forward and backward, check its gradients, and delete them."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    lvlm.to(device)
    lesson = make_lesson()
    count = lesson.count or count
    first = batch_indices(count, config.batch_size, 0, config.seed)
    recompute_mode = checkpointing(lvlm, lesson, count, config, config.batch_size, dtype)

    def run(indices: list[int]) -> dict[str, float]:
        for parameter in lesson.trained.values():
            parameter.grad = None
        batch = lesson.batches.make(indices, 0)
        if len(indices) < len(first):
            batch = lesson.complete(batch, first, 0)
        with autocast(device, dtype), recompute(lvlm, recompute_mode):
            loss, parts = lesson.objective(batch)
        loss.backward()
        return {name: float(value) for name, value in parts.items()}

    size = config.micro_batch
    if size == "auto":  # as in training: the whole batch, its half, …
        size = fitting(lambda samples: run(first[:samples]), len(first))
    indices = micro_batches(first, 0, 1, size)[0]
    parts = run(indices)
    check_gradients(lvlm)
    for parameter in lesson.trained.values():
        parameter.grad = None
    return _FirstStep(lesson, indices, parts, recompute_mode)


def _rehearsal(
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
