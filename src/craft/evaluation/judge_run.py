"""A thousand cases before one judge: at most so many at once, each verdict kept the moment it comes."""

import json
import os
import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from craft.core.errors import CheckpointError, ConfigError
from craft.core.interrupt import Interrupted, StopWish, stop_wish
from craft.core.progress import say, track
from craft.evaluation.judge import DIMENSIONS, STATUSES, Ask, Case, Judge, Reply

FINAL = ("ok", "refused")
"""These are not asked again; the others are, when the same command is given again."""

PATIENCE = 8
"""So many failures without one reply, and the service is taken to be out of order."""


class VerdictCache:
    """Replies by key in a JSONL file that is only ever added to; of several on one key the last one counts.

    Args:
        path: the file; made when the first reply comes.

    Raises:
        CheckpointError: a line is damaged. A last line that a crash cut short is taken off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, Reply] = {}
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                row = json.loads(line)
                scores = {name: row[name] for name in DIMENSIONS if row[name] is not None}
                if row["status"] not in STATUSES:
                    raise ValueError(row["status"])
                told = {name: row[name] for name in ("status", "notes", "model", "detail")}
                self.replies[row["key"]] = Reply(scores=scores, tokens=tuple(row["tokens"]), **told)
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{path}, line {number}, is not a verdict; take the line out, and it is asked again."
                ) from error

    def open(self, key: str) -> bool:
        """Whether there is no final reply on this key."""
        return key not in self.replies or self.replies[key].status not in FINAL

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply, on disk before this returns.

        Raises:
            ConfigError: the file cannot be written to.
        """
        row = {
            "key": key,
            "status": reply.status,
            **{name: reply.scores.get(name) for name in DIMENSIONS},
            "notes": reply.notes,
            "model": reply.model,
            "tokens": list(reply.tokens),
            "detail": reply.detail,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        append(self.path, json.dumps(row, ensure_ascii=False) + "\n")
        self.replies[key] = reply


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a JSONL file. What stands behind the last line's end, a crash's leavings, is cut off.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data[:whole].split(b"\n")[:-1]


def append(path: Path, text: str) -> None:
    """Add whole lines to a file in one write, and see them onto the disk.

    Raises:
        ConfigError: the file cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def judge_cases(judge: Judge, cases: Sequence[Case], cache: VerdictCache) -> list[Reply]:
    """Every case's reply, in order; only what the cache has no final reply on is asked, each content once.

    The first Ctrl-C asks nothing more, waits for the calls that are under way and keeps their replies.

    Raises:
        ConfigError: no call can succeed: a wrong key, an unknown model, a service that is out of order.
        DataError: a picture cannot be read.
        Interrupted: stopped by the user; the same call goes on from here.
    """
    keys = [judge.key(case) for case in cases]
    todo = {key: case for key, case in zip(keys, cases, strict=True) if cache.open(key)}
    if not todo:
        return [cache.replies[key] for key in keys]
    ask, failed, answered = judge.start(), 0, 0
    with stop_wish() as wish, _warned_once():
        calls = _Calls(ask, todo, judge.concurrency, cache)
        try:
            for _ in track(range(len(todo)), f"judging with {judge.name}"):
                reply = calls.get(wish)
                answered, failed = answered + (reply.status != "failed"), failed + (reply.status == "failed")
                if not answered and failed >= PATIENCE:
                    raise ConfigError(
                        f"The first {failed} calls of {judge.name} all failed, the last one so: "
                        f"{reply.detail} Put that right and give the same command again."
                    )
        except Exception:  # what is under way may be paid for already; a second Ctrl-C does not wait for it
            calls.finish()
            raise
    return [cache.replies[key] for key in keys]


class _Calls:
    """Cases asked in threads, replies in a queue. The threads are daemons: leaving at once is possible.

    A thread keeps its reply before it asks again, so that a power cut costs no more calls than run at once.
    """

    def __init__(self, ask: Ask, todo: dict[str, Case], concurrency: int, cache: VerdictCache) -> None:
        self.left: Iterator[tuple[str, Case]] = iter(todo.items())
        self.lock, self.writing = threading.Lock(), threading.Lock()
        self.ask, self.cache = ask, cache
        self.replies: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()
        count = min(concurrency, len(todo))
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _work(self) -> None:
        while True:
            with self.lock:
                key, case = next(self.left, ("", None))
            if case is None:
                return
            try:
                reply = self.ask(case)
                with self.writing:
                    self.cache.add(key, reply)
                self.replies.put(reply)
            except Exception as error:  # for the thread that waits
                self.replies.put(error)
                return

    def get(self, wish: StopWish) -> Reply:
        """The next reply, which is kept already; an error of `ask` or of the disk is raised here."""
        while not wish.asked:
            try:
                reply = self.replies.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(reply, Exception):
                raise reply
            return reply
        say("stopping: waiting for the calls under way; Ctrl-C again leaves at once")
        raise Interrupted("stopped; what was judged is kept. The same command goes on from there.")

    def finish(self) -> None:
        """Ask nothing more, and wait until the calls under way are kept."""
        with self.lock:
            self.left = iter(())
        for thread in self.threads:
            thread.join()


@contextmanager
def _warned_once() -> Iterator[None]:
    """An SDK warns of a model's retirement on every call; say it once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("once", message="The model .* is deprecated", category=DeprecationWarning)
        yield
    for text in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
        say(f"note: {text}")
