"""The parts that a baseline tuned, on disk, and the model they belong to.

TUNED/{craft.json, model.safetensors, README.md}

`model.safetensors` has all weights of a vision tower (`vision_tower.*`) and projector (`projector.*`). For an
LLM it has the LoRA factors `llm.M.A` and `llm.M.B` of its linear maps M (W becomes W + B A).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.files import PathLike, atomic_directory, atomic_write_text, write_json
from craft.core.tensors import hash_rounded, save_tensors
from craft.formats.artefact import Artefact, checked_weights, describe_tensors
from craft.formats.checks import add_factors, load_strict, read_manifest, under
from craft.models.backbone import Backbone
from craft.models.freezing import parts as parts_of
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer

FORMAT, VERSION = "craft-tuned", 1


@dataclass(frozen=True)
class Tuned(Artefact):
    """A baseline's parts, read and checked. It can be used wherever an adapted encoder can.

    Attributes:
        rest: tuned tensors outside the vision tower; those of the vision tower are in `state`.
    """

    rest: dict[str, Tensor] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The tuned parts: some of `vision_tower`, `projector`, `llm`."""
        return tuple(self.manifest["parts"])

    def apply_to(self, visual: VisualTokenizer) -> VisualTokenizer:
        """A new visual tokenizer with the tuned tower, if nothing else was tuned.

        Raises:
            CodebookMismatchError: `visual` has another codebook, or another continuous tower.
            CheckpointError: other parts were tuned, or the towers differ in their architecture.
        """
        if self.parts != ("vision_tower",):
            raise CheckpointError(
                f"{self.folder} holds a tuned {' and '.join(self.parts)}, not only a vision tower; use it "
                "with the model that it was tuned from (`craft eval`, craft.recipes.baseline.load_tuned)."
            )
        tuned = super().apply_to(visual)
        tuned.prior = None
        return tuned

    def apply(self, lvlm: LVLM) -> LVLM:
        """`lvlm` with the tuned parts, which are copies; all other parts are shared.

        Raises:
            CodebookMismatchError, CheckpointError: as `apply_to`; or it is not the model that projector or
                LLM were tuned from.
        """
        if self.parts == ("vision_tower",):
            return super().apply(lvlm)
        fingerprint = lvlm.visual.codebook.fingerprint
        if fingerprint != self.codebook_fingerprint:
            raise CodebookMismatchError(
                f"The parts in {self.folder} were tuned for codebook {self.codebook_fingerprint}, and "
                f"{lvlm.name} reads {fingerprint}; use them with {self.manifest.get('surrogate')}, from "
                "which they were tuned."
            )
        own = parts_of(lvlm)
        for part in self.parts:
            if part not in own or part_fingerprint(own[part]) != self.manifest["base"][part]:
                raise CheckpointError(
                    f"The {part} in {self.folder} was tuned from that of {self.manifest.get('surrogate')}, "
                    f"and {lvlm.name} has another; tuned parts fit the model that they were tuned from only."
                )
        old, path = lvlm.backbone, self.folder / "model.safetensors"
        reader, llm = old.reader, old.llm
        if "projector" in self.parts:
            reader = copy.deepcopy(reader)
            load_strict(reader, under(self.rest, "projector."), path)
        if "llm" in self.parts:
            llm = copy.deepcopy(llm)
            device = old.device
            factors = {name: factor.to(device) for name, factor in under(self.rest, "llm.").items()}
            add_factors(llm, factors, path)
        borrowed = None if "llm" in self.parts else old.borrowed  # a tuned LLM is not the published one
        backbone = Backbone(reader, llm, old.tokenizer, old.prompt, old.codebook_fingerprint, borrowed)
        return LVLM(lvlm.visual, backbone.requires_grad_(False).eval(), lvlm.name, lvlm.origin)


def part_fingerprint(module: nn.Module) -> str:
    """A hash of the weights that identifies a part of a model, the same in float32 and in bfloat16."""
    return hash_rounded(module.state_dict())


def save_tuned(
    folder: PathLike,
    lvlm: LVLM,
    parts: Sequence[str],
    *,
    base: Mapping[str, str],
    factors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
) -> Path:
    """Write the tuned parts of an LVLM, as a whole or not at all; existing ones are replaced.

    Args:
        base: `part_fingerprint` of each part before tuning.
        factors: LoRA factors of the LLM (`craft.training.lora.take_lora`).
        manifest: as for `craft.formats.artefact.save_artefact`, with `method`.

    Raises:
        CheckpointError: weights are not finite.
    """
    target = Path(folder)
    state = {
        f"{part}.{name}": tensor
        for part in parts
        for name, tensor in (factors if part == "llm" else parts_of(lvlm)[part].state_dict()).items()
    }
    computed = {
        "format": FORMAT,
        "version": VERSION,
        **describe_tensors(lvlm.visual, state, target),
        "parts": list(parts),
        "base": dict(base),
    }
    written = {**manifest, **computed}
    with atomic_directory(target) as building:
        write_json(building / "craft.json", written)
        save_tensors(building / "model.safetensors", state)
        atomic_write_text(building / "README.md", _card(written, target))
    return target


def read_tuned(folder: Path) -> Tuned:
    """Read tuned parts and check them against their manifest.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not those of the manifest.
    """
    manifest = read_manifest(folder / "craft.json", FORMAT, VERSION, "a baseline's tuned parts")
    tensors = checked_weights(folder, manifest)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_tower.")}
    none = torch.zeros(0, dtype=torch.long)  # a baseline has no code prior
    return Tuned(folder, manifest, under(tensors, "vision_tower."), none, rest=rest)


def _card(manifest: Mapping[str, Any], folder: Path) -> str:
    method, model = manifest.get("method"), manifest.get("surrogate")
    record = manifest.get("data") or {}
    data, caveats = record.get("name") or "a new domain", "; ".join(record.get("caveats") or ())
    run = folder.parent.name if folder.name == "tuned" else folder.name
    return (
        "---\nlibrary_name: craft-vlm\ntags: [vision-language, domain-adaptation]\n---\n"
        f"# {model}, tuned to {data} by {method}\n\n"
        f"The tuned {' and '.join(manifest['parts'])} of {model}: a baseline that CRAFT is compared with. "
        f"It fits that model only.{f' Data: {caveats}.' if caveats else ''}\n\n"
        f'```python\nimport craft\n\nlvlm = craft.recipes.baseline.load_tuned("{run}")\n```\n'
    )
