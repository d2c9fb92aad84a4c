"""Mistakes collected while reading, so that a user sees several of them at once."""

import re

from craft.core.errors import DataError

SHOWN = 5
"""How many mistakes a message shows."""

MOST = 1000
"""After this many mistakes, reading stops: the remaining data will not be better."""

_LINE = re.compile(r"(?:(?<=:)|(?<=, row )|(?<=, entry ))\d+(?=: )|\(http\S+\)")
"""What differs between messages about one mistake that all lines share: the line number and a URL."""


class Problems:
    """Collects `DataError`s about things of one kind.

    Args:
        things: what the mistakes are about, in the plural ("rows").
    """

    def __init__(self, things: str) -> None:
        self.things = things
        self.messages: list[str] = []

    def add(self, error: DataError) -> None:
        """Record one.

        Raises:
            DataError: there are now too many.
        """
        self.messages.append(str(error))
        if len(self.messages) >= MOST:
            self.stop()

    def stop(self, total: int | None = None) -> None:
        """Raise what was collected; without any mistake, do nothing.

        Args:
            total: how many things there are.

        Raises:
            DataError: the only mistake as it is, or the first few of many.
        """
        if len(self.messages) == 1:
            raise DataError(self.messages[0])
        if self.messages:
            count, texts = len(self.messages), self._merged()
            of_all = f"{count} of {total}" if total is not None else f"at least {count}"
            more = f" And {count - SHOWN} more." if len(texts) > SHOWN else ""
            raise DataError(f"{of_all} {self.things} cannot be used. {' '.join(texts[:SHOWN])}{more}")

    def _merged(self) -> list[str]:
        """The messages; if all lines of one file share a mistake, only the first of them."""
        kinds = {_LINE.sub("", text) for text in self.messages}
        if len(kinds) > 1 or self.messages[0] in kinds:
            return self.messages
        return [f"{self.messages[0]} (And {len(self.messages) - 1} more {self.things} like this.)"]
