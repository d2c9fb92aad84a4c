"""The processes of one distributed run. With a single process all functions are the identity.

`accelerate launch` or `torchrun` starts them; `craft.training.engine` joins them. `follow_parent` is
for processes that a run starts itself, to decode images.
"""

import multiprocessing
import os
import signal
import sys
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
    """Another process of the run has ended; its message says why."""


def world() -> int:
    """Number of processes of the run."""
    return together.get_world_size() if together.is_available() and together.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return together.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


@contextmanager
def peers_needed() -> Iterator[None]:
    """In a block that communicates, replace the transport's error by `ProcessLost` if a process has ended.

    Raises:
        ProcessLost: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and any(word in str(error) for word in ("gloo", "NCCL", "Connection closed")):
            raise ProcessLost(
                f"Process {rank()} of {world()} stops because another one has ended, whose message has the "
                "reason. The last checkpoint is intact; --resume continues from it."
            ) from error
        raise


def wait() -> None:
    """Wait for all processes."""
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


def leave() -> None:
    """Leave the group of processes at the end of the run. Only the main process returns; the others exit."""
    number = rank()
    if together.is_available() and together.is_initialized():
        together.destroy_process_group()
    if number != 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # gloo's threads may abort the usual way out of the interpreter


def agree(vote: bool) -> bool:
    """Whether `vote` is True in any process; the result is the same in all."""
    return bool(total(torch.tensor(float(vote)))) if world() > 1 else vote


class _FailedElsewhere(Exception):
    """Ends the `work` of `jointly` in this process, because it failed in another one."""


_joint = False  # whether this process is inside `jointly`


def jointly(work: Callable[[], T], doing: str) -> T:
    """Run `work` in every process; if it fails in one, it fails in all.

    `work` may communicate only by `on_main`, which first checks whether another process has failed. Any other
    exchange would wait for a process that has left `work`.

    Raises:
        Exception: the error of `work` in this process.
        TrainingError: it failed in another process; the message has the reason.
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
        listed = "; ".join(f"process {number}: {reason}" for number, reason in enumerate(reasons) if reason)
        raise TrainingError(f"Another process failed at {doing}, so this one stops. {listed}")
    return result  # type: ignore[return-value]


def on_main(work: Callable[[], T]) -> T:
    """Run `work` in the main process only; all processes get its result (a small plain object) or its error.

    Within `jointly`, it ends in all processes if one of them has failed before.
    """
    if world() == 1:
        return work()
    if _joint and agree(False):
        raise _FailedElsewhere
    outcome: list[Any] = [None, None]  # result and error
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    with peers_needed():
        together.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


def total(values: Tensor) -> Tensor:
    """The sum over all processes of tensors of equal shape, without gradient."""
    if world() == 1:
        return values
    summed = values.detach().to(_device(), copy=True)
    with peers_needed():
        together.all_reduce(summed)
    return summed.to(values.device)


def _device() -> torch.device:
    """The device from which tensors are sent."""
    cuda = "nccl" in str(together.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def follow_parent(ctrl_c: bool = True) -> None:
    """In a child process, arrange to receive SIGTERM when the parent has ended, even by `kill -9`.

    Otherwise it would wait for work forever, or write the same files as the command when it runs again.

    Args:
        ctrl_c: whether Ctrl-C, which a terminal sends to all processes, ends this one.
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
