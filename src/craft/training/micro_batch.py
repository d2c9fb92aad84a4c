"""How many samples fit into memory at once (`micro_batch=auto`)."""

from collections.abc import Callable

import torch

from craft.core.errors import TrainingError
from craft.core.processes import agree
from craft.core.progress import say


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


def ballast(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """As much memory as AdamW will take for its two moments, which it makes in its first step only."""
    return [torch.empty(2 * p.numel(), dtype=torch.float32, device=p.device) for p in parameters]
