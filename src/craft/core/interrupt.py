"""Ctrl-C: one line and status 130 at any time; Ctrl-C, SIGTERM and SIGHUP as a request to stop, which a loop
sees after each step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from craft.core.errors import TrainingError
from craft.core.streams import write_error

_HANG_UP = getattr(signal, "SIGHUP", None)  # not on Windows


class Interrupted(TrainingError):
    """The user stopped the run, which can be resumed; the message says how."""


@contextmanager
def ctrl_c(line: str) -> Iterator[None]:
    """Within the block, Ctrl-C during an import prints a line and ends the process with status 130.

    At other times it raises KeyboardInterrupt, as always. Python and C libraries may swallow that during an
    import, or turn it into another error. If Ctrl-C is ignored, as in a script's background, it stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                end_stopped(line)
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_stopped(line: str) -> NoReturn:
    """Print a line on standard error, and end the process with status 130, without any clearing up."""
    write_error(line)
    os._exit(130)


class StopWish:
    """Whether the user requested to stop.

    Attributes:
        requested: set by the first signal.
    """

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Within the block, the first Ctrl-C, SIGTERM or SIGHUP is only recorded; the second one acts at once.

    The system sends SIGHUP if a terminal or an ssh connection closes, and often twice. All but the first are
    ignored. A process that ignores SIGHUP, as under `nohup`, continues to ignore it.

    Signals can only be caught in the main thread. In other threads this has no effect.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    signals = [signal.SIGINT, signal.SIGTERM]
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) != signal.SIG_IGN:
        signals.append(_HANG_UP)
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]  # a closed one does not say that it is one
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: FrameType | None) -> None:
        wish.requested = True
        if number == _HANG_UP:
            _discard(terminals)
            signal.signal(number, signal.SIG_IGN)
        else:
            signal.signal(number, before[number] or signal.SIG_DFL)

    for number in signals:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        for number in signals:
            signal.signal(number, before[number] or signal.SIG_DFL)


def _discard(streams: list[int]) -> None:
    """Discard what is written to a terminal that has closed; each write would be an error."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in streams:
            os.dup2(null, stream)
        os.close(null)
