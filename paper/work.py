"""What experiments share: models, trainings, codes and measured cells, each made once.

WORK/{encoders/: run folders, tuned/: baselines, codes/, cells/: one JSON for each measurement, times/}
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from craft.core.device import container_memory
from craft.core.errors import ConfigError
from craft.core.files import read_json, write_json
from craft.core.progress import say
from craft.core.provenance import machine
from craft.core.store import RecordStore
from craft.core.tensors import hash_tensors
from craft.data import BENCHMARKS, Data, Sample
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.load import load, load_artefact
from craft.judging.rules import RULES
from craft.models.freezing import answer_hashes
from craft.models.lvlm import LVLM
from craft.models.memory import weight_bytes
from craft.recipes.adapt import adapt
from craft.recipes.baseline import METHODS, load_tuned
from craft.recipes.questions import open_data, take
from craft.training.config import AdaptConfig, BaselineConfig, DataConfig
from paper.cells import CRAFT, ZERO_SHOT, Cell, Method, digest, plain
from paper.plan import Plan
from paper.subsample import subsampled_codebook

_ANSWERING = ("vision_tower", "codebook", "projector", "llm", "words")
MODEL_SHARE = 0.5
"""Share of a device's memory that loaded models may take while they wait for a later cell. The rest is for
the work itself, and for the adapted LVLM of the last cell."""


def total_memory(device: torch.device) -> int:
    """Total bytes of a device; on the CPU, at most the limit of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return min(int(psutil.virtual_memory().total), container_memory()[0])


class Work:
    """A plan and its work folder.

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
        self.records = RecordStore(plan.work / "cells")
        self.used: dict[str, Any] = {}
        self._lvlms: dict[tuple[str, float, int], LVLM] = {}
        self._hashes: dict[tuple[str, float, int], dict[str, str]] = {}
        self._data: dict[Any, Data] = {}
        self._last: tuple[Any, LVLM] | None = None
        self._digests: dict[Any, str] = {}

    # Models

    def lvlm(self, name: str, fraction: float = 1.0, seed: int = 0) -> LVLM:
        """A model, with all or a random share of its codebook (Table 6). The models used last stay loaded, as
        many as `MODEL_SHARE` has room for.

        Raises:
            CraftError: it is missing or damaged.
        """
        key = (name, fraction, seed if fraction < 1 else 0)
        if key in self._lvlms:
            self._lvlms[key] = self._lvlms.pop(key)  # the last in order
            return self._lvlms[key]
        if fraction < 1:
            lvlm = subsampled_codebook(self.lvlm(name), fraction, seed)
        else:
            lvlm = load(name, self.plan.device, self.plan.dtype)
        self._lvlms[key] = lvlm
        room = MODEL_SHARE * total_memory(lvlm.device)
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
        """The LVLM of a cell; a training that it needs and that is missing is done now. The last LVLM stays
        loaded, since the next cell usually needs it too."""
        key = _origin_key(cell)
        if self._last is None or self._last[0] != key:
            self._last = None  # never two at once
            self._last = (key, self._make(cell))
        return self._last[1]

    def digest(self, cell: Cell) -> str:
        """A hash of all weights that answer in a cell, computed once for each LVLM."""
        key = _origin_key(cell)
        if key not in self._digests:
            self._digests[key] = digest(self._answering_hashes(cell, self.made(cell)))
        return self._digests[key]

    def _make(self, cell: Cell) -> LVLM:
        method = cell.method
        if method.name == ZERO_SHOT:
            return self.lvlm(cell.backbone, method.fraction, cell.seed)
        if method.name == CRAFT:
            lvlm = self.lvlm(cell.backbone, method.fraction, cell.seed)
            return lvlm.with_encoder(self.encoder(cell.domain, cell.seed, method))
        return load_tuned(self.trained(cell.domain, cell.seed, method), self.lvlm(method.model))

    def _answering_hashes(self, cell: Cell, lvlm: LVLM) -> list[str | None]:
        """Hashes of all that answers depend on. Parts that did not change are not hashed again: LLMs are
        large."""
        method = cell.method
        hashes = self.hashes(cell.backbone, method.fraction, cell.seed)
        if method.name not in (ZERO_SHOT, CRAFT):
            hashes = answer_hashes(lvlm)
        elif method.name == CRAFT:
            hashes = {**hashes, "vision_tower": hash_tensors(lvlm.visual.vision_tower.state_dict())}
        prior = lvlm.visual.prior
        counts = None if prior is None else hash_tensors({"counts": prior})
        return [*(hashes.get(name) for name in _ANSWERING), counts]

    # Trainings

    def encoder(self, domain: str, seed: int, method: Method | None = None) -> Artefact:
        """The encoder adapted to a domain, trained now if it is missing.

        Args:
            domain, seed: what it is adapted to.
            method: with which surrogate and settings; None is the plan's first surrogate.

        Raises:
            CraftError: as `craft.adapt`.
        """
        return load_artefact(self.trained(domain, seed, method or self._usual))

    @property
    def _usual(self) -> Method:
        return Method(CRAFT, self.plan.surrogates[0])

    def run_folder(self, domain: str, seed: int, method: Method) -> Path:
        """The run folder of a training. Other weights or settings have another folder, and so have other data
        than those that the run in the folder began with."""
        settings = self.settings(domain, seed, method)
        parts = self.hashes(method.model, method.fraction, seed)
        origin: dict[str, Any] = {"parts": parts, "settings": settings.model_dump(mode="json")}
        kind = "encoders" if method.name == CRAFT else "tuned"
        name = f"{'' if method.name == CRAFT else f'{method.name}-'}{plain(domain)}-{seed}"
        usual = self.plan.work / kind / f"{name}-{digest(origin)[:10]}"
        if not (usual / "run.json").is_file():
            return usual
        data = self.data(settings.data, seed, method.model).fingerprint
        if read_json(usual / "run.json").get("data_fingerprint", data) == data:
            return usual
        return usual.with_name(f"{name}-{digest({**origin, 'data': data})[:10]}")

    def is_trained(self, domain: str, seed: int, method: Method) -> bool:
        """Whether a training is done already."""
        return _is_done(self.run_folder(domain, seed, method))

    def trained(self, domain: str, seed: int, method: Method) -> Path:
        """The run folder of a training, which is done now if it is missing.

        Raises:
            CraftError: as `craft.adapt`, or the baselines.
        """
        folder = self.run_folder(domain, seed, method)
        if _is_done(folder):
            return folder
        began = time.monotonic()
        model = self.lvlm(method.model, method.fraction, seed)
        say(f"training: {method.name} with {method.model} on {domain}, seed {seed}")
        train = adapt if method.name == CRAFT else METHODS[method.name]
        config, resume = self.settings(domain, seed, method), (folder / "run.json").is_file()
        train(model, domain, folder, seed=seed, config=config, resume=resume)
        write_json(_time_file(folder), {"seconds": round(time.monotonic() - began, 1)})
        return folder

    def settings(self, domain: str, seed: int, method: Method) -> AdaptConfig:
        """The configuration of a training: the plan's settings, and on top of them the method's."""
        plan = self.plan
        root = plan.root / domain if plan.root is not None and domain in BENCHMARKS else plan.root
        optional = {
            "data.root": None if root is None else str(root),
            "device": plan.device,
            "dtype": plan.dtype,
        }
        settings = {
            "surrogate": method.model,
            "data.name": domain,
            "seed": seed,
            **{name: value for name, value in optional.items() if value is not None},
            **plan.adapt,
            **dict(method.settings),
        }
        if method.name == CRAFT:  # the paper has no retention loss
            return AdaptConfig.build(None, {"losses.retention.weight": 0.0, **settings})
        return BaselineConfig.build(None, {**settings, "method": method.name})

    # Questions

    def questions(self, domain: str, seed: int) -> Data:
        """The questions of a domain: training, validation and test, the same for every method."""
        settings = self.settings(domain, seed, self._usual).data
        data = self.data(settings, seed, self._usual.model)
        self.used[f"{domain}, seed {seed}"] = {"data": data.fingerprint, "held_out": list(data.held_out)}
        return data

    def data(self, settings: DataConfig, seed: int, model: str) -> Data:
        """The data of a training with a model (which hard distractors need), opened once."""
        key = (settings.model_dump_json(), seed, model if settings.distractors == "hard" else None)
        if key not in self._data:
            self._data[key] = open_data(settings, seed, lambda: self.lvlm(model))
        return self._data[key]

    def samples(self, cell: Cell, split: Any = "test") -> list[Sample]:
        """The questions that a cell asks."""
        return take(self.questions(cell.questions, cell.seed).samples(split), cell.limit, cell.seed)

    # Measurements

    def label(self, cell: Cell) -> str:
        """The label of a cell's record. No two cells share one, so no two processes write the same file."""
        identity = [asdict(cell), self.plan.adapt, self.plan.keep_ratio, self.plan.dtype]
        other = "" if cell.questions == cell.domain else f"-on-{plain(cell.questions)}"
        words = (cell.measure, plain(cell.domain) + other, str(cell.seed), cell.method.name)
        return f"{'-'.join(words)}-{digest(identity)[:12]}"

    def result(
        self, cell: Cell, measure: Callable[[LVLM], dict[str, Any]], more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The result of a cell. It is measured and stored, unless the stored one is of the same weights and
        questions.

        Args:
            cell: which.
            measure: from the cell's LVLM to the JSON-able result.
            more: what else the result depends on, JSON-able.
        """
        key = {"lvlm": self.digest(cell), **self._known(cell), **(more or {})}
        label, origin = self.label(cell), self._origin(cell)
        record = self.records.get(label, key)
        if record is None:
            began = time.monotonic()
            result = measure(self.made(cell))
            seconds = round(time.monotonic() - began, 2)
            record = {"measure": cell.measure, "origin": origin, "seconds": seconds, "result": result}
            self.records.put(label, key, record)
        elif record["origin"] != origin:
            self.records.put(label, key, {**record, "origin": origin})
        return record["result"]

    def is_measured(self, cell: Cell) -> bool:
        """Whether `result` will find a stored result, as far as that is known without making the cell's LVLM:
        of these weights, settings and questions.

        Raises:
            CraftError: a model or data set is missing.
        """
        record, method = self.records.read(self.label(cell)), cell.method
        if record is None:
            return False
        if method.name != ZERO_SHOT and not self.is_trained(cell.domain, cell.seed, method):
            return False
        return record["origin"] == self._origin(cell) and self._known(cell).items() <= record["key"].items()

    def _known(self, cell: Cell) -> dict[str, Any]:
        """What the result of a cell depends on besides weights."""
        data = self.questions(cell.questions, cell.seed)
        known: dict[str, Any] = {"data": data.fingerprint, "held_out": list(data.held_out)}
        if cell.measure == "judged":
            known |= {"rules": RULES, "tokens": self.plan.explain_tokens}
        return known

    def _origin(self, cell: Cell) -> str:
        """A hash of what a cell's LVLM is made of, known before it is made."""
        method = cell.method
        base = self.hashes(cell.backbone, method.fraction, cell.seed)
        if method.name == ZERO_SHOT:
            return digest(base)
        return digest([base, self.run_folder(cell.domain, cell.seed, method).name])

    def provenance(self) -> dict[str, Any]:
        """Plan, commit, versions, device, and the data that was used."""
        plan = self.plan.model_dump(mode="json", exclude={"work", "benches"})
        devices = sorted({str(lvlm.device) for lvlm in self._lvlms.values()})
        return {**machine(), "devices": devices, "plan": plan, "used": self.used}


def _origin_key(cell: Cell) -> tuple[Any, ...]:
    """What distinguishes the LVLMs of cells."""
    return (cell.backbone, cell.method, cell.domain, cell.seed)


def _time_file(folder: Path) -> Path:
    """The file that records that a training is done, and how long it took."""
    return folder.parent.parent / "times" / f"{folder.parent.name}-{folder.name}.json"


def _is_done(folder: Path) -> bool:
    return _time_file(folder).is_file() and folder.is_dir()  # a deleted run folder is trained again
