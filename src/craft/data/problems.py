"""Mistakes collected while reading, so that a user sees several of them at once."""

from craft.core.errors import DataError

SHOWN = 5
"""How many mistakes a message spells out."""

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
            count = len(self.found)
            told = f"{count} of {of} {self.things}" if of is not None else f"at least {count} {self.things}"
            more = f" And {count - SHOWN} more." if count > SHOWN else ""
            raise DataError(f"{told} cannot be used. {' '.join(self.found[:SHOWN])}{more}")
