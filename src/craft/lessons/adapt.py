"""The lesson of `craft adapt`: the vision tower learns by Eq. 5 from labelled images (§3.2)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from craft.core.errors import ConfigError
from craft.core.processes import on_main
from craft.core.progress import say
from craft.data import Sample
from craft.lessons.batches import ImageBatches, image_cache
from craft.lessons.objective import CraftObjective, Term, mean_square, paper_terms, retention_loss
from craft.lessons.retention import MIXED, base_features, blended, kept_share, retention_weight
from craft.lessons.table_rule import set_table_rule
from craft.models.lvlm import LVLM
from craft.models.vision_tower import ClsTower, HybridTower, forward_of
from craft.quantize import Continuous
from craft.quantize.search import SEARCHES, Choice, obstacle, search_for
from craft.training.checks import choose_trainable
from craft.training.config import AdaptConfig
from craft.training.image_cache import ImageCache
from craft.training.lesson import Lesson, Settled
from craft.training.lora import take_lora
from craft.training.order import batch_indices

PROBE = 32
"""The number of images in the fixed batch on which CRAFT counts changed codes."""


def adaptation(
    lvlm: LVLM,
    samples: Sequence[Sample],
    config: AdaptConfig,
    task: str = "classification",
    earlier: Settled | None = None,
) -> Lesson:
    """The lesson in which the vision tower of `lvlm` learns from `samples`; everything else is frozen.

    Args:
        lvlm: the surrogate with the base tower, on its device.
        samples: the training set.
        config: all settings.
        task: "classification" or "vqa"; λ_con depends on it.
        earlier: the choices of the run to resume.

    Raises:
        ConfigError: the settings contradict the model, or each other.
    """
    contrastive_weight = config.contrastive_weight(task)
    check_settings(config)
    lvlm.visual.vision_tower.float()
    settled = settle(lvlm, samples, config, earlier)
    tower = lvlm.visual.vision_tower
    stem_frozen = config.trainable != "all" and isinstance(tower, HybridTower)
    cached_stem = stem_frozen and stem_suffices(lvlm, config)
    terms, base = paper_terms(config.losses, contrastive_weight, mean_square(lvlm.visual.codebook)), None
    if settled.retention:
        terms.append(Term("retention", settled.retention, retention_loss))
        base = base_features(tower, stem_frozen)  # a copy, before LoRA is added
    trained = choose_trainable(lvlm, config, contrastive_weight)
    images = image_cache(lvlm, config, cached_stem)
    batches = ImageBatches(
        lvlm, samples, config, images, with_texts=contrastive_weight > 0, with_mixed=base is not None
    )
    probe = _Probe(lvlm, batches, config)  # computes the codes of the base tower
    table = set_table_rule(lvlm, config.losses, probe.features, earlier and earlier.table)
    settled = replace(settled, table=table)
    if config.cls_attention and isinstance(tower, ClsTower):
        tower.cls_attention = config.cls_attention
    return Lesson(
        objective=CraftObjective(
            lvlm,
            terms,
            cached_stem=cached_stem,
            search=settled.search.name,
            compiled=config.compile,
            base=base,
            stem_frozen=stem_frozen,
        ),
        trained=trained,
        batches=batches,
        parts=("vision_tower",),
        probe=probe,
        blend=blended(trained, settled.blend),
        finish=lambda: _finish(lvlm, config, images),
        verb="adapting",
        images=images,
        complete=batches.complete,
        expect=batches.expect,
        count=len(batches.groups),
        settled=settled,
        mixed=0.0 if base is None else MIXED,
    )


def check_settings(config: AdaptConfig) -> None:
    """Refuse settings that exclude each other.

    Raises:
        ConfigError: both compile and gradient_checkpointing are set.
    """
    if config.compile and config.gradient_checkpointing:
        raise ConfigError("compile and gradient_checkpointing exclude each other; set one of them to false.")


def settle(
    lvlm: LVLM, samples: Sequence[Sample], config: AdaptConfig, earlier: Settled | None = None
) -> Settled:
    """Choose search, retention weight and blend: the settings, or the defaults for this data and machine.

    A resumed run keeps the search that `auto` chose at its start: another machine might choose another
    search, which may find other codes at near-ties. A run that a version without the retention loss started
    continues without it.

    Args:
        lvlm: the model, on its device.
        samples: the training set.
        config: all settings.
        earlier: the choices of the run to resume.

    Raises:
        ConfigError: the search cannot run here, or was removed.
    """
    retention = retention_weight(config.losses.retention.weight, samples, earlier)
    blend = kept_share(config.blend, samples, retention)
    search = chosen_search(lvlm, config, earlier)
    if config.search != "exact":
        say(f"search: {search.name} ({search.why})")
    return Settled(search, blend, retention)


def chosen_search(lvlm: LVLM, config: AdaptConfig, earlier: Settled | None = None) -> Choice:
    """The search for codewords and the reason for it; a continuous LVLM has no codewords.

    Raises:
        ConfigError: the search of the settings, or of the run to resume, cannot run here.
    """
    tables = lvlm.visual.codebook
    if isinstance(tables, Continuous):
        return Choice("exact", "a continuous LVLM has no codebook")
    if config.search != "auto":
        return search_for(config.search, tables)
    if earlier is None:
        return on_main(lambda: search_for("auto", tables))  # the same for all processes
    name = earlier.search.name
    if name not in SEARCHES:
        raise ConfigError(
            f"search=auto chose {name} when this run began, and that search was removed: exact may find "
            "other codewords if two are equally near. Finish the run with the version that began it, or "
            "start again (--overwrite, or another folder)."
        )
    if fault := obstacle(name, tables):
        raise ConfigError(
            f"search=auto chose {name} when this run began, and a resumed run keeps it; but {name} "
            f"{fault}. Resume on a machine that can run it, or start again (--overwrite, or another folder)."
        )
    return search_for(name, tables)


def stem_suffices(lvlm: LVLM, config: AdaptConfig) -> bool:
    """Whether batches can contain the output of a frozen stem, computed once per image, instead of pixels."""
    stem = isinstance(lvlm.visual.vision_tower, HybridTower)
    return stem and config.augment == 0  # augmentation changes pixels in every step


def _finish(lvlm: LVLM, config: AdaptConfig, images: ImageCache) -> None:
    if config.trainable == "lora":
        take_lora(lvlm.visual.vision_tower, merge=True)
    images.close()


class _Probe:
    """The change of the tower since the start, on a fixed batch of training images.

    It is the fraction of level-1 codes that differ from those of the base tower; for a continuous LVLM, the
    mean distance of a token's features, relative to their norm.
    """

    def __init__(self, lvlm: LVLM, batches: ImageBatches, config: AdaptConfig) -> None:
        count = len(batches.samples)
        chosen = batch_indices(count, min(PROBE, count), 0, config.seed)
        self.lvlm = lvlm
        self.images = batches.images.get([batches.samples[index] for index in chosen]).to(lvlm.device)
        self.from_stem = batches.images.through_stem
        self.base = self._encode()

    @torch.no_grad()
    def features(self) -> Tensor:
        """Features of the probe's images under the current tower, float32 `[B, N, d]`."""
        run = forward_of(self.lvlm.visual.vision_tower, self.from_stem)
        return run(self.images, with_cls=False)[0].float()

    def _encode(self) -> Tensor:
        """Level-1 codes int64 `[B, N]`; for a continuous LVLM, features float32 `[B, N, d]`."""
        visual, features = self.lvlm.visual, self.features()
        return features if visual.continuous else visual.quantize(features, None).codes[..., 0]

    def __call__(self) -> dict[str, float]:
        now = self._encode()
        if self.lvlm.visual.continuous:
            moved = (now - self.base).norm(dim=-1) / self.base.norm(dim=-1).clamp(min=1e-12)
            return {"features_moved": float(moved.mean())}
        return {"codes_changed": float((now != self.base).float().mean())}
