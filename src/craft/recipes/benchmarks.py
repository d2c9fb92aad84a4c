"""`craft eval` on several benchmarks: a row of Table 1."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError, CraftError
from craft.core.files import check_writable, hash_tensors, read_json, write_json
from craft.core.progress import say
from craft.data import BENCHMARKS
from craft.evaluation import (
    Report,
    add_to_card,
    answers_to,
    class_table,
    confusion,
    merge,
    read_samples,
    to_lmms,
)
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.encoder import load_artefact
from craft.models.freezing import answer_hashes
from craft.models.llm_bits import bits_of
from craft.models.lvlm import LVLM
from craft.recipes.evaluate import evaluate, questions_asked
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

_OF_QUESTIONS = ("limit", "split", "answer_with", "distractors", "unseen_fraction")


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
        """The mean over benchmarks of a figure's mean over seeds; None where a benchmark lacks it."""
        found = [merge(reports)[name] for reports in self.reports.values()]
        known = [float(figure["mean"]) for figure in found if figure is not None]
        return sum(known) / len(known) if found and len(known) == len(found) else None

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


def evaluate_all(
    lvlm: LVLM,
    encoders: Sequence[str | Path | Artefact] = (),
    data: Sequence[str | Path] = (),
    seeds: Sequence[int] | None = None,
    *,
    like: Sequence[str | Path | Artefact] = (),
    roots: Sequence[str | Path] = (),
    cache: CodeCache | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    card: bool = False,
    **settings: Any,
) -> Row:
    """Evaluate one backbone on several benchmarks, zero-shot, with one encoder, or with one for each.

    Args:
        lvlm: the LVLM.
        encoders: none; one for all of `data`; one for each of them, in order; or, without `data`, any number,
            each on the data that it was adapted to. Several of one data set count as seeds of it.
        data: the benchmarks.
        seeds: of the questions; None is each encoder's own.
        like: as `encoders`, but only for their questions and unseen classes: the zero-shot row.
        roots: where the data lies: one for each, or one for all; then a
            benchmark's is ROOT/NAME where that is a folder.
        cache: codes of images that were encoded before.
        out: a folder; every benchmark's report and answers go to OUT/NAME as soon as they are there (to OUT
            itself where there is only one), with `lmms_eval.json` in the form of lmms-eval.
        resume: take what lies in `out` for benchmarks that the same weights were asked, with the same
            settings, as far as questions and pictures are still the same.
        card: write the figures into the model cards of the encoders.
        settings: further arguments of `craft.evaluate`.

    Raises:
        ConfigError: numbers of encoders, data and roots do not fit, both encoders and like are given, or
            `out` cannot be written.
        CodebookMismatchError, CheckpointError, DataError: as `evaluate`.
    """
    if encoders and like:
        raise ConfigError("Give encoders to use them, or like to compare with them; not both.")
    artefacts = [e if isinstance(e, Artefact) else load_artefact(e) for e in encoders or like]
    for artefact in artefacts:
        lvlm.with_encoder(artefact)  # a wrong codebook shows before the hours of asking
    pairs = list(_pairs(artefacts, list(data)))
    folders = _folders(pairs)
    if out is not None:
        check_writable(Path(out) / "report.json")
    cache, bits = cache or CodeCache(), bits_of(lvlm.backbone.llm)
    # Under one name there may be other weights tomorrow. They are read for what is kept alone.
    weights = {} if out is None else answer_hashes(lvlm)
    of_questions = {name: settings[name] for name in _OF_QUESTIONS if name in settings}
    reports: dict[str, list[Report]] = {}
    places = _places(roots, [name for _, name in pairs])
    for (artefact, name), folder, place_of in zip(pairs, folders, places, strict=True):
        place = None if out is None else Path(out) / (folder if len(pairs) > 1 else ".")
        asked = {  # must be the same for an evaluation to count as done already
            "backbone": lvlm.name,
            "weights": weights,
            "encoder": artefact.manifest["tower"] if artefact and encoders else None,
            "like": artefact.manifest["tower"] if artefact and like else None,
            "data": None if name is None else str(name),
            "root": None if place_of is None else str(place_of),
            "seeds": list(seeds) if seeds else None,
            **({} if bits is None else {"llm_bits": bits}),
            **(
                {}
                if settings.get("keep_ratio", 1) == 1
                else {"counts": _counts(lvlm, artefact if encoders else None, settings.get("prior"))}
            ),
            **{name: value for name, value in settings.items() if name not in ("batch_size", "search")},
            **({"search": search} if (search := settings.get("search", "exact")) != "exact" else {}),
        }
        found = _kept(place, asked) if resume and place is not None else None
        if found is not None:
            now = [
                questions_asked(lambda: lvlm, artefact, name, seed, root=place_of, **of_questions)[1]
                for seed in seeds or [None]
            ]
            if not all(map(answers_to, (report.samples for report in found), now)):
                say(f"questions or pictures are not those of {place} any more; they are asked anew")
                found = None
        if found is None:
            if len(pairs) > 1:
                say(f"{lvlm.name} on {folder}")
            found = [
                evaluate(
                    lvlm,
                    artefact if encoders else None,
                    name,
                    seed=seed,
                    like=artefact if like else None,
                    root=place_of,
                    cache=cache,
                    **settings,
                )
                for seed in seeds or [None]
            ]
            if place is not None:
                save(place, found, asked)
            if card and artefact is not None and encoders:
                add_to_card(artefact.folder / "README.md", found)
        key = folder if data else str(found[0].settings["data"])  # of an encoder's own data: seeds of it
        reports.setdefault(key, []).extend(found)
    order = sorted(reports, key=lambda n: list(TABLE_1).index(n) if n in TABLE_1 else len(TABLE_1))
    surrogates = dict.fromkeys(str(a.manifest.get("surrogate") or "adapted") for a in artefacts)
    return Row(
        lvlm.name,
        ", ".join(surrogates) if encoders else "-",
        {name: reports[name] for name in order},
        "Continuous" if lvlm.visual.continuous else "Discrete",
    )


def summary(reports: Sequence[Report], classes: bool = False) -> dict[str, Any]:
    """Means over seeds on top, then each report; the interval is of one seed's samples.

    Args:
        reports: one data set's, one per seed.
        classes: with the table per class and the confusion of each report.
    """
    found = merge(reports)
    means = {name: None if value is None else value["mean"] for name, value in found.items()}
    single = reports[0].to_json() if len(reports) == 1 else {}

    def told(report: Report) -> dict[str, Any]:
        more = {"classes": class_table(report.samples), "confusion": confusion(report.samples)}
        return {**report.to_json(), **(more if classes else {})}

    return {
        **means,
        "interval": single.get("interval"),
        "chance": reports[0].chance,
        "count": sum(len(report.samples) for report in reports),
        "spread": found,
        "reports": [told(report) for report in reports],
    }


def save(folder: Path, reports: Sequence[Report], asked: dict[str, Any]) -> None:
    """Write a data set's reports: `report.json` last, as it says that all is there."""
    for report in reports:
        report.save_samples(folder / f"samples-{report.settings['seed']}.jsonl")
    write_json(folder / "lmms_eval.json", to_lmms({_task(report): report for report in reports}))
    write_json(folder / "report.json", {**summary(reports, classes=True), "asked": asked})


def _task(report: Report) -> str:
    return f"{report.settings.get('data')}_{report.settings.get('split')}_seed{report.settings.get('seed')}"


def _counts(lvlm: LVLM, encoder: Artefact | None, prior: str | Path | None) -> str | None:
    """A hash of the code counts that tokens are pruned by: a file of one name may hold others tomorrow."""
    own = lvlm.visual.prior if encoder is None else encoder.prior
    counts = own if prior is None else chosen_prior(prior, lvlm)
    return None if counts is None else hash_tensors({"counts": counts})


def _kept(place: Path, asked: dict[str, Any]) -> list[Report] | None:
    """The reports that `save` wrote of the same settings, or None."""
    try:
        told = read_json(place / "report.json")
        if told.get("asked") != asked:
            return None
        found = []
        for report in told["reports"]:
            rows = read_samples(place / f"samples-{report['settings']['seed']}.jsonl")
            found.append(Report.of(rows, report["settings"]))
        return found
    except (CraftError, KeyError, TypeError):  # not there, or not whole: ask again
        return None


def _pairs(
    artefacts: Sequence[Artefact], data: Sequence[str | Path]
) -> Iterable[tuple[Artefact | None, str | Path | None]]:
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


def _folders(pairs: Sequence[tuple[Artefact | None, str | Path | None]]) -> list[str]:
    """A name for each: its data's; numbers tell those of one name apart."""
    names: list[str] = []
    for artefact, name in pairs:
        told = (artefact.manifest.get("data") or {}).get("name") if artefact is not None else None
        own = Path(os.path.abspath(str(name or told or "data"))).name  # "..", too
        again = sum(known.partition("#")[0] == own for known in names)
        names.append(f"{own}#{again + 1}" if again else own)
    return names


def _places(roots: Sequence[str | Path], names: Sequence[str | Path | None]) -> list[str | Path | None]:
    """The root of each data set."""
    if len(roots) == len(names):
        return list(roots)
    if len(roots) > 1:
        raise ConfigError(
            f"{len(roots)} roots and {len(names)} data sets: give one for each, or one for all."
        )
    root = roots[0] if roots else None
    own = [Path(root) / str(name) if root is not None and str(name) in BENCHMARKS else None for name in names]
    return [place if place is not None and place.is_dir() else root for place in own]
