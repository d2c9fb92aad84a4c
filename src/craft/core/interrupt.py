"""Ctrl-C and SIGTERM as a request to stop, for which a loop can look after each step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from craft.core.errors import TrainingError


class Interrupted(TrainingError):
    """The user stopped the run, which can be resumed; the message says how."""


class StopWish:
    """Whether the user requested to stop.

    Attributes:
        requested: set by the first signal.
    """

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Within the block, the first Ctrl-C or SIGTERM is only recorded; the second one acts at once.

    Signals can only be caught in the main thread. In other threads this has no effect.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: FrameType | None) -> None:
        wish.requested = True
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    for number in signals:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        for number in signals:
            signal.signal(number, before[number] or signal.SIG_DFL)
