"""Checkpoints that CRAFT refuses by name: those whose LLM reads continuous features, and pickle files."""

from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError

_ONLY_OUT = "its codes are only for images that it makes"
_FEATURES = {
    "Janus": f"features of a SigLIP encoder; {_ONLY_OUT}",
    "ILLUME+": f"features of DualViTok's two encoders before they are quantised; {_ONLY_OUT}",
    "Show-o2": "latents of a continuous video VAE, and has no codebook",
}
_MARKS = {"multi_modality": "Janus", "janus": "Janus", "illume": "ILLUME+", "showo2": "Show-o2"}
"""How `model_type` (Janus: in its own code and in transformers) or the name of a class begins."""
_PICKLES = (".pth", ".pt", ".ckpt", ".bin")


def refuse_continuous(folder: Path, config: dict[str, Any]) -> None:
    """Refuse the checkpoint of a family that has codes, or seems to, but whose LLM reads features.

    Args:
        config: the folder's config.json, or nothing.

    Raises:
        CheckpointError: it is one. The message says what the LLM reads, and which families read codes.

    Source: deepseek-ai/Janus, showlab/Show-o (show-o2) and ILLUME+'s code.
    """
    kinds = [config.get("model_type"), config.get("_class_name"), *(config.get("architectures") or [])]
    begins = [str(kind).lower() for kind in kinds]
    name = next((name for mark, name in _MARKS.items() if any(k.startswith(mark) for k in begins)), None)
    if name is not None:
        raise CheckpointError(
            f"{folder} is {'an' if name[0] in 'AEIOU' else 'a'} {name} checkpoint. To understand an image, "
            f"its LLM reads {_FEATURES[name]}. CRAFT adapts a vision tower for all LLMs that read the codes "
            "of one codebook, so it needs an LVLM that reads codes: a VILA-U, Tar, UniTok or Chameleon "
            "checkpoint, or a craft-tiny model."
        )


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder whose only weights are pickle files.

    Raises:
        CheckpointError: it is one; the files are named.
    """
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if names and not any(folder.rglob("*.safetensors")):
        listed = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        raise CheckpointError(
            f"{folder} holds no weights but {listed}. These are pickle files, which CRAFT does not open, "
            "because they can run code. Give a folder with safetensors, as save_pretrained of transformers "
            "writes it."
        )
