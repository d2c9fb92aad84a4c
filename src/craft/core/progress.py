"""Progress on standard error: a bar with the remaining time on a terminal, plain lines elsewhere.

In a distributed run only the main process prints.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

QUIET_S = 2.0
"""Minimum number of seconds between plain lines about a job; a shorter job has one line."""


def say(text: str) -> None:
    """Print one line on standard error; standard output is for results."""
    if _prints():
        print(text, file=sys.stderr, flush=True)


def _prints() -> bool:
    """Whether this is the main process. Before `processes` is imported, there are no others."""
    processes = sys.modules.get("craft.core.processes")
    return processes is None or processes.is_main()


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` and show progress.

    On a terminal: a bar with the remaining time. Elsewhere: a plain line at each tenth of `total`, unless the
    previous line is less than `QUIET_S` old, and one at the end. If the length is unknown, only the last one.
    """
    if total is None:
        try:
            total = len(iterable)  # type: ignore[arg-type]
        except TypeError:
            total = None
    if not _prints():
        yield from iterable
    elif sys.stderr.isatty():
        yield from _bar(iterable, description, total)
    else:
        yield from _lines(iterable, description, total)


def _bar(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(iterable, total=total, description=description)


def _lines(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    start = printed = time.monotonic()
    tenth, done = 0, 0
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if total and done < total and done * 10 // total > tenth and now - printed >= QUIET_S:
            tenth, printed, elapsed = done * 10 // total, now, now - start
            remaining = elapsed / done * (total - done)
            say(f"{description}: {done}/{total}, {elapsed:.0f} s, about {remaining:.0f} s left")
    if done:
        say(f"{description}: {done} done in {time.monotonic() - start:.0f} s")
