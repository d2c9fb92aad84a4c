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
from craft.lessons.adapt import adaptation, resumed_settings
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
    lesson: Callable[[LVLM, Sequence[Any], C], Lesson] = adaptation,
    resume: bool = False,
    validate: Callable[[LVLM], float] | None = None,
) -> FitResult:
    """Train `lvlm` in place: its vision tower, unless `lesson` says otherwise.

    Args:
        lvlm: the model. Everything but what the lesson trains stays bit for bit as it is.
        samples: the training set.
        config: all settings.
        run: an open run folder; gets metrics, checkpoints, hashes.
        lesson: settles what trains and the loss of a batch; it is called when the model is on its device.
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
    if engine.zero and (resume or config.checkpoint_every):
        raise ConfigError("ZeRO-2 writes no checkpoints here: leave out checkpoint_every, or use FSDP2.")
    seed_everything(config.seed)
    engine.place(lvlm)
    hashes = part_hashes(lvlm)  # as it came: what trains becomes float32, or gets LoRA
    before = run.record if resume else {}
    work = processes.jointly(
        lambda: lesson(lvlm, samples, resumed_settings(lvlm, config, before)), "the start"
    )
    trained = work.trained
    if resume and run.record.get("hashes_before", hashes) != hashes:
        raise ConfigError("The model's weights are not those this run began with; give the same one.")
    count = work.count or len(samples)
    total = config.steps(count)
    share = -(-config.batch_size // processes.world())
    engine.again = checkpointing(lvlm, work, count, config, share, engine.dtype)
    say(freeze_report(lvlm))
    run.update(status="running", device=str(engine.device), processes=processes.world(), steps=total)
    settled = {name: before[name] for name in work.notes if name in before}
    run.update(hashes_before=hashes, gradient_checkpointing=engine.again, **{**work.notes, **settled})

    # 2. Where an earlier run stopped.
    start, best_step, best_score, noted = 0, None, None, None
    found = checkpoint.load_latest(run.checkpoints) if resume else None
    if found is not None:
        checkpoint.put_weights(trained, found.weights, str(run.checkpoints))
        start, best_score = found.step, found.notes["best_score"]
        best_step = noted = found.notes["best_step"]
        began -= 60 * found.notes.get("minutes", 0.0)  # as if unbroken; of old checkpoints unknown
        say(f"resuming after step {start} of {total}")
    if resume:
        run.rewind(start)
        if processes.is_main():  # killed before it deleted them
            checkpoint.keep_newest(run.checkpoints, config.keep_checkpoints)

    # 3. Optimiser and schedule; one process or many, whole or sharded.
    trainee = engine.trainee(work.objective)
    optimizer, schedule = _optimizer(trainee, config, total)
    engine.prepare(trainee, optimizer, config.batch_size // processes.world())
    if found is not None:
        engine.restore(found.optimizer)
        schedule.load_state_dict(found.scheduler)
    size = _micro_batch(engine, work, count, config, run)
    engine.start_trackers(config)
    probe_every = config.probe_every or max(1, total // 20)

    # 4. The steps.
    clock, seen = time.monotonic(), 0
    progress: Any = track(range(start, total), work.verb, total - start)
    with run.noting_failure(), stop_wish() as wish, closing(engine), closing(progress) as steps:
        for index in steps:
            step = index + 1
            batch = batch_indices(count, config.batch_size, index, config.seed)
            for later in range(step, min(step + AHEAD, total)):
                coming = batch_indices(count, config.batch_size, later, config.seed)
                for share in micro_batches(coming, processes.rank(), processes.world(), size):
                    work.ahead(share)
            parts = _step(engine, work, batch, index, size, config)
            if index == start and not engine.zero:
                check_gradients(engine.model)
            engine.step()
            line = {"step": step, **parts, "lr": schedule.get_last_lr()[0]}
            schedule.step()
            seen += config.batch_size
            probing = step % probe_every == 0 or step == total
            evaluating = config.eval_every is not None and (step % config.eval_every == 0 or step == total)
            if probing or evaluating:
                engine.collect()
            if evaluating or step == total:
                check_finite(trained, step)
            if probing:
                line |= work.probe()
            if validate is not None and evaluating:
                with _as_kept(work):
                    line["validation"] = processes.everyone(validate(lvlm))[0]
                if best_score is None or line["validation"] > best_score:
                    best_step, best_score = step, line["validation"]
                    if processes.is_main():
                        checkpoint.save_best(run.checkpoints, step, trained, noted)
            line["samples_per_s"] = round(seen / (time.monotonic() - clock), 2)
            if step % config.log_every == 0 or probing or evaluating:
                run.log(line)
                engine.log(line, step)
            stopping = processes.agree(wish.asked)
            wanted = config.checkpoint_every and step % config.checkpoint_every == 0
            if (wanted or stopping or step == total) and not engine.zero:
                engine.collect()
                check_finite(trained, step)
                state = engine.optimizer_state(), schedule.state_dict()
                notes = {"best_step": best_step, "best_score": best_score, "minutes": _minutes(began)}
                if processes.is_main():
                    checkpoint.save(run.checkpoints, step, trained, *state, notes, config.keep_checkpoints)
                noted = best_step
            if stopping and step < total:
                processes.wait()
                run.update(status="interrupted", interrupted_at=step)
                if engine.zero:
                    raise Interrupted(
                        f"Stopped at step {step} of {total}. ZeRO-2 writes no checkpoints here: --overwrite "
                        "begins again; FSDP2 can be resumed."
                    )
                raise Interrupted(
                    f"Stopped at step {step} of {total}; the state is in {run.checkpoints}. The same command "
                    "with --resume (in Python: resume=True) goes on from here; the result is that of an "
                    "unbroken run."
                )

    # 5. The weights to keep, and the proof that nothing else moved.
    engine.collect(everything=True)
    processes.wait()
    if best_step is not None and best_step != total:
        best = checkpoint.load_best(run.checkpoints, best_step)
        checkpoint.put_weights(trained, best, str(run.checkpoints))
    work.blend()
    work.finish()
    for parameter in trained.values():
        parameter.requires_grad_(False).grad = None
    after = part_hashes(lvlm)
    check_frozen(hashes, after, work.parts)
    minutes = _minutes(began)
    run.update(hashes_after=after, best_step=best_step, best_validation=best_score, training_minutes=minutes)
    last = processes.on_main(lambda: (run.metrics() or [{}])[-1])
    return FitResult(total, last, best_step, best_score, minutes, work.images)


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


def _minutes(began: float) -> float:
    """Since that moment of `time.monotonic`."""
    return round((time.monotonic() - began) / 60, 3)


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
    if engine.sharded or engine.zero:
        raise ConfigError("micro_batch=auto is not offered with FSDP2 and ZeRO-2; give a number.")
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
        eps=o.eps,
        weight_decay=o.weight_decay,
        fused=o.fused or None,
    )
    warmup = round(o.warmup_ratio * total)  # very short runs have none: their first step counts too
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, total)
