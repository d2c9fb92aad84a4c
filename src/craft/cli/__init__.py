"""Floor 6: the command line, the only place that parses arguments and prints results.

Verbs import recipes, and with them torch, inside their functions and after a check of flags and settings, so
that help and most mistakes are answered at once.
"""

from craft.cli.main import main

__all__ = ["main"]
