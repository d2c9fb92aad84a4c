"""Vision FT: the vision tower of a continuous LVLM learns to answer, with nothing that holds it."""

from collections.abc import Sequence

from craft.baselines.method import Method, answers_only
from craft.data import Sample
from craft.lessons.adapt import adaptation
from craft.models.lvlm import LVLM
from craft.training.config import BaselineConfig
from craft.training.lesson import Lesson


def vision_ft(lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig) -> Lesson:
    """CRAFT's lesson on features in place of codeword sums, with the autoregressive loss alone.

    Source: §12.1, "the naive … method of fine-tuning the continuous vision encoder".
    """
    return adaptation(lvlm, samples, answers_only(config))


VISION_FT = Method("vision-ft", ("vision_tower",), vision_ft, continuous=True)
