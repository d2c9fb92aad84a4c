"""`craft.transfer`: every backbone with every adapted encoder, and zero-shot (Tables 3 and 7).

Encoders are named, or adapted here: one for every surrogate, data set and seed. CRAFT stores every report in
a file of its own, so an interrupted matrix continues. Codes are computed once for all backbones.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError, DataError
from craft.core.lock import locked
from craft.core.progress import say
from craft.core.provenance import machine
from craft.core.settings import without_idle
from craft.core.store import RecordStore
from craft.core.tensors import hash_tensors
from craft.core.text import flat, json_digest
from craft.data import EMBEDDED, Data
from craft.data.load import short_name
from craft.evaluation.config import TransferConfig
from craft.evaluation.lengths import check_questions
from craft.evaluation.report import Report
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.load import load_artefact
from craft.models.freezing import answer_hashes, part_hashes
from craft.models.lvlm import LVLM
from craft.pages.matrix import ZERO_SHOT, TransferCell, TransferMatrix
from craft.recipes.adapt import adapt
from craft.recipes.arguments import (
    DataSource,
    ModelSource,
    data_name,
    loaded,
    model_name,
    surrogate_name,
    without_none,
)
from craft.recipes.evaluate import evaluate
from craft.recipes.questions import checked, questions_for
from craft.training.config import AdaptConfig
from craft.training.run_folder import FREE, RunFolder, read_record

WORK = "runs/transfer"
"""The default folder of the encoders that are adapted here, of codes and of answers."""

SEEDS = (0, 1, 2)
"""The default seeds of the encoders that are adapted here (§4.1: "the average over 3 seeds")."""

_BACKBONE = ("projector", "llm", "codebook", "words")

TransferSettings = TransferConfig | Mapping[str, Any] | str | Path | None


@dataclass(frozen=True)
class _Row:
    """An encoder of the matrix.

    Attributes:
        label: its name in the matrix.
        surrogate: the name of the LVLM that it was adapted with.
        artefact: the encoder.
        data: the data that it was adapted to, if that is in memory.
    """

    label: str
    surrogate: str
    artefact: Artefact
    data: Data | None = None


def transfer(
    encoders: Sequence[str | Path | Artefact] = (),
    backbones: Sequence[ModelSource] = (),
    data: DataSource | Sequence[DataSource] | None = None,
    keep_ratio: float | None = None,
    limit: int | None = None,
    *,
    surrogates: Sequence[ModelSource] = (),
    config: TransferSettings = None,
    **overrides: Any,
) -> TransferMatrix:
    """Ask every backbone the same questions with every encoder, and with the base tower.

    Args:
        encoders: run folders or artefacts; those that differ only in their seed are averaged. If the
            encoders of one surrogate were adapted to several data sets, and `data` is set, the matrix names
            them by the data that they were adapted to.
        backbones: names, folders or loaded LVLMs; none means the surrogates.
        data: one or several data sets to ask about (None: each encoder's training data), or with surrogates
            to adapt to (None: every embedded domain).
        keep_ratio, limit: as in `evaluate`.
        surrogates: instead of `encoders`: LVLMs to adapt one with, for every data set and seed (None:
            `SEEDS`).
        config: a YAML file, dict or `TransferConfig`; the other arguments take precedence.
        **overrides: any other setting of `TransferConfig` (`work="runs/matrix"`, `seeds=(0, 1)`,
            `ask__batch_size=32`), and of the adaptations (`adapt__losses__sal__weight=0`, `max_steps=100`).

    Raises:
        ConfigError: there is no encoder or no backbone, there are both encoders and surrogates, two models
            have one name, a setting is unknown, or an encoder in `work` was made with other settings.
        CodebookMismatchError: a codebook does not fit; before the first adaptation or question.
        CraftError: `keep_ratio` is impossible, or a backbone has no code prior to prune by; before them too.
        CraftError: as `craft.adapt` and `craft.evaluate`.

    Source: Tables 3 and 7.
    """
    sources: list[DataSource] = [data] if isinstance(data, str | Path | Data) else list(data or ())
    arguments = {
        "encoders": [str(e.folder if isinstance(e, Artefact) else e) for e in encoders],
        "backbones": list(map(model_name, backbones)),
        "surrogates": list(map(model_name, surrogates)),
        "data": list(map(data_name, sources)),
        "ask.keep_ratio": keep_ratio,
        "ask.limit": limit,
    }
    named = {name: value for name, value in arguments.items() if value not in (None, [])}
    settings = TransferConfig.build(config, {**overrides, **named})
    encoders, surrogates = encoders or settings.encoders, surrogates or settings.surrogates
    backbones = backbones or settings.backbones or surrogates
    _check(encoders, surrogates, backbones, settings)
    with locked(settings.work or (WORK if surrogates else None)):
        once = functools.cache(lambda model: loaded(model, settings.device, settings.dtype))
        lvlms, makers = (
            [once(model if isinstance(model, LVLM) else str(model)) for model in models]
            for models in (backbones, surrogates)
        )
        _apart(lvlms)
        _apart(makers)
        for lvlm in lvlms:
            lvlm.check_keep_ratio(settings.ask.keep_ratio)
        sources = sources or list(settings.data)
        if makers:
            plan = _plan_of_surrogates(makers, sources, lvlms, settings)
        else:
            rows, seeds = _named_rows(encoders, lvlms, same_questions=bool(sources)), settings.all_seeds()
            plan = _Plan(rows, len(encoders), sources or [None], seeds or [None], settings.work)
        limits = settings.ask.model_dump(include={"keep_ratio", "limit", "max_new_tokens"})
        ask = _Asker(None if plan.work is None else Path(plan.work), limits, settings.ask.batch_size)
        answers = _answers(plan, lvlms, ask, settings)
    record = {
        "seeds": sorted(answers.seeds),
        **limits,
        "adaptation": adaptation_settings(settings).model_dump(
            mode="json", exclude={"surrogate", "out", "seed", "data"}
        ),
        "commits": sorted({*answers.commits, *ask.commits} - {"None"}),
        "machine": machine(),
    }
    return _matrix(answers, [lvlm.name for lvlm in lvlms], record)


def adaptation_settings(settings: TransferConfig) -> AdaptConfig:
    """The settings of the adaptations, with the root, device and dtype of the whole."""
    shared = {"data.root": settings.root, "device": settings.device, "dtype": settings.dtype}
    reading = {"data.splits": settings.splits or None, "data.partial": settings.partial or None}
    return AdaptConfig.build(settings.adapt, without_none(shared | reading))


@dataclass(frozen=True)
class _Plan:
    """Which encoders are asked which questions.

    Attributes:
        rows: the encoders.
        total: the number of encoders.
        sources: the data sets of the questions; None is the one that the encoder was adapted to.
        seeds: of the questions; None is the seed of the encoder's training.
        work: where codes and answers are stored, or None.
    """

    rows: Iterable[_Row]
    total: int
    sources: Sequence[DataSource | None]
    seeds: Sequence[int | None]
    work: str | None


@dataclass(frozen=True)
class _Answers:
    """The results of a plan.

    Attributes:
        reports: adapted and zero-shot, by data set, encoder and backbone.
        surrogates: by encoder.
        seeds: of the questions.
        commits: of CRAFT that the encoders were made with.
    """

    reports: dict[tuple[str, str, str], list[tuple[Report, Report]]] = field(default_factory=dict)
    surrogates: dict[str, str] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    commits: set[str] = field(default_factory=set)


def _answers(plan: _Plan, lvlms: Sequence[LVLM], ask: "_Asker", settings: TransferConfig) -> _Answers:
    """Ask every backbone with every encoder of a plan, and with the base tower."""
    answers = _Answers()
    adapted_here = bool(settings.surrogates)
    root = None if adapted_here else settings.root
    reading = {"splits": settings.splits or None, "partial": settings.partial or None}
    for number, row in enumerate(plan.rows, start=1):
        answers.surrogates[row.label] = row.surrogate
        answers.commits.add(str((row.artefact.manifest.get("made_with") or {}).get("commit")))
        for source, seed in itertools.product(plan.sources, plan.seeds):
            data, manifest = row.data or source, row.artefact.manifest
            if isinstance(data, Data):
                questions = checked(data, manifest)
            else:
                named = {"root": root, "name": data_name(data), **reading}
                questions = questions_for(named, seed, manifest, lambda: lvlms[0])
            answers.seeds.add(questions.seed)
            if adapted_here and (row.data is not None or settings.adapt.data.limit is None):
                _check_data(row.artefact, questions)
            for lvlm in lvlms:
                check_questions(lvlm, questions.test)  # before the hours of asking the others
            for lvlm in lvlms:
                say(f"encoder {number} of {plan.total}, {row.label} on {questions.name}: {lvlm.name}")
                before = ask(lvlm, None, questions, row.artefact)
                after = ask(lvlm, row.artefact, questions, row.artefact)
                cell = (questions.name, row.label, lvlm.name)
                answers.reports.setdefault(cell, []).append((after, before))
    return answers


def _check(
    encoders: Sequence[Any], surrogates: Sequence[Any], backbones: Sequence[Any], settings: TransferConfig
) -> None:
    """
    Raises:
        ConfigError: there is nothing to compare, or settings contradict each other.
    """
    if bool(encoders) == bool(surrogates):
        raise ConfigError("transfer needs at least one encoder, or at least one surrogate to make it with.")
    if not backbones:
        raise ConfigError("transfer needs at least one backbone.")
    if not surrogates and settings.adapt != AdaptConfig():
        raise ConfigError("Settings of `adapt` are for the adaptations that surrogates need; leave them out.")


def _apart(lvlms: Sequence[LVLM]) -> None:
    """
    Raises:
        ConfigError: two have one name, by which their answers would be put together.
    """
    names = [lvlm.name for lvlm in lvlms]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f"Two of the models are called {twice[0]}, and a matrix tells them apart by name. Leave one out, "
            "or rename its folder."
        )


def _named_rows(
    encoders: Sequence[str | Path | Artefact], lvlms: Sequence[LVLM], same_questions: bool
) -> list[_Row]:
    """The encoders by surrogate. The label also names the data if there are several data sets and
    `same_questions` for all, and the folder if encoders differ in more than the seed, or not even in that."""
    artefacts = [e if isinstance(e, Artefact) else load_artefact(e) for e in encoders]
    for lvlm in lvlms:
        for artefact in artefacts:
            lvlm.with_encoder(artefact)  # a wrong codebook shows before the hours of asking
    kinds = [_kind(artefact) for artefact in artefacts]
    seeds = [artefact.manifest.get("seed") for artefact in artefacts]
    folders = [a.folder.parent if a.folder.name in ("encoder", "tuned") else a.folder for a in artefacts]
    names = [folder.name for folder in folders]
    rows = []
    for artefact, (surrogate, data, settings), folder in zip(artefacts, kinds, folders, strict=True):
        alike = [
            (other, seed)
            for (*pair, other), seed in zip(kinds, seeds, strict=True)
            if pair == [surrogate, data]
        ]
        several = same_questions and len({learned for name, learned, _ in kinds if name == surrogate}) > 1
        label = f"{surrogate} on {data}" if several else surrogate
        if any(other != settings for other, _ in alike) or len({seed for _, seed in alike}) < len(alike):
            label += f" ({folder.name if names.count(folder.name) == 1 else folder})"
        rows.append(_Row(label, surrogate, artefact))
    return rows


def _kind(artefact: Artefact) -> tuple[str, str, dict[str, Any]]:
    """What encoders share that differ only in their seed: surrogate, data, and what decides a training."""
    learned = artefact.manifest.get("data") or {}
    config = flat(without_idle(artefact.manifest.get("config") or {}))
    apart = {*FREE, "seed", "surrogate", "micro_batch", "data.name", "data.root"}
    settings = {name: value for name, value in config.items() if name not in apart}
    return surrogate_name(artefact), str(learned.get("name")), settings


def _plan_of_surrogates(
    surrogates: Sequence[LVLM], sources: Sequence[DataSource], lvlms: Sequence[LVLM], settings: TransferConfig
) -> _Plan:
    """Encoders that are adapted here: with every surrogate, on every data set, for every seed.

    Raises:
        CodebookMismatchError: surrogates and backbones do not share a codebook.
    """
    for surrogate, lvlm in itertools.product(surrogates, lvlms):
        LVLM(surrogate.visual, lvlm.backbone, lvlm.name)  # one codebook, or an error
    seeds, work = settings.all_seeds() or SEEDS, settings.work or WORK
    trainings = list(itertools.product(sources or EMBEDDED, seeds, surrogates))
    rows = _adapted_rows(trainings, Path(work) / "runs", adaptation_settings(settings))
    return _Plan(rows, len(trainings), [None], [None], work)


def _adapted_rows(
    trainings: Sequence[tuple[DataSource, int, LVLM]], folder: Path, settings: AdaptConfig
) -> Iterator[_Row]:
    """Adapt encoders one after the other, or take those that are in `folder` already.

    Raises:
        CraftError: as `craft.adapt`.
    """
    hashes = {surrogate.name: part_hashes(surrogate) for _, _, surrogate in trainings}
    for source, seed, surrogate in trainings:
        data = source if isinstance(source, Data) else None
        name = source.name if isinstance(source, Data) else short_name(source)
        run = RunFolder(folder / f"{_plain(name)}-{_plain(surrogate.name)}-{seed}")
        record = run.path / "run.json"
        before = read_record(record).get("hashes_before") if record.is_file() else None
        stale = before is not None and before != hashes[surrogate.name]
        if stale:
            say(f"{run.path} was made with other weights of {surrogate.name}; it is made again")
        result = adapt(surrogate, source, run.path, seed, config=settings, resume=not stale, overwrite=stale)
        yield _Row(surrogate.name, surrogate.name, load_artefact(result.out), data)


def _check_data(artefact: Artefact, questions: Data) -> None:
    """
    Raises:
        DataError: the data is not what an encoder that was made earlier learned from.
    """
    if artefact.manifest["data"]["fingerprint"] != questions.fingerprint:
        raise DataError(
            f"{questions.name} has changed since {artefact.folder} was adapted to it. Delete that run, or "
            "use another --work folder."
        )


def _plain(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


class _Asker:
    """Asks questions and stores every report, in memory and in the work folder.

    The identity of a report is everything that decides its answers: weights, questions, limits.
    """

    def __init__(self, work: Path | None, settings: Mapping[str, Any], batch_size: int) -> None:
        self.records = RecordStore(None if work is None else work / "cells")
        self.codes = CodeCache(None if work is None else work / "codes")
        self.settings = dict(settings)
        self.batch_size = batch_size
        self.commits = set[str]()
        self._reports: dict[str, Report] = {}
        self._hashes: dict[int, dict[str, str]] = {}

    def __call__(self, lvlm: LVLM, encoder: Artefact | None, questions: Data, like: Artefact) -> Report:
        """The report of one backbone with an encoder, or with the base tower."""
        identity = self._identity(lvlm, encoder, questions)
        name = ZERO_SHOT if encoder is None else surrogate_name(encoder)
        label = "-".join(map(_plain, (questions.name, name, lvlm.name, json_digest(identity)[:16])))
        if label not in self._reports:
            record = self.records.get(label, identity)
            if record is None:
                options = {"like": like, "batch_size": self.batch_size, "cache": self.codes, **self.settings}
                report = evaluate(lvlm, encoder, questions, **options)
                record = {"commit": machine()["commit"], **report.to_json(samples=True)}
                self.records.put(label, identity, record)
            self.commits.add(str(record["commit"]))
            self._reports[label] = Report.of(record["samples"], record["settings"])
        return self._reports[label]

    def _identity(self, lvlm: LVLM, encoder: Artefact | None, questions: Data) -> dict[str, Any]:
        if id(lvlm) not in self._hashes:
            self._hashes[id(lvlm)] = answer_hashes(lvlm)
        hashes = self._hashes[id(lvlm)]
        prior: Any = lvlm.visual.prior if encoder is None else encoder.prior
        pruning = self.settings["keep_ratio"] != 1
        return {
            "backbone": {part: hashes[part] for part in _BACKBONE if part in hashes},
            "tower": hashes["vision_tower"] if encoder is None else encoder.manifest["tower"],
            "prior": hash_tensors({"prior": prior}) if pruning and prior is not None else None,
            "questions": questions.fingerprint,
            "held_out": list(questions.held_out),
            **self.settings,
        }


def _matrix(answers: _Answers, backbones: Sequence[str], settings: dict[str, Any]) -> TransferMatrix:
    """Sort the pairs (adapted, zero-shot) into cells."""
    data = list(dict.fromkeys(name for name, _, _ in answers.reports))
    encoders = [ZERO_SHOT, *answers.surrogates]
    cells: dict[tuple[str, str, str], TransferCell] = {}
    for name, encoder, backbone in itertools.product(data, encoders, backbones):
        key = (name, encoder, backbone)
        if encoder == ZERO_SHOT:
            pairs = _zero_shot_pairs(answers, name, backbone)
        else:
            pairs = answers.reports.get(key, [])
        if pairs:
            diagonal = answers.surrogates.get(encoder) == backbone
            adapted, before = map(list, zip(*pairs, strict=True))
            cells[key] = TransferCell(name, encoder, backbone, diagonal, adapted, before)
    return TransferMatrix(data, encoders, list(backbones), cells, settings)


def _zero_shot_pairs(answers: _Answers, data: str, backbone: str) -> list[tuple[Report, Report]]:
    """The zero-shot reports, paired with themselves; a report that encoders share counts once."""
    keys = [key for key in answers.reports if (key[0], key[2]) == (data, backbone)]
    reports = [before for key in keys for _, before in answers.reports[key]]
    return [(report, report) for report in {id(report): report for report in reports}.values()]
