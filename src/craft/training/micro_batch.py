"""What fits into memory: how many samples at once (`micro_batch=auto`), and what of a layer runs twice."""

from collections.abc import Callable

import torch

from craft.core.device import free_memory
from craft.core.errors import TrainingError
from craft.core.processes import agree
from craft.core.progress import say
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.models.recompute import Recompute
from craft.training.config import AlignConfig, LoopConfig
from craft.training.lesson import Lesson

_MARGIN = 1.3  # the estimate of activations is good to 30 %


def fitting(trial: Callable[[int], object], most: int) -> int:
    """The largest of `most`, its half, its quarter, … samples with which `trial` finds enough memory.

    All processes try together and take the smallest that all can.

    Args:
        trial: one forward and backward pass with so many samples, those that need the most memory.
        most: where to begin.

    Raises:
        TrainingError: a single sample is too much.
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
            failed = True  # the memory is freed behind this block, with the error's frames
        clear_device_cache(garbage_collection=True)
        if not agree(failed):
            return size
        if size == 1:
            raise TrainingError(
                "Memory does not suffice for a single sample. gradient_checkpointing=true needs less, and so "
                "do FSDP2 over several devices or a smaller surrogate; --dry-run estimates it."
            )
        say(f"micro-batches of {size} do not fit into memory; trying {size // 2}")
        size //= 2


def checkpointing(
    lvlm: LVLM, work: Lesson, count: int, config: LoopConfig, samples: int, dtype: torch.dtype
) -> Recompute:
    """What `gradient_checkpointing` comes to; "auto": the least with which the longest samples would fit.

    Args:
        lvlm: the model, on its device, with `requires_grad` set as it trains.
        work: what trains.
        count: size of the training set.
        config: the settings.
        samples: in one process's share of a step.
        dtype: of activations.
    """
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing
    longest = max(range(count), key=work.batches.length)
    rows, tokens, answers = work.batches.tokens(longest)
    most = config.micro_batch if isinstance(config.micro_batch, int) else samples
    free = free_memory(lvlm.device)
    again: Recompute = True
    for lighter in (False, "selective"):
        needed = estimate_memory(
            lvlm,
            min(most, samples),
            rows * tokens,
            dtype,
            answers,
            gradient_checkpointing=lighter,
            search=None if isinstance(config, AlignConfig) else work.search,
            mixed=work.mixed,
        )
        more = needed["total"] - needed["weights"]
        if not agree(more * _MARGIN > free):
            again = lighter
            break
    told = "off" if again is False else "on" if again is True else again
    say(
        f"gradient checkpointing: {told} (with {'off' if lighter is False else lighter} a step takes about "
        f"{more / 2**20:.0f} MiB beside the weights, and {free / 2**20:.0f} MiB are free)"
    )
    return again


def ballast(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """As much memory as AdamW will take for its two moments, which it makes in its first step only."""
    return [torch.empty(2 * p.numel(), dtype=torch.float32, device=p.device) for p in parameters]
