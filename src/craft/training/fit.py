"""The training loop: one for every device and number of processes. Read `fit` from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from craft.core import processes
from craft.core.errors import ConfigError, TrainingError
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
from craft.training.lesson import Lesson, Share, nothing
from craft.training.micro_batch import ballast, checkpointing, fitting
from craft.training.order import batch_indices, micro_batches
from craft.training.run_folder import RunFolder

C = TypeVar("C", bound=LoopConfig)

AHEAD = 2
"""Steps whose samples a lesson is told in advance."""


@dataclass(frozen=True)
class FitResult:
    """What training came to.

    Attributes:
        steps: optimiser steps done (all of them, over all resumptions).
        metrics: the last line of metrics.jsonl.
        best_step, best_validation: which step's tower was kept, where validation chose; else None.
        minutes: that it took, over all resumptions; steps that were lost and done again count once.
        images: the cache of an adaptation, for those who go on with the training images.
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
    lesson: Callable[[LVLM, Sequence[Any], C], Lesson],
    resume: bool = False,
    validate: Callable[[LVLM], float] | None = None,
) -> FitResult:
    """Train `lvlm` in place.

    Args:
        lvlm: the model. Everything but what the lesson trains stays bit for bit as it is.
        samples: the training set.
        config: all settings.
        run: an open run folder; it gets metrics, checkpoints, hashes.
        lesson: decides what trains and the loss of a batch; it is called when the model is on its device.
        resume: continue from the newest checkpoint in `run`, if there is one.
        validate: LVLM -> a score, the higher the better; called each `config.eval_every` steps and at the
            end.

    Raises:
        ConfigError: the settings contradict each other, the model or the machine.
        TrainingError: a loss is not finite (the samples are named), or what was learned is not; gradient went
            where it must not, frozen weights changed, or another process of the run failed.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.

    Source: §3.2 and §4.1.
    """
    # 1. What is frozen, hashed to prove it, and what trains (in float32).
    began = time.monotonic()
    engine = Engine(config, run.path / "trackers")
    seed_everything(config.seed)
    engine.place(lvlm)
    hashes = part_hashes(lvlm)  # as it came: what trains becomes float32, or gets LoRA
    work = processes.jointly(lambda: lesson(lvlm, samples, config), "the start")
    count = work.count or len(samples)
    total = config.steps(count)
    _note_start(run, engine, work, hashes, resume, total)
    engine.again = checkpointing(
        lvlm, work, count, config, -(-config.batch_size // processes.world()), engine.dtype
    )
    run.update(gradient_checkpointing=engine.again)
    say(freeze_report(lvlm))

    # 2. Where an earlier run stopped.
    state = _resumed(run, work, config, total, began) if resume else _State(began)

    # 3. Optimiser and schedule; one process or many, whole or sharded.
    trainee = engine.trainee(work.objective)
    optimizer, schedule = _optimizer(trainee, config, total)
    engine.prepare(trainee, optimizer)
    if state.resumed is not None:
        engine.restore(state.resumed.optimizer)
        schedule.load_state_dict(state.resumed.scheduler)
        state.resumed = None  # its tensors are not needed any more
    size = _micro_batch(engine, work, count, config, run)
    engine.start_trackers(config)

    # 4. The steps.
    loop = _Loop(lvlm, work, config, run, engine, schedule, state, count, total, size, validate)
    progress: Any = track(range(state.step, total), work.verb, total - state.step)
    with run.noting_failure(), stop_wish() as wish, closing(engine), closing(progress) as indices:
        for index in indices:
            loop.step(index)
            loop.measure(index + 1)
            loop.save_or_stop(index + 1, processes.agree(wish.requested))

    # 5. The weights to keep, and the proof that nothing else moved.
    engine.collect(everything=True)
    processes.wait()
    if state.best_step is not None and state.best_step != total:
        best = checkpoint.load_best(run.checkpoints, state.best_step)
        checkpoint.put_weights(work.trained, best, str(run.checkpoints))
    work.blend()
    work.finish()
    for parameter in work.trained.values():
        parameter.requires_grad_(False).grad = None
    after = part_hashes(lvlm)
    check_frozen(hashes, after, work.parts)
    minutes = state.minutes()
    run.update(
        hashes_after=after,
        best_step=state.best_step,
        best_validation=state.best_score,
        training_minutes=minutes,
    )
    last = processes.on_main(lambda: (run.metrics() or [{}])[-1])
    return FitResult(total, last, state.best_step, state.best_score, minutes, work.images)


@dataclass
class _State:
    """How far a run has come.

    Attributes:
        began: the moment of `time.monotonic` when it began, as if it had never been interrupted.
        step: steps done before this process began.
        best_step, best_score: of the best weights so far, if validation chooses.
        noted: the best step that the newest checkpoint names.
        resumed: the checkpoint to continue from.
    """

    began: float
    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    noted: int | None = None
    resumed: checkpoint.Checkpoint | None = None

    def minutes(self) -> float:
        """Minutes of training, over all resumptions."""
        return round((time.monotonic() - self.began) / 60, 3)


def _note_start(
    run: RunFolder, engine: Engine, work: Lesson, hashes: dict[str, str], resume: bool, total: int
) -> None:
    """Write into run.json what the run begins with; what a resumed run has decided stays.

    Raises:
        ConfigError: the run that is resumed began with other weights.
    """
    before = run.record if resume else {}
    if before.get("hashes_before", hashes) != hashes:
        raise ConfigError("The model's weights are not those this run began with; give the same one.")
    run.update(status="running", device=str(engine.device), processes=processes.world(), steps=total)
    settled = {} if work.settled is None else work.settled.to_record()
    kept = {name: before[name] for name in settled if name in before}
    run.update(hashes_before=hashes, **{**settled, **kept})


def _resumed(run: RunFolder, work: Lesson, config: LoopConfig, total: int, began: float) -> _State:
    """The state of the newest checkpoint, whose weights are put into the model; what came after it in the
    run folder is dropped."""
    state = _State(began)
    found = checkpoint.load_latest(run.checkpoints)
    if found is not None:
        checkpoint.put_weights(work.trained, found.weights, str(run.checkpoints))
        notes = found.notes
        earlier = 60 * notes.get("minutes", 0.0)  # old checkpoints do not say
        state = _State(
            began - earlier, found.step, notes["best_step"], notes["best_score"], notes["best_step"], found
        )
        say(f"resuming after step {state.step} of {total}")
    run.rewind(state.step)
    if processes.is_main():  # the run may have been killed before it deleted them
        checkpoint.keep_newest(run.checkpoints, config.keep_checkpoints)
    return state


@dataclass
class _Loop:
    """The steps of a run: each is taken, measured, and then saved if it is time."""

    lvlm: LVLM
    work: Lesson
    config: LoopConfig
    run: RunFolder
    engine: Engine
    schedule: Any
    state: _State
    count: int
    total: int
    size: int | None
    validate: Callable[[LVLM], float] | None

    def __post_init__(self) -> None:
        self.probe_every = self.config.probe_every or max(1, self.total // 20)
        self.clock, self.seen = time.monotonic(), 0
        self.line: dict[str, Any] = {}

    def step(self, index: int) -> None:
        """One optimiser step; `line` holds the parts of its loss."""
        config, work = self.config, self.work
        batch = batch_indices(self.count, config.batch_size, index, config.seed)
        for later in range(index + 1, min(index + 1 + AHEAD, self.total)):
            coming = batch_indices(self.count, config.batch_size, later, config.seed)
            for share in micro_batches(coming, processes.rank(), processes.world(), self.size):
                work.ahead(share)
        parts = _step(self.engine, work, batch, index, self.size, config)
        if index == self.state.step:
            check_gradients(self.engine.model)
        self.engine.step()
        self.line = {"step": index + 1, **parts, "lr": self.schedule.get_last_lr()[0]}
        self.schedule.step()
        self.seen += config.batch_size

    def measure(self, step: int) -> None:
        """Probe and validate if it is time, and write the line of metrics.jsonl."""
        every, last = self.config.eval_every, step == self.total
        probing = step % self.probe_every == 0 or last
        evaluating = every is not None and (step % every == 0 or last)
        if probing or evaluating:
            self.engine.collect()
        if evaluating or last:
            check_finite(self.work.trained, step)
        if probing:
            self.line |= self.work.probe()
        if evaluating and self.validate is not None:
            self._score(step, self.validate)
        self.line["samples_per_s"] = round(self.seen / (time.monotonic() - self.clock), 2)
        self.run.log(self.line)
        self.engine.log(self.line, step)

    def _score(self, step: int, validate: Callable[[LVLM], float]) -> None:
        """Validate, and keep the weights if none were better."""
        state = self.state
        with _as_kept(self.work):
            score = self.line["validation"] = processes.everyone(validate(self.lvlm))[0]
        if state.best_score is None or score > state.best_score:
            state.best_step, state.best_score = step, score
            if processes.is_main():
                checkpoint.save_best(self.run.checkpoints, step, self.work.trained, state.noted)

    def save_or_stop(self, step: int, stopping: bool) -> None:
        """Write a checkpoint if it is time.

        Raises:
            Interrupted: the user wants the run to stop.
        """
        config, run, state = self.config, self.run, self.state
        due = config.checkpoint_every and step % config.checkpoint_every == 0
        if due or stopping or step == self.total:
            self.engine.collect()
            check_finite(self.work.trained, step)
            moments = self.engine.optimizer_state(), self.schedule.state_dict()
            notes = {
                "best_step": state.best_step,
                "best_score": state.best_score,
                "minutes": state.minutes(),
            }
            if processes.is_main():
                checkpoint.save(
                    run.checkpoints, step, self.work.trained, *moments, notes, config.keep_checkpoints
                )
            state.noted = state.best_step
        if stopping and step < self.total:
            processes.wait()
            run.update(status="interrupted", interrupted_at=step)
            raise Interrupted(
                f"Stopped at step {step} of {self.total}; the state is in {run.checkpoints}. The same "
                "command with --resume (in Python: resume=True) goes on from here; the result is that of an "
                "unbroken run."
            )


@contextmanager
def _as_kept(work: Lesson) -> Iterator[None]:
    """The model as it would be if training ended here: what is scored is what would be kept."""
    if work.blend is nothing:
        yield
        return
    training = {name: parameter.detach().clone() for name, parameter in work.trained.items()}
    work.blend()
    try:
        yield
    finally:
        checkpoint.put_weights(work.trained, training, "what trains")


def _step(
    engine: Engine, work: Lesson, batch: list[int], index: int, size: int | None, config: LoopConfig
) -> dict[str, float]:
    """The gradients of one step's batch; returns the parts of its loss, over all processes.

    Random numbers are a function of seed, step and process, so that a resumed run draws the same ones.
    """
    seed_everything(stable_seed(config.seed, "step", index, processes.rank()))
    engine.optimizer.zero_grad(set_to_none=True)
    batches = _batches(work, micro_batches(batch, processes.rank(), processes.world(), size), index)
    found: list[dict[str, Tensor]] = []
    for number, micro in enumerate(batches, start=1):
        with engine.micro_batch(last=number == len(batches)):
            loss, parts = engine.loss(micro)
            engine.backward(loss)
        found.append(parts)
    return _summed(found, batches, index + 1)


def _batches(work: Lesson, shares: list[list[int]], index: int) -> list[Any]:
    """This process's micro-batches, each with its share of the whole batch.

    Raises:
        TrainingError: another process cannot make one of its own, for the reason that is given.
    """
    alone = processes.world() == len(shares) == 1

    def make() -> tuple[list[Any], list[tuple[int, int]]]:
        made = [work.batches.make(share, index) for share in shares]
        return made, [] if alone else [(len(micro.ids), work.batches.answer_tokens(micro)) for micro in made]

    made, counted = processes.jointly(make, f"step {index + 1}")
    if alone:
        return made
    counts = torch.tensor(counted, dtype=torch.float64)
    rows = (counts / processes.total(counts.sum(0))).tolist()
    return [replace(micro, share=Share(*row)) for micro, row in zip(made, rows, strict=True)]


def _summed(found: list[dict[str, Tensor]], batches: list[Any], step: int) -> dict[str, float]:
    """The parts of the loss of the whole batch, as numbers.

    Raises:
        TrainingError: one is NaN or infinite; it and the samples of its micro-batches are named.
    """
    table = torch.stack([torch.stack([value.float() for value in parts.values()]) for parts in found])
    values = dict(zip(found[0], processes.total(table.sum(0)).tolist(), strict=True))
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        mine = [micro.ids for micro, row in zip(batches, table, strict=True) if not row.isfinite().all()]
        ids = [name for listed in processes.everyone(mine) for names in listed for name in names]
        raise TrainingError(
            f"At step {step} {', '.join(bad)} is not finite ({values[bad[0]]}). The batch: "
            f"{', '.join(ids)}. A lower optimizer.learning_rate, optimizer.max_grad_norm=1, or leaving "
            "out a broken sample helps; the last checkpoint is intact."
        )
    return values


def _micro_batch(engine: Engine, work: Lesson, count: int, config: LoopConfig, run: RunFolder) -> int | None:
    """Most samples in one forward pass; where it is to be found out, a resumed run keeps what was found."""
    if config.micro_batch != "auto":
        return config.micro_batch
    if engine.sharded:
        raise ConfigError("micro_batch=auto is not offered with FSDP2; give a number.")
    longest = sorted(range(count), key=work.batches.length, reverse=True)

    def trial(samples: int) -> None:
        weight = ballast(list(work.trained.values()))
        micro = work.batches.make([longest[number % count] for number in range(samples)], 0)
        with engine.micro_batch(last=False):
            loss, _ = engine.loss(micro)
            engine.backward(loss)
        del weight

    known = run.record.get("micro_batch")
    if known is None:
        known = fitting(trial, -(-config.batch_size // processes.world()))
        engine.optimizer.zero_grad(set_to_none=True)
        run.update(micro_batch=known)
    return known


def _optimizer(trainee: nn.Module, config: LoopConfig, total: int) -> tuple[Any, Any]:
    """AdamW and the cosine schedule with warm-up (§4.1)."""
    from transformers import get_cosine_schedule_with_warmup

    o = config.optimizer
    learning = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learning,
        lr=o.learning_rate,
        betas=o.betas,
        weight_decay=o.weight_decay,
        fused=o.fused or None,
    )
    warmup = round(o.warmup_ratio * total)  # very short runs have none: their first step counts too
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, total)
