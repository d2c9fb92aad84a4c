"""Errors that a user can cause. Each message names what is wrong, where, and the fix.

Everything else that goes wrong (a broken invariant, a bug) is an ordinary Python exception: the command
line turns a `CraftError` into one paragraph and exit status 2, and anything else into status 1.
"""


class CraftError(Exception):
    """Base of every error that a user can cause and fix."""


class ConfigError(CraftError):
    """A setting is unknown, missing, of the wrong type, or contradicts another."""


class DataError(CraftError):
    """A data set, sample or image is missing, unreadable or unusable."""


class CheckpointError(CraftError):
    """A model file or folder is missing, damaged or of an unsupported format."""


class CodebookMismatchError(CraftError):
    """An encoder and a backbone were made for two different codebooks."""


class TrainingError(CraftError):
    """Training cannot start, continue or resume, for instance because a loss is not finite."""
