"""Progress on standard error: a bar with the remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def say(text: str) -> None:
    """One line on standard error (standard output is kept for results)."""
    print(text, file=sys.stderr, flush=True)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` and show how far it is.

    On a terminal: a bar with the remaining time. Elsewhere: a plain line at each tenth of `total`; with an
    unknown length, only the line at the end.
    """
    if total is None:
        try:
            total = len(iterable)  # type: ignore[arg-type]
        except TypeError:
            total = None
    if sys.stderr.isatty():
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
    start = time.monotonic()
    tenth, done = 0, 0
    for done, item in enumerate(iterable, start=1):
        yield item
        if total and done < total and done * 10 // total > tenth:
            tenth = done * 10 // total
            elapsed = time.monotonic() - start
            left = elapsed / done * (total - done)
            say(f"{description}: {done}/{total}, {elapsed:.0f} s, about {left:.0f} s left")
    if done:
        say(f"{description}: {done} done in {time.monotonic() - start:.0f} s")
