"""The discrete LVLM: visual tokenizer + backbone (§3.1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CodebookMismatchError, CraftError
from craft.core.tokens import VisionTokens
from craft.models.backbone import Backbone
from craft.models.visual_tokenizer import VisualTokenizer


class LVLM(nn.Module):
    """A visual tokenizer and a backbone that share one codebook.

    Attributes:
        visual: the `VisualTokenizer`.
        backbone: the `Backbone`.
        name: what it was loaded as; used in tables and messages.
        origin: the folder it was loaded from, or None. Writing back copies from it what CRAFT does not use.

    Raises:
        CodebookMismatchError: the backbone was made for another codebook.
    """

    def __init__(
        self, visual: VisualTokenizer, backbone: Backbone, name: str, origin: Path | None = None
    ) -> None:
        super().__init__()
        abstract = visual.codebook.codewords.is_meta  # sizes without values: nothing to compare
        if not abstract and backbone.codebook_fingerprint != visual.codebook.fingerprint:
            raise CodebookMismatchError(
                f"Backbone {name} was made for codebook {backbone.codebook_fingerprint}, and the visual "
                f"tokenizer has codebook {visual.codebook.fingerprint}; combine parts of one model family."
            )
        self.visual = visual
        self.backbone = backbone
        self.name = name
        self.origin = origin

    @property
    def device(self) -> torch.device:
        """Where the vision tower's weights are."""
        return self.visual.device

    def encode(self, images: Sequence[Any] | Tensor, batch_size: int = 64) -> VisionTokens:
        """Images (paths, bytes, PIL, arrays) or pixels `[B, 3, S, S]` -> `VisionTokens`, without gradient.

        Raises:
            DataError: an image cannot be read.
        """
        return self.visual.encode(images, batch_size=batch_size)

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[Any] | Tensor | VisionTokens | None,
        questions: Sequence[str],
        max_new_tokens: int = 5,
        keep_ratio: float = 1.0,
        batch_size: int = 32,
    ) -> list[str]:
        """Answer one question per image, greedily.

        Args:
            images: one per question; already encoded `VisionTokens`; or None for text only.
            questions: the texts.
            max_new_tokens: cap on the length of an answer.
            keep_ratio: share of visual tokens that the LLM sees (§3.3); this version has 1 only, no pruning.
            batch_size: questions per forward pass.

        Returns:
            One stripped text per question.

        Raises:
            DataError: an image cannot be read.
            CraftError: counts differ, or `keep_ratio` is not 1.
        """
        if not 0 < keep_ratio <= 1:
            raise CraftError(f"keep_ratio is {keep_ratio}; it must be above 0 and at most 1.")
        if images is not None and len(images) != len(questions):
            raise CraftError(
                f"One question per image, please: got {len(images)} images, {len(questions)} questions."
            )
        if keep_ratio != 1:
            raise CraftError(
                f"This version does not prune visual tokens (§3.3): use keep_ratio=1, not {keep_ratio}."
            )
        answers: list[str] = []
        for start in range(0, len(questions), batch_size):
            rows = slice(start, start + batch_size)
            tokens: VisionTokens | None = None
            if isinstance(images, VisionTokens):
                tokens = images[rows]
            elif images is not None:
                tokens = self.encode(images[rows], batch_size=batch_size)
            answers += self.backbone.generate(tokens, questions[rows], max_new_tokens)
        return answers

    def with_encoder(self, encoder: Any) -> "LVLM":
        """The same backbone (shared, not copied) behind an adapted vision tower.

        Args:
            encoder: a run folder, an artefact folder, or a loaded `craft.models.artefact.Artefact`.

        Raises:
            CodebookMismatchError: the encoder was adapted for another codebook; both fingerprints are named.
            CheckpointError: the artefact is missing, damaged, or its tower has another shape.
        """
        from craft.models.artefact import Artefact, load_artefact

        artefact = encoder if isinstance(encoder, Artefact) else load_artefact(encoder)
        return LVLM(artefact.apply_to(self.visual), self.backbone, self.name, self.origin)
