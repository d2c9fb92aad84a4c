"""What experiments share: models, trainings, codes and measured cells, each made once.

WORK/{encoders/: run folders, tuned/: baselines, codes/, cells/: one JSON for each measurement, times/}
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from craft.core.device import total_memory
from craft.core.errors import ConfigError
from craft.core.files import hash_tensors, read_json, write_json
from craft.core.progress import say
from craft.core.provenance import machine
from craft.data import BENCHMARKS, Data, Sample
from craft.experiments.cells import CRAFT, ZERO_SHOT, Cell, Method, digest, plain
from craft.experiments.plan import Plan
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.encoder import load_artefact
from craft.formats.load import load
from craft.judging.rules import RULES
from craft.models.freezing import answer_hashes
from craft.models.lvlm import LVLM
from craft.models.memory import weight_bytes
from craft.recipes.adapt import adapt
from craft.recipes.baseline import METHODS, load_tuned
from craft.recipes.questions import open_data, questions_for, take
from craft.training.config import AdaptConfig, BaselineConfig, DataConfig

_ANSWERING = ("vision_tower", "codebook", "projector", "llm", "words")
KEPT = 0.5
"""Share of a device's memory that models may take which are kept for a later cell. The rest is for work, and
for the last LVLM that was made of one that had to go."""


class Work:
    """A plan under way.

    Args:
        plan: the plan.

    Raises:
        ConfigError: the plan names no domain, no surrogate, no backbone or no seed.
    """

    def __init__(self, plan: Plan) -> None:
        for name in ("domains", "surrogates", "backbones", "seeds"):
            if not getattr(plan, name):
                raise ConfigError(f"Nothing to do without {name}; name at least one.")
        self.plan = plan
        self.codes = CodeCache(plan.work / "codes")
        self._lvlms: dict[tuple[str, float, int], LVLM] = {}
        self._hashes: dict[tuple[str, float, int], dict[str, str]] = {}
        self._questions: dict[tuple[str, int], Data] = {}
        self._opened: dict[Any, Data] = {}
        self._made: tuple[Any, LVLM] | None = None
        self._digests: dict[Any, str] = {}
        self.told: dict[str, Any] = {}

    @cached_property
    def _given(self) -> dict[tuple[str, int], Artefact]:
        """The plan's own encoders, by data and seed.

        Raises:
            ConfigError: one was adapted with another LVLM than tables say, or two are of one data set
                and seed.
        """
        found: dict[tuple[str, int], Artefact] = {}
        for folder in self.plan.encoders:
            artefact = load_artefact(folder)
            own, wanted = str(artefact.manifest.get("surrogate")), self.plan.surrogates[0]
            if plain(own) != plain(wanted):
                raise ConfigError(
                    f"{folder} was adapted with {own}, and the first surrogate here is {wanted}; leave it "
                    "out, or name that surrogate first."
                )
            key = str(artefact.manifest["data"]["settings"]["name"]), int(artefact.manifest["seed"])
            if key in found:
                raise ConfigError(
                    f"{folder} and {found[key].folder} are both of {key[0]}, seed {key[1]}; give one."
                )
            found[key] = artefact
        return found

    def note_unused(self) -> None:
        """Say which of the plan's own encoders are of data or seeds that are not asked for."""
        for (domain, seed), artefact in self._given.items():
            if domain not in (*self.plan.domains, *self.plan.general) or seed not in self.plan.seeds:
                say(
                    f"note: {artefact.folder} was adapted to {domain}, seed {seed}, which is not asked for; "
                    "it is not used. Data must be named as it was then."
                )

    # Models

    def lvlm(self, name: str, fraction: float = 1.0, seed: int = 0) -> LVLM:
        """A model; with a share of its codebook, drawn by seed (Table 6). Those used last are kept, as
        many as `KEPT` has room for.

        Raises:
            CraftError: it is missing or damaged.
        """
        key = (name, fraction, seed if fraction < 1 else 0)
        if key in self._lvlms:
            self._lvlms[key] = self._lvlms.pop(key)  # the last in order
            return self._lvlms[key]
        if fraction < 1:
            from craft.models.subsample import subsampled_codebook

            lvlm = subsampled_codebook(self.lvlm(name), fraction, seed)
        else:
            lvlm = load(name, self.plan.device, self.plan.dtype)
        self._lvlms[key] = lvlm
        room = KEPT * total_memory(lvlm.device)
        while len(self._lvlms) > 1 and sum(map(weight_bytes, self._lvlms.values())) > room:
            del self._lvlms[next(iter(self._lvlms))]
        return lvlm

    def hashes(self, name: str, fraction: float = 1.0, seed: int = 0) -> dict[str, str]:
        """A hash of each of a model's parts, and of how it reads words."""
        key = (name, fraction, seed if fraction < 1 else 0)
        if key not in self._hashes:
            self._hashes[key] = answer_hashes(self.lvlm(*key))
        return self._hashes[key]

    def made(self, cell: Cell) -> LVLM:
        """The LVLM of a cell; what it takes is trained now where that never happened. The last one is kept,
        since the next cell mostly wants it too."""
        key = _way(cell)
        if self._made is None or self._made[0] != key:
            self._made = None  # no two at once
            self._made = (key, self._make(cell))
        return self._made[1]

    def digest(self, cell: Cell) -> str:
        """A hash of all weights that answer in a cell; of each LVLM it is taken once."""
        key = _way(cell)
        if key not in self._digests:
            self._digests[key] = digest(self._parts(cell, self.made(cell)))
        return self._digests[key]

    def _make(self, cell: Cell) -> LVLM:
        method = cell.method
        if method.name == ZERO_SHOT:
            return self.lvlm(cell.backbone, method.fraction, cell.seed)
        if method.name == CRAFT:
            lvlm = self.lvlm(cell.backbone, method.fraction, cell.seed)
            return lvlm.with_encoder(self.encoder(cell.domain, cell.seed, method))
        return load_tuned(self.trained(cell.domain, cell.seed, method), self.lvlm(method.model))

    # Trainings

    def encoder(self, domain: str, seed: int, method: Method | None = None) -> Artefact:
        """The encoder adapted to a domain: one of the plan's, or of an earlier run with this model and these
        settings, or made now.

        Args:
            domain, seed: what it is adapted to.
            method: with which surrogate and settings; None is the plan's first surrogate.

        Raises:
            CraftError: as `craft.adapt`.
        """
        usual = Method(CRAFT, self.plan.surrogates[0])
        if (method or usual) == usual and (domain, seed) in self._given:
            return self._given[domain, seed]
        return load_artefact(self.trained(domain, seed, method or usual))

    def place(self, domain: str, seed: int, method: Method) -> Path:
        """The run folder of a training: another one for other weights or settings, and where the data are not
        those that the run there began with."""
        settings = self.settings(domain, seed, method)
        parts = self.hashes(method.model, method.fraction, seed)
        told: dict[str, Any] = {"parts": parts, "settings": settings.model_dump(mode="json")}
        kind = "encoders" if method.name == CRAFT else "tuned"
        name = f"{'' if method.name == CRAFT else f'{method.name}-'}{plain(domain)}-{seed}"
        usual = self.plan.work / kind / f"{name}-{digest(told)[:10]}"
        if not (usual / "run.json").is_file():
            return usual
        learned = self._data(settings.data, seed, method.model).fingerprint
        if read_json(usual / "run.json").get("data_fingerprint", learned) == learned:
            return usual
        return usual.with_name(f"{name}-{digest({**told, 'data': learned})[:10]}")

    def is_trained(self, domain: str, seed: int, method: Method) -> bool:
        """Whether a training is there already."""
        if method == Method(CRAFT, self.plan.surrogates[0]) and (domain, seed) in self._given:
            return True
        return _is_done(self.place(domain, seed, method))

    def trained(self, domain: str, seed: int, method: Method) -> Path:
        """The run folder of a training, which is done now where that never happened.

        Raises:
            CraftError: as `craft.adapt`, or the baselines.
        """
        folder = self.place(domain, seed, method)
        if _is_done(folder):
            return folder
        began = time.monotonic()
        model = self.lvlm(method.model, method.fraction, seed)
        say(f"training: {method.name} with {method.model} on {domain}, seed {seed}")
        train = adapt if method.name == CRAFT else METHODS[method.name]
        config, resume = self.settings(domain, seed, method), (folder / "run.json").is_file()
        train(model, domain, folder, seed=seed, config=config, resume=resume)
        write_json(_record(folder), {"seconds": round(time.monotonic() - began, 1)})
        return folder

    def settings(self, domain: str, seed: int, method: Method) -> AdaptConfig:
        """The configuration of a training; beside a given encoder it learns from the same questions."""
        config, given = settings_of_training(self.plan, domain, seed, method), self._given.get((domain, seed))
        if given is None:
            return config
        told = given.manifest["data"]["settings"]
        same = {name: told[name] for name in ("answer_with", "distractors", "unseen_fraction", "limit")}
        return config.model_copy(update={"data": config.data.model_copy(update=same)})

    # Questions

    def questions(self, domain: str, seed: int) -> Data:
        """The questions of a domain: training, validation and test, the same for every method."""
        if (domain, seed) not in self._questions:
            given, usual = self._given.get((domain, seed)), Method(CRAFT, self.plan.surrogates[0])
            if given is not None:
                data = questions_for({"name": domain}, seed, given.manifest, lambda: self.lvlm(usual.model))
            else:
                data = self._data(self.settings(domain, seed, usual).data, seed, usual.model)
            self._questions[domain, seed] = data
            self.told[f"{domain}, seed {seed}"] = {
                "data": data.fingerprint,
                "held_out": list(data.held_out),
            }
        return self._questions[domain, seed]

    def _data(self, settings: DataConfig, seed: int, model: str) -> Data:
        """The data of a training with this model (which hard distractors ask), opened once."""
        key = (settings.model_dump_json(), seed, model if settings.distractors == "hard" else None)
        if key not in self._opened:
            self._opened[key] = open_data(settings, seed, lambda: self.lvlm(model))
        return self._opened[key]

    def samples(self, cell: Cell, split: Any = "test") -> list[Sample]:
        """The questions that a cell asks."""
        return take(self.questions(cell.asked, cell.seed).samples(split), cell.limit, cell.seed)

    # Measurements

    def file(self, cell: Cell) -> Path:
        """Where a cell is kept: a file of its own, so that processes never write the same one."""
        told = [asdict(cell), self.plan.adapt, self.plan.keep_ratio, self.plan.dtype]
        asked = "" if cell.asked == cell.domain else f"-on-{plain(cell.asked)}"
        words = (cell.measure, plain(cell.domain) + asked, str(cell.seed), cell.method.name)
        return self.plan.work / "cells" / f"{'-'.join(words)}-{digest(told)[:12]}.json"

    def cell(
        self, cell: Cell, measure: Callable[[LVLM], dict[str, Any]], more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What was measured in a cell; measured now, and kept on disk, where that never happened with these
        weights and questions.

        Args:
            cell: which.
            measure: gives the result, JSON-able, of the cell's LVLM.
            more: what else the result depends on, JSON-able.
        """
        data = self.questions(cell.asked, cell.seed)
        key = {
            "lvlm": self.digest(cell),
            "data": data.fingerprint,
            "held_out": list(data.held_out),
            **self._told(cell),
            **(more or {}),
        }
        place, origin = self.file(cell), self._origin(cell)
        if place.is_file():
            known = read_json(place)
            if known["key"] == key:
                if known.get("origin") != origin:
                    write_json(place, {**known, "origin": origin})
                return known["found"]
        began = time.monotonic()
        found = measure(self.made(cell))
        told = {
            "measure": cell.measure,
            "key": key,
            "origin": origin,
            "seconds": round(time.monotonic() - began, 2),
            "found": found,
        }
        write_json(place, told)
        return found

    def is_measured(self, cell: Cell) -> bool:
        """Whether `cell` will find what is kept, as far as can be told without making the cell's LVLM:
        of these weights, settings and questions.

        Raises:
            CraftError: a model or data set is missing.
        """
        place, method = self.file(cell), cell.method
        if not place.is_file():
            return False
        if method.name != ZERO_SHOT and not self.is_trained(cell.domain, cell.seed, method):
            return False
        told, data = read_json(place), self.questions(cell.asked, cell.seed)
        wanted = {"data": data.fingerprint, "held_out": list(data.held_out), **self._told(cell)}
        origin = self._origin(cell)  # which cells of before there was such a thing do not say
        return told.get("origin", origin) == origin and wanted.items() <= told["key"].items()

    def _told(self, cell: Cell) -> dict[str, Any]:
        """What else the result of a cell depends on, as far as the plan says it."""
        return {"rules": RULES, "tokens": self.plan.explain_tokens} if cell.measure == "judged" else {}

    def _origin(self, cell: Cell) -> str:
        """A hash of what a cell's LVLM is made of; all of it is known before."""
        method = cell.method
        base = self.hashes(cell.backbone, method.fraction, cell.seed)
        if method.name == ZERO_SHOT:
            return digest(base)
        if method == Method(CRAFT, self.plan.surrogates[0]) and (cell.domain, cell.seed) in self._given:
            return digest([base, self._given[cell.domain, cell.seed].manifest["tower"]])
        return digest([base, self.place(cell.domain, cell.seed, method).name])

    def _parts(self, cell: Cell, lvlm: LVLM) -> list[str | None]:
        """Hashes of all that answers depend on. What did not change is not read again: LLMs are large."""
        method = cell.method
        base = self.hashes(cell.backbone, method.fraction, cell.seed)
        if method.name not in (ZERO_SHOT, CRAFT):
            base = answer_hashes(lvlm)
        elif method.name == CRAFT:
            base = {**base, "vision_tower": hash_tensors(lvlm.visual.vision_tower.state_dict())}
        prior = lvlm.visual.prior
        counts = None if prior is None else hash_tensors({"counts": prior})
        return [*(base.get(name) for name in _ANSWERING), counts]

    def provenance(self) -> dict[str, Any]:
        """Plan, commit, versions, device, and the data that was used."""
        plan = self.plan.model_dump(mode="json", exclude={"work", "encoders", "benches"})
        devices = sorted({str(lvlm.device) for lvlm in self._lvlms.values()})
        return {**machine(), "devices": devices, "plan": plan, "used": self.told}


def _way(cell: Cell) -> tuple[Any, ...]:
    """What tells the LVLMs of cells apart."""
    return (cell.backbone, cell.method, cell.domain, cell.seed)


def _record(folder: Path) -> Path:
    """What says that a training is done, and how long it took."""
    return folder.parent.parent / "times" / f"{folder.parent.name}-{folder.name}.json"


def _is_done(folder: Path) -> bool:
    return _record(folder).is_file() and folder.is_dir()  # someone may have deleted it, to train anew


def settings_of_training(plan: Plan, domain: str, seed: int, method: Method) -> AdaptConfig:
    """The plan's settings, and on top of them the method's."""
    named = {"surrogate": method.model, "data.name": domain, "seed": seed}
    root = plan.root / domain if plan.root is not None and domain in BENCHMARKS else plan.root
    device = {key: value for key in ("device", "dtype") if (value := getattr(plan, key)) is not None}
    place = {} if root is None else {"data.root": str(root)}
    given = {**named, **place, **device, **plan.adapt, **dict(method.settings)}
    if method.name == CRAFT:  # the paper has no retention loss
        return AdaptConfig.build(None, {"losses.retention.weight": 0.0, **given})
    return BaselineConfig.build(None, {**given, "method": method.name})


def announce(done: int, cells: int, what: str) -> None:
    """One line of progress for a cell."""
    say(f"cell {done} of {cells}: {what}")
