"""The vision towers of one LLM: the base tower, and adapted encoders that load at their first use.

A name is only a way to find a folder. The hash of its weights identifies a tower, in the cache of codes and
in every reply.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import CodebookMismatchError, CraftError
from craft.core.files import PathLike, read_json
from craft.core.tensors import hash_tensors
from craft.formats.artefact import Artefact
from craft.formats.load import find_artefact, load_artefact
from craft.models.lvlm import LVLM
from craft.serving.routing import Domain, log_prior

BASE = "base"
"""The name of the base tower in replies."""


class UnknownEncoder(CraftError):
    """No encoder has that name; the message lists the names."""


@dataclass(frozen=True, eq=False)
class Tower:
    """A loaded vision tower behind the LLM.

    Attributes:
        name: of the encoder, or `BASE`.
        lvlm: the LLM with this tower; all towers share the LLM.
        hash: SHA-256 of the tower's weights.
        manifest: the encoder's `craft.json`; empty for the base tower.
        domain: what routing knows of its training images; None in encoders of earlier versions.
    """

    name: str
    lvlm: LVLM
    hash: str
    manifest: Mapping[str, Any] = field(default_factory=dict)
    domain: Domain | None = None


class Towers:
    """Finds, loads and evicts the towers of one LLM. All methods can be called from any thread.

    Args:
        lvlm: the LLM with its base tower, which is never evicted.
        folders: name -> run folder or artefact.
        root: a folder of run folders or artefacts; each subfolder's name is an encoder.
        limit: the number of adapted towers in memory at once; the least recently used one is dropped.

    Raises:
        CraftError: the LVLM has no codebook; a folder is no adapted encoder; or it has another codebook.
    """

    def __init__(
        self,
        lvlm: LVLM,
        folders: Mapping[str, PathLike] | None = None,
        root: PathLike | None = None,
        limit: int = 8,
    ) -> None:
        lvlm.visual.need_codes("craft serve")
        self.lvlm = lvlm
        self.base = Tower(BASE, lvlm, hash_tensors(lvlm.visual.vision_tower.state_dict()))
        self.root = None if root is None else Path(root)
        self.limit = max(1, limit)
        self._folders: dict[str, Path] = {}
        self._loaded: OrderedDict[str, Tower] = OrderedDict()
        self._loading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        for name, folder in (folders or {}).items():
            self.add(name, folder)

    def names(self) -> list[str]:
        """The names of all encoders, loaded or not."""
        with self._lock:
            names = set(self._folders)
        if self.root is not None and self.root.is_dir():
            names |= {path.name for path in self.root.iterdir() if self._is_encoder(path)}
        return sorted(names)

    def loaded(self) -> dict[str, Tower]:
        """The adapted towers in memory, by name."""
        with self._lock:
            return dict(self._loaded)

    def describe(self, name: str) -> dict[str, Any]:
        """An encoder's manifest, without loading its weights.

        Raises:
            UnknownEncoder: no encoder has that name.
            CraftError: its folder is damaged or gone.
        """
        manifest = read_json(find_artefact(self._folder(name)) / "craft.json")
        return manifest if isinstance(manifest, dict) else {}

    def get(self, name: str) -> Tower:
        """A tower, loaded now if it is not in memory, or if its folder holds other weights by now.

        Loading takes a second or more: call it in a thread that nobody waits for.

        Raises:
            UnknownEncoder: no encoder has that name.
            CodebookMismatchError: it was adapted for another codebook.
            CraftError: its folder is damaged or gone, and it is not in memory.
        """
        if name == BASE:
            return self.base
        if (tower := self._in_memory(name)) is not None:
            return tower
        with self._lock:
            lock = self._loading.setdefault(name, threading.Lock())
        with lock:  # one load at a time per name; others wait for it and find the tower
            if (tower := self._in_memory(name)) is not None:
                return tower
            artefact = load_artefact(self._folder(name))
            if not isinstance(artefact, Artefact):
                raise CraftError(f"{self._folder(name)} is a baseline, which has no codes to serve.")
            counts, typical = artefact.base_counts, artefact.manifest.get("typical_score")
            domain = None if counts is None or typical is None else Domain(log_prior(counts), float(typical))
            lvlm = artefact.apply(self.lvlm)
            tower = Tower(name, lvlm, artefact.manifest["tower"], artefact.manifest, domain)
            self._keep(tower)
            return tower

    def add(self, name: str, folder: PathLike) -> None:
        """Make an encoder known under a name; an encoder of that name is replaced for later requests.

        Raises:
            CraftError: the name is taken by the server or has no letter, or the folder is no adapted encoder.
            CodebookMismatchError: it was adapted for another codebook.
        """
        if name in (BASE, "auto") or not name or any(sign in name for sign in ":/\\ "):
            raise CraftError(
                f"An encoder cannot be called {name!r}: 'base' and 'auto' are the server's own names, and a "
                "name has no colon, slash or space."
            )
        path = Path(folder)
        manifest = read_json(find_artefact(path) / "craft.json")
        fingerprint = (manifest.get("codebook") or {}).get("fingerprint")
        if fingerprint != self.lvlm.visual.codebook.fingerprint:
            raise CodebookMismatchError(
                f"The encoder {name} in {path} was adapted for codebook {fingerprint}, and {self.lvlm.name} "
                f"reads codebook {self.lvlm.visual.codebook.fingerprint}."
            )
        with self._lock:
            self._folders[name] = path
            self._loaded.pop(name, None)

    def remove(self, name: str) -> None:
        """Forget an encoder; running requests end with it.

        Raises:
            UnknownEncoder: no encoder has that name, or it belongs to the root folder.
        """
        with self._lock:
            if self._folders.pop(name, None) is not None:
                self._loaded.pop(name, None)
                return
        raise self._unknown(name)

    def _in_memory(self, name: str) -> Tower | None:
        """The loaded tower, if its folder still has its weights; also if the folder is gone."""
        with self._lock:
            tower = self._loaded.get(name)
            if tower is None:
                return None
            self._loaded.move_to_end(name)
        try:
            current = self.describe(name).get("tower")
        except UnknownEncoder:
            raise
        except CraftError:  # deleted or being copied: what is in memory is still right
            return tower
        return tower if current == tower.hash else None

    def _keep(self, tower: Tower) -> None:
        with self._lock:
            self._loaded[tower.name] = tower
            self._loaded.move_to_end(tower.name)
            while len(self._loaded) > self.limit:
                self._loaded.popitem(last=False)

    def _folder(self, name: str) -> Path:
        with self._lock:
            folder = self._folders.get(name)
            loaded = name in self._loaded
        if folder is not None:
            return folder
        if self.root is not None and name not in ("", ".", "..") and "/" not in name and "\\" not in name:
            path = self.root / name
            if loaded or self._is_encoder(path):
                return path
        raise self._unknown(name)

    def _is_encoder(self, path: Path) -> bool:
        return any((path / part / "craft.json").is_file() for part in ("", "encoder"))

    def _unknown(self, name: str) -> UnknownEncoder:
        names = ", ".join(self.names()) or "none"
        return UnknownEncoder(f"There is no encoder {name!r} here. Encoders: {names}; or 'auto', or none.")
