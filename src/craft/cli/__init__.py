"""Floor 6: the command line, the only place that parses arguments and prints results."""

from craft.cli.main import main

__all__ = ["main"]
