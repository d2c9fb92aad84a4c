"""Progress on standard error: a bar with the remaining time on a terminal, plain lines elsewhere.

In a distributed run only the main process prints.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from craft.core.streams import write_error
from craft.core.text import visible

T = TypeVar("T")

QUIET_S = 2.0
"""Minimum number of seconds between plain lines about a job; a shorter job has one line."""


_bars: list[Any] = []
"""The terminals that show a bar at the moment: lines go above it, and are not broken to its width."""


def say(text: str) -> None:
    """Print one line on standard error; standard output is for results."""
    if not _prints():
        return
    if _bars:
        _bars[-1].print(visible(text), soft_wrap=True, markup=False, highlight=False, emoji=False)
    else:
        write_error(visible(text))


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
    elif sys.stderr is not None and sys.stderr.isatty():
        yield from _bar(iterable, visible(description), total)
    else:
        yield from _lines(iterable, description, total)


def _bar(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    """With a bar, next to the description if there is room for both, otherwise below it."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = Console(stderr=True, highlight=False)
    figures = 2 * len(str(total or 10**9)) + len("/ 100:00:00 ")  # never cut
    room = console.width - figures - 1
    beside = cell_len(description) + 12 <= room
    bar = min(40, room - beside * cell_len(description) - 1)
    columns = [
        *([TextColumn("{task.description}", markup=False)] if beside else []),
        *([BarColumn(bar)] if bar > 0 else []),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    ]
    if not beside:
        say(description)
    with Progress(*columns, console=console) as progress:
        _bars.append(console)
        try:
            yield from progress.track(iterable, total=total, description=description)
        finally:
            _bars.remove(console)


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
