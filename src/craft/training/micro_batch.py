"""What fits into memory: the size of micro-batches, and whether layers run again in the backward pass."""

import ctypes
import math
from collections.abc import Callable
from contextlib import suppress

import torch

from craft.core import processes
from craft.core.device import free_memory
from craft.core.errors import ConfigError, TrainingError, out_of_memory
from craft.core.progress import say
from craft.models.layers import Recompute
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.training.config import AlignConfig, LoopConfig
from craft.training.engine import Engine
from craft.training.lesson import Lesson
from craft.training.run_folder import RunFolder

_MARGIN = 1.3  # the estimate of activations is good to 30 %
_ROOM = 1 / 8  # of a step's memory; later steps may need a little more than the trial did
_MMAP_THRESHOLD, _LARGE = -3, 2**18  # a setting of glibc, and bytes
_LEAST_ROOM = 2**26  # on the CPU; also the size of `ballast`


def fitting(trial: Callable[[int], object], most: int) -> int:
    """The largest of `most`, `most // 2`, … samples for which `trial` has enough memory.

    All processes try together and use the largest number that fits in all of them.

    Args:
        trial: runs one forward and backward pass with that many samples, those that need the most memory.
        most: the first number to try.

    Raises:
        TrainingError: a single sample does not fit.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    size = most
    while True:
        failed = False
        try:
            trial(size)
        except Exception as error:
            if not (out_of_memory(error) or should_reduce_batch_size(error)):
                raise
            failed = True  # memory is freed after this block, with the frames of the error
        give_back(tight=failed)
        if not processes.agree(failed):
            return size
        if size == 1:
            raise TrainingError(
                "Memory does not suffice for a single sample. gradient_checkpointing=true needs less, as do "
                "FSDP2 over several devices or a smaller surrogate; --dry-run estimates it."
            )
        say(f"micro-batches of {size} do not fit into memory; trying {size // 2}")
        size //= 2


def give_back(tight: bool = True) -> None:
    """Return freed memory to the system: torch's cache of a device, and what the C library keeps.

    The C library keeps the address space of freed blocks, which `ulimit -v` counts, up to a size that
    grows with every larger one it frees. If memory is `tight`, the size is fixed from here on, so that larger
    tensors are returned; steps take longer then.
    """
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
    with suppress(AttributeError, OSError, TypeError):  # glibc's alone
        library = ctypes.CDLL(None)
        if tight:
            library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.malloc_trim(0)


def ballast(device: torch.device) -> torch.Tensor | None:
    """Memory to free if a step does not fit on the CPU; it is never written to.

    The C library keeps the address space of freed memory for other tensors. The operations of a smaller
    micro-batch also need some outside of it, for their machine code.
    """
    return torch.empty(_LEAST_ROOM, dtype=torch.uint8) if device.type == "cpu" else None


def checkpointing(
    lvlm: LVLM, lesson: Lesson, count: int, config: LoopConfig, samples: int, dtype: torch.dtype
) -> Recompute:
    """The parts of the layers that run again in the backward pass: `gradient_checkpointing`, with "auto"
    resolved to the least recomputation with which the longest samples fit into memory.

    Args:
        lvlm: the model on its device, with `requires_grad` set for training.
        lesson: what trains.
        count: the size of the training set.
        config: all settings.
        samples: the number of samples of a step in one process.
        dtype: the dtype of activations.
    """
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing
    longest = max(range(count), key=lesson.batches.length)
    most = config.micro_batch if isinstance(config.micro_batch, int) else samples
    free = free_memory(lvlm.device)
    choice: Recompute = True
    for lighter in (False, "selective"):
        activations = _needed(lvlm, lesson, longest, config, min(most, samples), dtype, lighter)
        if not processes.agree(activations * _MARGIN > free):
            choice = lighter
            break
    name = "off" if choice is False else "on" if choice is True else choice
    say(
        f"gradient checkpointing: {name} (with {'off' if lighter is False else lighter} a step takes about "
        f"{activations / 2**20:.0f} MiB in addition to the weights, and {free / 2**20:.0f} MiB are free)"
    )
    return choice


def _needed(
    lvlm: LVLM,
    lesson: Lesson,
    longest: int,
    config: LoopConfig,
    samples: int,
    dtype: torch.dtype,
    recompute: Recompute,
) -> int:
    """The estimated bytes of a step in addition to the weights, with `samples` samples like `longest`."""
    rows, tokens, answers = lesson.batches.tokens(longest)
    needed = estimate_memory(
        lvlm,
        samples,
        rows * tokens,
        dtype,
        answers,
        gradient_checkpointing=recompute,
        search=None if isinstance(config, AlignConfig) else lesson.search,
        mixed=lesson.mixed,
    )
    return needed["total"] - needed["weights"]


def resolved(
    engine: Engine,
    lesson: Lesson,
    count: int,
    config: LoopConfig,
    run: RunFolder,
    earlier: int | None,
) -> int | None:
    """`micro_batch`, with "auto" resolved, once for all resumptions.

    A trial leaves memory free for AdamW's two moments, which the first step allocates, and for `_ROOM`.

    Args:
        engine: runs the trials.
        lesson: what trains.
        count: the size of the training set.
        config: all settings.
        run: its record has what an earlier start found, unless a checkpoint has it.
        earlier: what the checkpoint has.

    Raises:
        ConfigError: "auto" with FSDP2.
        TrainingError: a single sample does not fit into memory.
    """
    if config.micro_batch != "auto":
        return config.micro_batch
    if engine.sharded:
        raise ConfigError("micro_batch=auto is not offered with FSDP2; give a number.")
    longest = sorted(range(count), key=lesson.batches.length, reverse=True)
    whole = [longest[number % count] for number in range(config.batch_size)]
    parameters = list(lesson.trained.values())

    def trial(samples: int) -> None:
        needed = _needed(engine.model, lesson, longest[0], config, samples, engine.dtype, engine.recompute)
        least = _LEAST_ROOM if engine.device.type == "cpu" else 0
        room = torch.empty(max(least, math.ceil(_ROOM * needed)), dtype=torch.uint8, device=engine.device)
        moments = [torch.empty(2 * p.numel(), dtype=torch.float32, device=p.device) for p in parameters]
        batch = lesson.complete(lesson.batches.make(whole[:samples], 0), whole, 0)
        with engine.micro_batch(last=False):
            loss, _ = engine.loss(batch)
            engine.backward(loss)
        del room, moments

    size = earlier or run.record.get("micro_batch")
    if size is None:
        size = fitting(trial, math.ceil(config.batch_size / processes.world()))
        engine.optimizer.zero_grad(set_to_none=True)
        run.update(micro_batch=size)
    return size
