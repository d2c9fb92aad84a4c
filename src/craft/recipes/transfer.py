"""`craft.transfer`: every adapted encoder with every backbone, and zero-shot (Tables 3 and 7).

Encoders are named, or made here: one for every surrogate, data set and seed. Every answer sheet is a separate
file, so that an interrupted matrix continues where it stopped; codes are computed once for all backbones.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError, DataError
from craft.core.files import read_json, write_json
from craft.core.progress import say
from craft.core.provenance import machine
from craft.core.settings import without_idle
from craft.core.tensors import hash_tensors
from craft.core.text import flat, json_digest
from craft.data import EMBEDDED, Data
from craft.data.load import as_setting, short_name
from craft.evaluation.config import TransferConfig
from craft.evaluation.report import Report
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.load import load, load_artefact
from craft.models.freezing import answer_hashes, part_hashes
from craft.models.lvlm import LVLM
from craft.pages.matrix import ZERO_SHOT, TransferCell, TransferMatrix
from craft.recipes.adapt import adapt
from craft.recipes.evaluate import evaluate
from craft.recipes.questions import checked, questions_for
from craft.training.config import AdaptConfig
from craft.training.run_folder import FREE, RunFolder

WORK = "runs/transfer"
"""The default folder of encoders that are made here, codes and answers."""

SEEDS = (0, 1, 2)
"""Of the encoders that are made (§4.1: "the average over 3 seeds")."""

Source = str | Path | Data
TransferSettings = TransferConfig | Mapping[str, Any] | str | Path | None


@dataclass(frozen=True)
class _Row:
    """An encoder: its name in the matrix, the name of the LVLM that it was adapted with, and what it is asked
    (None: what its manifest names)."""

    label: str
    surrogate: str
    artefact: Artefact
    data: Data | None = None


def transfer(
    encoders: Sequence[str | Path | Artefact] = (),
    backbones: Sequence[str | Path | LVLM] = (),
    data: Source | Sequence[Source] | None = None,
    keep_ratio: float | None = None,
    limit: int | None = None,
    *,
    surrogates: Sequence[str | Path | LVLM] = (),
    config: TransferSettings = None,
    **overrides: Any,
) -> TransferMatrix:
    """Ask every backbone the same questions with every encoder, and with the base tower.

    Args:
        encoders: run folders or artefacts; those that differ only in their seed are averaged. If one
            surrogate's were adapted to several data sets, and `data` says what all are asked, the matrix
            names them by what they were adapted to.
        backbones: names, folders or loaded LVLMs; none means the surrogates.
        data: one or several: what encoders are asked (None: each what it was adapted to), or with surrogates
            what to adapt to (None: every embedded domain).
        keep_ratio, limit: as in `evaluate`.
        surrogates: instead of `encoders`: LVLMs to adapt one with, for every data set and seed (None:
            `SEEDS`).
        config: a YAML file, dict or `TransferConfig`; the other arguments take precedence.
        **overrides: any other setting of `TransferConfig` (`work="runs/matrix"`, `seeds=(0, 1)`,
            `ask__batch_size=32`), and of the adaptations (`adapt__losses__sal__weight=0`, `max_steps=100`).

    Raises:
        ConfigError: there is no encoder or no backbone, encoders and surrogates are both given, two models
            have one name, a setting is unknown, or an encoder in `work` was made with other settings.
        CodebookMismatchError: a codebook does not fit; before the first adaptation or question.
        CraftError: `keep_ratio` is impossible, or a backbone has no code prior to prune by; before them too.
        CraftError: as `craft.adapt` and `craft.evaluate`.

    Source: Tables 3 and 7.
    """
    sources: list[Source] = [data] if isinstance(data, str | Path | Data) else list(data or ())
    arguments = {
        "encoders": [str(e.folder) if isinstance(e, Artefact) else str(e) for e in encoders],
        "backbones": list(map(_name, backbones)),
        "surrogates": list(map(_name, surrogates)),
        "data": [source.name if isinstance(source, Data) else as_setting(source) for source in sources],
        "ask.keep_ratio": keep_ratio,
        "ask.limit": limit,
    }
    named = {name: value for name, value in arguments.items() if value not in (None, [])}
    settings = TransferConfig.build(config, {**overrides, **named})
    encoders, surrogates = encoders or settings.encoders, surrogates or settings.surrogates
    backbones = backbones or settings.backbones or surrogates
    _check(encoders, surrogates, backbones, settings)
    loaded = functools.cache(lambda model: load(model, settings.device, settings.dtype))
    lvlms, makers = (
        [model if isinstance(model, LVLM) else loaded(str(model)) for model in models]
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
        rows, seeds = _named_rows(encoders, lvlms, own_data=not sources), settings.all_seeds()
        plan = _Plan(rows, len(encoders), sources or [None], seeds or [None], settings.work)
    how = settings.ask.model_dump(include={"keep_ratio", "limit", "max_new_tokens"})
    ask = _Asker(None if plan.work is None else Path(plan.work), how, settings.ask.batch_size)
    answers = _answers(plan, lvlms, ask, settings)
    record = {
        "seeds": sorted(answers.seeds),
        **ask.how,
        "adaptation": adaptation_settings(settings).model_dump(
            mode="json", exclude={"surrogate", "out", "seed", "data"}
        ),
        "commits": sorted({*answers.commits, *ask.commits} - {"None"}),
        "machine": machine(),
    }
    return _matrix(answers.reports, answers.surrogates, [lvlm.name for lvlm in lvlms], record)


def adaptation_settings(settings: TransferConfig) -> AdaptConfig:
    """The settings of the adaptations, with the root, device and dtype of the whole."""
    shared = {"data.root": settings.root, "device": settings.device, "dtype": settings.dtype}
    return AdaptConfig.build(
        settings.adapt, {name: value for name, value in shared.items() if value is not None}
    )


@dataclass(frozen=True)
class _Plan:
    """What is asked of whom.

    Attributes:
        rows: the encoders.
        total: how many there are.
        sources: what each is asked; None is what it was adapted to.
        seeds: of the questions; None is the encoder's own.
        work: where codes and answers are stored, or None.
    """

    rows: Iterable[_Row]
    total: int
    sources: Sequence[Source | None]
    seeds: Sequence[int | None]
    work: str | None


@dataclass(frozen=True)
class _Answers:
    """What a plan came to.

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
    made_here = bool(settings.surrogates)
    wanted = {"root": None if made_here else settings.root}
    for number, row in enumerate(plan.rows, start=1):
        answers.surrogates[row.label] = row.surrogate
        answers.commits.add(str((row.artefact.manifest.get("made_with") or {}).get("commit")))
        for source, seed in itertools.product(plan.sources, plan.seeds):
            questions = _questions(row.artefact, row.data or source, seed, wanted, lambda: lvlms[0])
            answers.seeds.add(questions.seed)
            if made_here and (row.data is not None or settings.adapt.data.limit is None):
                _check_data(row.artefact, questions)
            for lvlm in lvlms:
                say(f"encoder {number} of {plan.total}, {row.label} on {questions.name}: {lvlm.name}")
                before = ask(lvlm, None, questions, row.artefact)
                after = ask(lvlm, row.artefact, questions, row.artefact)
                cell = (questions.name, row.label, lvlm.name)
                answers.reports.setdefault(cell, []).append((after, before))
    return answers


def _plan_of_surrogates(
    makers: Sequence[LVLM], sources: Sequence[Source], lvlms: Sequence[LVLM], settings: TransferConfig
) -> _Plan:
    """Encoders that are adapted here: with every surrogate, on every data set, for every seed."""
    names, seeds = sources or list(EMBEDDED), settings.all_seeds() or SEEDS
    work = settings.work or WORK
    rows = _made(makers, names, seeds, lvlms, Path(work) / "runs", adaptation_settings(settings))
    return _Plan(rows, len(makers) * len(names) * len(seeds), [None], [None], work)


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


def _name(model: str | Path | LVLM) -> str:
    return model.name if isinstance(model, LVLM) else str(model)


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
    encoders: Sequence[str | Path | Artefact], lvlms: Sequence[LVLM], own_data: bool
) -> list[_Row]:
    """The encoders of a list by surrogate; also by what they were adapted to, if that is several data sets
    and all are asked the same; also by folder if they differ in more than the seed, or not even in that."""
    artefacts = [e if isinstance(e, Artefact) else load_artefact(e) for e in encoders]
    for lvlm in lvlms:
        for artefact in artefacts:
            lvlm.with_encoder(artefact)  # a wrong codebook shows before the hours of asking
    kinds = [_kind(artefact) for artefact in artefacts]
    seeds = [artefact.manifest.get("seed") for artefact in artefacts]
    folders = [a.folder.parent if a.folder.name in ("encoder", "tuned") else a.folder for a in artefacts]
    names = [folder.name for folder in folders]
    rows = []
    for artefact, (surrogate, data, how), folder in zip(artefacts, kinds, folders, strict=True):
        alike = [(h, s) for (o, d, h), s in zip(kinds, seeds, strict=True) if (o, d) == (surrogate, data)]
        several = not own_data and len({d for o, d, _ in kinds if o == surrogate}) > 1
        label = f"{surrogate} on {data}" if several else surrogate
        if any(h != how for h, _ in alike) or len({s for _, s in alike}) < len(alike):
            label += f" ({folder.name if names.count(folder.name) == 1 else folder})"
        rows.append(_Row(label, surrogate, artefact))
    return rows


def _kind(artefact: Artefact) -> tuple[str, str, dict[str, Any]]:
    """What encoders share that differ only in their seed: surrogate, data, and what decides a training."""
    learned = artefact.manifest.get("data") or {}
    config = flat(without_idle(artefact.manifest.get("config") or {}))
    apart = {*FREE, "seed", "surrogate", "micro_batch", "data.name", "data.root"}
    how = {name: value for name, value in config.items() if name not in apart}
    return str(artefact.manifest.get("surrogate") or "adapted"), str(learned.get("name")), how


def _made(
    surrogates: Sequence[LVLM],
    data: Sequence[Source],
    seeds: Sequence[int],
    backbones: Sequence[LVLM],
    folder: Path,
    settings: AdaptConfig,
) -> Iterator[_Row]:
    """Adapt encoders one after the other, or take those that are in `folder` already.

    Raises:
        CodebookMismatchError: surrogates and backbones do not share a codebook.
        CraftError: as `craft.adapt`.
    """
    for surrogate in surrogates:
        for lvlm in backbones:
            LVLM(surrogate.visual, lvlm.backbone, lvlm.name)  # one codebook, or an error
    hashes = {surrogate.name: part_hashes(surrogate) for surrogate in surrogates}
    for source in data:
        name = source.name if isinstance(source, Data) else short_name(source)
        for seed in seeds:
            for surrogate in surrogates:
                run = RunFolder(folder / f"{_plain(name)}-{_plain(surrogate.name)}-{seed}")
                record = run.path / "run.json"
                before = read_json(record).get("hashes_before") if record.is_file() else None
                stale = before is not None and before != hashes[surrogate.name]
                if stale:
                    say(f"{run.path} was made with other weights of {surrogate.name}; it is made again")
                result = adapt(
                    surrogate, source, run.path, seed, config=settings, resume=not stale, overwrite=stale
                )
                loaded = source if isinstance(source, Data) else None
                yield _Row(surrogate.name, surrogate.name, load_artefact(result.out), loaded)


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


def _questions(
    artefact: Artefact,
    source: Source | None,
    seed: int | None,
    wanted: Mapping[str, Any],
    lvlm: Callable[[], LVLM],
) -> Data:
    """The data set that an encoder is asked, with the classes unseen that its training held out."""
    if isinstance(source, Data):
        return checked(source, artefact.manifest)
    name = None if source is None else as_setting(source)
    return questions_for({**wanted, "name": name}, seed, artefact.manifest, lvlm)


class _Asker:
    """Asks, and keeps every answer sheet: in memory, and as one JSON each below `work`.

    A sheet is known by everything that decides the answers: weights, questions, limits.
    """

    def __init__(self, work: Path | None, how: Mapping[str, Any], batch_size: int) -> None:
        self.cells = None if work is None else work / "cells"
        self.codes = CodeCache(None if work is None else work / "codes")
        self.how = dict(how)
        self.batch_size = batch_size
        self.commits = set[str]()
        self._known: dict[str, Report] = {}
        self._parts: dict[int, dict[str, str]] = {}

    def __call__(self, lvlm: LVLM, encoder: Artefact | None, questions: Data, like: Artefact) -> Report:
        """The report of one backbone with an encoder, or with the base tower."""
        key = self._key(lvlm, encoder, questions)
        digest = json_digest(key)[:16]
        if digest not in self._known:
            self._known[digest] = self._read_or_ask(key, digest, lvlm, encoder, questions, like)
        return self._known[digest]

    def _key(self, lvlm: LVLM, encoder: Artefact | None, questions: Data) -> dict[str, Any]:
        if id(lvlm) not in self._parts:
            self._parts[id(lvlm)] = answer_hashes(lvlm)
        parts = self._parts[id(lvlm)]
        return {
            "backbone": {name: parts[name] for name in ("projector", "llm", "codebook", "words")},
            "tower": parts["vision_tower"] if encoder is None else encoder.manifest["tower"],
            "prior": self._prior(lvlm, encoder),
            "questions": questions.fingerprint,
            "held_out": list(questions.held_out),
            **self.how,
        }

    def _prior(self, lvlm: LVLM, encoder: Artefact | None) -> str | None:
        """A hash of the code counts; None if they prune no tokens."""
        counts: Any = lvlm.visual.prior if encoder is None else encoder.prior
        return None if counts is None or self.how["keep_ratio"] == 1 else hash_tensors({"prior": counts})

    def _read_or_ask(
        self,
        key: dict[str, Any],
        digest: str,
        lvlm: LVLM,
        encoder: Artefact | None,
        questions: Data,
        like: Artefact,
    ) -> Report:
        label = ZERO_SHOT if encoder is None else str(encoder.manifest.get("surrogate") or "adapted")
        name = "-".join(_plain(part) for part in (questions.name, label, lvlm.name, digest))
        place = None if self.cells is None else self.cells / f"{name}.json"
        if place is not None and place.is_file():
            kept = read_json(place)
            self.commits.add(str(kept["commit"]))
            return Report.of(kept["samples"], kept["settings"])
        report = evaluate(
            lvlm, encoder, questions, like=like, batch_size=self.batch_size, cache=self.codes, **self.how
        )
        commit = machine()["commit"]
        self.commits.add(str(commit))
        if place is not None:
            write_json(place, {"key": key, "commit": commit, **report.to_json(samples=True)})
        return report


def _matrix(
    found: Mapping[tuple[str, str, str], Sequence[tuple[Report, Report]]],
    surrogate_of: Mapping[str, str],
    backbones: Sequence[str],
    settings: dict[str, Any],
) -> TransferMatrix:
    """Sort the pairs (adapted, zero-shot) into cells; a zero-shot report that encoders share counts once."""
    data = list(dict.fromkeys(name for name, _, _ in found))
    cells: dict[tuple[str, str, str], TransferCell] = {}
    for name in data:
        for encoder in (ZERO_SHOT, *surrogate_of):
            for backbone in backbones:
                if encoder == ZERO_SHOT:
                    pairs = [
                        pair for (d, _, b), own in found.items() if (d, b) == (name, backbone) for pair in own
                    ]
                    reports = list({id(before): before for _, before in pairs}.values())
                    before = reports
                else:
                    pairs = found.get((name, encoder, backbone), ())
                    reports, before = [after for after, _ in pairs], [zero for _, zero in pairs]
                if reports:
                    diagonal = surrogate_of.get(encoder) == backbone
                    cells[name, encoder, backbone] = TransferCell(
                        name, encoder, backbone, diagonal, reports, before
                    )
    return TransferMatrix(data, [ZERO_SHOT, *surrogate_of], list(backbones), cells, settings)
