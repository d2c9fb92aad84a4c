"""The SigLIP architecture of a VILA-U tower; its checkpoint only names it (`pretrained_model`)."""

import math
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError
from craft.core.files import read_json
from craft.models.weight_folder import WeightFolder

# transformers' own defaults of SiglipVisionConfig, for keys that a config leaves out
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
# so400m is the one published SigLIP whose heads are not 64 wide
HEADS = {1152: 16}


def siglip_vision_config(
    weights: WeightFolder, prefix: str, root: Path, pretrained_model: str | None
) -> dict[str, Any]:
    """Config for `SiglipTower`.

    Args:
        weights: the tower's weights.
        prefix: what the vision model's tensor names begin with.
        root: the checkpoint's root; `pretrained_model` may be a folder in it with a SigLIP `config.json`.
        pretrained_model: as the checkpoint's config has it.

    Returns:
        The config beside, when there is one; else sizes from tensor shapes, and what shapes do not tell
        (heads, activation, epsilon) as in the published SigLIP models. Sizes that shapes tell are checked
        either way.

    Raises:
        CheckpointError: tensors are missing, or contradict the config beside.
    """
    sizes = _from_shapes(weights, prefix)
    found = _beside(root, pretrained_model)
    if found is None:
        hidden = sizes["hidden_size"]
        heads = HEADS.get(hidden, hidden // 64)
        if heads == 0 or hidden % heads:
            raise CheckpointError(
                f"{weights.folder}: width {hidden} is no published SigLIP's, so the number of attention "
                "heads is not "
                "known; put the SigLIP config.json in a folder and name it in rqvaesiglip.pretrained_model."
            )
        return {**DEFAULTS, **sizes, "num_attention_heads": heads, "type": "siglip"}
    file, config = found
    merged = {key: config.get(key, default) for key, default in DEFAULTS.items()}
    for key, size in sizes.items():
        if merged[key] != size:
            raise CheckpointError(
                f"{file} says {key} {merged[key]}, and the weights in {weights.folder} say {size}."
            )
    return {**merged, "type": "siglip"}


def _beside(root: Path, name: str | None) -> tuple[Path, dict[str, Any]] | None:
    """The SigLIP config in a folder of the checkpoint, when `pretrained_model` names one."""
    file = root / name / "config.json" if name else None
    if file is None or not file.is_file():
        return None
    config = read_json(file)
    return file, config.get("vision_config", config)


def _from_shapes(weights: WeightFolder, prefix: str) -> dict[str, int]:
    """What tensor shapes tell: width, MLP width, depth, patch and image size."""

    def shape(name: str) -> tuple[int, ...]:
        if prefix + name not in weights.shapes:
            raise CheckpointError(
                f"{weights.folder} lacks tensor {prefix}{name}; the checkpoint is incomplete."
            )
        return weights.shapes[prefix + name]

    hidden, _, patch, _ = shape("embeddings.patch_embedding.weight")
    side = math.isqrt(shape("embeddings.position_embedding.weight")[0])
    start = prefix + "encoder.layers."
    numbers = {
        int(name.removeprefix(start).split(".")[0]) for name in weights.shapes if name.startswith(start)
    }
    if not numbers:
        raise CheckpointError(f"{weights.folder} lacks tensors {start}*; the checkpoint is incomplete.")
    return {
        "hidden_size": hidden,
        "intermediate_size": shape("encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": max(numbers) + 1,
        "patch_size": patch,
        "image_size": side * patch,
    }
