"""The methods that CRAFT is compared with (§4.2, §12.1): what each one trains, and by which objective.

`craft.recipes.baseline` runs them. All use the loop, data and settings of `craft adapt`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from craft.core.errors import ConfigError
from craft.data import Sample
from craft.lessons.adapt import adaptation, check_settings, settle, stem_suffices
from craft.lessons.batches import Batch, ImageBatches, image_cache
from craft.lessons.objective import CraftObjective, paper_terms
from craft.lessons.retention import blended
from craft.models.freezing import freeze_all_but
from craft.models.lvlm import LVLM
from craft.models.vision_tower import VisionTower, forward_of
from craft.training.config import (
    AdaptConfig,
    BaselineConfig,
    CommitmentConfig,
    ContrastiveConfig,
    LdifsConfig,
    RetentionConfig,
)
from craft.training.lesson import Lesson, Objective, Settled
from craft.training.lora import add_lora


@dataclass(frozen=True)
class Baseline:
    """A method that CRAFT is compared with.

    Attributes:
        name: its key in `BASELINES`.
        parts: the parts that it trains, of `vision_tower`, `projector`, `llm`; none for zero-shot.
        make_lesson: LVLM, training set, settings, `earlier` (the choices of the run to resume) -> the lesson
            for `fit`; None if nothing trains, or if the method is `craft.adapt` with other settings.
        continuous: whether the method applies only to continuous LVLMs.
        settings: the settings of `craft.adapt` that define the method, by dotted names.
    """

    name: str
    parts: tuple[str, ...] = ()
    make_lesson: Callable[..., Lesson] | None = None
    continuous: bool = False
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def config_class(self) -> type[AdaptConfig]:
        """The class of the settings of a run."""
        return AdaptConfig if self.settings else BaselineConfig

    def check(self, lvlm: LVLM) -> None:
        """Refuse a model of the wrong kind.

        Raises:
            ConfigError: the method needs a continuous LVLM, and this one is discrete; or it trains the
                projector, and this LLM reads a token table.
        """
        if "projector" in self.parts and lvlm.backbone.projector is None:
            raise ConfigError(
                f"{self.name} trains the projector, and the LLM of {lvlm.name} has none: it reads codes as "
                "rows of its own embedding. Use llm-lora, or a model with a projector."
            )
        if self.continuous and not lvlm.visual.continuous:
            raise ConfigError(
                f"{self.name} tunes the vision tower of a continuous LVLM, and {lvlm.name} is discrete: "
                "its LLM reads codewords. Use a continuous one, such as craft-tiny/continuous-qwen2 or a "
                "LLaVA checkpoint. For a discrete LVLM, vision-ft-codebook does the same."
            )


# Lessons


def vision_ft(
    lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig, earlier: Settled | None = None
) -> Lesson:
    """The vision tower learns by the autoregressive loss alone, from features instead of codewords.

    Source: §12.1, "the naive … method of fine-tuning the continuous vision encoder".
    """
    return adaptation(lvlm, samples, answers_only(config), earlier=earlier)


def ldifs(
    lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig, earlier: Settled | None = None
) -> Lesson:
    """Vision FT with a second loss, which keeps features of several layers close to the initial tower's.

    Source: §12.1; Mukhoti et al., *Fine-tuning can cripple your foundation model; preserving features may be
    the solution*, arXiv 2308.13320.
    """
    initial = copy.deepcopy(lvlm.visual.vision_tower).float()  # a copy, before the lesson may add LoRA
    lesson = vision_ft(lvlm, samples, config, earlier)
    assert isinstance(lesson.objective, CraftObjective)
    return replace(lesson, objective=LdifsObjective(lesson.objective, initial, config.ldifs))


def projector_ft(
    lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig, earlier: Settled | None = None
) -> Lesson:
    """The projector learns by the autoregressive loss; also applies to discrete LVLMs.

    Source: §12.1.
    """
    freeze_all_but(lvlm, ["projector"])
    return _frozen_tower_lesson(lvlm, samples, config, "projector", earlier)


def llm_lora(
    lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig, earlier: Settled | None = None
) -> Lesson:
    """LoRA on the LLM (`config.lora`) learns by the autoregressive loss; also applies to discrete LVLMs.

    Raises:
        ConfigError: peft is not installed, or no linear map has a name in `lora.targets`.

    Source: §12.2, "VILA-LLM-LoRA that modifies the weights of the language model"; rank and targets are ours.
    """
    freeze_all_but(lvlm, [])
    llm = lvlm.backbone.llm
    add_lora(llm, config.lora)
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return _frozen_tower_lesson(lvlm, samples, config, "llm", earlier)


def answers_only(config: BaselineConfig) -> BaselineConfig:
    """The same settings with the autoregressive loss alone: no commitment, contrastive or retention loss."""
    without = {
        "commitment": CommitmentConfig(weight=0.0),
        "contrastive": ContrastiveConfig(weight=0.0),
        "retention": RetentionConfig(weight=0.0),
    }
    return config.model_copy(update={"losses": config.losses.model_copy(update=without)})


def _frozen_tower_lesson(
    lvlm: LVLM,
    samples: Sequence[Sample],
    config: BaselineConfig,
    part: str,
    earlier: Settled | None,
) -> Lesson:
    """The lesson in which `part` learns to answer, with a frozen tower. Augmentation is that of all methods.

    Args:
        lvlm: with `requires_grad` set; the parameters that train become float32.
        samples: the training set.
        config: all settings.
        part: the part of the LVLM that trains.
        earlier: the choices of the run to resume.

    Raises:
        ConfigError: the settings contradict each other or the model.
    """
    check_settings(config)
    trained = {name: parameter for name, parameter in lvlm.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    config = answers_only(config)
    settled = replace(settle(lvlm, samples, config, earlier), retention=None)  # no tower trains
    images = image_cache(lvlm, config, stem_suffices(lvlm, config))
    batches = ImageBatches(lvlm, samples, config, images)
    objective = CraftObjective(
        lvlm,
        paper_terms(config.losses, 0.0),
        cached_stem=images.through_stem,
        search=settled.search.name,
        compiled=config.compile,
    )
    return Lesson(
        objective=objective,
        trained=trained,
        batches=batches,
        parts=(part,),
        blend=blended(trained, settled.blend),
        finish=images.close,
        verb="tuning",
        images=images,
        expect=lambda indices: images.expect([batches.groups[index][0] for index in indices]),
        count=len(batches.groups),
        settled=settled,
    )


# The objective of LDIFS


class LdifsObjective(Objective):
    """The autoregressive loss plus `ldifs.weight` times the distance of features to the initial tower's.

    It is a module, so that data parallelism can wrap it.

    Args:
        inner: the autoregressive loss of `inner.lvlm`, whose tower trains.
        initial: a copy of that tower before training; this class freezes it.
        config: the weight and the number of layers.
    """

    def __init__(self, inner: CraftObjective, initial: VisionTower, config: LdifsConfig) -> None:
        super().__init__()
        self.inner = inner
        self.lvlm = inner.lvlm
        self.initial: VisionTower = initial.requires_grad_(False).eval()
        self.config = config

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with gradient) and its parts by name, as for `CraftObjective`."""
        with _layer_outputs(self.lvlm.visual.vision_tower, self.config.layers) as now:
            loss, parts = self.inner(batch)
        with torch.no_grad(), _layer_outputs(self.initial, self.config.layers) as before:
            forward_of(self.initial, self.inner.cached_stem)(batch.images, with_cls=False)
        distance = batch.share.samples * feature_distance(now, before)
        loss = loss + self.config.weight * distance
        return loss, {**parts, "loss": loss.detach(), "ldifs": distance.detach()}


def feature_distance(now: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """The squared ℓ2 distance of features of several layers, a scalar.

    Args:
        now: per layer `[B, N, h]`, with gradient.
        before: those of the initial tower.

    The features of each token are normalised in each layer, and the layers are concatenated. As in the
    authors' code, the distance is the mean over all elements. (Their norm is over tokens, the channel axis of
    convolutional features; ours is over the width.)
    """

    def joined(layers: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.normalize(layer.float(), dim=-1) for layer in layers], dim=-1)

    return (joined(now) - joined(before)).square().mean()


@contextmanager
def _layer_outputs(tower: VisionTower, count: int) -> Iterator[list[Tensor]]:
    """A context whose list collects the patches `[B, N, h]` after `count` evenly spaced layers."""
    layers = list(tower.layers)
    count = min(count, len(layers))
    chosen = [layers[(number + 1) * len(layers) // count - 1] for number in range(count)]
    outputs: list[Tensor] = []

    def collect(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(collect) for layer in chosen]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


# The methods

WITHOUT_REGULARISATION = {
    "losses.commitment.weight": 0.0,
    "losses.contrastive.weight": 0.0,
    "losses.retention.weight": 0.0,
}
"""Settings of `craft.adapt` that leave the autoregressive loss alone."""

BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline("zero-shot"),
        Baseline("vision-ft", ("vision_tower",), vision_ft, continuous=True),
        Baseline("projector-ft", ("projector",), projector_ft),
        Baseline("ldifs", ("vision_tower",), ldifs, continuous=True),
        Baseline("llm-lora", ("llm",), llm_lora),
        # CRAFT without regularisation, as in Table 5 without commitment. The paper does not compare with it.
        Baseline("vision-ft-codebook", ("vision_tower",), settings=WITHOUT_REGULARISATION),
    )
}
"""Every baseline, by name."""
