"""The training loop, one for all lessons, devices and numbers of processes. Read `fit` from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

from craft.core import processes
from craft.core.errors import ConfigError, TrainingError, out_of_memory
from craft.core.interrupt import Interrupted, stop_wish
from craft.core.progress import say, track
from craft.core.seeding import seed_everything, stable_seed
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.training import checkpoint
from craft.training.checks import check_finite, check_frozen, check_gradients, freeze_report
from craft.training.config import LoopConfig
from craft.training.engine import Engine
from craft.training.image_cache import ImageCache
from craft.training.lesson import Lesson, Share, do_nothing
from craft.training.micro_batch import ballast, checkpointing, give_back, resolved
from craft.training.order import batch_indices, micro_batches
from craft.training.run_folder import RunFolder

C = TypeVar("C", bound=LoopConfig)

AHEAD = 2
"""The number of future steps whose samples a lesson gets in advance, to decode their images."""


@dataclass(frozen=True)
class FitResult:
    """The result of training.

    Attributes:
        steps: optimiser steps of the whole run, over all resumptions.
        metrics: the last line of metrics.jsonl.
        best_step, best_validation: the step whose weights the model now has, and its score; None without
            validation.
        minutes: the time of training, over all resumptions; repeated steps count once.
        images: the image cache of the lesson, for further use of the training images.
    """

    steps: int
    metrics: dict[str, Any]
    best_step: int | None
    best_validation: float | None
    minutes: float
    images: ImageCache | None


def fit(
    lvlm: LVLM,
    samples: Sequence[Any],
    config: C,
    run: RunFolder,
    *,
    make_lesson: Callable[[LVLM, Sequence[Any], C], Lesson],
    resume: bool = False,
    validate: Callable[[LVLM], float] | None = None,
) -> FitResult:
    """Train `lvlm` in place.

    Args:
        lvlm: the model. Only what the lesson trains changes; everything else stays bit for bit the same.
        samples: the training set.
        config: all settings.
        run: an open run folder, for metrics, checkpoints and hashes.
        make_lesson: model, samples and settings -> what trains and the loss of a batch; called once the model
            is on its device.
        resume: continue from the newest checkpoint in `run`, if there is one.
        validate: LVLM -> a score, higher is better; called every `config.eval_every` steps and at the end.

    Raises:
        ConfigError: the settings contradict each other, the model or the machine.
        TrainingError: a loss is not finite (the message names the samples), or the trained weights are not;
            gradient reached frozen weights, frozen weights changed, or another process of the run failed.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.

    Source: §3.2 and §4.1.
    """
    # 1. The lesson: what trains (in float32). Everything else is frozen, and hashed to prove it.
    started = time.monotonic()
    engine = Engine(config, run.path / "trackers")
    seed_everything(config.seed)
    engine.move(lvlm)
    hashes = part_hashes(lvlm)  # before what trains becomes float32 or gets LoRA
    lesson = processes.jointly(lambda: make_lesson(lvlm, samples, config), "the start")
    count = lesson.count or len(samples)
    total = config.steps(count)
    _record_start(run, engine, lesson, hashes, resume, total)
    share = math.ceil(config.batch_size / processes.world())
    engine.recompute = checkpointing(lvlm, lesson, count, config, share, engine.dtype)
    run.update(gradient_checkpointing=engine.recompute)
    for line in freeze_report(lvlm).splitlines():
        say(line)

    # 2. The state of an interrupted run.
    state = _resumed(run, lesson, config, total, started) if resume else _State(started)

    # 3. Optimiser and schedule, for one process or several, with a whole or a sharded model.
    trainee = engine.trainee(lesson.objective)
    optimizer, schedule = _optimizer(trainee, config, total)
    engine.prepare(trainee, optimizer)
    if state.newest is not None:
        engine.restore(state.newest.optimizer)
        schedule.load_state_dict(state.newest.scheduler)
        state.newest = None  # frees its tensors
    plan = _Plan(count, total, resolved(engine, lesson, count, config, run, state.micro_batch))
    engine.start_trackers(config)

    # 4. The steps.
    loop = _Loop(lesson, config, run, engine, schedule, state, plan, validate)
    progress: Any = track(range(state.step, total), lesson.verb, total - state.step)
    with run.recording_failure(), stop_wish() as wish, closing(engine), closing(progress) as indices:
        for index in indices:
            loop.step(index)
            loop.measure(index + 1)
            loop.save_or_stop(index + 1, processes.agree(wish.requested))

    # 5. The weights of the result, and the proof that the frozen parts did not change.
    engine.collect(everything=True)
    processes.wait()
    if state.best_step is not None and state.best_step != total:
        best = checkpoint.load_best(run.checkpoints, state.best_step)
        checkpoint.put_weights(lesson.trained, best, str(run.checkpoints))
    lesson.blend()
    lesson.finish()
    for parameter in lesson.trained.values():
        parameter.requires_grad_(False).grad = None
    after = part_hashes(lvlm)
    check_frozen(hashes, after, lesson.parts)
    minutes = state.minutes()
    run.update(
        hashes_after=after,
        best_step=state.best_step,
        best_validation=state.best_score,
        training_minutes=minutes,
    )
    last = processes.on_main(lambda: (run.metrics() or [{}])[-1])
    return FitResult(total, last, state.best_step, state.best_score, minutes, lesson.images)


@dataclass
class _State:
    """The progress of a run.

    Attributes:
        started: the value of `time.monotonic` at the start of the run, less the time between resumptions.
        step: the steps done before this process started.
        best_step, best_score: of the best weights so far; None without validation.
        checkpointed_step: the best step according to the newest checkpoint.
        micro_batch: what `micro_batch=auto` had found when the newest checkpoint was written.
        newest: the checkpoint to continue from, until its tensors are loaded.
    """

    started: float
    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    checkpointed_step: int | None = None
    micro_batch: int | None = None
    newest: checkpoint.Checkpoint | None = None

    def minutes(self) -> float:
        """Minutes of training, over all resumptions."""
        return round((time.monotonic() - self.started) / 60, 3)


def _record_start(
    run: RunFolder, engine: Engine, lesson: Lesson, hashes: dict[str, str], resume: bool, total: int
) -> None:
    """Write into run.json what the run starts with; a resumed run keeps the choices in its record.

    Raises:
        ConfigError: the run to resume started with other weights.
    """
    record = run.record if resume else {}
    if record.get("hashes_before", hashes) != hashes:
        raise ConfigError("The model's weights are not those this run began with; use the same model.")
    run.update(status="running", device=str(engine.device), processes=processes.world(), steps=total)
    settled = {} if lesson.settled is None else lesson.settled.to_record()
    recorded = {name: record[name] for name in settled if name in record}
    run.update(hashes_before=hashes, **{**settled, **recorded})


def _resumed(run: RunFolder, lesson: Lesson, config: LoopConfig, total: int, started: float) -> _State:
    """The state of the newest checkpoint. Loads its weights, and deletes what the run folder has after it."""
    state = _State(started)
    newest = checkpoint.load_latest(run.checkpoints)
    if newest is not None:
        checkpoint.put_weights(lesson.trained, newest.weights, str(run.checkpoints))
        notes = newest.notes
        earlier = 60 * notes.get("minutes", 0.0)  # version 0.1.0 did not record them
        state = _State(
            started=started - earlier,
            step=newest.step,
            best_step=notes["best_step"],
            best_score=notes["best_score"],
            checkpointed_step=notes["best_step"],
            micro_batch=notes.get("micro_batch"),
            newest=newest,
        )
        say(f"resuming after step {state.step} of {total}")
    run.rewind(state.step)
    if processes.is_main():  # the run may have been killed before it deleted old checkpoints
        checkpoint.keep_newest(run.checkpoints, config.keep_checkpoints)
    return state


@dataclass(frozen=True)
class _Plan:
    """The sizes of a run.

    Attributes:
        count: samples in the training set.
        total: optimiser steps.
        micro_batch: the largest number of samples in one forward pass; None is the whole share of a process.
    """

    count: int
    total: int
    micro_batch: int | None


@dataclass
class _Loop:
    """The steps of a run. For each one call `step`, `measure` and `save_or_stop`."""

    lesson: Lesson
    config: LoopConfig
    run: RunFolder
    engine: Engine
    schedule: LRScheduler
    state: _State
    plan: _Plan
    validate: Callable[[LVLM], float] | None

    def __post_init__(self) -> None:
        self.probe_every = self.config.probe_every or max(1, self.plan.total // 20)
        self.clock, self.seen = time.monotonic(), 0
        self.ballast = ballast(self.engine.device) if self.config.micro_batch == "auto" else None
        self.line: dict[str, Any] = {}

    def step(self, index: int) -> None:
        """Take one optimiser step; `line` then has the parts of its loss."""
        config, plan = self.config, self.plan
        batch = batch_indices(plan.count, config.batch_size, index, config.seed)
        for later in range(index + 1, min(index + 1 + AHEAD, plan.total)):
            later_batch = batch_indices(plan.count, config.batch_size, later, config.seed)
            for share in micro_batches(later_batch, processes.rank(), processes.world(), plan.micro_batch):
                self.lesson.expect(share)
        parts = self._gradients(batch, index)
        if index == self.state.step:
            check_gradients(self.engine.model)
        self.engine.step()
        self.line = {"step": index + 1, **parts, "lr": self.schedule.get_last_lr()[0]}
        self.schedule.step()
        self.seen += config.batch_size

    def _gradients(self, batch: list[int], index: int) -> dict[str, float]:
        """Compute the gradients of one step; returns the parts of its loss.

        If `micro_batch=auto` found a size that no longer fits, halve it and repeat the step. In several
        processes that is not possible, since the others wait for the gradients of this one.
        """
        while True:
            size = self.plan.micro_batch
            try:
                return _backward(self.engine, self.lesson, batch, index, size, self.config.seed)
            except Exception as error:
                auto = self.config.micro_batch == "auto" and processes.world() == 1
                if not auto or size is None or size == 1 or not out_of_memory(error):
                    raise
            self._halve(size, index + 1)  # memory is freed here, with the frames of the error

    def _halve(self, size: int, step: int) -> None:
        say(f"micro-batches of {size} no longer fit into memory at step {step}; continuing with {size // 2}")
        self.engine.optimizer.zero_grad(set_to_none=True)
        self.ballast = None
        if self.lesson.images is not None:
            self.lesson.images.forget()
        give_back()
        self.plan = replace(self.plan, micro_batch=size // 2)
        self.run.update(micro_batch=size // 2)

    def measure(self, step: int) -> None:
        """Probe and validate if they are due, and write the line of metrics.jsonl."""
        every, last = self.config.eval_every, step == self.plan.total
        probing = step % self.probe_every == 0 or last
        evaluating = every is not None and (step % every == 0 or last)
        if probing or evaluating:
            self.engine.collect()
        if evaluating or last:
            check_finite(self.lesson.trained, step)
        if probing:
            self.line |= self.lesson.probe()
        if evaluating and self.validate is not None:
            self._score(step, self.validate)
        self.line["samples_per_s"] = round(self.seen / (time.monotonic() - self.clock), 2)
        self.run.log(self.line)
        self.engine.log(self.line, step)

    def _score(self, step: int, validate: Callable[[LVLM], float]) -> None:
        """Validate, and save the weights if they are the best so far."""
        state, lesson = self.state, self.lesson
        with _blended(lesson):
            score = self.line["validation"] = processes.everyone(validate(lesson.objective.lvlm))[0]
        if state.best_score is None or score > state.best_score:
            state.best_step, state.best_score = step, score
            if processes.is_main():
                checkpoint.save_best(self.run.checkpoints, step, lesson.trained, state.checkpointed_step)

    def save_or_stop(self, step: int, stopping: bool) -> None:
        """Write a checkpoint if it is due.

        Raises:
            Interrupted: the run is to stop before its last step.
        """
        config, run, state = self.config, self.run, self.state
        due = config.checkpoint_every and step % config.checkpoint_every == 0
        if due or stopping or step == self.plan.total:
            self.engine.collect()
            check_finite(self.lesson.trained, step)
            moments = self.engine.optimizer_state(), self.schedule.state_dict()
            notes = {
                "best_step": state.best_step,
                "best_score": state.best_score,
                "minutes": state.minutes(),
            }
            if config.micro_batch == "auto":
                notes["micro_batch"] = self.plan.micro_batch
            if processes.is_main():
                checkpoint.save(
                    run.checkpoints, step, self.lesson.trained, *moments, notes, config.keep_checkpoints
                )
            state.checkpointed_step = state.best_step
        if stopping and step < self.plan.total:
            processes.wait()
            run.update(status="interrupted", interrupted_at=step)
            raise Interrupted(
                f"Stopped at step {step} of {self.plan.total}; the state is in {run.checkpoints}. The same "
                "command with --resume (in Python: resume=True) continues from here; the result is that of "
                "an uninterrupted run."
            )


@contextmanager
def _blended(lesson: Lesson) -> Iterator[None]:
    """The model as it would be if training ended now, so that validation scores the weights of the result."""
    if lesson.blend is do_nothing:
        yield
        return
    weights = {name: parameter.detach().clone() for name, parameter in lesson.trained.items()}
    lesson.blend()
    try:
        yield
    finally:
        checkpoint.put_weights(lesson.trained, weights, "the state before blending")


def _backward(
    engine: Engine, lesson: Lesson, batch: list[int], index: int, size: int | None, seed: int
) -> dict[str, float]:
    """Compute the gradients of one step's batch; returns the parts of its loss, over all processes.

    Random numbers are a function of seed, step and process, so that a resumed run draws the same ones.
    """
    seed_everything(stable_seed(seed, "step", index, processes.rank()))
    engine.optimizer.zero_grad(set_to_none=True)
    shares = micro_batches(batch, processes.rank(), processes.world(), size)
    batches = _make_batches(lesson, shares, batch, index)
    parts: list[dict[str, Tensor]] = []
    for number, micro_batch in enumerate(batches, start=1):
        with engine.micro_batch(last=number == len(batches)):
            loss, micro_parts = engine.loss(micro_batch)  # lesson.objective; Eq. 5 in CraftObjective
            engine.backward(loss)
        parts.append(micro_parts)
    return _sum_parts(parts, batches, index + 1)


def _make_batches(lesson: Lesson, shares: list[list[int]], whole_batch: list[int], index: int) -> list[Any]:
    """This process's micro-batches, each with its `Share` of the whole batch and what it needs from that.

    Raises:
        TrainingError: another process cannot make its micro-batches; the message gives the reason.
    """
    whole = processes.world() == len(shares) == 1

    def make() -> tuple[list[Any], list[tuple[int, int]]]:
        batches = [lesson.batches.make(share, index) for share in shares]
        if whole:
            return batches, []
        batches = [lesson.complete(batch, whole_batch, index) for batch in batches]
        return batches, [(len(batch.ids), lesson.batches.answer_tokens(batch)) for batch in batches]

    batches, counts = processes.jointly(make, f"step {index + 1}")
    if whole:
        return batches
    sizes = torch.tensor(counts, dtype=torch.float64)
    fractions = (sizes / processes.total(sizes.sum(0))).tolist()
    return [replace(batch, share=Share(*row)) for batch, row in zip(batches, fractions, strict=True)]


def _sum_parts(parts: list[dict[str, Tensor]], batches: list[Any], step: int) -> dict[str, float]:
    """The parts of the loss of the whole batch, as numbers.

    Args:
        parts: those of each micro-batch of this process.
        batches: its micro-batches.
        step: the number of the step, from 1.

    Raises:
        TrainingError: one is NaN or infinite; the message names it and the samples of its micro-batches.
    """
    table = torch.stack([torch.stack([value.float() for value in row.values()]) for row in parts])
    values = dict(zip(parts[0], processes.total(table.sum(0)).tolist(), strict=True))
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        bad_batches = [b.ids for b, row in zip(batches, table, strict=True) if not row.isfinite().all()]
        ids = [name for listed in processes.everyone(bad_batches) for names in listed for name in names]
        raise TrainingError(
            f"At step {step} {', '.join(bad)} is not finite ({values[bad[0]]}). The batch: "
            f"{', '.join(ids)}. Use a lower optimizer.learning_rate or optimizer.max_grad_norm=1, or leave "
            "out a broken sample; the last checkpoint is intact."
        )
    return values


def _optimizer(trainee: nn.Module, config: LoopConfig, total: int) -> tuple[AdamW, LRScheduler]:
    """AdamW and the cosine schedule with warm-up (§4.1)."""
    from transformers import get_cosine_schedule_with_warmup

    settings = config.optimizer
    learning = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    optimizer = AdamW(
        learning,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=settings.fused or None,
    )
    warmup = round(settings.warmup_ratio * total)  # 0 in very short runs
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, total)
