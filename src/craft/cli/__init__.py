"""Floor 6: the command line, the only place that parses arguments and prints results.

A verb checks its flags and settings before it imports a recipe, which imports torch: help and mistakes in
flags are answered at once.
"""

from craft.cli.main import main

__all__ = ["main"]
