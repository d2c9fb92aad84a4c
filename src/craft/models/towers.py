"""Vision towers by the type that their config names."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from craft.core.errors import CheckpointError
from craft.core.records import Layers, Record, Size, check_record
from craft.models.chameleon import ChameleonTower
from craft.models.ta_tok import TaTokTower
from craft.models.vision_tower import ClsAttention, HybridTower, LlavaTower, SiglipTower, VisionTower
from craft.models.vitamin import VitaminTower


class _SiglipSizes(Record):
    image_size: Size
    patch_size: Size = 16
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    layer_norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    hidden_act: str = ""
    cls_attention: ClsAttention = "read-only"


class _HybridSizes(_SiglipSizes):
    dim: Size
    stem_blocks: int = Field(ge=1, le=16)


class _TaTokSizes(_SiglipSizes):
    dim: Size
    scale: int = Field(ge=1, le=16)


class _VitaminSizes(Record):
    image_size: Size
    stem_width: Size
    stage_dims: list[Size] = Field(min_length=2, max_length=2)
    stage_depths: list[Layers] = Field(min_length=2, max_length=2)
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    dim: Size
    codebooks: Size
    projection_inner: Size


class _VisionModel(Record):
    model_type: Literal["clip_vision_model", "siglip_vision_model"]


class _LlavaSizes(Record):
    model: _VisionModel
    depth: Layers
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, max_length=3)


class _ChameleonModel(Record):
    resolution: Size = 512
    base_channels: Size = 128
    channel_multiplier: list[Size] = Field(default=[1, 1, 2, 2, 4], min_length=1, max_length=12)
    num_res_blocks: Layers = 2
    latent_channels: Size = 256
    embed_dim: Size = 256
    in_channels: Literal[3] = 3
    double_latent: Literal[False] = False


class _ChameleonSizes(Record):
    model: _ChameleonModel
    factor: float = Field(gt=0)
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, max_length=3)


KINDS: dict[str, tuple[type[VisionTower], type[Record]]] = {
    "siglip": (SiglipTower, _SiglipSizes),
    "hybrid": (HybridTower, _HybridSizes),
    "llava": (LlavaTower, _LlavaSizes),
    "ta-tok": (TaTokTower, _TaTokSizes),
    "vitamin": (VitaminTower, _VitaminSizes),
    "chameleon": (ChameleonTower, _ChameleonSizes),
}
"""The towers by the `type` of their config, and what a config of that type must hold."""


def check_tower_config(config: dict[str, Any], where: str | Path = "The vision tower's config") -> None:
    """Check the config of a vision tower.

    Args:
        where: the file that it is from, for the message.

    Raises:
        CheckpointError: the type is unknown, or a key is missing or of another type or range.
    """
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(
            f"{where}: the vision tower type {kind!r} is unknown; this version builds {', '.join(KINDS)}."
        )
    check_record(KINDS[kind][1], config, where)


def build_tower(config: dict[str, Any], where: str | Path = "The vision tower's config") -> VisionTower:
    """Build the tower that a config names.

    Args:
        config: `type` is a key of `KINDS`; the class documents the other keys.
        where: the file that it is from, for messages.

    Raises:
        CheckpointError: as `check_tower_config`, or the values do not fit each other.
    """
    check_tower_config(config, where)
    tower: Any = KINDS[config["type"]][0]
    try:
        return tower(config)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{where} describes no vision tower: {error}; copy it again.") from error
