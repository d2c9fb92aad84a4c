"""The run folder: config.resolved.yaml, run.json, metrics.jsonl, checkpoints/, encoder/."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from craft.core.errors import CheckpointError, ConfigError
from craft.core.files import (
    atomic_write_text,
    clear_leftovers,
    is_leftover,
    not_written,
    read_json,
    user_path,
    write_json,
)
from craft.core.interrupt import Interrupted
from craft.core.lock import locked
from craft.core.processes import is_main, on_main
from craft.core.provenance import machine
from craft.core.records import Record, check_record
from craft.core.settings import Settings, removed_fault, without_idle
from craft.core.text import flat

_OUTPUTS = ("config.resolved.yaml", "metrics.jsonl", "checkpoints", "encoder", "tuned", "trackers")
_OUTPUTS += ("stage-1", "stage-2", "visual", "backbone")  # of an alignment
FREE = frozenset(
    {"out", "device", "checkpoint_every", "keep_checkpoints", "trackers", "cache_mib"}
    | {"gradient_checkpointing", "workers", "micro_batch"}
    | {f"{section}{name}" for section in ("", "data.") for name in ("splits", "partial", "overlap")}
    | {"pixel_cache", "log_every"}  # of runs that an earlier version began
)
"""Settings that may change when a run is resumed, because they do not change the result. (splits, partial and
overlap may change the data, whose fingerprint is compared.)"""


class _Line(Record):
    step: int = Field(ge=0)


class _Named(Record):
    name: str | None = None
    fingerprint: str | None = None


class _Choice(Record):
    name: str
    why: str


class _Run(Record):
    """The fields of `run.json` that CRAFT reads again."""

    status: str | None = None
    reason: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    data: _Named = _Named()
    data_fingerprint: str | None = None
    held_out: list[str] | None = None
    seed: int | None = None
    surrogate: str | None = None
    steps: int | None = Field(default=None, ge=0)
    micro_batch: int | None = Field(default=None, ge=1)
    hashes_before: dict[str, str] = Field(default_factory=dict)
    hashes_after: dict[str, str] = Field(default_factory=dict)
    search: _Choice = _Choice(name="exact", why="")
    blend: float | None = Field(default=None, ge=0, le=1)
    retention: float | None = Field(default=None, ge=0)
    language_before: dict[str, Any] | None = None
    language: dict[str, Any] | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    interrupted_at: int | None = None
    best_step: int | None = None
    best_validation: float | None = None


def read_record(path: Path) -> dict[str, Any]:
    """The content of a `run.json`.

    Raises:
        CheckpointError: it is damaged.
    """
    fix = "restore it, choose another folder, or delete this one"
    return check_record(_Run, read_json(path), path, fix)


class RunFolder:
    """The folder of one run.

    The `status` in its `run.json` is starting, running, interrupted, failed or finished.

    In a distributed run only the main process reads and writes files; all processes have the same `record`.

    Args:
        path: the folder, which `open` creates.

    Attributes:
        record: the content of `run.json`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.checkpoints = self.path / "checkpoints"
        self.encoder = self.path / "encoder"
        self.record: dict[str, Any] = {}

    @property
    def under_way(self) -> bool:
        """Whether the run in this folder has results that overwriting would lose."""
        if self.record.get("status") == "starting":
            return False  # the files are those of an older run, which this one replaces
        logs = [self.path / "metrics.jsonl", *self.path.glob("stage-*/metrics.jsonl")]
        return self.finished or any(log.exists() for log in logs) or self.checkpoints.exists()

    @property
    def finished(self) -> bool:
        """Whether the run in this folder is complete."""
        return self.record.get("status") == "finished"

    def check(self, config: Settings, resume: bool = False, overwrite: bool = False) -> bool:
        """Whether `open` would continue a run (True) or start one (False). Writes nothing.

        Raises:
            ConfigError: the folder is not empty and neither `resume` nor `overwrite` is set, or the run to
                resume has other settings.
        """
        continues, self.record = on_main(lambda: (self._check(config, resume, overwrite), self.record))
        return continues

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context in which no other command writes to this folder; the main process has the lock for all.

        Raises:
            ConfigError: another one does, or the folder cannot be written to.
        """
        with ExitStack() as stack:
            on_main(lambda: stack.enter_context(locked(self.path)))
            yield

    def _check(self, config: Settings, resume: bool, overwrite: bool) -> bool:
        try:
            return self._continues(config, resume, overwrite)
        except OSError as error:
            raise not_written(self.path, error) from error

    def _continues(self, config: Settings, resume: bool, overwrite: bool) -> bool:
        if (self.path / "run.json").is_file():
            self.record = read_record(self.path / "run.json")
            if not self.under_way:
                return False  # a mistake stopped it at its start
            if resume:
                self._same_settings(config)
                return True
            if not overwrite:
                resume_hint = "" if self.finished else "resume=True (--resume) to continue it, "
                raise ConfigError(
                    f"{self.path} holds a run that is {self.record.get('status', 'unknown')}; choose another "
                    f"folder, {resume_hint}or overwrite=True (--overwrite) to replace it."
                )
        elif self.path.exists() and not (
            self.path.is_dir() and all(is_leftover(path) for path in self.path.iterdir())
        ):
            raise ConfigError(f"{self.path} exists and is not a run folder; choose another folder.")
        return False

    def open(self, config: Settings, resume: bool = False, overwrite: bool = False) -> None:
        """Start a new run in this folder, or continue the one that it has.

        Raises:
            ConfigError: as `check` says.
        """
        if self.check(config, resume, overwrite):
            on_main(self._sweep)
            return
        self.record = {"status": "starting", "config": config.model_dump(mode="json"), "machine": machine()}
        on_main(lambda: self._start(config))
        self.update(status="running")

    def _start(self, config: Settings) -> None:
        """Replace the files of an older run; run.json first, so that a run killed here is not `under_way`."""
        self.update()
        self._sweep()
        for name in _OUTPUTS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        config.save(self.path / "config.resolved.yaml")

    def _sweep(self) -> None:
        """Delete files that a killed process left incomplete."""
        for folder in (self.path, self.checkpoints):
            clear_leftovers(folder)

    def _same_settings(self, config: Settings) -> None:
        """Raise a ConfigError if the run to resume has other settings, except those in `FREE`.

        A setting that the run does not name is newer than the run, and has its default.
        """
        before, now = flat(without_idle(self.record.get("config", {}))), flat(config.model_dump(mode="json"))
        if fault := removed_fault({name: value for name, value in before.items() if name not in FREE}):
            raise ConfigError(
                f"The run in {self.path} cannot be resumed by this version. {fault} Finish the run with the "
                "version that began it, or start again (--overwrite, or another folder)."
            )
        defaults = flat(type(config).model_construct().model_dump(mode="json"))
        before = {name: value for name, value in defaults.items() if name in now} | before
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if name not in FREE and before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigError(
                f"The run in {self.path} cannot be resumed with other settings: {'; '.join(changed)}. "
                "Use the same settings, or another folder."
            )

    def update(self, **fields: Any) -> None:
        """Add fields to run.json; `status="running"` removes those of an earlier stop."""
        if fields.get("status") == "running":
            for name in ("reason", "interrupted_at"):
                self.record.pop(name, None)
        self.record |= fields
        if is_main():
            write_json(self.path / "run.json", self.record)

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """A context that records an error, or a stop, in run.json before it raises it again."""
        try:
            yield
        except Exception as error:
            outcome = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            if isinstance(error, Interrupted):
                outcome = {"status": "interrupted"}
            with suppress(ConfigError):  # a full disk must not hide the first error
                self.update(**outcome)
            raise

    def log(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        if not is_main():
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl.

        Raises:
            CheckpointError: one is damaged.
        """
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            whole = [line for line in lines if line.endswith("}")]  # a crash may cut off the last one
            rows = list(map(json.loads, whole))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); run again with --overwrite.") from error
        return [check_record(_Line, row, path, "run again with --overwrite") for row in rows]

    def rewind(self, step: int) -> None:
        """Delete the lines of metrics.jsonl after `step`, which the run repeats."""
        if not is_main() or not self.under_way:
            return
        lines = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        atomic_write_text(self.path / "metrics.jsonl", "".join(lines))
