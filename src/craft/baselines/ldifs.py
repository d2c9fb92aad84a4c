"""LDIFS: Vision FT that keeps the tower's features, at several layers, near those of the initial tower.

Source: Mukhoti et al., *Fine-tuning can cripple your foundation model; preserving features may be the
solution*, arXiv 2308.13320; §12.1 of the paper.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from craft.baselines.method import Method
from craft.baselines.vision_ft import vision_ft
from craft.data import Sample
from craft.lessons.objective import Batch, CraftObjective
from craft.models.lvlm import LVLM
from craft.training.config import BaselineConfig, LdifsConfig
from craft.training.lesson import Lesson


def ldifs(lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig) -> Lesson:
    """Vision FT's lesson with `ldifs.weight` times the distance of features to the initial tower's."""
    initial = copy.deepcopy(lvlm.visual.vision_tower).float()  # before LoRA, where there will be
    lesson = vision_ft(lvlm, samples, config)
    inner: Any = lesson.objective
    return replace(lesson, objective=LdifsObjective(inner, initial, config.ldifs))


LDIFS = Method("ldifs", ("vision_tower",), ldifs, continuous=True)


class LdifsObjective(nn.Module):
    """The autoregressive loss and the distance, as a module so that data parallelism can wrap it.

    Args:
        inner: the autoregressive loss of `inner.lvlm`, whose tower trains.
        initial: that tower before training; it stays.
        config: weight and number of layers.
    """

    def __init__(self, inner: CraftObjective, initial: nn.Module, config: LdifsConfig) -> None:
        super().__init__()
        self.inner = inner
        self.lvlm = inner.lvlm
        self.initial = initial.requires_grad_(False).eval()
        self.config = config

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with gradient), and its parts by name, as `CraftObjective` gives them."""
        initial: Any = self.initial
        with _layer_outputs(self.lvlm.visual.vision_tower, self.config.layers) as now:
            loss, parts = self.inner(batch)
        with torch.no_grad(), _layer_outputs(initial, self.config.layers) as then:
            (initial.after_stem if self.inner.from_stem else initial)(batch.images, with_cls=False)
        distance = batch.share.samples * feature_distance(now, then)
        loss = loss + self.config.weight * distance
        return loss, {**parts, "loss": loss.detach(), "ldifs": distance.detach()}


def feature_distance(now: Sequence[Tensor], then: Sequence[Tensor]) -> Tensor:
    """The squared ℓ2 distance of features at several layers: a scalar.

    Args:
        now: per layer `[B, N, h]`; gradient goes here.
        then: those of the initial tower.

    Each token's feature is normalised at each layer; the layers are concatenated. As in the authors' code,
    the mean is taken over all elements. (There the norm is over tokens, which is the channel axis of
    convolutional features; here it is over the width.)
    """

    def joined(layers: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.normalize(layer.float(), dim=-1) for layer in layers], dim=-1)

    return (joined(now) - joined(then)).square().mean()


@contextmanager
def _layer_outputs(tower: Any, count: int) -> Iterator[list[Tensor]]:
    """Within the block a list that gets the patches `[B, N, h]` behind `count` layers, evenly spaced."""
    layers = list(tower.layers)
    count = min(count, len(layers))
    chosen = [layers[(number + 1) * len(layers) // count - 1] for number in range(count)]
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in chosen]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
