"""Hard wrong options by CLIP: the classes whose names are most similar to each image (FOCI; §4.1, §11)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.core.device import resolve_device
from craft.core.errors import CheckpointError, DataError
from craft.core.files import user_path
from craft.core.progress import track
from craft.core.tensors import check_finite_weights
from craft.data import open_image
from craft.data.sample import Raw, distinct
from craft.formats.llm_source import check_config, reason_of
from craft.formats.weight_folder import WeightFolder

PROMPT = "an image of a {}"
"""The text that CLIP reads for a class. Source: FOCI."""


@torch.no_grad()
def clip_options(
    raw: Raw, model: str | Path, count: int = 7, device: str | None = None, batch_size: int = 64
) -> dict[str, list[dict[str, Any]]]:
    """For each image, its class and the `count` other classes that CLIP finds most similar.

    FOCI keeps three wrong options. CRAFT keeps more, since training questions must not name held-out classes.

    Args:
        raw: data with classes, whose images are files.
        model: a folder or hub id that transformers can load as CLIP or SigLIP.
        count: the number of wrong options for each image.
        device: as for `craft.load`.
        batch_size: images per forward pass.

    Returns:
        `{class: [{"image", "options": [correct, wrong, ...], "groundtruth"}]}`, with the most similar wrong
        option last.

    Raises:
        DataError: images have no classes, or are not files (prepare the data first).
        CheckpointError: there is no such model, or it is of another kind.

    Source: FOCI, with its prompt; the number of options is ours.
    """
    samples = distinct(raw.samples)
    if any(sample.label is None or not isinstance(sample.image, str) for sample in samples):
        raise DataError(
            f"{raw.name}: options need classes and images that are files; `craft data prepare` writes "
            "other images to files."
        )
    target = resolve_device(device)
    clip, processor = _load(model)
    clip.to(target)
    names = sorted({str(sample.label) for sample in samples})
    prompts = [PROMPT.format(name) for name in names]
    texts = processor(text=prompts, truncation=True, return_tensors="pt", **_padding(clip)).to(target)
    class_features = _unit(clip.get_text_features(**texts))
    options: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for start in track(range(0, len(samples), batch_size), "asking CLIP"):
        chosen = samples[start : start + batch_size]
        images = [open_image(sample.image, sample.origin) for sample in chosen]
        pixels = processor(images=images, return_tensors="pt").to(target)
        ranks = (_unit(clip.get_image_features(**pixels)) @ class_features.T).argsort(dim=1).tolist()
        for sample, rank in zip(chosen, ranks, strict=True):
            wrong = [names[index] for index in rank if names[index] != sample.label][-count:]
            entry = {
                "image": str(sample.image),
                "options": [sample.label, *wrong],
                "groundtruth": sample.label,
            }
            options[str(sample.label)].append(entry)
    return options


def _load(model: str | Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    if (folder := user_path(model)).is_dir():
        WeightFolder(folder)
        check_config(folder)
    try:
        clip = AutoModel.from_pretrained(str(model), trust_remote_code=False, use_safetensors=True).eval()
        processor = AutoProcessor.from_pretrained(str(model), trust_remote_code=False)
    except Exception as error:  # the libraries raise any exception
        raise CheckpointError(f"{model} cannot be loaded as a CLIP model: {reason_of(error)}") from error
    check_finite_weights(dict(clip.named_parameters()), {}, str(model))
    if not hasattr(clip, "get_text_features") or not hasattr(clip, "get_image_features"):
        raise CheckpointError(
            f"{model} is a {type(clip).__name__}, which does not compare texts with images."
        )
    return clip, processor


def _padding(clip: Any) -> dict[str, Any]:
    """SigLIP reads the end of a text's padding, so the length must be that of its training."""
    if "siglip" not in clip.config.model_type:
        return {"padding": True}
    length = clip.config.text_config.max_position_embeddings
    return {"padding": "max_length", "max_length": length, "return_attention_mask": False}


def _unit(features: Any) -> Tensor:
    """Rows of length 1; some versions of transformers wrap the features."""
    tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(tensor.float(), dim=-1)
