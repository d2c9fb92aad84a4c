"""Vision towers E_θ: pixels -> patch features, in three forms with one base class (§3.1, §3.2).

`SiglipTower` is VILA-U's: SigLIP embeddings and layers, up to the penultimate layer. `HybridTower` puts a
convolutional stem under the same layers; without it, a small tower learns too little in CPU time.
`LlavaTower` is the vision model of a LLaVA checkpoint.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

from craft.models.conv_stem import ConvStem

ClsAttention = Literal["read-only", "symmetric"]

OURS = (0.5, 0.5, 0.5)
"""Mean and standard deviation by which `craft.models.images.scaled` normalises pixels."""


class VisionTower(nn.Module, ABC):
    """What every vision tower has, whatever its architecture.

    Attributes:
        config: what `build_tower` builds it from, JSON-able.
        siglip_config: the transformers config of its layers.
        image_size: side S of the square input, in pixels.
        grid: (rows, columns) of the patch grid; N is their product.
        dim: d, the width of a feature.
        layers: its transformer layers, or the blocks of a convolutional tower.
    """

    config: dict[str, Any]
    siglip_config: PreTrainedConfig
    image_size: int
    grid: tuple[int, int]
    dim: int
    layers: nn.ModuleList

    @abstractmethod
    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """Pixels float `[B, 3, S, S]` -> features and [CLS] feature.

        Args:
            pixel_values: as `craft.models.images.pixels` makes them.
            with_cls: run the [CLS] token too, if the tower has one.

        Returns:
            Features `[B, N, d]` and the [CLS] feature `[B, d]` or None, both in the dtype of the weights.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that change the features and no weight; those at their default may be left out."""
        return {}

    def stored_per_image(self, recompute: bool | str) -> int | None:
        """Number of values that the backward pass stores per image.

        Args:
            recompute: whether its layers run again in the backward pass (`craft.models.layers.Recompute`).

        Returns:
            None for transformer layers, whose number `craft.models.memory` estimates.
        """
        return None

    if TYPE_CHECKING:

        def __call__(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]: ...


class ClsTower(VisionTower):
    """SigLIP layers with a learnable [CLS] token, and how the two attend to each other."""

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
        self.image_size = config["image_size"]
        self.layers = nn.ModuleList(TowerLayer(siglip) for _ in range(layers))
        self.cls_token = nn.Parameter(torch.zeros(siglip.hidden_size))

    @property
    def cls_attention(self) -> ClsAttention:
        """How patches and [CLS] attend to each other. It is in `config`, so it is saved too."""
        return self.config.get("cls_attention", "read-only")

    @cls_attention.setter
    def cls_attention(self, mode: ClsAttention) -> None:
        """Set it in `config`."""
        if mode != self.cls_attention:
            self.config["cls_attention"] = mode

    @property
    def settings(self) -> dict[str, Any]:
        """As `VisionTower.settings`: how [CLS] and patches attend to each other."""
        return {} if self.cls_attention == "read-only" else {"cls_attention": self.cls_attention}

    def _run(self, patches: Tensor, with_cls: bool) -> tuple[Tensor, Tensor | None]:
        """Run all layers: patches `[B, N, h]` -> (patches `[B, N, h]`, cls `[B, 1, h]` or None).

        A read-only [CLS] doubles the number of operations, which are many and small; None saves them.
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


@runtime_checkable
class Forward(Protocol):
    """What `VisionTower.forward` does, for pixels or other input."""

    def __call__(self, pixel_values: Tensor, /, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """Features `[B, N, d]` and [CLS] `[B, d]` or None."""
        ...


class TowerLayer(SiglipEncoderLayer):
    """A SigLIP layer for patches and, optionally, [CLS]; the unit of sharding and recomputation."""

    def forward(self, patches: Tensor, cls: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Patches `[B, N, h]`, bit-equal to SigLIP's layer without [CLS], and [CLS] `[B, 1, h]` or None.

        [CLS] attends to itself and to the patches, whose keys and values it shares. Patches do not see [CLS].
        """
        cls_heads = None if cls is None else self._heads(cls)
        query, key, value = self._heads(patches)
        read = None
        if cls is not None and cls_heads is not None:
            cls_query, cls_key, cls_value = cls_heads
            keys, values = torch.cat([cls_key, key], dim=2), torch.cat([cls_value, value], dim=2)
            read = self._after(cls, cls_query, keys, values)
        return self._after(patches, query, key, value), read

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens `[B, n, h]`, each `[B, heads, n, h / heads]`."""
        attention, x = self.self_attn, self.layer_norm1(x)

        def split(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

        return split(attention.q_proj(x)), split(attention.k_proj(x)), split(attention.v_proj(x))

    def _after(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The rest of the layer, starting with attention: `[B, n, h]`."""
        attention = self.self_attn
        mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.layer_norm2(x))


class SiglipTower(ClsTower):
    """SigLIP ViT whose features are those of the penultimate layer, as in VILA-U.

    The last layer, the post layer norm and the pooling head never run, so they are not built.

    Args:
        config: `hidden_size`, `intermediate_size`, `num_hidden_layers` (of SigLIP; one fewer is built),
            `num_attention_heads`, `image_size`, `patch_size`; optional `layer_norm_eps`, `hidden_act`,
            `cls_attention` ("read-only" keeps every patch code of the base tower; with "symmetric" patches
            read [CLS], the other interpretation of the paper).

    Source: §3.1, §10 (penultimate layer), §3.2 (learnable [CLS]).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**config, "type": "siglip"}, layers=config["num_hidden_layers"] - 1)
        self.embeddings = SiglipVisionEmbeddings(cast(SiglipVisionConfig, self.siglip_config))
        side = self.image_size // int(config.get("patch_size", 16))
        self.grid = (side, side)
        self.dim = self.siglip_config.hidden_size

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """As `VisionTower.forward`."""
        patches = self.embeddings(pixel_values.to(self.cls_token.dtype))
        patches, cls = self._run(patches, with_cls)
        return patches, None if cls is None else cls[:, 0]


class HybridTower(ClsTower):
    """Convolutional stem, SigLIP layers, a linear map to the codebook's width d.

    Args:
        config: as for `SiglipTower`, with `dim` (d) and `stem_blocks` (number of EfficientNet-Lite0
            blocks). All `num_hidden_layers` layers are built and run.

    Source: ours.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**config, "type": "hybrid"}, layers=config["num_hidden_layers"])
        self.stem = ConvStem(config["stem_blocks"])
        side = -(-self.image_size // self.stem.stride)
        self.grid = (side, side)
        self.dim = config["dim"]
        hidden = self.siglip_config.hidden_size
        self.stem_norm = nn.LayerNorm(self.stem.channels, eps=self.siglip_config.layer_norm_eps)
        self.stem_projection = nn.Linear(self.stem.channels, hidden)
        self.position_embedding = nn.Parameter(torch.zeros(side * side, hidden))
        self.output_norm = nn.LayerNorm(hidden, eps=self.siglip_config.layer_norm_eps)
        self.output_projection = nn.Linear(hidden, self.dim)

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """As `VisionTower.forward`."""
        return self.after_stem(self.run_stem(pixel_values), with_cls)

    def run_stem(self, pixel_values: Tensor) -> Tensor:
        """Pixels float `[B, 3, S, S]` -> the stem's maps `[B, C, h, w]`, module dtype."""
        return self.stem(pixel_values.to(self.cls_token.dtype))

    def after_stem(self, maps: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """The stem's maps `[B, C, h, w]` -> what `forward` returns."""
        cells = self.stem_norm(maps.flatten(2).transpose(1, 2))
        patches = self.stem_projection(cells) + self.position_embedding
        patches, cls = self._run(patches, with_cls)
        return self._out(patches), None if cls is None else self._out(cls)[:, 0]

    def _out(self, x: Tensor) -> Tensor:
        return self.output_projection(self.output_norm(x))


class LlavaTower(VisionTower):
    """CLIP's or SigLIP's vision model up to the layer whose output LLaVA reads. It has no [CLS] of ours.

    Args:
        config: `model` (the vision config), `depth` (number of layers that run), `mean` and `std` (three
            values each) by which pixels were normalised in training.
        vision: the vision model whose parts are used; None builds one with random weights.

    Source: LLaVA (arXiv 2310.03744); `LlavaModel.get_image_features`.
    """

    def __init__(self, config: dict[str, Any], vision: PreTrainedModel | None = None) -> None:
        super().__init__()
        if vision is None:
            vision = _vision_model(config["model"])
        parts: Any = vision  # CLIP and SigLIP name them alike; transformers declares no common type
        self.config = {**config, "type": "llava"}
        self.siglip_config = parts.config
        self.embeddings = parts.embeddings
        self.pre_norm = getattr(
            parts, "pre_layrnorm", nn.Identity()
        )  # the attribute is misspelt in transformers
        self.layers = parts.encoder.layers[: config["depth"]]
        self.image_size = parts.config.image_size
        side = self.image_size // parts.config.patch_size
        self.grid = (side, side)
        self.dim = parts.config.hidden_size
        self.class_token = hasattr(self.embeddings, "class_embedding")

    @property
    def settings(self) -> dict[str, Any]:
        """As `VisionTower.settings`: how pixels are normalised."""
        return {name: self.config[name] for name in ("mean", "std")}

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, None]:
        """As `VisionTower.forward`; the second value is always None, whatever `with_cls` is."""
        mean, std = (pixel_values.new_tensor(self.config[key]).view(3, 1, 1) for key in ("mean", "std"))
        if tuple(self.config["mean"]) != OURS or tuple(self.config["std"]) != OURS:
            pixel_values = ((pixel_values + 1) / 2 - mean) / std
        hidden = self.pre_norm(self.embeddings(pixel_values.to(next(self.parameters()).dtype)))
        for layer in self.layers:
            hidden = layer(hidden, None)
        return (hidden[:, 1:] if self.class_token else hidden), None


def forward_of(tower: VisionTower, from_stem: bool = False) -> Forward:
    """The forward pass of a tower, from pixels or from the maps of its convolutional stem.

    Args:
        tower: a `HybridTower` if `from_stem` is set.
        from_stem: the input is what `HybridTower.run_stem` returns.
    """
    if not from_stem:
        return tower
    assert isinstance(tower, HybridTower)
    return tower.after_stem


def _vision_model(config: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModel

    settings = {key: value for key, value in config.items() if key != "model_type"}
    built = AutoConfig.for_model(config["model_type"], **settings)
    return AutoModel.from_config(built, dtype=torch.float32, trust_remote_code=False)
