"""Errors that a user can cause. Each message names what is wrong, where, and the fix.

Everything else that goes wrong (a broken invariant, a bug) is an ordinary Python exception: the command
line turns a `CraftError` into one paragraph and exit status 2, and so does it with a lack of memory
(`out_of_memory`). Anything else becomes status 1.
"""

import errno

_NO_MEMORY = (
    "out of memory",  # CUDA, MPS, XPU
    "allocate memory",  # torch's allocator on the CPU, the system
    "not enough memory",  # the same on Windows
    "std::bad_alloc",
    "ALLOC_FAILED",  # cuBLAS
    "could not create a memory",  # oneDNN
)


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


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that caused it, says that memory does not suffice.

    Each allocator has its own class of error, and the same class for other faults, so the message decides.
    """
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if type(error).__name__ == "OutOfMemoryError" or (
            not isinstance(error, CraftError) and any(words in str(error) for words in _NO_MEMORY)
        ):
            return True
        error = error.__cause__
    return False
