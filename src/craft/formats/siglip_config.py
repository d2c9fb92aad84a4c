"""The SigLIP architecture of a VILA-U tower, which the checkpoint only names (`pretrained_model`)."""

import math
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError
from craft.core.files import read_json
from craft.formats.weight_folder import WeightFolder

# transformers' defaults of SiglipVisionConfig and SiglipTextConfig, for keys that a config omits
_LAYERS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
VISION = {**_LAYERS, "image_size": 224, "patch_size": 16}
TEXT = {**_LAYERS, "vocab_size": 32000, "max_position_embeddings": 64}
# of the published SigLIP models, only the heads of so400m are not 64 wide
HEADS = {1152: 16}
# and only at 384 px its patches do not fill the image: 27 patches of 14 px per side leave 6 px
SIDES = {(27, 14): 384}


def siglip_vision_config(
    weights: WeightFolder, prefix: str, root: Path, pretrained_model: str | None
) -> dict[str, Any]:
    """Config for `SiglipTower`.

    Args:
        weights: the tower's weights.
        prefix: prefix of the vision model's tensor names.
        root: the checkpoint's root; `pretrained_model` may be a folder in it with a SigLIP `config.json`.
        pretrained_model: the entry of the checkpoint's config.

    Returns:
        The config in that folder, if there is one; else sizes from tensor shapes, and what shapes do not show
        (heads, activation, epsilon) as in the published SigLIP models. Sizes are checked against tensor
        shapes in both cases.

    Raises:
        CheckpointError: tensors are missing, or contradict that config.
    """
    hidden, _, patch, _ = _shape(weights, prefix + "embeddings.patch_embedding.weight")
    side = math.isqrt(_shape(weights, prefix + "embeddings.position_embedding.weight")[0])
    stored = _config_in_checkpoint(root, pretrained_model, "vision_config")
    image = SIDES.get((side, patch), side * patch)
    stated = stored[1].get("image_size", image) if stored else image
    if stated // patch == side:
        image = stated  # the patch embedding ignores the remaining pixels
    sizes = {"hidden_size": hidden, "patch_size": patch, "image_size": image}
    sizes |= _layer_sizes(weights, prefix)
    return {**_complete(weights, sizes, VISION, stored), "type": "siglip"}


def siglip_text_config(
    weights: WeightFolder, prefix: str, root: Path, pretrained_model: str | None
) -> dict[str, Any]:
    """Config for `TextEncoder`, determined like that of the vision model.

    Raises:
        CheckpointError: as `siglip_vision_config`.
    """
    vocabulary, hidden = _shape(weights, prefix + "embeddings.token_embedding.weight")
    length = _shape(weights, prefix + "embeddings.position_embedding.weight")[0]
    sizes = {"hidden_size": hidden, "vocab_size": vocabulary, "max_position_embeddings": length}
    sizes |= _layer_sizes(weights, prefix)
    return _complete(weights, sizes, TEXT, _config_in_checkpoint(root, pretrained_model, "text_config"))


def _complete(
    weights: WeightFolder,
    sizes: dict[str, int],
    defaults: dict[str, Any],
    stored: tuple[Path, dict[str, Any]] | None,
) -> dict[str, Any]:
    """Sizes from shapes; the rest from the config in the checkpoint, or from the published models."""
    if stored is None:
        hidden = sizes["hidden_size"]
        heads = HEADS.get(hidden, hidden // 64)
        if heads == 0 or hidden % heads:
            raise CheckpointError(
                f"{weights.folder}: no published SigLIP model has width {hidden}, so the number of attention "
                "heads is unknown; put the SigLIP config.json in a folder and name it in "
                "rqvaesiglip.pretrained_model."
            )
        return {**defaults, **sizes, "num_attention_heads": heads}
    file, config = stored
    merged = {key: config.get(key, default) for key, default in defaults.items()}
    for key, size in sizes.items():
        if merged[key] != size:
            raise CheckpointError(
                f"{file} says {key} {merged[key]}, and the weights in {weights.folder} say {size}."
            )
    return merged


def _config_in_checkpoint(root: Path, name: str | None, part: str) -> tuple[Path, dict[str, Any]] | None:
    """The SigLIP config in a folder of the checkpoint, if `pretrained_model` names one."""
    file = root / name / "config.json" if name else None
    if file is None or not file.is_file():
        return None
    return file, read_json(file).get(part, {})


def _shape(weights: WeightFolder, name: str) -> tuple[int, ...]:
    if name not in weights.shapes:
        raise CheckpointError(f"{weights.folder} lacks tensor {name}; the checkpoint is incomplete.")
    return weights.shapes[name]


def _layer_sizes(weights: WeightFolder, prefix: str) -> dict[str, int]:
    """MLP width and number of layers."""
    start = prefix + "encoder.layers."
    inner = _shape(weights, start + "0.mlp.fc1.weight")[0]
    names = [name.removeprefix(start) for name in weights.shapes if name.startswith(start)]
    depth = max(int(name.split(".")[0]) for name in names) + 1
    return {"intermediate_size": inner, "num_hidden_layers": depth}
