"""`craft eval` on several benchmarks: a row of Table 1."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError, CraftError
from craft.core.files import atomic_write_bytes, check_writable, write_json
from craft.core.lock import locked
from craft.core.progress import say
from craft.core.store import RecordStore
from craft.core.tensors import hash_tensors
from craft.data import BENCHMARKS
from craft.evaluation.config import EvalConfig, EvalSettings
from craft.evaluation.export import add_to_card, to_lmms
from craft.evaluation.metrics import spread
from craft.evaluation.report import (
    Report,
    caveats_of,
    chance_of,
    class_table,
    confusion,
    interval_of,
    merge,
    read_samples,
)
from craft.evaluation.run import answers_to
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.load import load_artefact
from craft.models.freezing import answer_hashes
from craft.models.llm_bits import bits_of
from craft.models.lvlm import LVLM
from craft.pages.reliability import draw_reliability
from craft.recipes.arguments import model_name, surrogate_name, without_none
from craft.recipes.evaluate import evaluate, load_backbone, questions_asked
from craft.recipes.prior import chosen_prior

TABLE_1 = {
    "iconqa": "IconQA",
    "ocr-vqa": "OCRVQA",
    "scienceqa": "ScienceQA",
    "vqa-rad": "VQARAD",
    "eurosat": "EuroSAT",
    "flowers102": "Flowers",
    "kvasir": "Kvasir",
    "plantvillage": "PlantVillage",
    "stanford-cars": "Cars",
    "stanford-dogs": "Dogs",
}
"""The paper's ten benchmarks, in the order and with the heads of its Table 1."""

LABEL = "report"
"""`report.json` has a data set's figures, and under "asked" the identity of the evaluation."""

_COMPARED = (
    *("limit", "split", "keep_ratio", "prior", "keep_positions"),
    *("answer_with", "distractors", "unseen_fraction"),
    *("max_new_tokens", "protocol"),
)
"""Settings that must be the same for stored results to count; no answer depends on the others."""


@dataclass
class Row:
    """One LVLM on several benchmarks.

    Attributes:
        backbone: its name.
        surrogate: which LLM its encoder was adapted with; "-" is zero-shot.
        reports: by benchmark, in the order of Table 1: one report per seed, of questions or of encoders.
        vision: "Discrete" or "Continuous", what its visual tokens are.
    """

    backbone: str
    surrogate: str
    reports: dict[str, list[Report]] = field(repr=False)
    vision: str = "Discrete"

    def average(self, name: str = "accuracy") -> float | None:
        """The mean over benchmarks of a figure's mean over seeds; None if a benchmark lacks it."""
        figures = [merge(reports)[name] for reports in self.reports.values()]
        known = [float(figure["mean"]) for figure in figures if figure is not None]
        return sum(known) / len(known) if figures and len(known) == len(figures) else None

    def average_over_seeds(self, name: str = "accuracy") -> dict[str, Any] | None:
        """`average` with its standard deviation over seeds, which needs as many seeds of every benchmark."""
        if (mean := self.average(name)) is None:
            return None
        by_seed = zip(*self.reports.values(), strict=False)
        averages = [sum(getattr(report, name) for report in reports) / len(reports) for reports in by_seed]
        same = len({len(reports) for reports in self.reports.values()}) == 1
        return {**(spread(averages if same else [mean]) or {}), "mean": mean}

    def cells(self) -> list[str]:
        """The row as Table 1 has it: surrogate, backbone, tokens, percent per benchmark, average."""
        means = [merge(reports)["accuracy"] for reports in self.reports.values()]
        shares = [None if mean is None else float(mean["mean"]) for mean in means] + [self.average()]
        return [
            self.surrogate,
            self.backbone,
            self.vision,
            *("-" if share is None else f"{100 * share:.2f}" for share in shares),
        ]

    def heads(self) -> list[str]:
        """The heads of `cells`."""
        names = [TABLE_1.get(name, name) for name in self.reports]
        return ["Train Surro.", "Inference BB.", "Vision Token", *names, "Avg."]


@dataclass(frozen=True)
class _Case:
    """One data set of a row.

    Attributes:
        encoder: the encoder in use.
        like: the encoder to compare with.
        name: the data set; None is the one that the encoder was adapted to.
        root: its folder.
        label: the name of the case.
        folder: of its results; None stores none.
    """

    encoder: Artefact | None
    like: Artefact | None
    name: str | None
    root: str | None
    label: str
    folder: Path | None

    def settings(self, config: EvalConfig) -> list[EvalConfig]:
        """The settings of each evaluation of this case, one per seed."""
        name = () if self.name is None else (self.name,)
        root = () if self.root is None else (self.root,)
        data = config.data.model_copy(update={"name": name, "root": root})
        alone: dict[str, Any] = {"encoder": (), "like": (), "data": data, "out": None, "seeds": ()}
        seeds = config.all_seeds() or [None]
        return [config.model_copy(update={**alone, "seed": seed}) for seed in seeds]


def evaluate_all(
    backbone: str | Path | LVLM | None = None,
    *,
    config: EvalSettings = None,
    resume: bool = False,
    card: bool = False,
    **overrides: Any,
) -> Row:
    """Evaluate one backbone on several benchmarks, zero-shot, with one encoder, or with one for each.

    Settings with several values: `encoder` names none; one for all of `data`; one for each of them, in order;
    or, without `data`, any number, each for the data that it was adapted to (several of one data set count as
    its seeds). `like` is as `encoder`, but only for questions and unseen classes: the zero-shot row. `root`
    is one for each data set, or one for all; then a benchmark's is ROOT/NAME if that is a folder.

    Args:
        backbone: an LVLM, or the name of one; None is that of the config.
        config: a YAML file, dict or `EvalConfig`. In its `out` every benchmark's report and answers go to
            OUT/NAME as soon as they exist (to OUT itself if there is only one), with `lmms_eval.json` in the
            form of lmms-eval and, if options were scored, reliability diagrams; OUT/config.resolved.yaml has
            every setting.
        resume: reuse the results in `out` of benchmarks that the same weights were asked with the same
            settings, if questions and images are still the same.
        card: write the figures into the model cards of the encoders.
        **overrides: any setting of `EvalConfig` by name.

    Raises:
        ConfigError: numbers of encoders, data and roots do not fit, both encoders and like are given, a
            setting is unknown, or `out` cannot be written.
        CodebookMismatchError, CheckpointError, DataError: as `evaluate`.
    """
    config = EvalConfig.build(config, {**overrides, **without_none({"backbone": model_name(backbone)})})
    if config.encoder and config.like:
        raise ConfigError("Give encoders to use them, or like to compare with them; not both.")
    with locked(config.out):
        return _evaluate_all(backbone, config, resume, card)


def _evaluate_all(backbone: str | Path | LVLM | None, config: EvalConfig, resume: bool, card: bool) -> Row:
    if config.cache is not None:
        check_writable(Path(config.cache) / "cache.json")
    artefacts = [load_artefact(e) for e in config.encoder or config.like]  # a mistake here costs no LLM
    for artefact in artefacts if card else ():
        check_writable(artefact.folder / "README.md")
    lvlm = load_backbone(backbone, config)
    for artefact in artefacts:
        lvlm.with_encoder(artefact)  # a wrong codebook shows before the hours of asking
    cases = _cases(artefacts, config)
    if config.out is not None:
        config.save(Path(config.out) / "config.resolved.yaml")
    cache = CodeCache(config.cache)
    # Under one name there may be other weights tomorrow. They are read only for results that are stored.
    weights = {} if config.out is None else answer_hashes(lvlm)
    reports: dict[str, list[Report]] = {}
    for case in cases:
        identity = _identity(lvlm, case, config, weights)
        results = _resumed(lvlm, case, config, identity) if resume else None
        if results is None:
            if len(cases) > 1:
                say(f"{lvlm.name} on {case.label}")
            results = [
                evaluate(lvlm, case.encoder, case.name, config=one, like=case.like, cache=cache)
                for one in case.settings(config)
            ]
            if case.folder is not None:
                save(case.folder, results, identity)
            if card and case.encoder is not None:
                add_to_card(case.encoder.folder / "README.md", results)
        if case.folder is not None:
            draw(case.folder, results)
        key = case.label if config.data.name else str(results[0].settings["data"])  # the encoder's data
        reports.setdefault(key, []).extend(results)
    order = sorted(reports, key=lambda n: list(TABLE_1).index(n) if n in TABLE_1 else len(TABLE_1))
    surrogates = dict.fromkeys(map(surrogate_name, artefacts))
    return Row(
        lvlm.name,
        ", ".join(surrogates) if config.encoder else "-",
        {name: reports[name] for name in order},
        "Continuous" if lvlm.visual.continuous else "Discrete",
    )


def _identity(lvlm: LVLM, case: _Case, config: EvalConfig, weights: dict[str, str]) -> dict[str, Any]:
    """Everything that decides the stored results of a case."""
    bits, pruned = bits_of(lvlm.backbone.llm), config.keep_ratio != 1
    settings = {**vars(config), **vars(config.data)}
    return {
        "backbone": lvlm.name,
        "weights": weights,
        "encoder": case.encoder.manifest["tower"] if case.encoder else None,
        "like": case.like.manifest["tower"] if case.like else None,
        "data": case.name,
        "root": case.root,
        **config.data.reading(),
        "seeds": config.all_seeds() or None,
        **({} if bits is None else {"llm_bits": bits}),
        **({"counts": _counts(lvlm, case.encoder, config.prior)} if pruned else {}),
        **{name: settings[name] for name in _COMPARED},
        **({} if config.search == "exact" else {"search": config.search}),
    }


def _resumed(lvlm: LVLM, case: _Case, config: EvalConfig, identity: dict[str, Any]) -> list[Report] | None:
    """The reports in the folder of a case, if they answer what would be asked now."""
    reports = None if case.folder is None else _stored(case.folder, identity)
    if reports is None:
        return None
    now = [questions_asked(lambda: lvlm, case.encoder or case.like, one)[1] for one in case.settings(config)]
    if all(map(answers_to, (report.samples for report in reports), now)):
        return reports
    say(f"the questions or images are no longer those of {case.folder}; they are evaluated again")
    return None


def _cases(artefacts: Sequence[Artefact], config: EvalConfig) -> list[_Case]:
    """
    Raises:
        ConfigError: numbers of encoders, data and roots do not fit.
    """
    pairs = list(_pairs(artefacts, list(config.data.name)))
    roots = _roots(config.data.root, [name for _, name in pairs])
    cases = []
    for (artefact, name), label, root in zip(pairs, _folders(pairs), roots, strict=True):
        folder = None if config.out is None else Path(config.out) / (label if len(pairs) > 1 else ".")
        encoder, like = (artefact, None) if config.encoder else (None, artefact)
        cases.append(_Case(encoder, like, name, root, label, folder))
    return cases


def summary(reports: Sequence[Report], classes: bool = False) -> dict[str, Any]:
    """Means over seeds with the interval of the accuracy, then each report.

    Args:
        reports: one data set's, one per seed.
        classes: with the table per class and the confusion of each report.
    """
    figures = merge(reports)
    means = {name: None if value is None else value["mean"] for name, value in figures.items()}

    def whole(report: Report) -> dict[str, Any]:
        more = {"classes": class_table(report.samples), "confusion": confusion(report.samples)}
        return {**report.to_json(), **(more if classes else {})}

    return {
        **means,
        **({"caveats": caveats} if (caveats := caveats_of(reports)) else {}),
        "interval": interval_of(reports),
        "chance": chance_of(reports),
        "count": sum(len(report.samples) for report in reports),
        "spread": figures,
        "reports": [whole(report) for report in reports],
    }


def save(folder: Path, reports: Sequence[Report], identity: dict[str, Any]) -> None:
    """Write a data set's reports. `report.json` comes last, since it states that they are complete."""
    for report in reports:
        report.save_samples(_samples_file(folder, report.settings["seed"]))
    write_json(folder / "lmms_eval.json", to_lmms({_task(report): report for report in reports}))
    _record_store(folder).put(LABEL, identity, summary(reports, classes=True))


def draw(folder: Path, reports: Sequence[Report]) -> None:
    """Write the reliability diagram of each report whose options were scored, and remove an older one."""
    for report in reports:
        path = diagram_file(folder, report.settings["seed"])
        calibration = report.calibration(report.settings.get("answer_temperature"))
        if calibration is None:
            path.unlink(missing_ok=True)
        else:
            atomic_write_bytes(path, draw_reliability(calibration)[0])


def diagram_file(folder: Path, seed: int) -> Path:
    """The reliability diagram of a seed in the folder of its results."""
    return folder / f"reliability-{seed}.png"


def _task(report: Report) -> str:
    return f"{report.settings.get('data')}_{report.settings.get('split')}_seed{report.settings.get('seed')}"


def _counts(lvlm: LVLM, encoder: Artefact | None, prior: str | Path | None) -> str | None:
    """A hash of the code counts that prune tokens, since a file may hold other counts next time."""
    usual = lvlm.visual.prior if encoder is None else encoder.prior
    counts = usual if prior is None else chosen_prior(prior, lvlm)
    return None if counts is None else hash_tensors({"counts": counts})


def _stored(folder: Path, identity: dict[str, Any]) -> list[Report] | None:
    """The reports that `save` wrote with this identity; None if they are missing, incomplete or damaged."""
    try:
        record = _record_store(folder).get(LABEL, identity)
        settings = [report["settings"] for report in record["reports"]] if record else []
        reports = [Report.of(read_samples(_samples_file(folder, one["seed"])), one) for one in settings]
    except (CraftError, KeyError, TypeError):
        return None
    return reports or None


def _record_store(folder: Path) -> RecordStore:
    return RecordStore(folder, identity_name="asked")


def _samples_file(folder: Path, seed: int) -> Path:
    return folder / f"samples-{seed}.jsonl"


def _pairs(
    artefacts: Sequence[Artefact], data: Sequence[str]
) -> Iterable[tuple[Artefact | None, str | None]]:
    if not artefacts:
        return zip(repeat(None), data or [None])
    if not data:
        return zip(artefacts, repeat(None))
    if len(artefacts) == 1:
        return zip(repeat(artefacts[0]), data)
    if len(artefacts) == len(data):
        return zip(artefacts, data, strict=True)
    raise ConfigError(
        f"{len(artefacts)} encoders and {len(data)} data sets: give one encoder, as many as data sets, or no "
        "data sets (then each encoder is asked about its own)."
    )


def _folders(pairs: Sequence[tuple[Artefact | None, str | None]]) -> list[str]:
    """A folder name for each, after its data; numbers distinguish equal names."""
    names: list[str] = []
    for artefact, name in pairs:
        learned = (artefact.manifest.get("data") or {}).get("name") if artefact is not None else None
        label = Path(os.path.abspath(str(name or learned or "data"))).name  # "..", too
        again = sum(known.partition("#")[0] == label for known in names)
        names.append(f"{label}#{again + 1}" if again else label)
    return names


def _roots(roots: Sequence[str], names: Sequence[str | None]) -> list[str | None]:
    """The root of each data set."""
    if len(roots) == len(names):
        return list(roots)
    if len(roots) > 1:
        raise ConfigError(
            f"{len(roots)} roots and {len(names)} data sets: give one for each, or one for all."
        )
    root = roots[0] if roots else None
    below = [Path(root) / name if root is not None and name in BENCHMARKS else None for name in names]
    return [str(folder) if folder is not None and folder.is_dir() else root for folder in below]
