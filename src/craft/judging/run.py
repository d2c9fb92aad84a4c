"""Many cases put to one judge: a limited number of simultaneous calls, each verdict stored at once."""

import queue
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError, ConfigError
from craft.core.interrupt import Interrupted, StopWish, stop_wish
from craft.core.progress import say, track
from craft.core.service import PATIENCE
from craft.core.store import JsonLog
from craft.judging.cases import DIMENSIONS, STATUSES, Ask, Case, Judge, Reply, Status

FINAL = ("ok", "refused")
"""Cases with these statuses are not asked again; the same command asks the others again."""

WAYS_OUT: dict[Status, str] = {
    "refused": "Choose another judge (--model).",
    "truncated": "Raise --max-tokens.",
    "invalid": "Choose a judge that replies in the requested JSON (--model), or correct --prompt.",
    "failed": "Correct the cause.",
}


class VerdictCache(JsonLog[Reply]):
    """Replies by key in a JSONL file; the last reply to a key counts.

    Attributes:
        paid: tokens read and written by all replies to a key.

    Args:
        path: the file; the first reply creates it.

    Raises:
        CheckpointError: a line is damaged. A last line that a crash cut short is removed.
    """

    def __init__(self, path: Path) -> None:
        def damaged(number: int) -> CheckpointError:
            return CheckpointError(
                f"{path}, line {number}, is not a verdict. Remove the line, and the case is asked again."
            )

        self.paid: dict[str, tuple[int, int]] = {}
        super().__init__(path, self._parsed, damaged)

    def _parsed(self, row: Mapping[str, Any]) -> tuple[str, Reply]:
        key, reply = row["key"], _reply_in(row)
        before = self.paid.get(key, (0, 0))
        self.paid[key] = (before[0] + reply.tokens[0], before[1] + reply.tokens[1])
        return key, reply

    def tokens(self, keys: Iterable[str]) -> tuple[int, int]:
        """Tokens read and written by all replies to these keys, those without a verdict included."""
        paid = [self.paid.get(key, (0, 0)) for key in set(keys)]
        return sum(read for read, _ in paid), sum(written for _, written in paid)

    def pending(self, key: str) -> bool:
        """Whether there is no final reply to this key."""
        return key not in self.values or self.values[key].status not in FINAL

    def add(self, key: str, reply: Reply) -> None:
        """Store a reply; it is on disk before this returns.

        Raises:
            ConfigError: the file cannot be written.
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
        self.append([row])


def _reply_in(row: Mapping[str, Any]) -> Reply:
    """The reply that a line of the file holds."""
    if row["status"] not in STATUSES:
        raise ValueError(row["status"])
    return Reply(
        status=row["status"],
        scores={name: row[name] for name in DIMENSIONS if row[name] is not None},
        notes=row["notes"],
        model=row["model"],
        tokens=tuple(row["tokens"]),
        detail=row["detail"],
    )


def judge_cases(judge: Judge, cases: Sequence[Case], cache: VerdictCache) -> list[Reply]:
    """The reply to every case, in order. Only cases without a final reply are asked, each content once; those
    that were never asked come first.

    The first Ctrl-C stops further calls, waits for those under way and stores their replies.

    Raises:
        ConfigError: no call can succeed (a wrong key, an unknown model), or `PATIENCE` new cases in a row got
            no verdict.
        DataError: an image cannot be read.
        Interrupted: the user stopped it; the same call continues.
    """
    keys = [judge.key(case) for case in cases]
    pending = {key: case for key, case in zip(keys, cases, strict=True) if cache.pending(key)}
    if not pending:
        return [cache.values[key] for key in keys]
    repeated = {key for key in pending if key in cache.values}
    pending = dict(sorted(pending.items(), key=lambda item: item[0] in repeated))
    ask, without_verdict = judge.start(), list[Reply]()
    with stop_wish() as wish, _each_warning_once():
        calls = _Calls(ask, pending, judge.concurrency, cache)
        try:
            for _ in track(range(len(pending)), f"judging with {judge.name}"):
                key, reply = calls.get(wish)
                if reply.status in FINAL:
                    without_verdict.clear()
                elif (
                    key not in repeated
                ):  # a few cases that never succeed do not keep the others from a report
                    without_verdict.append(reply)
                if len(without_verdict) >= PATIENCE:
                    raise ConfigError(no_verdict(judge, without_verdict))
        except Exception:  # calls under way may already be paid for; a second Ctrl-C does not wait for them
            calls.finish()
            raise
    return [cache.values[key] for key in keys]


def no_verdict(judge: Judge, replies: Sequence[Reply]) -> str:
    """The message about replies of which none is a verdict: how many, why, and the way out."""
    counts = Counter[Status](reply.status for reply in replies)
    kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
    most = counts.most_common(1)[0][0]
    detail = next(reply.detail for reply in reversed(replies) if reply.status == most)
    return (
        f"{judge.name} gave no verdict in {len(replies)} replies in a row ({kinds}); the last: {detail} "
        f"{WAYS_OUT[most]} The verdicts so far are stored; the same command continues."
    )


class _Calls:
    """Cases asked in threads, replies in a queue. Daemon threads allow the program to exit at once.

    A thread stores its reply before it asks again, so a power cut costs at most `concurrency` calls.
    """

    def __init__(self, ask: Ask, cases: dict[str, Case], concurrency: int, cache: VerdictCache) -> None:
        self.remaining: Iterator[tuple[str, Case]] = iter(cases.items())
        self.lock, self.writing = threading.Lock(), threading.Lock()
        self.ask, self.cache = ask, cache
        self.replies: queue.SimpleQueue[tuple[str, Reply] | Exception] = queue.SimpleQueue()
        count = min(concurrency, len(cases))
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _work(self) -> None:
        while True:
            with self.lock:
                key, case = next(self.remaining, ("", None))
            if case is None:
                return
            try:
                reply = self.ask(case)
                with self.writing:
                    self.cache.add(key, reply)
                self.replies.put((key, reply))
            except Exception as error:  # for the main thread
                self.replies.put(error)
                return

    def get(self, wish: StopWish) -> tuple[str, Reply]:
        """The next key and reply, already stored; raises an error of `ask` or of the disk here."""
        while not wish.requested:
            try:
                reply = self.replies.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(reply, Exception):
                raise reply
            return reply
        say("stopping: waiting for the calls under way; Ctrl-C again exits at once")
        raise Interrupted("stopped; the verdicts so far are stored. The same command continues from there.")

    def finish(self) -> None:
        """Ask nothing more, and wait until the replies under way are stored."""
        with self.lock:
            self.remaining = iter(())
        for thread in self.threads:
            thread.join()


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """Report a model's retirement once, though the SDK warns about it on every call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("once", message="The model .* is deprecated", category=DeprecationWarning)
        yield
    for text in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
        say(f"note: {text}")
