"""The training loop: one for every device, on accelerate. Read `fit` from top to bottom."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import ConfigError, TrainingError
from craft.core.files import load_tensors, save_tensors
from craft.core.progress import say, track
from craft.core.seeding import seed_everything
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.training import checkpoint
from craft.training.adaptation import adaptation
from craft.training.checks import check_frozen, check_gradients, freeze_report
from craft.training.config import LoopConfig
from craft.training.image_cache import ImageCache
from craft.training.interrupt import Interrupted, stop_wish
from craft.training.lesson import Batches, Lesson
from craft.training.run_folder import RunFolder

C = TypeVar("C", bound=LoopConfig)


@dataclass(frozen=True)
class FitResult:
    """What training came to.

    Attributes:
        steps: optimiser steps done (all of them, over all resumptions).
        metrics: the last line of metrics.jsonl.
        best_step, best_validation: which step's tower was kept, where validation chose; else None.
        images: the cache of an adaptation, for those who go on with the training images.
    """

    steps: int
    metrics: dict[str, Any]
    best_step: int | None
    best_validation: float | None
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
        TrainingError: a loss is not finite (the samples are named), gradient went where it must not, or
            frozen weights changed.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.

    Source: §3.2 and §4.1.
    """
    # 1. What trains (in float32) and what is frozen, hashed to prove it.
    accelerator = _accelerator(config)
    seed_everything(config.seed)
    lvlm.to(accelerator.device)
    work = lesson(lvlm, samples, config)
    trained, batches = work.trained, work.batches
    hashes = part_hashes(lvlm)
    if resume and run.record.get("hashes_before", hashes) != hashes:
        raise ConfigError("The model's weights are not those this run began with; give the same one.")
    total = config.steps(len(samples))
    say(freeze_report(lvlm))
    run.update(status="running", device=str(accelerator.device), steps=total, hashes_before=hashes)

    # 2. Optimiser, schedule.
    optimizer, schedule = _optimizer(list(trained.values()), config, total)
    objective, optimizer = accelerator.prepare(work.objective, optimizer)
    probe_every = config.probe_every or max(1, total // 20)

    # 3. Where an earlier run stopped.
    start, best_step, best_score = 0, None, None
    found = checkpoint.load_latest(run.checkpoints) if resume else None
    if found is not None:
        checkpoint.put_weights(trained, found.weights, str(run.checkpoints))
        optimizer.load_state_dict(found.optimizer)
        schedule.load_state_dict(found.scheduler)
        start, best_step, best_score = found.step, found.notes["best_step"], found.notes["best_score"]
        run.rewind(start)
        say(f"resuming after step {start} of {total}")

    def save_checkpoint(step: int) -> None:
        if accelerator.is_main_process:
            notes = {"best_step": best_step, "best_score": best_score}
            plain = optimizer.state_dict(), schedule.state_dict()
            checkpoint.save(run.checkpoints, step, trained, *plain, extra={}, notes=notes)

    # 4. The steps.
    clock, seen = time.monotonic(), 0
    progress: Any = track(range(start, total), work.verb, total - start)
    with stop_wish() as wish, closing(progress) as steps:
        for index in steps:
            step = index + 1
            parts = _step(accelerator, objective, optimizer, batches, index, config, first=index == start)
            rate = schedule.get_last_lr()[0]
            schedule.step()
            seen += config.batch_size
            line = {"step": step, **parts, "lr": rate}
            probing = step % probe_every == 0 or step == total
            evaluating = config.eval_every is not None and (step % config.eval_every == 0 or step == total)
            if probing:
                line |= work.probe()
            if validate is not None and evaluating:
                line["validation"] = validate(lvlm)
                if best_score is None or line["validation"] > best_score:
                    best_step, best_score = step, line["validation"]
                    if accelerator.is_main_process:
                        save_tensors(run.checkpoints / "best.safetensors", trained)
            line["samples_per_s"] = round(seen / (time.monotonic() - clock), 2)
            if accelerator.is_main_process and (step % config.log_every == 0 or probing or evaluating):
                run.log(line)
            wanted = config.checkpoint_every and step % config.checkpoint_every == 0
            if wanted or wish.asked or step == total:
                save_checkpoint(step)
            if wish.asked and step < total:
                run.update(status="interrupted", interrupted_at=step)
                raise Interrupted(
                    f"Stopped at step {step} of {total}; the state is in {run.checkpoints}. The same command "
                    "with --resume (in Python: resume=True) goes on from here; the result is that of an "
                    "unbroken run."
                )

    # 5. The weights to keep, and the proof that nothing else moved.
    if best_step is not None and best_step != total:
        best = load_tensors(run.checkpoints / "best.safetensors")
        checkpoint.put_weights(trained, best, "best.safetensors")
    work.finish()
    for parameter in trained.values():
        parameter.requires_grad_(False).grad = None
    after = part_hashes(lvlm)
    check_frozen(hashes, after, work.parts)
    minutes = round((time.monotonic() - clock) / 60, 3)
    run.update(hashes_after=after, best_step=best_step, best_validation=best_score, training_minutes=minutes)
    lines = run.metrics()
    return FitResult(total, lines[-1] if lines else {}, best_step, best_score, work.images)


def _step(
    accelerator: Any,
    objective: nn.Module,
    optimizer: Any,
    batches: Batches,
    index: int,
    config: LoopConfig,
    first: bool,
) -> dict[str, float]:
    """One optimiser step; returns the parts of the loss, averaged over micro-batches."""
    sums: dict[str, float] = {}
    optimizer.zero_grad(set_to_none=True)
    shares = batches.indices(index, accelerator.process_index, accelerator.num_processes)
    for number, share in enumerate(shares):
        batch = batches.make(share, index)
        last = number == len(shares) - 1
        with nullcontext() if last else accelerator.no_sync(objective):  # gradients are shared once per step
            loss, parts = objective(batch)
            values = _finite(parts, batch, index + 1)
            accelerator.backward(loss / len(shares))
        sums = {name: sums.get(name, 0.0) + value / len(shares) for name, value in values.items()}
    if first:
        check_gradients(_lvlm(objective))
    if config.optimizer.max_grad_norm is not None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        accelerator.clip_grad_norm_(trained, config.optimizer.max_grad_norm)
    optimizer.step()
    return sums


def _finite(parts: dict[str, Tensor], batch: Any, step: int) -> dict[str, float]:
    """The parts of the loss as numbers.

    Raises:
        TrainingError: one is NaN or infinite; it and the batch's samples are named.
    """
    numbers = torch.stack([value.float() for value in parts.values()]).tolist()
    values = dict(zip(parts, numbers, strict=True))
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"At step {step} {', '.join(bad)} is not finite ({values[bad[0]]}). The batch: "
            f"{', '.join(batch.ids)}. A lower optimizer.learning_rate, optimizer.max_grad_norm=1, or leaving "
            "out a broken sample helps; the last checkpoint is intact."
        )
    return values


def _lvlm(objective: nn.Module) -> LVLM:
    inner: Any = getattr(objective, "module", objective)
    return inner.lvlm


def _accelerator(config: LoopConfig) -> Any:
    """Accelerate, on the device and in the mixed precision that the config names."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    if not PartialState._shared_state or PartialState().num_processes == 1:
        AcceleratorState._reset_state(True)  # an earlier run in this process may have had another device
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def _optimizer(parameters: list[nn.Parameter], config: LoopConfig, total: int) -> tuple[Any, Any]:
    """AdamW and the cosine schedule with warm-up (§4.1)."""
    from transformers import get_cosine_schedule_with_warmup

    o = config.optimizer
    optimizer = torch.optim.AdamW(
        parameters, lr=o.learning_rate, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay
    )
    warmup = round(o.warmup_ratio * total)  # very short runs have none: their first step counts too
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, total)
