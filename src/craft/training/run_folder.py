"""The run folder: config.resolved.yaml, run.json, metrics.jsonl, checkpoints/, encoder/."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import (
    atomic_write_text,
    clear_leftovers,
    is_leftover,
    read_json,
    user_path,
    write_json,
)
from craft.core.interrupt import Interrupted
from craft.core.processes import is_main, on_main
from craft.core.provenance import machine
from craft.core.settings import Settings, removed_fault, without_idle
from craft.core.text import flat

_OURS = (
    "config.resolved.yaml",
    "metrics.jsonl",
    "checkpoints",
    "encoder",
    "tuned",
    "trackers",
)  # and run.json
_OURS += ("stage-1", "stage-2", "visual", "backbone")  # of an alignment
FREE = frozenset(
    {"out", "device", "checkpoint_every", "keep_checkpoints", "trackers", "cache_mib"}
    | {"gradient_checkpointing", "workers"}
    | {"pixel_cache", "log_every"}  # of runs that an earlier version began
)
"""Settings that may differ between a run and its continuation: they do not change the result."""


class RunFolder:
    """One run's place on disk. Its `run.json` says `status`: starting, running, interrupted, failed or
    finished.

    In a distributed run the main process alone reads and writes it; all know the same.

    Args:
        path: the folder; made by `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.checkpoints = self.path / "checkpoints"
        self.encoder = self.path / "encoder"
        self.record: dict[str, Any] = {}

    @property
    def under_way(self) -> bool:
        """Whether the run in this folder got so far that something would be lost."""
        if self.record.get("status") == "starting":
            return False  # what lies here is of the run before, which was to be replaced
        logs = [self.path / "metrics.jsonl", *self.path.glob("stage-*/metrics.jsonl")]
        return self.finished or any(log.exists() for log in logs) or self.checkpoints.exists()

    @property
    def finished(self) -> bool:
        """Whether the run in this folder has come to its end."""
        return self.record.get("status") == "finished"

    def check(self, config: Settings, resume: bool = False, overwrite: bool = False) -> bool:
        """Whether `open` would continue a run that is here (True) or start one (False). Writes nothing.

        Raises:
            ConfigError: something is here already and neither `resume` nor `overwrite` says what to do with
                it; or the run to be continued had other settings.
        """
        found, self.record = on_main(lambda: (self._check(config, resume, overwrite), self.record))
        return found

    def _check(self, config: Settings, resume: bool, overwrite: bool) -> bool:
        if (self.path / "run.json").is_file():
            self.record = read_json(self.path / "run.json")
            if not self.under_way:
                return False  # stopped by a mistake at its start
            if resume:
                self._same_settings(config)
                return True
            if not overwrite:
                way = "resume=True (--resume) to continue it, " if not self.finished else ""
                raise ConfigError(
                    f"{self.path} holds a run that is {self.record.get('status', 'unknown')}; choose another "
                    f"folder, {way}or overwrite=True (--overwrite) to replace it."
                )
        elif self.path.exists() and not (
            self.path.is_dir() and all(is_leftover(place) for place in self.path.iterdir())
        ):
            raise ConfigError(f"{self.path} is there already and is not a run folder; choose another place.")
        return False

    def open(self, config: Settings, resume: bool = False, overwrite: bool = False) -> None:
        """Start a new run here, or continue the one that is here.

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
        """Kill it anywhere in here: run.json comes first and says that nothing is here to be continued."""
        self.update()
        self._sweep()
        for name in _OURS:
            place = self.path / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        config.save(self.path / "config.resolved.yaml")

    def _sweep(self) -> None:
        """Delete what a killed process left half written."""
        for folder in (self.path, self.checkpoints):
            clear_leftovers(folder)

    def _same_settings(self, config: Settings) -> None:
        before, now = flat(without_idle(self.record.get("config", {}))), flat(config.model_dump(mode="json"))
        if fault := removed_fault({name: value for name, value in before.items() if name not in FREE}):
            raise ConfigError(
                f"The run in {self.path} cannot be resumed by this version. {fault} Finish the run with the "
                "version that began it, or begin again (--overwrite, or another folder)."
            )
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if name not in FREE and before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigError(
                f"The run in {self.path} cannot be resumed with other settings: {'; '.join(changed)}. "
                "Give the same settings, or another folder."
            )

    def update(self, **fields: Any) -> None:
        """Add fields to run.json; what goes on has no end yet."""
        if fields.get("status") == "running":
            for name in ("reason", "interrupted_at"):
                self.record.pop(name, None)
        self.record |= fields
        if is_main():
            write_json(self.path / "run.json", self.record)

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """A block whose error is written into run.json before it goes on its way; so is a stop."""
        try:
            yield
        except Exception as error:
            ended = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            if isinstance(error, Interrupted):
                ended = {"status": "interrupted"}
            with suppress(ConfigError):  # on a full disk: what failed is told, not that it cannot be noted
                self.update(**ended)
            raise

    def log(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        if not is_main():
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        place = self.path / "metrics.jsonl"
        if not place.is_file():
            return []
        lines = place.read_text(encoding="utf-8").splitlines()
        return [
            json.loads(line) for line in lines if line.endswith("}")
        ]  # a crash may cut the last one short

    def rewind(self, step: int) -> None:
        """Drop what metrics.jsonl says about steps after `step`: they are done again."""
        if not is_main() or not self.under_way:
            return
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        atomic_write_text(self.path / "metrics.jsonl", "".join(kept))
