"""Options that all verbs share, and small types of options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from craft.core.errors import ConfigError

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""True if present; there is no `--no-…`."""

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
"""A whole number from 1 on."""

Limit = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]
"""A `Count`, or all of them."""

Several = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]
"""One or more values after one flag."""

SetFlags = Annotated[list[str] | None, Parameter(name="--set", negative="")]
"""`--set NAME=VALUE`, any number of times."""


@Parameter(name="*", group="Common")
@dataclass(frozen=True)
class Common:
    """The flags of every verb.

    Attributes:
        config: a YAML file of settings, nested or with dotted names; the command line takes precedence.
        settings: NAME=VALUE, any setting; may be given several times. --data.root DIR is --set data.root=DIR.
        seed: the seed of everything random.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: auto (bfloat16 if the device has it), float32 or bfloat16.
        json: print JSON, and nothing else, on standard output.
    """

    config: Path | None = None
    settings: SetFlags = None
    seed: int | None = None
    device: str | None = None
    dtype: str | None = None
    json: Flag = False


COMMON = Common()
"""No flags."""


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """The flags of the verbs that train on labelled images.

    Attributes:
        data: an embedded domain or a benchmark (`craft data list`), a folder of class folders, a table of
            questions, or a folder of `craft data prepare`.
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from.
        splits: NAME=SPLIT: what splits with other names are (train, validation, test, or none: not read).
        partial: accept a copy of a benchmark with fewer classes than the benchmark has; reports say so.
        overlap: training images that stand in the test split too: refuse them, drop them, or train on them.
        preset: settings under a name, which the config and all flags override; paper is the paper's recipe.
        out: the run folder; by default runs/ and the data's name (with the method's for a baseline).
        max_steps: optimiser steps; by default those of the config.
        micro_batch: the largest number of samples in memory at once, or auto, which finds it; same result.
        resume: continue the interrupted run in the run folder; the result is that of an uninterrupted run.
        overwrite: replace the run in the run folder.
        dry_run: load, show what trains, run one batch forward and backward, estimate memory; write nothing.
    """

    data: str | None = None
    root: str | None = None
    splits: Several = None
    partial: Flag = False
    overlap: Literal["refuse", "drop", "train"] | None = None
    preset: str | None = None
    out: Path | None = None
    max_steps: int | None = None
    micro_batch: str | None = None
    resume: Flag = False
    overwrite: Flag = False
    dry_run: Flag = False

    def overrides(self, common: Common) -> dict[str, Any]:
        """The settings among these flags, with `--set`, device and dtype.

        Raises:
            ConfigError: an entry of `--set` is not NAME=VALUE.
        """
        named = _named(
            {
                "data.name": self.data,
                "data.root": self.root,
                "micro_batch": self.micro_batch,
                "data.overlap": self.overlap,
                "preset": self.preset,
            }
        )
        reading = {"data.splits": self.splits, "data.partial": self.partial}
        return settings_of(common) | named | {name: value for name, value in reading.items() if value}


TRAINING = Training()
"""No flags."""


def settings_of(common: Common) -> dict[str, str]:
    """`--set` as overrides by name, with device and dtype on top.

    Raises:
        ConfigError: an entry is not NAME=VALUE.
    """
    return named_values(common.settings) | _named({"device": common.device, "dtype": common.dtype})


def named_values(entries: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` entries by name.

    Raises:
        ConfigError: an entry is not NAME=VALUE.
    """
    overrides: dict[str, str] = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        if not (equals and name and value):
            raise ConfigError(
                f"--set takes NAME=VALUE, as in --set learning_rate=1e-4 (null is none), not {entry!r}."
            )
        overrides[name] = value
    return overrides


def _named(flags: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in flags.items() if value is not None}
