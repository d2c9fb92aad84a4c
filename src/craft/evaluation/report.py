"""The result of one evaluation, and of several averaged."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.files import atomic_write_text
from craft.evaluation.metrics import bootstrap_interval, mean, spread

FIGURES = ("accuracy", "seen", "unseen", "lenient", "lenient_seen", "lenient_unseen", "unparseable")
"""The figures that are averaged over seeds."""


@dataclass
class Report:
    """Accuracy of one LVLM on one data set; all figures are fractions in [0, 1].

    Attributes:
        accuracy: strict exact match, over all samples (§4.1).
        seen, unseen: the same over classes kept in, or held out of, training; None without such samples.
        lenient, lenient_seen, lenient_unseen: the right option by letter or text.
        unparseable: share of replies that name none of the options.
        interval: 95 % bootstrap interval of `accuracy`.
        chance: accuracy of picking an option at random; None for open questions.
        samples: per sample: id, prompt, answer, prediction, strict, lenient, unparseable, seen, label,
            correct and choices.
        settings: backbone, encoder, data, seed, keep ratio and what else makes the result.
    """

    accuracy: float
    seen: float | None
    unseen: float | None
    lenient: float
    lenient_seen: float | None
    lenient_unseen: float | None
    unparseable: float
    interval: tuple[float, float]
    chance: float | None
    samples: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> "Report":
        """The figures of a list of per-sample results."""

        def share(name: str, seen: bool | None = None) -> float | None:
            return mean([row[name] for row in samples if seen is None or row["seen"] == seen])

        options = [len(row["choices"]) for row in samples]
        return cls(
            accuracy=share("strict") or 0.0,
            seen=share("strict", True),
            unseen=share("strict", False),
            lenient=share("lenient") or 0.0,
            lenient_seen=share("lenient", True),
            lenient_unseen=share("lenient", False),
            unparseable=share("unparseable") or 0.0,
            interval=bootstrap_interval([row["strict"] for row in samples]),
            chance=mean([1 / count for count in options]) if options and all(options) else None,
            samples=samples,
            settings=dict(settings or {}),
        )

    def to_json(self, samples: bool = False) -> dict[str, Any]:
        """A JSON-able dict, with the per-sample list if asked."""
        result: dict[str, Any] = {name: getattr(self, name) for name in FIGURES}
        result |= {"interval": list(self.interval), "chance": self.chance, "count": len(self.samples)}
        result |= {"settings": self.settings}
        return result | ({"samples": self.samples} if samples else {})

    def save_samples(self, path: str | Path) -> None:
        """Write the per-sample list as JSONL.

        Raises:
            ConfigError: the place cannot be written to.
        """
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.samples)
        atomic_write_text(path, "".join(rows))


def merge(reports: Sequence[Report]) -> dict[str, dict[str, float | int] | None]:
    """Mean and spread over several reports (seeds), by figure. Source: §4.1, "the average over 3 seeds"."""
    return {name: spread([getattr(report, name) for report in reports]) for name in FIGURES}
