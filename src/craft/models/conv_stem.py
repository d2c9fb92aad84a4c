"""The convolutional stem of the hybrid tower: EfficientNet-Lite0's first blocks, batch norms folded in.

With the batch norms folded into the convolutions, nothing behaves differently under `.train()`, and there
are fewer tensors to ship.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (expansion, kernel, stride, channels, repeats) of EfficientNet-Lite0
_LITE0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM_CHANNELS = 32
_CPU_BATCH = (
    16  # with more images every map needs fresh memory, and allocating it takes longer than filling it
)


def _convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve with TensorFlow's "same" padding: for stride 2 the odd pixel is right and bottom.

    The convolution itself does even padding: the same sums, without a padded copy of the map.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    pads = []
    for size in (x.shape[-1], x.shape[-2]):
        pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [pad // 2, pad - pad // 2]
    even = len(set(pads)) == 1
    padded = x if even else F.pad(x, pads)
    return F.conv2d(padded, conv.weight, conv.bias, stride, pads[0] if even else 0, groups=conv.groups)


class Block(nn.Module):
    """Inverted residual: expand 1×1, depthwise, project 1×1; ReLU6 after the first two."""

    def __init__(self, inputs: int, expansion: int, kernel: int, stride: int, outputs: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = nn.Conv2d(inputs, width, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(width, width, kernel, stride, groups=width)
        self.project = nn.Conv2d(width, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(_convolve(y, self.depthwise), inplace=True))
        return x + y if self.skip else y


class ConvStem(nn.Module):
    """The first blocks of EfficientNet-Lite0, as plain convolutions.

    Args:
        blocks: number of blocks, at most 16; 11 give 112 channels at stride 16.

    Attributes:
        channels: output channels C.
        stride: input pixels per output cell.

    Source: ours; architecture from the EfficientNet-Lite release (Apache-2.0).
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, _STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.ModuleList()
        self.channels, self.stride = _STEM_CHANNELS, 2
        plan = [(e, k, s if i == 0 else 1, c) for e, k, s, c, n in _LITE0 for i in range(n)]
        for expansion, kernel, stride, channels in plan[:blocks]:
            self.blocks.append(Block(self.channels, expansion, kernel, stride, channels))
            self.channels, self.stride = channels, self.stride * stride

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels `[B, 3, S, S]` -> maps `[B, C, S/stride, S/stride]`; in channels-last layout on a CPU."""
        if pixel_values.device.type != "cpu":
            return self._maps(pixel_values)
        # Otherwise oneDNN converts every map to this layout and back at each convolution.
        channels_last = pixel_values.contiguous(memory_format=torch.channels_last)
        return torch.cat([self._maps(batch) for batch in channels_last.split(_CPU_BATCH)])

    def _maps(self, pixel_values: Tensor) -> Tensor:
        x = F.relu6(_convolve(pixel_values, self.first), inplace=True)
        for block in self.blocks:
            x = block(x)
        return x
