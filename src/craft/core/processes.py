"""The processes of one distributed run. With a single process everything here is the identity.

`accelerate launch` or `torchrun` starts them; `craft.training.engine` joins them. At the end of this file:
processes that a run starts itself, to decode pictures or to measure side by side.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as together
from torch import Tensor

from craft.core.errors import TrainingError

T = TypeVar("T")


class ProcessLost(TrainingError):
    """Another process of the run has gone; its own message says why."""


def world() -> int:
    """How many processes the run has."""
    return together.get_world_size() if together.is_available() and together.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return together.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


@contextmanager
def peers_needed() -> Iterator[None]:
    """For a block that communicates: when a peer has gone, a `ProcessLost` instead of the transport's words.

    Raises:
        ProcessLost: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and any(word in str(error) for word in ("gloo", "NCCL", "Connection closed")):
            raise ProcessLost(
                f"Process {rank()} of {world()} stops because another one has gone; that one's own message "
                "has the reason. The last checkpoint is intact: --resume goes on from there."
            ) from error
        raise


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        with peers_needed():
            together.barrier()


def everyone(value: T) -> list[T]:
    """The values (small plain objects) of all processes, in order."""
    values: list[Any] = [value] * world()
    if world() > 1:
        with peers_needed():
            together.all_gather_object(values, value)
    return values


def leave() -> int:
    """Part from the other processes, when all is done; returns what this one's number was."""
    number = rank()
    if together.is_available() and together.is_initialized():
        together.destroy_process_group()
    return number


def agree(wish: bool) -> bool:
    """Whether any process wants something; all hear the same answer."""
    return bool(total(torch.tensor(float(wish)))) if world() > 1 else wish


class _FailedElsewhere(Exception):
    """Ends `work` of `jointly` here: all have agreed that it failed in another process."""


_joint = False  # whether this process is within `jointly`


def jointly(work: Callable[[], T], doing: str) -> T:
    """Do `work` in every process; where it fails in one, it fails in all.

    `work` speaks to other processes by `on_main` alone, which asks first whether one has failed already; any
    other exchange would wait for a process that has left `work`.

    Raises:
        Exception: what `work` raised here.
        TrainingError: it failed in another process; the reason is given.
    """
    global _joint
    if world() == 1:
        return work()
    result, failure, failed = None, None, False
    _joint = True
    try:
        result = work()
    except _FailedElsewhere:
        failed = True
    except Exception as error:
        failure = error
    finally:
        _joint = False
    if failed or agree(failure is not None):
        reasons = everyone(None if failure is None else str(failure) or repr(failure))
        if failure is not None:
            raise failure
        told = "; ".join(f"process {number}: {reason}" for number, reason in enumerate(reasons) if reason)
        raise TrainingError(f"Another process failed at {doing}, so this one stops. {told}")
    return result  # type: ignore[return-value]


def on_main(work: Callable[[], T]) -> T:
    """Do `work` in the main process alone; all get its result (a small plain object), or its error.

    Within `jointly` it ends in all processes where one of them has failed before it came here.
    """
    if world() == 1:
        return work()
    if _joint and agree(False):
        raise _FailedElsewhere
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = work()
        except Exception as error:
            told[1] = error
    with peers_needed():
        together.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def total(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor of one shape, without gradient."""
    if world() == 1:
        return values
    summed = values.detach().to(_device(), copy=True)
    with peers_needed():
        together.all_reduce(summed)
    return summed.to(values.device)


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, one process after the other: `[n_i, ...]` -> `[Σ n_i, ...]`, with gradient.

    Every process may have a number of rows of its own. The gradient of a row is the sum of what the losses
    of all processes ask of it.
    """
    return rows if world() == 1 else _Gather.apply(rows, everyone(rows.shape[0]))  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.mine = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # all_gather takes equal shapes only
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        with peers_needed():
            together.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return total(gradients[0])[ctx.mine], None


def _device() -> torch.device:
    """Where tensors must lie to be sent."""
    cuda = "nccl" in str(together.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def follow_parent(ctrl_c: bool = True) -> None:
    """In a process that another one started: get SIGTERM when that one has gone, even by `kill -9`. Left
    alone it would wait for work for ever, or write files that the same command, given again, writes too.

    Args:
        ctrl_c: whether Ctrl-C, which a terminal sends to all of them, ends this one.
    """
    if not ctrl_c:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def orphaned() -> bool:
    """Whether the process that started this one has gone."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
