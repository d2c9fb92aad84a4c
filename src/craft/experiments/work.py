"""What experiments share: models, encoders, codes and measured cells, each made once."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import read_json, write_json
from craft.core.progress import say
from craft.data import EMBEDDED, Data
from craft.models.artefact import Artefact, load_artefact
from craft.models.code_cache import CodeCache
from craft.models.freezing import part_hashes
from craft.models.load import load
from craft.models.lvlm import LVLM
from craft.recipes.adapt import adapt
from craft.recipes.questions import questions_for
from craft.training.config import AdaptConfig
from craft.training.run_folder import machine


@dataclass(frozen=True)
class Plan:
    """At what scale an experiment is run.

    Attributes:
        work: a folder for encoders, codes and measured cells; what is there is not made again.
        domains: data sets that encoders are adapted to and asked about.
        surrogate: the model to adapt with.
        backbones: the models that are asked.
        seeds: of adaptation (held-out classes too) and questions.
        limit: at most so many test questions per domain and seed, evenly from the classes.
        encoders: run folders of adaptations that are there already; the others are made.
        device, dtype: where and in what to run.
    """

    work: Path = Path("runs/reproduce")
    domains: tuple[str, ...] = tuple(EMBEDDED)
    surrogate: str = "craft-tiny/qwen2"
    backbones: tuple[str, ...] = ("craft-tiny/qwen2", "craft-tiny/llama")
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = 300
    encoders: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None


class Work:
    """A plan under way.

    Args:
        plan: the plan.

    Raises:
        ConfigError: the plan names no domain, no backbone or no seed.
    """

    def __init__(self, plan: Plan) -> None:
        for name in ("domains", "backbones", "seeds"):
            if not getattr(plan, name):
                raise ConfigError(f"Nothing to do without {name}; name at least one.")
        self.plan = plan
        self.codes = CodeCache(plan.work / "codes")
        self._lvlms: dict[str, LVLM] = {}
        self._encoders: dict[tuple[str, int], Artefact] = {}
        self.told: dict[str, Any] = {}

    def lvlm(self, name: str) -> LVLM:
        """A model, loaded once.

        Raises:
            CraftError: it is missing or damaged.
        """
        if name not in self._lvlms:
            self._lvlms[name] = load(name, self.plan.device, self.plan.dtype)
        return self._lvlms[name]

    def encoder(self, domain: str, seed: int) -> Artefact:
        """The encoder adapted to a domain: one of the plan's, or of an earlier run with this model and these
        settings, or made now.

        Raises:
            CraftError: as `craft.adapt`.
        """
        if not self._encoders:
            self._encoders = {_subject(found): found for found in map(load_artefact, self.plan.encoders)}
        if (domain, seed) not in self._encoders:
            surrogate = self.lvlm(self.plan.surrogate)
            named = {"surrogate": self.plan.surrogate, "data.name": domain, "seed": seed}
            settings = AdaptConfig.build(None, named).model_dump(mode="json")
            key = _digest({"parts": part_hashes(surrogate), "settings": settings})[:10]
            folder = self.plan.work / "encoders" / f"{Path(domain).stem}-{seed}-{key}"
            if not (folder / "encoder" / "craft.json").is_file():
                adapt(surrogate, domain, folder, seed, resume=(folder / "run.json").is_file())
            self._encoders[domain, seed] = load_artefact(folder)
        return self._encoders[domain, seed]

    def questions(self, domain: str, seed: int) -> Data:
        """The questions of a domain, with the classes that its encoder never saw as the unseen ones."""
        artefact = self.encoder(domain, seed)
        surrogate = self.lvlm(self.plan.surrogate)
        data = questions_for({"name": domain}, seed, artefact.manifest, lambda: surrogate)
        self.told[f"{domain}, seed {seed}"] = {
            "data": data.fingerprint,
            "held_out": list(data.held_out),
            "tower": artefact.manifest["tower"],
        }
        return data

    @cached_property
    def parts(self) -> dict[str, str]:
        """A hash of each backbone's weights, for the keys of cells."""
        found = {name: part_hashes(self.lvlm(name)) for name in self.plan.backbones}
        return {name: _digest([parts["llm"], parts["projector"]]) for name, parts in found.items()}

    @cached_property
    def _cells(self) -> dict[str, Any]:
        path = self.plan.work / "cells.json"
        return read_json(path) if path.is_file() else {}

    def cell(self, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured under a key; measured now, and kept on disk, where that never happened.

        Args:
            key: all that the result depends on, JSON-able.
            measure: gives the result, JSON-able.
        """
        name = _digest(dict(key))
        if name not in self._cells:
            self._cells[name] = {"key": dict(key), "found": measure()}
            write_json(self.plan.work / "cells.json", self._cells)
        return self._cells[name]["found"]

    def provenance(self) -> dict[str, Any]:
        """Plan, commit, versions, device, and the data and encoders that were used."""
        plan = {name: value for name, value in asdict(self.plan).items() if name not in ("work", "encoders")}
        devices = sorted({str(lvlm.device) for lvlm in self._lvlms.values()})
        return {**machine(), "devices": devices, "plan": plan, "used": self.told}


def _subject(artefact: Artefact) -> tuple[str, int]:
    """What an encoder was adapted to, and with which seed."""
    told = artefact.manifest
    return str(told["data"]["settings"]["name"]), int(told["seed"])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def announce(done: int, cells: int, what: str) -> None:
    """One line of progress for a cell."""
    say(f"cell {done} of {cells}: {what}")
