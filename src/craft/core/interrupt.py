"""Ctrl-C and SIGTERM as a wish that the training loop can grant at the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from craft.core.errors import TrainingError


class Interrupted(TrainingError):
    """The run was stopped by the user and can be resumed; the message says how."""


class StopWish:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Within the block the first Ctrl-C or SIGTERM is only noted; the second one acts at once.

    Outside the main thread signals cannot be caught, and nothing changes.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: FrameType | None) -> None:
        wish.asked = True
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    for number in signals:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        for number in signals:
            signal.signal(number, before[number] or signal.SIG_DFL)
