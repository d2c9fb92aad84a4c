"""Projector FT: only the projector between vision tower and LLM learns."""

from collections.abc import Sequence

from craft.baselines.method import Method, frozen_tower_lesson
from craft.data import Sample
from craft.models.freezing import freeze_all_but
from craft.models.lvlm import LVLM
from craft.training.config import BaselineConfig
from craft.training.lesson import Lesson


def projector_ft(lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig) -> Lesson:
    """The projector learns by the autoregressive loss; works on discrete LVLMs too.

    Source: §12.1.
    """
    freeze_all_but(lvlm, ["projector"])
    trained = {name: parameter for name, parameter in lvlm.named_parameters() if parameter.requires_grad}
    return frozen_tower_lesson(lvlm, samples, config, trained, "projector")


PROJECTOR_FT = Method("projector-ft", ("projector",), projector_ft)
