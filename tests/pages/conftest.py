"""Fixtures of the command line, for pages about what it writes."""

from cli.conftest import encoder, family, pictures  # noqa: F401 (fixtures)
