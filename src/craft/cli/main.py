"""`craft`: from the arguments of the command line to an exit status. Nothing here imports torch."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cyclopts import App, CycloptsError, UnknownOptionError

from craft import __version__
from craft.cli.adapt import adapt, baseline
from craft.cli.align import align
from craft.cli.ask import ask
from craft.cli.codes import prior, show
from craft.cli.compare import compare
from craft.cli.data import check, list_domains, prepare, stats
from craft.cli.demo import demo
from craft.cli.evaluate import evaluate
from craft.cli.export import export
from craft.cli.flags import expand
from craft.cli.inspect import inspect
from craft.cli.judge import judge
from craft.cli.report import report
from craft.cli.serve import serve
from craft.cli.texts import captions, options, statements
from craft.cli.transfer import transfer
from craft.core.errors import CraftError, out_of_memory
from craft.core.interrupt import Interrupted, ctrl_c
from craft.core.streams import OutputLost, discard, flush, prepare_streams, visible_messages, write_error
from craft.core.text import one_line, visible

DONE, OURS, USERS, STOPPED = 0, 1, 2, 130
"""Exit statuses: done; a fault in CRAFT; the user's mistake; stopped with Ctrl-C."""

app = App(
    name="craft",
    version=__version__,
    help="Adapt the vision tower of a discrete LVLM to new images, once for all LLMs of its codebook.",
    help_epilogue="Start with `craft demo`. Each verb has a help page, such as `craft adapt --help`.",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    print_error=False,
    verbose=False,
)
_verbs = {
    "demo": demo,
    "adapt": adapt,
    "eval": evaluate,
    "ask": ask,
    "serve": serve,
    "compare": compare,
    "transfer": transfer,
    "align": align,
    "baseline": baseline,
    "show": show,
    "prior": prior,
    "judge": judge,
    "inspect": inspect,
    "export": export,
    "report": report,
}
for _order, (_name, _verb) in enumerate(_verbs.items()):
    app.command(_verb, name=_name, sort_key=_order)
data = App(name="data", help="List data sets; check, prepare and count data.", sort_key=len(_verbs))
data.command(list_domains, name="list")
for _verb in (check, prepare, stats, captions, statements, options):
    data.command(_verb)
app.command(data)

# Error numbers of the system for a path that cannot be used.
_BAD_PATH = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "ELOOP")
}
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_OS_ERROR = re.compile(r"(?:os error |Os \{ code: )(\d+)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments after `craft`; by default those of this process.

    Returns:
        The exit status: 0 done, 1 a fault in CRAFT (with its traceback), 2 the user's mistake (one paragraph
        on standard error), 130 stopped with Ctrl-C.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if tokens[:1] in (["reproduce"], ["bench"]):
        words = " ".join(["python -m paper", *(tokens[1:] if tokens[0] == "reproduce" else tokens)])
        _complain(f"craft {tokens[0]} is not part of the package. In a checkout of CRAFT, run `{words}`.")
        return USERS
    return run(app, tokens, "craft", _how_to_continue(tokens))


def run(app: Callable[[list[str]], Any], tokens: Sequence[str], program: str, stopped: str) -> int:
    """Run a command line, and turn every error into a message and an exit status, as for `main`.

    Args:
        app: the parser.
        tokens: the arguments after the program's name.
        program: the program's name, for messages.
        stopped: the message after Ctrl-C.
    """
    prepare_streams()
    with visible_messages(), ctrl_c(f"craft: {stopped}"):
        try:
            app(expand(tokens))
            flush()
        except KeyboardInterrupt:
            _complain(stopped)
            return STOPPED
        except OutputLost as lost:
            if isinstance(lost.__cause__, BrokenPipeError):  # `craft ... | head` has read enough
                return DONE
            _complain(f"standard output cannot be written: {lost}. Direct it elsewhere.")
            return USERS
        except SystemExit as leaving:  # of the library that prints help
            if not isinstance(leaving.__context__, BrokenPipeError):
                raise
            discard(sys.stdout)
            return DONE
        except Exception as error:
            return _fail(error, program)
    return DONE


def _fail(error: Exception, program: str) -> int:
    """Print what went wrong; the exit status."""
    with suppress(OutputLost):
        flush()  # the results so far
    paragraph = explain(error, program)
    if paragraph is None:
        write_error(visible(traceback.format_exc(), keep="\n").rstrip())
        _complain("this is a fault in CRAFT, not in what you did; please report it with the text above.")
        return OURS
    _complain(paragraph)
    return STOPPED if isinstance(error, Interrupted) else USERS


def explain(error: Exception, program: str = "craft") -> str | None:
    """One paragraph about a mistake that the user can correct; None for a fault in CRAFT."""
    if isinstance(error, CycloptsError):
        reason, chain = one_line(error), list(error.command_chain or ())
        if isinstance(error, UnknownOptionError) and chain and "Did you mean" not in reason:
            reason += " Settings go as --set NAME=VALUE."
        return f"{reason} `{' '.join([program, *chain])} --help` lists what there is."
    if out_of_memory(error):
        return (
            "memory does not suffice for this. For adapt, align and baseline, --micro-batch auto needs less "
            "and gives the same result, as does --set gradient_checkpointing=true; so does a smaller "
            "batch_size, with another result; --dry-run estimates the need. Other commands take a smaller "
            "--batch-size. A limit of the shell or container (ulimit -v) may leave too little as well."
        )
    if isinstance(error, CraftError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FULL:  # a failed write has no file name
        return f"{error.filename or 'a disk'}: {error.strerror}. Free some space, or choose another folder."
    if _is(error, "safetensors", "SafetensorError"):  # it has the system's error only as text
        code = _OS_ERROR.search(str(error))
        if code is not None and int(code[1]) in _FULL:
            return f"a disk: {os.strerror(int(code[1]))}. Free some space, or choose another folder."
    if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}. Choose another path."
    return None


def _is(error: Exception, module: str, name: str) -> bool:
    """Whether an error is of this class, without importing the module of the class."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


def _how_to_continue(tokens: Sequence[str]) -> str:
    if tokens[:1] in (["adapt"], ["align"], ["baseline"], ["demo"]):
        return "stopped. The same command with --resume continues from the last checkpoint, if there is one."
    if tokens[:1] == ["eval"]:
        return "stopped. With --out, the same command with --resume skips the data sets that are done."
    if tokens[:1] == ["judge"] or tokens[:2] in (["data", "captions"], ["data", "statements"]):
        return "stopped. The same command continues from there."
    if tokens[:1] == ["transfer"]:
        return "stopped. The same command continues, and reuses the results in its --work folder."
    return "stopped. No partial result remains; run the same command to start again."


def _complain(paragraph: str) -> None:
    write_error(visible(f"craft: {paragraph}"))
