"""Vision towers E_θ: pixels -> patch features, in two forms behind one small protocol (§3.1, §3.2).

`SiglipTower` is VILA-U's: SigLIP embeddings and layers, leaving at the penultimate layer. `HybridTower` puts
a convolutional stem under the same layers: a small tower needs it to learn anything in CPU time.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

from craft.core.errors import CheckpointError
from craft.models.conv_stem import ConvStem

ClsAttention = Literal["read-only", "symmetric"]

OURS = (0.5, 0.5, 0.5)
"""Mean and standard deviation by which `craft.models.images.scaled` normalises pixels."""


class _Tower(nn.Module):
    """What both towers share: layers, a learnable [CLS] token and how it attends."""

    def __init__(self, config: dict[str, Any], layers: int) -> None:
        super().__init__()
        siglip = SiglipVisionConfig(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_attention_heads=config["num_attention_heads"],
            num_hidden_layers=config["num_hidden_layers"],
            image_size=config["image_size"],
            patch_size=config.get("patch_size", 16),
            layer_norm_eps=config.get("layer_norm_eps", 1e-6),
            hidden_act=config.get("hidden_act", "gelu_pytorch_tanh"),
            attention_dropout=0.0,
        )
        siglip._attn_implementation = "sdpa"
        self.config = dict(config)
        self.siglip_config = siglip
        self.image_size: int = config["image_size"]
        self.layers = nn.ModuleList(TowerLayer(siglip) for _ in range(layers))
        self.cls_token = nn.Parameter(torch.zeros(siglip.hidden_size))

    @property
    def cls_attention(self) -> ClsAttention:
        """How patches and [CLS] attend to each other. It is in `config`, so it is saved too."""
        return self.config.get("cls_attention", "read-only")

    @cls_attention.setter
    def cls_attention(self, way: ClsAttention) -> None:
        if way != self.cls_attention:
            self.config["cls_attention"] = way

    def _run(self, patches: Tensor, with_cls: bool) -> tuple[Tensor, Tensor | None]:
        """Run all layers: patches `[B, N, h]` -> (patches `[B, N, h]`, cls `[B, 1, h]` if asked for).

        What only reads saves half of the operations where it is left out: they are many and small.
        """
        cls = self.cls_token.to(patches.dtype).expand(patches.shape[0], 1, -1)
        if self.cls_attention == "symmetric":
            both = torch.cat([cls, patches], dim=1)
            for layer in self.layers:
                both, _ = layer(both)
            return both[:, 1:], both[:, :1] if with_cls else None
        read = cls if with_cls else None
        for layer in self.layers:
            patches, read = layer(patches, read)
        return patches, read


class TowerLayer(SiglipEncoderLayer):
    """A SigLIP layer that may run for [CLS] beside the patches; its unit for sharding and recomputation."""

    def forward(self, patches: Tensor, cls: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Patches `[B, N, h]`, bit-equal to SigLIP's layer without [CLS], and [CLS] `[B, 1, h]` where given.

        [CLS] attends to itself and to the patches, whose keys and values it shares; they do not see it.
        """
        own = None if cls is None else self._heads(cls)
        query, key, value = self._heads(patches)
        read = None
        if cls is not None and own is not None:
            keys, values = torch.cat([own[1], key], dim=2), torch.cat([own[2], value], dim=2)
            read = self._after(cls, own[0], keys, values)
        return self._after(patches, query, key, value), read

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of tokens `[B, n, h]`, each `[B, heads, n, h / heads]`."""
        attention, x = self.self_attn, self.layer_norm1(x)
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        return tuple(map_(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for map_ in maps)

    def _after(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The layer from attention on: `[B, n, h]`."""
        attention = self.self_attn
        mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.layer_norm2(x))


class SiglipTower(_Tower):
    """SigLIP ViT whose features leave at the penultimate layer, as in VILA-U.

    The last layer, the post layer norm and the pooling head never run, so they are not built.

    Args:
        config: `hidden_size`, `intermediate_size`, `num_hidden_layers` (all of SigLIP's: one less is built),
            `num_attention_heads`, `image_size`, `patch_size`; optional `layer_norm_eps`, `hidden_act`,
            `cls_attention` ("read-only" keeps every patch code of the base tower; "symmetric" is the other
            reading of the paper).

    Source: §3.1, §10 (penultimate layer), §3.2 (learnable [CLS]).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**config, "type": "siglip"}, layers=config["num_hidden_layers"] - 1)
        self.embeddings = SiglipVisionEmbeddings(self.siglip_config)
        side = self.image_size // int(config.get("patch_size", 16))
        self.grid = (side, side)
        self.dim: int = self.siglip_config.hidden_size

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """Pixels float `[B, 3, S, S]` -> (features `[B, N, d]`, [CLS] feature `[B, d]` or None without
        `with_cls`), module dtype."""
        patches = self.embeddings(pixel_values.to(self.cls_token.dtype))
        patches, cls = self._run(patches, with_cls)
        return patches, None if cls is None else cls[:, 0]


class HybridTower(_Tower):
    """Convolutional stem, SigLIP layers, a linear map to the codebook's width d.

    Args:
        config: as `SiglipTower`, and `dim` (d), `stem_blocks` (how many EfficientNet-Lite0 blocks). All
            `num_hidden_layers` layers run: there is no unused last one.

    Source: ours.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**config, "type": "hybrid"}, layers=config["num_hidden_layers"])
        self.stem = ConvStem(config["stem_blocks"])
        side = -(-self.image_size // self.stem.stride)
        self.grid = (side, side)
        self.dim: int = config["dim"]
        hidden = self.siglip_config.hidden_size
        self.stem_norm = nn.LayerNorm(self.stem.channels, eps=self.siglip_config.layer_norm_eps)
        self.stem_projection = nn.Linear(self.stem.channels, hidden)
        self.position_embedding = nn.Parameter(torch.zeros(side * side, hidden))
        self.output_norm = nn.LayerNorm(hidden, eps=self.siglip_config.layer_norm_eps)
        self.output_projection = nn.Linear(hidden, self.dim)

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """Pixels float `[B, 3, S, S]` -> (features `[B, N, d]`, [CLS] feature `[B, d]` or None without
        `with_cls`), module dtype."""
        return self.after_stem(self.run_stem(pixel_values), with_cls)

    def run_stem(self, pixel_values: Tensor) -> Tensor:
        """Pixels float `[B, 3, S, S]` -> the stem's maps `[B, C, h, w]`, module dtype."""
        return self.stem(pixel_values.to(self.cls_token.dtype))

    def after_stem(self, maps: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """Stem output `[B, C, h, w]` -> what `forward` returns."""
        cells = self.stem_norm(maps.flatten(2).transpose(1, 2))
        patches = self.stem_projection(cells) + self.position_embedding
        patches, cls = self._run(patches, with_cls)
        return self._out(patches), None if cls is None else self._out(cls)[:, 0]

    def _out(self, x: Tensor) -> Tensor:
        return self.output_projection(self.output_norm(x))


class LlavaTower(nn.Module):
    """CLIP's or SigLIP's vision model up to the layer whose output LLaVA reads.

    Args:
        config: `model` (the vision config), `depth` (how many layers run), `mean` and `std` (three each) with
            which pixels were normalised in training.
        vision: the vision model whose parts are taken; one with random weights when None.

    Source: LLaVA (arXiv 2310.03744); `LlavaModel.get_image_features`.
    """

    def __init__(self, config: dict[str, Any], vision: Any = None) -> None:
        super().__init__()
        if vision is None:
            vision = _vision_model(config["model"])
        self.config = {**config, "type": "llava"}
        self.siglip_config = vision.config  # named as in the other towers
        self.embeddings = vision.embeddings
        self.pre_norm = getattr(vision, "pre_layrnorm", nn.Identity())
        self.layers = vision.encoder.layers[: config["depth"]]
        self.image_size: int = vision.config.image_size
        side = self.image_size // vision.config.patch_size
        self.grid = (side, side)
        self.dim: int = vision.config.hidden_size
        self.class_token = hasattr(self.embeddings, "class_embedding")

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, None]:
        """Pixels float `[B, 3, S, S]` as ours are scaled -> (features `[B, N, d]`, None), module dtype."""
        del with_cls  # there is none
        mean, std = (pixel_values.new_tensor(self.config[key]).view(3, 1, 1) for key in ("mean", "std"))
        if tuple(self.config["mean"]) != OURS or tuple(self.config["std"]) != OURS:
            pixel_values = ((pixel_values + 1) / 2 - mean) / std
        hidden = self.pre_norm(self.embeddings(pixel_values.to(next(self.parameters()).dtype)))
        for layer in self.layers:
            hidden = layer(hidden, None)
        return (hidden[:, 1:] if self.class_token else hidden), None


def _vision_model(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    own = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **own), dtype=torch.float32)


def build_tower(config: dict[str, Any]) -> Any:
    """Build the tower that a config names: a `SiglipTower`, `HybridTower` or `LlavaTower`.

    Args:
        config: `type` is "siglip", "hybrid" or "llava"; the rest as the class says.

    Raises:
        CheckpointError: the type is unknown or a key is missing.
    """
    towers = {"siglip": SiglipTower, "hybrid": HybridTower, "llava": LlavaTower}
    kind = config.get("type")
    if kind not in towers:
        raise CheckpointError(
            f"Vision tower type {kind!r} is not known; this version builds {', '.join(towers)}."
        )
    try:
        return towers[kind](config)
    except KeyError as missing:
        raise CheckpointError(f"The {kind} vision tower's config lacks {missing}.") from missing
