"""What fits into memory: the size of micro-batches, and whether layers run again in the backward pass."""

from collections.abc import Callable

import torch

from craft.core.device import free_memory
from craft.core.errors import TrainingError
from craft.core.processes import agree
from craft.core.progress import say
from craft.models.layers import Recompute
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.training.config import AlignConfig, LoopConfig
from craft.training.lesson import Lesson

_MARGIN = 1.3  # the estimate of activations is good to 30 %


def fitting(trial: Callable[[int], object], most: int) -> int:
    """The largest of `most`, `most // 2`, … samples for which `trial` has enough memory.

    All processes try together and use the largest number that fits in all of them.

    Args:
        trial: runs one forward and backward pass with that many samples, those that need the most memory.
        most: the first number to try.

    Raises:
        TrainingError: a single sample does not fit.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    size = most
    while True:
        failed = False
        try:
            trial(size)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            failed = True  # memory is freed after this block, with the frames of the error
        clear_device_cache(garbage_collection=True)
        if not agree(failed):
            return size
        if size == 1:
            raise TrainingError(
                "Memory does not suffice for a single sample. gradient_checkpointing=true needs less, as do "
                "FSDP2 over several devices or a smaller surrogate; --dry-run estimates it."
            )
        say(f"micro-batches of {size} do not fit into memory; trying {size // 2}")
        size //= 2


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
    rows, tokens, answers = lesson.batches.tokens(longest)
    most = config.micro_batch if isinstance(config.micro_batch, int) else samples
    free = free_memory(lvlm.device)
    choice: Recompute = True
    for lighter in (False, "selective"):
        needed = estimate_memory(
            lvlm,
            min(most, samples),
            rows * tokens,
            dtype,
            answers,
            gradient_checkpointing=lighter,
            search=None if isinstance(config, AlignConfig) else lesson.search,
            mixed=lesson.mixed,
        )
        activations = needed["total"] - needed["weights"]
        if not agree(activations * _MARGIN > free):
            choice = lighter
            break
    name = "off" if choice is False else "on" if choice is True else choice
    say(
        f"gradient checkpointing: {name} (with {'off' if lighter is False else lighter} a step takes about "
        f"{activations / 2**20:.0f} MiB in addition to the weights, and {free / 2**20:.0f} MiB are free)"
    )
    return choice


def moments_placeholder(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """As much memory as the two moments of AdamW, which it allocates only in its first step."""
    return [torch.empty(2 * p.numel(), dtype=torch.float32, device=p.device) for p in parameters]
