"""Mistakes collected while reading, so that a user sees several of them at once."""

import re

from craft.core.errors import DataError

SHOWN = 5
"""How many mistakes a message spells out."""

_LINE = re.compile(r"(?:(?<=:)|(?<=, row )|(?<=, entry ))\d+(?=: )|\(http\S+\)")
"""What differs where all lines share a mistake: the line's number, and the URL that stands in it."""

MOST = 1000
"""So many mistakes end the reading: the rest will not be better."""


class Problems:
    """Collects `DataError`s about things of one kind.

    Args:
        things: what they are about, in the plural ("rows").
    """

    def __init__(self, things: str) -> None:
        self.things = things
        self.found: list[str] = []

    def add(self, error: DataError) -> None:
        """Keep one.

        Raises:
            DataError: there are too many by now.
        """
        self.found.append(str(error))
        if len(self.found) >= MOST:
            self.stop()

    def stop(self, of: int | None = None) -> None:
        """Go on if nothing was found.

        Args:
            of: how many things there are.

        Raises:
            DataError: one mistake as it is, or the first few of many.
        """
        if len(self.found) == 1:
            raise DataError(self.found[0])
        if self.found:
            count, texts = len(self.found), self._alike()
            told = f"{count} of {of} {self.things}" if of is not None else f"at least {count} {self.things}"
            more = f" And {count - SHOWN} more." if len(texts) > SHOWN else ""
            raise DataError(f"{told} cannot be used. {' '.join(texts[:SHOWN])}{more}")

    def _alike(self) -> list[str]:
        """What was found; a mistake that all lines of one file share stands there once."""
        kinds = {_LINE.sub("", text) for text in self.found}
        if len(kinds) > 1 or self.found[0] in kinds:
            return self.found
        return [f"{self.found[0]} (And {len(self.found) - 1} more {self.things} alike.)"]
