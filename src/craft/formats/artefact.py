"""The adapted encoder on disk: the result of `craft adapt`, for every backbone of the codebook (§3.2).

ENCODER/{craft.json, model.safetensors (vision tower), prior.safetensors (level-1 counts), README.md}
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.files import PathLike, atomic_directory, atomic_write_text, read_json, write_json
from craft.core.tensors import counts_fault, hash_tensors, load_tensors, save_tensors
from craft.core.text import flat
from craft.formats.checks import load_strict, read_manifest
from craft.formats.names import shipped, shipped_folder
from craft.formats.visual_folder import read_base_counts, read_prior
from craft.models.lvlm import LVLM
from craft.models.towers import check_tower_config
from craft.models.vision_tower import VisionTower
from craft.models.visual_tokenizer import VisualTokenizer

FORMAT, VERSION = "craft-encoder", 1
_ENTRIES = ("surrogate", "base_tower", "data", "held_out", "config", "metrics")
_FREE = ("cls_attention",)  # may differ from the base tower, because no weight depends on it


@dataclass(frozen=True)
class Artefact:
    """An adapted encoder, read and checked.

    Attributes:
        manifest: `craft.json`.
        state: the adapted tower's state dict.
        prior: level-1 code counts int64 `[K]` of the training images under the adapted tower (§3.3).
        base_counts: code counts int64 `[L, K]` of the same images under the base tower; None in artefacts of
            earlier versions.
    """

    folder: Path
    manifest: dict[str, Any]
    state: dict[str, Tensor]
    prior: Tensor
    base_counts: Tensor | None = None

    @property
    def codebook_fingerprint(self) -> str:
        """Fingerprint of the codebook it was adapted for (hex SHA-256)."""
        return str(self.manifest["codebook"]["fingerprint"])

    @property
    def surrogate(self) -> str | None:
        """The model it was adapted with, for `craft.load`; the manifest's `surrogate` is a display name."""
        config = self.manifest.get("config") or {}
        return config.get("surrogate") or self.manifest.get("surrogate")

    def build_tower(self, base: VisionTower) -> VisionTower:
        """The adapted tower, on the device and in the dtype of the base tower, which does not change.

        Args:
            base: the tower of the visual tokenizer that gets the encoder.

        Raises:
            CheckpointError: the two towers differ in their architecture.
        """
        adapted, expected = self.manifest["vision_tower"], base.config
        keys = [key for key in {**adapted, **expected} if key not in _FREE]
        differing = [key for key in keys if adapted.get(key) != expected.get(key)]
        if differing == ["scale"]:
            raise CheckpointError(
                f"The adapted encoder in {self.folder} was trained with scale={adapted['scale']}, and this "
                f"model was loaded with scale={expected['scale']}; load it as NAME?scale={adapted['scale']}."
            )
        if differing:
            shown = ", ".join(
                f"{key} {adapted.get(key)!r} instead of {expected.get(key)!r}" for key in differing
            )
            raise CheckpointError(
                f"The adapted encoder in {self.folder} has another vision tower than this model ({shown}); "
                "use it with the family it was adapted from."
            )
        tower = copy.deepcopy(base)
        load_strict(tower, self.state, self.folder / "model.safetensors")
        tower.config = dict(adapted)
        return tower.requires_grad_(False)

    def apply_to(self, visual: VisualTokenizer) -> VisualTokenizer:
        """A new visual tokenizer with the adapted tower and its prior; codebook and text encoder are shared.

        Raises:
            CodebookMismatchError: `visual` has another codebook; the message has both fingerprints and the
                known models that fit this encoder.
            CheckpointError: the towers differ in their architecture.
        """
        fingerprint = visual.codebook.fingerprint
        if fingerprint != self.codebook_fingerprint:
            raise CodebookMismatchError(
                f"The adapted encoder in {self.folder} was made for codebook {self.codebook_fingerprint}, "
                f"and this model reads codebook {fingerprint}. {self._fitting()}"
            )
        log_temperature = self.manifest.get("log_temperature")
        adapted = VisualTokenizer(
            self.build_tower(visual.vision_tower),
            visual.codebook,
            visual.text_encoder,
            visual.log_temperature.detach() if log_temperature is None else float(log_temperature),
            self.prior,
            visual.aspect,
        )
        return adapted.to(visual.device).eval()

    def apply(self, lvlm: LVLM) -> LVLM:
        """`lvlm` with the adapted tower; its backbone is shared, not copied.

        Raises:
            CodebookMismatchError, CheckpointError: as `apply_to`.
        """
        return LVLM(self.apply_to(lvlm.visual), lvlm.backbone, lvlm.name, lvlm.origin)

    def _fitting(self) -> str:
        """The models on this machine that fit the encoder, as a sentence."""
        names = [
            name
            for name in shipped()
            if read_json(shipped_folder(name) / "craft.json").get("codebook") == self.codebook_fingerprint
        ]
        surrogate = self.manifest.get("surrogate")
        if surrogate and surrogate not in names:
            names.append(str(surrogate))
        if names:
            return f"It fits {', '.join(names)} and every other backbone of that codebook."
        return "Use it with a backbone of the family it was adapted from."


def save_artefact(
    folder: PathLike,
    visual: VisualTokenizer,
    *,
    prior: Tensor,
    manifest: Mapping[str, Any],
    base_counts: Tensor | None = None,
) -> Path:
    """Write an adapted encoder, as a whole or not at all; an existing one is replaced.

    Args:
        visual: with the adapted tower (saved in its dtype), the codebook and log τ.
        prior: level-1 code counts int64 `[K]` of the training images under the adapted tower.
        manifest: JSON-able; `surrogate` (a model's name), `base_tower` (`hash_tensors` of the base tower's
            state), `data` (name, fingerprint, licence, source, task, domain), `held_out` (class names),
            `config`, `metrics`. Missing entries become null; other entries are written too. This function
            adds format, version, codebook, tower and log τ.
        base_counts: code counts int64 `[L, K]` of the training images under the base tower, from which
            `craft serve` tells domains apart (ours).

    Raises:
        CheckpointError: the prior does not have one count per codeword, or weights are not finite.
    """
    target, book = Path(folder), visual.codebook
    if (fault := counts_fault(prior, book.size)) or prior.dtype != torch.int64:
        raise CheckpointError(f"The code prior {fault or f'has dtype {prior.dtype} instead of int64'}.")
    state = visual.vision_tower.state_dict()
    computed = {"format": FORMAT, "version": VERSION, **describe_tensors(visual, state, target)}
    listed = {key: manifest.get(key) for key in _ENTRIES}
    others = {key: value for key, value in manifest.items() if key not in {**computed, **listed}}
    written = {**computed, **listed, **others}
    with atomic_directory(target) as building:
        write_json(building / "craft.json", written)
        save_tensors(building / "model.safetensors", state)
        counts = {"counts": prior} | ({} if base_counts is None else {"base_counts": base_counts})
        save_tensors(building / "prior.safetensors", counts)
        atomic_write_text(building / "README.md", model_card(written, target))
    return target


def describe_tensors(visual: VisualTokenizer, state: Mapping[str, Tensor], target: Path) -> dict[str, Any]:
    """Entries of a manifest that describe the saved tensors: codebook, tower config, hash, log τ.

    Raises:
        CheckpointError: a tensor is not finite.
    """
    damaged = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if damaged:
        raise CheckpointError(
            f"The adapted tower is not finite ({damaged[0]}); it is not written to {target}."
        )
    book = visual.codebook
    return {
        "codebook": {
            "fingerprint": book.fingerprint,
            "levels": book.num_levels,
            "size": book.size,
            "dim": book.dim,
        },
        "vision_tower": visual.vision_tower.config,
        "tower": hash_tensors(dict(state)),
        "log_temperature": float(visual.log_temperature.detach()),
    }


def read_artefact(folder: Path) -> Artefact:
    """Read an adapted encoder and check it against its manifest.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not those of the manifest.
    """
    manifest = read_manifest(folder / "craft.json", FORMAT, VERSION, "an adapted encoder")
    state, size = checked_weights(folder, manifest), manifest["codebook"]["size"]
    path, levels = folder / "prior.safetensors", int(manifest["codebook"]["levels"])
    return Artefact(folder, manifest, state, read_prior(path, size), read_base_counts(path, levels, size))


def checked_weights(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an encoder or of tuned parts, which have the hash in the manifest.

    Raises:
        CheckpointError: the file is missing or damaged, or has other weights.
    """
    path = folder / "model.safetensors"
    check_tower_config(manifest["vision_tower"], folder / "craft.json")
    tensors = load_tensors(path)
    if hash_tensors(tensors) != manifest["tower"]:
        raise CheckpointError(
            f"{path} does not hold the weights that {folder / 'craft.json'} was written for; the file is "
            "damaged or from another run, so copy the whole folder again."
        )
    return tensors


def model_card(manifest: Mapping[str, Any], folder: Path) -> str:
    """The artefact's `README.md`, from its manifest."""
    data = manifest.get("data") or {}
    data = data if isinstance(data, Mapping) else {"name": data}
    book, surrogate = manifest["codebook"], manifest.get("surrogate") or "the surrogate"
    domain, licence = data.get("name") or "a new domain", data.get("licence")
    run = folder.parent.name if folder.name == "encoder" else folder.name
    about = {
        "name": domain,
        "task": data.get("task"),
        "source": data.get("source"),
        "licence": licence or "not recorded: check it before you share these weights",
        "fingerprint": data.get("fingerprint"),
        "caveats": "; ".join(map(str, data.get("caveats") or ())) or None,
        "held-out classes": ", ".join(map(str, manifest.get("held_out") or [])) or "none",
    }
    return f"""---
library_name: craft-vlm
tags: [vision-language, domain-adaptation, discrete-tokens]
---
# Vision encoder adapted to {domain}

A vision tower tuned on {domain} with {surrogate} as a frozen surrogate (CRAFT). \
It works unchanged with every backbone that shares the codebook below; \
codebook, projector and LLM did not change.

```python
import craft
lvlm = craft.load("{surrogate}").with_encoder("{run}")
lvlm.answer(["picture.png"], ["What is shown?"])
```

## Codebook

{book["levels"]} levels of {book["size"]} codewords, d = {book["dim"]}; fingerprint `{book["fingerprint"]}`.
Base vision tower `{manifest.get("base_tower") or "not recorded"}`, \
adapted vision tower `{manifest["tower"]}`.

## Data

{_rows(about)}

## Recipe

{_recipe(manifest)}

## Metrics

{_rows(flat(manifest.get("metrics") or {})) or "None were recorded."}

## Licence

The images: {licence or "not recorded"}. \
The weights are also subject to the terms of the base model, {surrogate}.
"""


def _recipe(manifest: Mapping[str, Any]) -> str:
    """Preset and departures from the paper's recipe; artefacts of earlier versions do not name them."""
    preset = (manifest.get("config") or {}).get("preset") or "none"
    departing = manifest.get("departures")
    if departing is None:
        return "Not recorded."
    return (
        f"Preset: {preset}. Not the paper's: {'' if departing else 'nothing.'}\n{_rows(departing)}".rstrip()
    )


def _rows(values: Mapping[str, Any]) -> str:
    """Lines of name and value, for texts and numbers only."""
    shown = {key: f"{v:.4g}" if isinstance(v, float) else v for key, v in values.items()}
    return "\n".join(f"- {key}: {value}" for key, value in shown.items() if isinstance(value, str | int))
