"""Batches of labelled images: pixels, questions, answers, texts and mixed images."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from craft.core.errors import ConfigError
from craft.core.seeding import rng
from craft.data import Sample
from craft.lessons.packing import packed_size
from craft.lessons.retention import mix, partners
from craft.models.lvlm import LVLM
from craft.models.prompts import Dialogue, one_turn
from craft.models.visual_tokenizer import VisualTokenizer
from craft.training.augment import augment
from craft.training.config import AdaptConfig
from craft.training.image_cache import ImageCache, decoders, image_key
from craft.training.lesson import WHOLE, Share


@dataclass(frozen=True)
class Batch:
    """One (micro-)batch.

    Attributes:
        ids: the ids of the samples, for messages.
        images: pixels `[B, 3, S, S]`, or the frozen stem's maps `[B, C, h, w]`.
        questions, answers: t and y of Eq. 2, one of each per image.
        dialogues: all dialogues about each image, which SAL uses instead of `questions` and `answers`; None
            if `questions_per_image` is 1.
        texts: embeddings `[B, d]` of the sampled texts, or None without a contrastive loss.
        classes: int64 `[B]`, y of Eq. 4.
        others: texts `[M, d]` and classes `[M]` of the step's whole batch; None if this is the whole batch.
        mixed: `[M, …]`, images of no class, for the retention loss; None if there are none.
        share: the share of the step's whole batch.
    """

    ids: tuple[str, ...]
    images: Tensor
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    texts: Tensor | None
    classes: Tensor
    others: tuple[Tensor, Tensor] | None = None
    dialogues: tuple[tuple[Dialogue, ...], ...] | None = None
    mixed: Tensor | None = None
    share: Share = WHOLE


def image_groups(samples: Sequence[Sample], most: int) -> list[tuple[Sample, ...]]:
    """Samples grouped by image, at most `most` in a group, in the order of their first samples."""
    if most == 1:
        return [(sample,) for sample in samples]
    by_image: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(image_key(sample.image), []).append(sample)
    return [
        tuple(group[start : start + most])
        for group in by_image.values()
        for start in range(0, len(group), most)
    ]


def image_cache(lvlm: LVLM, config: AdaptConfig, through_stem: bool) -> ImageCache:
    """The image cache of a run, with processes that decode in advance if the config has `workers`."""
    pool = decoders(config.workers) if config.workers else None
    return ImageCache(lvlm.visual, config.cache_mib * 2**20, through_stem, pool)


class ImageBatches:
    """The training set as batches on the device, each a pure function of the step.

    Args:
        lvlm: the model.
        samples: the training set.
        config: all settings.
        images: the cache that decodes the images.
        with_texts: add a text for each image, for the contrastive loss.
        with_mixed: add some mixed images, for the retention loss.
    """

    def __init__(
        self,
        lvlm: LVLM,
        samples: Sequence[Sample],
        config: AdaptConfig,
        images: ImageCache,
        *,
        with_texts: bool = False,
        with_mixed: bool = False,
    ) -> None:
        self.samples = samples
        self.groups = image_groups(samples, config.questions_per_image)
        self.config = config
        self.images = images
        self.partners = partners([group[0] for group in self.groups], config.seed) if with_mixed else {}
        self.texts = TextTable(lvlm.visual, samples, config.seed) if with_texts else None
        self.classes = class_numbers(samples)
        self.backbone = lvlm.backbone
        self.device = lvlm.device

    def make(self, indices: Sequence[int], step: int) -> Batch:
        """The batch of these groups; `step` selects the text of each image and seeds the augmentation."""
        groups = [self.groups[index] for index in indices]
        samples = self._asked(indices, step)
        ids = tuple(sample.id for sample in samples)
        images = self.images.get([group[0] for group in groups])
        return Batch(
            ids=ids,
            images=self._augmented(images, ids, step),
            questions=tuple(sample.prompt() for sample in samples),
            answers=tuple(sample.answer for sample in samples),
            texts=None if self.texts is None else self.texts.sample(samples, step).to(self.device),
            classes=self._classes(samples),
            dialogues=tuple(map(self._dialogues, groups)) if self.config.questions_per_image > 1 else None,
            mixed=self._mixed(images, indices, step),
        )

    def complete(self, batch: Batch, whole: Sequence[int], step: int) -> Batch:
        """A micro-batch with the texts and classes of the groups in the step's whole batch.

        The texts are frozen and a pure function of the step, so that no process has to send its own.
        """
        if self.texts is None:
            return batch
        samples = self._asked(whole, step)
        texts = self.texts.sample(samples, step).to(self.device)
        return replace(batch, others=(texts, self._classes(samples)))

    def _asked(self, indices: Sequence[int], step: int) -> list[Sample]:
        """The sample of each group that gives its text and class in this step."""
        groups = (self.groups[index] for index in indices)
        return [group[step % len(group)] for group in groups]

    def _classes(self, samples: Sequence[Sample]) -> Tensor:
        """y of Eq. 4 on the device, int64 `[B]`."""
        return torch.tensor([self.classes[class_of(sample)] for sample in samples]).to(self.device)

    def expect(self, indices: Sequence[int]) -> None:
        """Decode in advance the images of a batch that `make` will need soon."""
        self.images.expect([self.groups[index][0] for index in indices])
        if others := self._partners(indices):
            self.images.expect(others)

    def _augmented(self, images: Tensor, ids: Sequence[str], step: int) -> Tensor:
        """The images on the device, augmented."""
        pinned = self.device.type == "cuda"  # page-locked memory is copied while the previous step runs
        images = (images.pin_memory() if pinned else images).to(self.device, non_blocking=pinned)
        return augment(images, ids, self.config.seed, step, self.config.augment)

    def _mixed(self, images: Tensor, indices: Sequence[int], step: int) -> Tensor | None:
        """The mixed images of a batch, augmented separately; None if it has none."""
        rows = [row for row, index in enumerate(indices) if index in self.partners]
        if not rows:
            return None
        ids = [f"{self.groups[indices[row]][0].id} mixed" for row in rows]
        others = self.images.get(self._partners(indices))
        return self._augmented(mix(images[rows], others, ids, self.config.seed, step), ids, step)

    def _partners(self, indices: Sequence[int]) -> list[Sample]:
        """The samples with which images of these groups are mixed."""
        chosen = (self.partners[index] for index in indices if index in self.partners)
        return [self.groups[partner][0] for partner in chosen]

    def answer_tokens(self, batch: Batch) -> int:
        """The number of answer tokens over which SAL is averaged."""
        if batch.dialogues is not None:
            return sum(sum(dialogue.learned) for listed in batch.dialogues for dialogue in listed)
        pairs = zip(batch.questions, batch.answers, strict=True)
        return sum(len(self.backbone.tokenized(*pair).answer) for pair in pairs)

    def length(self, index: int) -> int:
        """The number of characters in questions and answers, plus four for each patch of a mixed image."""
        mixed = 4 * math.prod(self.images.visual.grid) if index in self.partners else 0
        return mixed + sum(len(sample.prompt()) + len(sample.answer) for sample in self.groups[index])

    def tokens(self, index: int) -> tuple[int, int, int]:
        """The result of `packed_size` for the questions about an image."""
        rows, columns = self.images.visual.grid
        return packed_size(self.backbone, rows * columns, self._dialogues(self.groups[index]))

    def _dialogues(self, group: Sequence[Sample]) -> tuple[Dialogue, ...]:
        return tuple(one_turn(self.backbone.tokenized(s.prompt(), s.answer)) for s in group)


class TextTable:
    """Embeddings of every text of a training set under the frozen text encoder, computed once.

    Args:
        visual: the visual tokenizer with the text encoder.
        samples: the training set.
        seed: the seed of the choice among a sample's texts.

    Raises:
        ConfigError: there is no text encoder, or its width is not d.

    Source: §3.2, T_i = {ground-truth text} ∪ {captions}, one text per step.
    """

    @torch.no_grad()
    def __init__(self, visual: VisualTokenizer, samples: Sequence[Sample], seed: int) -> None:
        if visual.text_encoder is None:
            raise ConfigError(
                "The contrastive loss needs the visual tokenizer's frozen text encoder, and this one has "
                "none; use a surrogate that has it, or set losses.contrastive.weight to 0."
            )
        self.seed = seed
        texts = sorted({text for sample in samples for text in sample.texts()})
        self.rows = {text: row for row, text in enumerate(texts)}
        encode = visual.text_encoder.encode
        parts = [encode(texts[start : start + 256]).float() for start in range(0, len(texts), 256)]
        self.embeddings = torch.cat(parts)
        width = int(visual.vision_tower.dim)  # type: ignore[arg-type]
        if self.embeddings.shape[1] != width:
            raise ConfigError(
                f"The text encoder's embeddings have width {self.embeddings.shape[1]} and [CLS] has {width}; "
                "set losses.contrastive.weight to 0, or use a tokenizer whose text encoder fits."
            )

    def sample(self, samples: Sequence[Sample], step: int) -> Tensor:
        """One text per image, `[B, d]`: a pure function of seed, step and sample id (t̃_i of §3.2)."""
        rows = [self.rows[rng(self.seed, "text", step, s.id).choice(s.texts())] for s in samples]
        return self.embeddings[torch.tensor(rows, device=self.embeddings.device)]


def class_numbers(samples: Sequence[Sample]) -> dict[str, int]:
    """A number for every class of Eq. 4 (see `class_of`)."""
    return {name: number for number, name in enumerate(sorted({class_of(sample) for sample in samples}))}


def class_of(sample: Sample) -> str:
    """y_i of Eq. 4: the label, or without labels the ground-truth text. Equal classes are never negatives."""
    return sample.label if sample.label is not None else sample.texts()[0]
