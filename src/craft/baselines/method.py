"""What sets one baseline apart from another, and the lesson that most of them share."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from craft.core.errors import ConfigError
from craft.data import Sample
from craft.lessons.adapt import (
    ImageBatches,
    check_compile,
    chosen_search,
    image_cache,
    stem_suffices,
)
from craft.lessons.blending import blending, kept_share
from craft.lessons.objective import CraftObjective
from craft.models.lvlm import LVLM
from craft.training.config import (
    BaselineConfig,
    CommitmentConfig,
    ContrastiveConfig,
    LossesConfig,
    RetentionConfig,
)
from craft.training.lesson import Lesson


@dataclass(frozen=True)
class Method:
    """A baseline.

    Attributes:
        name: its key in `METHODS`.
        parts: what it tunes: of `vision_tower`, `projector`, `llm`.
        lesson: LVLM, training set, settings -> the lesson that `fit` trains.
        continuous: whether it is defined on continuous LVLMs only.
    """

    name: str
    parts: tuple[str, ...]
    lesson: Callable[[LVLM, Sequence[Sample], BaselineConfig], Lesson]
    continuous: bool = False

    def check(self, lvlm: LVLM) -> None:
        """Refuse a model of the wrong kind.

        Raises:
            ConfigError: the method needs a continuous LVLM.
        """
        if self.continuous and not lvlm.visual.continuous:
            raise ConfigError(
                f"{self.name} tunes the vision tower of a continuous LVLM, and {lvlm.name} is discrete: "
                "its LLM reads codewords. Use a continuous one, such as craft-tiny/continuous-qwen2 or a "
                "LLaVA checkpoint; for the same on a discrete LVLM there is vision-ft-codebook."
            )


def answers_only(config: BaselineConfig) -> BaselineConfig:
    """The same settings with the autoregressive loss alone: no commitment, contrastive or retention loss."""
    losses = LossesConfig(
        sal=config.losses.sal,
        commitment=CommitmentConfig(weight=0.0),
        contrastive=ContrastiveConfig(weight=0.0),
        retention=RetentionConfig(weight=0.0),
    )
    return config.model_copy(update={"losses": losses})


def frozen_tower_lesson(
    lvlm: LVLM,
    samples: Sequence[Sample],
    config: BaselineConfig,
    trained: dict[str, nn.Parameter],
    part: str,
) -> Lesson:
    """Parameters behind the vision tower learn to answer; pictures are augmented as for all other methods.

    Args:
        lvlm: with `requires_grad` set.
        samples: the training set.
        config: all settings.
        trained: what trains, by name; made float32 here.
        part: the part of the LVLM that it belongs to.

    Raises:
        ConfigError: settings contradict each other, or the model.
    """
    check_compile(config)
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    config = answers_only(config)
    share = kept_share(config.blend, samples)
    images = image_cache(lvlm, samples, config, stem_suffices(lvlm, config))
    batches, search = ImageBatches(lvlm, samples, config, 0.0, images), chosen_search(lvlm, config)
    known = config.prefix_cache and part != "llm"  # an LLM that learns reads the text before an image anew
    ways = (search.name, known, config.compile)
    return Lesson(
        objective=CraftObjective(lvlm, config.losses, 0.0, images.through_stem, *ways),
        trained=trained,
        batches=batches,
        parts=(part,),
        blend=blending(trained, share),
        finish=images.close,
        verb="tuning",
        images=images,
        ahead=lambda indices: images.expect([batches.groups[index][0] for index in indices]),
        count=len(batches.groups),
        notes={"search": asdict(search), "blend": share},
    )
