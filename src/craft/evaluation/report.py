"""The result of one evaluation, the mean of several, and the mistakes in detail."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from craft.core.errors import CraftError, DataError
from craft.core.files import atomic_write_text, read_json
from craft.core.records import Record, check_record
from craft.core.store import json_lines
from craft.evaluation.calibration import measure
from craft.evaluation.matching import answered_by_letter, option_named, remarked
from craft.evaluation.metrics import Group, harmonic_mean, images_of, interval, mean, spread

FIGURES = (
    "accuracy",
    "seen",
    "unseen",
    "harmonic",
    "lenient",
    "lenient_seen",
    "lenient_unseen",
    "unparseable",
    "scored",
    "scored_seen",
    "scored_unseen",
    "agreement",
    "agreement_parseable",
)
"""The figures of a report that `merge` averages over seeds."""


@dataclass
class Report:
    """Accuracy of one LVLM on one data set. All figures are fractions in [0, 1].

    Attributes:
        accuracy: strict exact match over all samples (§4.1).
        seen, unseen: the same over classes kept in, or held out of, training; None without such samples.
        harmonic: H, the harmonic mean of `seen` and `unseen`; None without one of them. Not the paper's.
        lenient, lenient_seen, lenient_unseen: share of replies that name the correct option.
        unparseable: share of replies that name none or several of the options.
        interval: 95 % interval of `accuracy`; see `craft.evaluation.metrics.interval`.
        chance: accuracy of choosing an option at random; None for open questions.
        samples: one row per sample: id, image_hash, prompt, answer, prediction, strict, lenient, unparseable,
            seen, label, correct and choices; with scored options also scored, agrees and scores.
        settings: backbone, encoder, data, seed, keep ratio and everything else that the result depends on.
        scored, scored_seen, scored_unseen: share of questions whose correct option is the likeliest; None if
            options were not scored.
        agreement: share of questions whose generated answer names the likeliest option.
        agreement_parseable: the same among generated answers that name an option.
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
    scored: float | None = None
    scored_seen: float | None = None
    scored_unseen: float | None = None
    agreement: float | None = None
    agreement_parseable: float | None = None

    @property
    def harmonic(self) -> float | None:
        """H of seen and unseen classes (`craft.evaluation.metrics.harmonic_mean`)."""
        return harmonic_mean(self.seen, self.unseen)

    @classmethod
    def of(cls, samples: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> "Report":
        """The report on a list of per-sample results.

        Raises:
            DataError: the list is empty; no accuracy would be true.
        """
        if not samples:
            raise DataError("There are no answers to mark: no question was asked.")

        def share(
            name: str, seen: bool | None = None, among: Sequence[dict[str, Any]] = samples
        ) -> float | None:
            rows = [row for row in among if seen is None or row["seen"] == seen]
            return mean([row[name] for row in rows if row.get(name) is not None])

        options = [len(row["choices"]) for row in samples]
        return cls(
            accuracy=share("strict") or 0.0,
            seen=share("strict", True),
            unseen=share("strict", False),
            lenient=share("lenient") or 0.0,
            lenient_seen=share("lenient", True),
            lenient_unseen=share("lenient", False),
            unparseable=share("unparseable") or 0.0,
            interval=interval([Group([row["strict"] for row in samples], images_of(samples))]),
            chance=mean([1 / count for count in options]) if options and all(options) else None,
            samples=samples,
            settings=dict(settings or {}),
            scored=share("scored"),
            scored_seen=share("scored", True),
            scored_unseen=share("scored", False),
            agreement=share("agrees"),
            agreement_parseable=share("agrees", among=[row for row in samples if not row["unparseable"]]),
        )

    def scores_and_right(self, seen: bool | None = None) -> tuple[list[list[float]], list[int]]:
        """Of the questions whose options were scored: the scores, and the index of the right option.

        Args:
            seen: only of seen, or of unseen, classes.
        """
        rows = [row for row in self.samples if row.get("scores") and (seen is None or row["seen"] == seen)]
        return [row["scores"] for row in rows], [row["choices"].index(row["correct"]) for row in rows]

    def calibration(self, temperature: float | None = None) -> dict[str, Any] | None:
        """How well the probabilities of options fit the accuracy, of all, seen and unseen classes.

        Args:
            temperature: of the encoder's calibration, which gives the entries "after".

        Returns:
            None if no options were scored.
        """
        groups = {}
        for name, seen in (("all", None), ("seen", True), ("unseen", False)):
            scores, right = self.scores_and_right(seen)
            if not scores:
                continue
            before = measure(scores, right).to_json()
            after = {} if temperature is None else {"after": measure(scores, right, temperature).to_json()}
            groups[name] = {"before": before, **after}
        return {"temperature": temperature, **groups} if groups else None

    def to_json(self, samples: bool = False) -> dict[str, Any]:
        """As a dict for JSON; `samples` adds the per-sample list."""
        result: dict[str, Any] = {name: getattr(self, name) for name in FIGURES}
        result |= {"interval": list(self.interval), "chance": self.chance, "count": len(self.samples)}
        if calibration := self.calibration(self.settings.get("answer_temperature")):
            result["calibration"] = calibration
        result |= {"settings": self.settings}
        return result | ({"samples": self.samples} if samples else {})

    def save_samples(self, path: str | Path) -> None:
        """Write the per-sample list as JSONL.

        Raises:
            ConfigError: the file cannot be written.
        """
        atomic_write_text(path, json_lines(self.samples))


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """The per-sample list that `Report.save_samples` wrote. Stored replies are marked by the rules of now, so
    that answers of an earlier version can be compared and resumed.

    Raises:
        DataError: the file is missing, or one of its lines (which the message names) is not a sample.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = list(file)  # str.splitlines would split at U+2028 too
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}); use a file that `craft eval --out` wrote.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error.msg}); evaluate again."
            ) from error
        if not isinstance(row, dict) or not {"id", "prompt", "answer", "prediction", "strict"} <= row.keys():
            raise DataError(f"{path}, line {number}: not an answer of `craft eval --out`.")
        rows.append(remarked(row))
    return rows


def samples_in(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The answers that `craft eval --out` wrote, by data set. Rows from a folder also have their `seed`.

    Args:
        path: the folder, or one file of samples.

    Raises:
        DataError: there are no answers, or a file is damaged.
    """
    path = Path(path)
    if path.is_file():
        return {"all": read_samples(path)}
    answers: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(path.glob("samples-*.jsonl")) or sorted(path.glob("*/samples-*.jsonl")):
        seed = file.stem.removeprefix("samples-")
        name = "all" if file.parent == path else file.parent.name
        answers.setdefault(name, []).extend({**row, "seed": seed} for row in read_samples(file))
    if not answers:
        raise DataError(f"{path} has no samples-*.jsonl; use a folder that `craft eval --out` wrote.")
    return answers


def caveats_of(reports: Iterable[Report]) -> list[str]:
    """What must be said of the data of reports ("partial: 6 of 10 classes"), each sentence once."""
    return list(dict.fromkeys(caveat for report in reports for caveat in report.settings.get("caveats", ())))


class _Settings(Record):
    caveats: list[str] = Field(default_factory=list)


class _Report(Record):
    settings: _Settings = Field(default_factory=_Settings)


class _Reports(Record):
    reports: list[_Report] = Field(default_factory=list)


def caveats_in(path: str | Path) -> list[str]:
    """The caveats in the report.json files of a folder of `craft eval --out`, or next to a file in it.

    Raises:
        CheckpointError: such a file is damaged.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    caveats: dict[str, None] = {}
    for file in sorted(folder.glob("report.json")) or sorted(folder.glob("*/report.json")):
        record = check_record(_Reports, read_json(file), file, "evaluate again")
        for report in _Reports(**record).reports:
            caveats |= dict.fromkeys(report.settings.caveats)
    return list(caveats)


def settings_in(path: str | Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The settings of the answers that `samples_in` reads, by data set and seed. Evaluations without a
    readable `report.json` beside their answers are left out."""
    path = Path(path)
    folder = path.parent if path.is_file() else path
    settings: dict[str, dict[str, dict[str, Any]]] = {}
    for file in [*folder.glob("report.json")] or sorted(folder.glob("*/report.json")):
        name = "all" if file.parent == folder else file.parent.name
        try:
            of_seeds = [dict(report["settings"]) for report in read_json(file)["reports"]]
            settings[name] = {str(one["seed"]): one for one in of_seeds}
        except (CraftError, LookupError, TypeError, ValueError):
            continue
    if path.is_file():
        seed = path.stem.removeprefix("samples-")
        return {name: {seed: of_seeds[seed]} for name, of_seeds in settings.items() if seed in of_seeds}
    return settings


def chance_of(reports: Sequence[Report]) -> float | None:
    """The mean accuracy of choosing at random over several reports; None if one has open questions."""
    chances = [report.chance for report in reports]
    return mean([chance for chance in chances if chance is not None]) if None not in chances else None


def interval_of(
    reports: Sequence[Report], seen: bool | None = None, mark: str = "strict"
) -> tuple[float, float] | None:
    """The 95 % interval of the mean over several reports, one per seed.

    Args:
        reports: of one data set.
        seen: only questions about seen, or unseen, classes.
        mark: the mark that is averaged.

    Returns:
        None if a report has no such questions.
    """
    groups = []
    for number, report in enumerate(reports):
        rows = [row for row in report.samples if seen is None or row["seen"] == seen]
        marks = [row[mark] for row in rows]
        groups.append(Group(marks, images_of(rows), report.settings.get("seed", number)))
    ends = interval(groups)
    return None if ends[0] != ends[0] else ends


def merge(reports: Sequence[Report]) -> dict[str, dict[str, float | int] | None]:
    """Mean and spread of each figure over several reports, one per seed.

    Source: §4.1, "the average over 3 seeds".
    """
    return {name: spread([getattr(report, name) for report in reports]) for name in FIGURES}


def class_table(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The marks of every class, worst class first.

    Args:
        samples: rows of `Report.samples`; rows without a label are skipped.

    Returns:
        For each class its label, seen (None if only some of its rows are), count, and the shares strict,
        lenient and unparseable. Source: ours.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in samples:
        if row.get("label") is not None:
            rows.setdefault(str(row["label"]), []).append(row)
    table = [
        {
            "label": label,
            "seen": members[0]["seen"] if len({row["seen"] for row in members}) == 1 else None,
            "count": len(members),
            **{name: mean([row[name] for row in members]) for name in ("strict", "lenient", "unparseable")},
        }
        for label, members in rows.items()
    ]
    return sorted(table, key=lambda row: (row["strict"], row["label"]))


def confusion(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Which wrong option was named instead of which correct one, most frequent pair first.

    A reply can name a wrong option only if the question offers it, so both are counted. A class that is
    offered rarely and named every time is one that the LVLM cannot tell apart.

    Args:
        samples: rows of `Report.samples`; rows without options are skipped.

    Returns:
        For each pair that occurred: correct, named (None if the reply names no option), count, and offered,
        the number of questions on which that mistake was possible. Source: ours.
    """
    named: Counter[tuple[str, str | None]] = Counter()
    offered: Counter[tuple[str, str | None]] = Counter()
    for row in samples:
        if not row["choices"]:
            continue
        right, choices = str(row["correct"]), row["choices"]
        right_index = choices.index(right) if right in choices else None
        by_letter = answered_by_letter(str(row.get("answer")), right_index, choices)
        index = option_named(row["prediction"], choices, by_letter)
        option = None if index is None else choices[index]
        if option != right:
            named[right, option] += 1
        offered.update((right, choice) for choice in {*choices, None} if choice != right)
    pairs = sorted(named, key=lambda pair: (-named[pair], pair[0], pair[1] or ""))
    return [
        {"correct": right, "named": option, "count": named[right, option], "offered": offered[right, option]}
        for right, option in pairs
    ]
