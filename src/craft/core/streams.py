"""Standard output and error: any encoding, closed streams, readers that have read enough."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from craft.core.text import visible

_NAMES = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class OutputLost(Exception):
    """Standard output cannot be written; its cause is the error of the system."""


def prepare_streams() -> None:
    """Make the standard streams of this process safe to use; doing it again changes nothing.

    A stream that was closed (`>&-`) becomes one that leads nowhere: otherwise the next file that is opened
    would get its number, and with it what C libraries print. Characters that the encoding of a stream does
    not have are written as backslash escapes.
    """
    for name, mode in _NAMES:
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (stays open)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
        elif mode == "w" and getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            with suppress(AttributeError, ValueError):  # not a stream of the system
                stream.reconfigure(errors="backslashreplace")


def printable(text: object, keep: str = "") -> str:
    """`visible` text as standard output will have it: what its encoding lacks is an escape already."""
    shown, encoding = visible(text, keep), getattr(sys.stdout, "encoding", None)
    return shown.encode(encoding, "backslashreplace").decode(encoding) if encoding else shown


def write(text: str) -> None:
    """Write text on standard output.

    Raises:
        OutputLost: that is impossible, for instance because the reader has gone.
    """
    with _output():
        sys.stdout.write(text)


def flush() -> None:
    """Write what standard output still holds.

    Raises:
        OutputLost: that is impossible.
    """
    with _output():
        sys.stdout.flush()


@contextmanager
def _output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        discard(sys.stdout)
        raise OutputLost(error.strerror or str(error)) from error


def write_error(text: str) -> None:
    """Write lines on standard error. If nobody reads them (any more), they are dropped: work goes on."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send what a stream holds, and all that follows, nowhere; Python could not end cleanly otherwise."""
    with suppress(OSError, ValueError):  # not a stream of the system
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def visible_messages() -> Iterator[None]:
    """Within the block, warnings and log lines of all libraries are `visible` too."""
    formatted, made = warnings.formatwarning, logging.getLogRecordFactory()

    def warning(*arguments: Any, **named: Any) -> str:
        return visible(formatted(*arguments, **named), keep="\n")

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        line = made(*arguments, **named)
        with suppress(TypeError, ValueError, LookupError):  # `logging` complains about it itself
            line.msg, line.args = visible(line.getMessage(), keep="\n\t"), None
        return line

    warnings.formatwarning = warning
    logging.setLogRecordFactory(record)
    try:
        yield
    finally:
        warnings.formatwarning = formatted
        logging.setLogRecordFactory(made)
