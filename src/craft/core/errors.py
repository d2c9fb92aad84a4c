"""Errors that a user can cause. Each message names what is wrong, where, and the fix.

Everything else that goes wrong (a broken invariant, a bug) is an ordinary Python exception: the command
line turns a `CraftError` into one paragraph and exit status 2, and so does it with a lack of memory
(`out_of_memory`). Anything else becomes status 1.
"""

import errno
import re

_NO_MEMORY = re.compile(
    r"out of memory"  # CUDA, MPS, XPU
    r"|allocate memory"  # torch's allocator on the CPU, the system
    r"|not enough memory"  # the same on Windows
    r"|std::bad_alloc"
    r"|ALLOC_FAILED"  # cuBLAS
    r"|could not create a (memory|primitive(?! desc))"  # oneDNN
    r"|failed to map segment"  # a library, while it is imported
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
        says_so = not isinstance(error, CraftError) and _NO_MEMORY.search(str(error))
        if says_so or type(error).__name__ == "OutOfMemoryError":
            return True
        error = error.__cause__
    return False
