"""UniTok's vision tower: ViTamin (convolutional stem, transformer) and an attention projection.

Written in plain PyTorch instead of through timm: timm's gated MLP has another activation than UniTok's, so
its output differs by 1e-3 unless it is patched, and it brings torchvision along.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig

from craft.models.stored import stored_values
from craft.models.vision_tower import VisionTower

EXPANSION = 4
"""Inner width of a convolutional block, relative to its output."""


class VitaminTower(VisionTower):
    """ViTamin, then the projection to the codebook's width; every codebook's slice has unit length.

    Args:
        config: `image_size`, `stem_width`, `stage_dims` and `stage_depths` (two each), `hidden_size`,
            `num_hidden_layers`, `num_attention_heads`, `intermediate_size`, `dim` (d), `codebooks`, and the
            projection's `projection_inner` (width of its gated MLP).

    Source: ViTamin (arXiv 2404.02132); UniTok (arXiv 2502.20321). No [CLS], no stochastic depth.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = {**config, "type": "vitamin"}
        width, heads, inner = (
            config[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")
        )
        self.siglip_config = SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_hidden_layers=config["num_hidden_layers"],
            image_size=config["image_size"],
        )
        self.image_size, self.dim = config["image_size"], config["dim"]
        self.stem = Stem(config["stem_width"])
        before = [config["stem_width"], config["stage_dims"][0]]
        self.stages = nn.ModuleList(
            nn.Sequential(*(MBConv(into if n else start, into, 1 if n else 2) for n in range(depth)))
            for start, into, depth in zip(before, config["stage_dims"], config["stage_depths"], strict=True)
        )
        self.pool = Pool(config["stage_dims"][-1], width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.layers = nn.ModuleList(Block(width, heads, inner) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.quant_proj = AttentionProjection(width, self.dim, config["projection_inner"])
        side = self.image_size // 16  # strides of stem, two stages and pool
        self.grid = (side, side)

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, None]:
        """As `VisionTower.forward`; the second value is always None, whatever `with_cls` is."""
        x = self.stem(pixel_values.to(self.pos_embed.dtype))
        for stage in self.stages:
            x = stage(x)
        x = self.pool(x).flatten(2).transpose(1, 2) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        features = self.quant_proj(self.norm(x))
        slices = features.unflatten(-1, (self.config["codebooks"], -1))
        return F.normalize(slices, dim=-1).flatten(-2), None

    def stored_per_image(self, recompute: bool | str) -> int:
        """As `VisionTower.stored_per_image`; with "selective", what is stored without recomputation."""
        return stored_values(self, recompute is True)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of maps `[B, C, H, W]`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Two 3 × 3 convolutions, the first with stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 3, S, S]` -> `[B, width, S/2, S/2]`."""
        return self.conv2(F.gelu(self.norm1(self.conv1(x))))


class MBConv(nn.Module):
    """An inverted bottleneck with a depthwise convolution and a shortcut."""

    def __init__(self, start: int, into: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * into
        self.stride = stride
        self.shortcut = nn.ModuleDict({"expand": nn.Conv2d(start, into, 1)} if start != into else {})
        self.pre_norm = ChannelNorm(start)
        self.conv1_1x1 = nn.Conv2d(start, inner, 1)
        self.conv2_kxk = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner)
        self.conv3_1x1 = nn.Conv2d(inner, into, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, start, H, W]` -> `[B, into, H/stride, W/stride]`."""
        short = x
        if self.stride > 1:
            short = F.avg_pool2d(x, 3, self.stride, padding=1, count_include_pad=False)
        if "expand" in self.shortcut:
            short = self.shortcut["expand"](short)
        inner = F.gelu(self.conv1_1x1(self.pre_norm(x)))
        return self.conv3_1x1(F.gelu(self.conv2_kxk(inner))) + short


class Pool(nn.Module):
    """From the stem's maps to the transformer's width, with stride 2."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.proj = nn.Conv2d(channels, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, width, H/2, W/2]`."""
        return self.proj(self.norm(x))


class GatedMlp(nn.Module):
    """`w2(gelu(w0 x) · w1 x)` after a layer norm; GELU in its tanh form."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.w0 = nn.Linear(width, inner)
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` -> `[..., width]`."""
        x = self.norm(x)
        return self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, width]` -> `[B, N, width]`."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block: the unit of sharding and recomputation."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = GatedMlp(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, width]` -> `[B, N, width]`."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ProjectedAttention(nn.Module):
    """Attention that changes the width; heads are as wide as the narrower side, whose mean they are or which
    they add up to."""

    def __init__(self, start: int, into: int, causal: bool) -> None:
        super().__init__()
        whole, self.head = max(start, into), min(start, into)
        self.causal, self.mean = causal, into < start
        self.qkv = nn.Linear(start, 3 * whole, bias=False)
        self.zero_k_bias: Tensor
        self.q_bias = nn.Parameter(torch.zeros(whole))
        self.v_bias = nn.Parameter(torch.zeros(whole))
        self.register_buffer("zero_k_bias", torch.zeros(whole))
        self.proj = nn.Linear(into, into)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, start]` -> `[B, N, into]`."""
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, -1, self.head))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        joined = mixed.mean(dim=1) if self.mean else mixed.transpose(1, 2).flatten(2)
        return self.proj(joined)


class AttentionProjection(nn.Module):
    """UniTok's map between the tower's width and the codebook's, which mixes tokens.

    Args:
        start, into: widths; the larger is a multiple of the smaller.
        inner: width of the gated MLP.
        causal: tokens see earlier ones only, as in the MLLM. Inside the tokenizer they see all.
    """

    def __init__(self, start: int, into: int, inner: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(start, eps=1e-5)
        self.attn = ProjectedAttention(start, into, causal)
        self.norm3 = nn.LayerNorm(start, eps=1e-5)
        self.proj = nn.Linear(start, into)
        self.norm2 = nn.LayerNorm(into, eps=1e-5)
        self.mlp = GatedMlp(into, inner)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, start]` -> `[B, N, into]`."""
        y = self.proj(self.norm3(x)) + self.attn(self.norm1(x))
        return y + self.mlp(self.norm2(y))
