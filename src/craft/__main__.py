"""`python -m craft` is `craft`. What both start with, before anything else is imported."""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress


def start(main: Callable[[], int], program: str = "craft") -> None:
    """Run a command line as this process, and end with its status.

    Ctrl-C prints one line and ends with status 130 at any time, also during imports, where Python may swallow
    a KeyboardInterrupt. If Ctrl-C is ignored, as in the background of a script, it stays so.

    Args:
        main: imports the command line and runs it.
        program: its name.
    """

    def stop(*_: object) -> None:
        if not ended:
            with suppress(OSError):  # standard error is closed
                os.write(2, f"{program}: stopped.\n".encode())
        os._exit(ended[0] if ended else 130)

    ended: list[int] = []
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the last step takes a second
    _read_names_as_utf8()
    ended.append(main())
    sys.exit(ended[0])


def _read_names_as_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding for file names.

    Otherwise names of files and classes would be wrong, and the files would be blamed. Standard output keeps
    the encoding of the locale.
    """
    if sys.getfilesystemencoding() == "utf-8" or "utf8" in sys._xoptions or not sys.executable:
        return
    if sys.stdout is not None:
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> None:
    """Run `craft`."""
    start(_craft)


def _craft() -> int:
    from craft.cli import main

    return main()


if __name__ == "__main__":
    main()
