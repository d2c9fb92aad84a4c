"""What `craft adapt` trains: the vision tower, by Eq. 5, on labelled pictures (§3.2)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from craft.core.errors import ConfigError
from craft.core.processes import on_main, world
from craft.core.progress import say
from craft.data import Sample
from craft.lessons.align import packed_size
from craft.lessons.blending import blending, kept_share
from craft.lessons.objective import Batch, CraftObjective, TextTable, class_numbers, class_of
from craft.lessons.retention import MIXED, base_features, mix, partners, retention_weight
from craft.models.lvlm import LVLM
from craft.models.prompts import Dialogue, one_turn
from craft.models.vision_tower import HybridTower
from craft.quantize.search import Choice, obstacle, search_for
from craft.training.augment import augment
from craft.training.checks import choose_trainable
from craft.training.config import AdaptConfig, LoopConfig, RetentionConfig
from craft.training.image_cache import ImageCache, image_key
from craft.training.lesson import Lesson
from craft.training.lora import take_lora
from craft.training.order import batch_indices
from craft.training.pixel_store import PixelStore, decoders

C = TypeVar("C", bound=LoopConfig)

PROBE = 32
"""Images of the fixed batch on which changed codes are counted."""


def adaptation(
    lvlm: LVLM, samples: Sequence[Sample], config: AdaptConfig, task: str = "classification"
) -> Lesson:
    """The vision tower of `lvlm` learns from `samples`; everything else is frozen.

    Args:
        lvlm: the surrogate with the base tower, on its device.
        samples: the training set.
        config: all settings.
        task: "classification" or "vqa"; settles λ_con.

    Raises:
        ConfigError: the settings contradict the model, or each other.
    """
    check_compile(config)
    con = config.contrastive_weight(task)
    if con and config.micro_batch == "auto" and world() > 1:
        raise ConfigError(
            "micro_batch=auto and the contrastive loss do not go together in several processes: when one is "
            "out of memory, the others would wait for its texts. Give a number."
        )
    lvlm.visual.vision_tower.float()
    keep = retention_weight(config.losses.retention.weight, samples)
    tower: Any = lvlm.visual.vision_tower
    frozen = config.trainable != "all" and isinstance(tower, HybridTower)  # its stem
    stem = frozen and stem_suffices(lvlm, config)
    base = base_features(tower, frozen) if keep else None  # before LoRA, where there will be
    trained = choose_trainable(lvlm, config, con)
    share = kept_share(config.blend, samples, keep)
    images = image_cache(lvlm, samples, config, stem)
    batches = ImageBatches(lvlm, samples, config, con, images, mixed=keep > 0)
    search = chosen_search(lvlm, config)
    if config.search != "exact":
        say(f"search: {search.name} ({search.why})")
    ways = (search.name, config.prefix_cache, config.compile)
    probe = _Probe(lvlm, batches, config)  # sees the base tower
    if config.cls_attention:
        cast(Any, lvlm.visual.vision_tower).cls_attention = config.cls_attention
    return Lesson(
        objective=CraftObjective(lvlm, config.losses, con, stem, *ways, base, frozen, keep),
        trained=trained,
        batches=batches,
        parts=("vision_tower",),
        probe=probe,
        blend=blending(trained, share),
        finish=lambda: _finish(lvlm, config, images),
        verb="adapting",
        images=images,
        ahead=batches.expect,
        count=len(batches.groups),
        notes={"search": asdict(search), "blend": share, "retention": keep},
        mixed=MIXED if keep else 0.0,
    )


def check_compile(config: AdaptConfig) -> None:
    """Refuse two settings that exclude each other.

    Raises:
        ConfigError: layers are to be compiled, and checkpointed too.
    """
    if config.compile and config.gradient_checkpointing:
        raise ConfigError(
            "compile and gradient_checkpointing both take the layers apart; set one of them to false."
        )


def chosen_search(lvlm: LVLM, config: AdaptConfig) -> Choice:
    """How codewords are found, and why so; a continuous LVLM has none to find.

    Raises:
        ConfigError: the search that the settings name cannot run here.
    """
    if lvlm.visual.continuous:
        return Choice("exact", "a continuous LVLM has no codebook")
    tables: Any = lvlm.visual.codebook
    if config.search == "auto":
        return on_main(lambda: search_for("auto", tables))  # one for all processes, whatever each has free
    return search_for(config.search, tables)


def resumed_settings(lvlm: LVLM, config: C, record: Mapping[str, Any]) -> C:
    """The settings with the search that a run began with, where `auto` chose it, and without the retention
    loss, where it began before that was there.

    Chosen anew, on another machine or with other free memory, a search could find other codes at near-ties.

    Args:
        lvlm: the model, on its device.
        config: all settings.
        record: the run's `run.json`.

    Raises:
        ConfigError: that search cannot run here.
    """
    name = record.get("search", {}).get("name")
    if name is None or not isinstance(config, AdaptConfig):
        return config
    if "retention" not in record:
        losses = config.losses.model_copy(update={"retention": RetentionConfig(weight=0.0)})
        config = config.model_copy(update={"losses": losses})
    if config.search != "auto":
        return config
    if fault := obstacle(name, cast(Any, lvlm.visual.codebook)):
        raise ConfigError(
            f"search=auto chose {name} when this run began, and a resumed run keeps it; but {name} "
            f"{fault}. Resume where it can run, or begin again (--overwrite, or another folder)."
        )
    return config.model_copy(update={"search": name})


def stem_suffices(lvlm: LVLM, config: AdaptConfig) -> bool:
    """Whether the output of a frozen stem can stand for the pixels: it is computed once per image then."""
    stem = isinstance(lvlm.visual.vision_tower, HybridTower)
    return stem and config.augment == 0  # each step has new pixels otherwise


def image_groups(samples: Sequence[Sample], most: int) -> list[tuple[Sample, ...]]:
    """Samples of one image together, at most `most` of them; in the order of their first ones."""
    if most == 1:
        return [(sample,) for sample in samples]
    found: dict[Any, list[Sample]] = {}
    for sample in samples:
        found.setdefault(image_key(sample.image), []).append(sample)
    return [
        tuple(some[start : start + most]) for some in found.values() for start in range(0, len(some), most)
    ]


def image_cache(lvlm: LVLM, samples: Sequence[Sample], config: AdaptConfig, stem: bool) -> ImageCache:
    """The cache of a run: in memory, and where the config asks for them with a store on disk and processes
    that decode ahead.

    Raises:
        DataError: a picture that is to be stored cannot be read.
        ConfigError: the store's folder cannot be written.
    """
    store = None
    if config.pixel_cache is not None:
        place = config.pixel_cache, lvlm.visual.image_size, lvlm.visual.aspect
        sources = [sample.image for sample in samples]
        on_main(lambda: PixelStore(*place).fill(sources, config.workers))
        store = PixelStore(*place)
    pool = decoders(config.workers) if config.workers else None
    return ImageCache(lvlm.visual, config.cache_mib * 2**20, stem, store, pool)


class ImageBatches:
    """The training set as batches on the device: a pure function of the step.

    Args:
        lvlm: the model.
        samples: the training set.
        config: all settings.
        con: λ_con; texts are embedded where it counts.
        images: gives the images.
        mixed: some images come mixed with others, too, for the retention loss.
    """

    def __init__(
        self,
        lvlm: LVLM,
        samples: Sequence[Sample],
        config: AdaptConfig,
        con: float,
        images: ImageCache,
        mixed: bool = False,
    ) -> None:
        self.samples = samples
        self.groups = image_groups(samples, config.questions_per_image)
        self.config = config
        self.images = images
        self.partners = partners([group[0] for group in self.groups], config.seed) if mixed else {}
        self.texts = TextTable(lvlm.visual, samples, config.seed) if con else None
        self.classes = class_numbers(samples)
        self.backbone = lvlm.backbone
        self.device = lvlm.device

    def make(self, indices: Sequence[int], step: int) -> Batch:
        """The batch of these groups; `step` seeds which of its texts each image gets."""
        groups = [self.groups[index] for index in indices]
        samples = [group[step % len(group)] for group in groups]
        classes = torch.tensor([self.classes[class_of(sample)] for sample in samples])
        ids = tuple(sample.id for sample in samples)
        images = self.images.get([group[0] for group in groups])
        return Batch(
            ids=ids,
            images=self._seen(images, ids, step),
            questions=tuple(sample.prompt() for sample in samples),
            answers=tuple(sample.answer for sample in samples),
            texts=None if self.texts is None else self.texts.sample(samples, step).to(self.device),
            classes=classes.to(self.device),
            dialogues=tuple(map(self._dialogues, groups)) if self.config.questions_per_image > 1 else None,
            mixed=self._mixed(images, indices, step),
        )

    def expect(self, indices: Sequence[int]) -> None:
        """Prepare the images of a batch that will be made soon."""
        self.images.expect([self.groups[index][0] for index in indices])
        if others := self._partners(indices):
            self.images.expect(others)

    def _seen(self, images: Tensor, ids: Sequence[str], step: int) -> Tensor:
        """The images on the device, augmented."""
        ahead = self.config.pin_memory and self.device.type == "cuda"
        images = images.pin_memory() if ahead else images
        images = images.to(self.device, non_blocking=ahead)  # while the step before it still runs
        return augment(images, ids, self.config.seed, step, self.config.augment)

    def _mixed(self, images: Tensor, indices: Sequence[int], step: int) -> Tensor | None:
        """The mixed pictures of a batch, augmented by draws of their own; None where it has none."""
        rows = [row for row, index in enumerate(indices) if index in self.partners]
        if not rows:
            return None
        ids = [f"{self.groups[indices[row]][0].id} mixed" for row in rows]
        others = self.images.get(self._partners(indices))
        return self._seen(mix(images[rows], others, ids, self.config.seed, step), ids, step)

    def _partners(self, indices: Sequence[int]) -> list[Sample]:
        """What some of the groups' images are mixed with."""
        chosen = (self.partners[index] for index in indices if index in self.partners)
        return [self.groups[partner][0] for partner in chosen]

    def answer_tokens(self, batch: Batch) -> int:
        """How many answer tokens SAL takes its mean over."""
        if batch.dialogues is not None:
            return sum(sum(dialogue.learned) for listed in batch.dialogues for dialogue in listed)
        pairs = zip(batch.questions, batch.answers, strict=True)
        return sum(len(self.backbone.tokenized(*pair).answer) for pair in pairs)

    def length(self, index: int) -> int:
        """Characters of questions and answers; a mixed picture counts as four for each of its patches."""
        picture = 4 * math.prod(self.images.visual.grid) if index in self.partners else 0
        return picture + sum(len(sample.prompt()) + len(sample.answer) for sample in self.groups[index])

    def tokens(self, index: int) -> tuple[int, int, int]:
        """As `packed_size` says of the questions about an image."""
        rows, columns = self.images.visual.grid
        return packed_size(self.backbone, rows * columns, self._dialogues(self.groups[index]))

    def _dialogues(self, group: Sequence[Sample]) -> tuple[Dialogue, ...]:
        return tuple(one_turn(self.backbone.tokenized(s.prompt(), s.answer)) for s in group)


def _finish(lvlm: LVLM, config: AdaptConfig, images: ImageCache) -> None:
    if config.trainable == "lora":
        take_lora(lvlm.visual.vision_tower, merge=True)
    images.close()


class _Probe:
    """How far the tower has gone from the base tower, on a fixed batch of training images: the share of
    level-1 codes that differ; in a continuous LVLM the mean distance of a token's feature, relative to its
    size."""

    def __init__(self, lvlm: LVLM, batches: ImageBatches, config: AdaptConfig) -> None:
        count = len(batches.samples)
        chosen = batch_indices(count, min(PROBE, count), 0, config.seed)
        self.lvlm = lvlm
        self.images = batches.images.get([batches.samples[index] for index in chosen]).to(lvlm.device)
        self.from_stem = batches.images.through_stem
        self.base = self._look()

    @torch.no_grad()
    def _look(self) -> Tensor:
        """Level-1 codes int64 `[B, N]`; of a continuous LVLM features float32 `[B, N, d]`."""
        visual, tower = self.lvlm.visual, cast(Any, self.lvlm.visual.vision_tower)
        features, _ = (tower.after_stem if self.from_stem else tower)(self.images, with_cls=False)
        return features.float() if visual.continuous else visual.quantize(features, None).codes[..., 0]

    def __call__(self) -> dict[str, float]:
        now = self._look()
        if self.lvlm.visual.continuous:
            far = (now - self.base).norm(dim=-1) / self.base.norm(dim=-1).clamp(min=1e-12)
            return {"features_moved": float(far.mean())}
        return {"codes_changed": float((now != self.base).float().mean())}
