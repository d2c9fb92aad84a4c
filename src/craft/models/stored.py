"""How many values a vision tower stores for the backward pass, counted in one pass on the meta device."""

import copy

import torch
from torch import Tensor, nn

from craft.models.vision_tower import VisionTower


def stored_values(tower: VisionTower, recompute: bool) -> int:
    """The number of values that the backward pass stores per image, without weights.

    Args:
        tower: with `requires_grad` set as it will train.
        recompute: its layers store only their inputs, and one at a time runs again.
    """
    tower = copy.deepcopy(tower).to("meta")
    inputs = [0]
    kept: dict[int, dict[int, int]] = {-1: {}}  # layer -> tensor -> number of values
    current = [-1]

    def enter(layer: nn.Module, values: tuple[Tensor, ...]) -> None:
        current[0] = id(layer)
        kept[id(layer)] = {}
        inputs[0] += values[0].numel()

    def leave(*_: object) -> None:
        current[0] = -1

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # of several views, such as queries and keys
        kept[current[0]][storage._cdata] = storage.nbytes() // tensor.element_size()
        return tensor

    for layer in tower.layers:
        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)
    pixels = torch.zeros(1, 3, tower.image_size, tower.image_size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tower(pixels)
    weights = {parameter.untyped_storage()._cdata for parameter in tower.parameters()}
    sums = {key: sum(n for at, n in part.items() if at not in weights) for key, part in kept.items()}
    outside = sums.pop(-1)  # stored by no layer
    return outside + (inputs[0] + max(sums.values()) if recompute else sum(sums.values()))
