"""The LVLM: visual tokenizer + backbone (§3.1)."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from craft.core.errors import CodebookMismatchError, CraftError
from craft.core.tensors import counts_fault
from craft.core.tokens import VisionTokens
from craft.models.backbone import Backbone
from craft.models.context import check_context
from craft.models.decoding import generate
from craft.models.visual_tokenizer import VisualTokenizer
from craft.pruning import Budget, budget_of, prune_tokens


@runtime_checkable
class Encoder(Protocol):
    """What adapts an LVLM, such as a loaded `craft.formats.artefact.Artefact`."""

    def apply(self, lvlm: "LVLM") -> "LVLM":
        """A new LVLM with the adapted parts; `lvlm` itself does not change."""
        ...


class LVLM(nn.Module):
    """A visual tokenizer and a backbone that share one codebook.

    Attributes:
        visual: the `VisualTokenizer`.
        backbone: the `Backbone`.
        name: the name it was loaded by, for tables and messages.
        origin: the folder it was loaded from, or None. Formats copy from it what CRAFT does not use.

    Raises:
        CodebookMismatchError: the backbone was made for another codebook.
    """

    read_encoder: ClassVar[Callable[[str | Path], Encoder]]
    """Reads an encoder from disk. `craft.formats.load` sets it: `craft.models` does not touch the disk."""

    def __init__(
        self, visual: VisualTokenizer, backbone: Backbone, name: str, origin: Path | None = None
    ) -> None:
        super().__init__()
        abstract = visual.codebook.codewords.is_meta  # sizes without values have no fingerprint
        if not abstract and backbone.codebook_fingerprint != visual.codebook.fingerprint:
            raise CodebookMismatchError(
                f"Backbone {name} was made for codebook {backbone.codebook_fingerprint}, and the visual "
                f"tokenizer has codebook {visual.codebook.fingerprint}; combine parts of one model family. "
                "(tower:… denotes the features of a vision tower, which a continuous LVLM reads.)"
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
        *,
        budget: Budget = "exact",
        keep_positions: bool = False,
    ) -> list[str]:
        """Answer one question per image, greedily.

        Args:
            images: one per question, as images, pixels or encoded `VisionTokens`; None for text only.
            questions: the texts.
            max_new_tokens: maximum length of an answer.
            keep_ratio: fraction of visual tokens that the LLM sees, selected by the code prior `visual.prior`
                (§3.3). The others never reach the projector. 1 is bit-identical to no pruning.
            batch_size: questions per forward pass.
            budget: as in `craft.prune_tokens`.
            keep_positions: give the remaining tokens their positions in the full grid; by default positions
                are consecutive, as in the paper.

        Returns:
            One stripped text per question.

        Raises:
            DataError: an image cannot be read, or a question is longer than the LLM's context.
            CraftError: counts differ, `keep_ratio` is out of range, or pruning lacks a code prior.
        """
        self.check_keep_ratio(1.0 if images is None else keep_ratio)
        if images is not None and len(images) != len(questions):
            raise CraftError(
                f"Each image needs one question: got {len(images)} images, {len(questions)} questions."
            )
        rows, columns = self.visual.grid
        count = 0 if images is None else budget_of(1.0 if keep_positions else keep_ratio, rows * columns)
        asked = ((f"question {n}", text, None) for n, text in enumerate(questions, start=1))
        check_context(self.backbone, asked, count)
        answers: list[str] = []
        for start in range(0, len(questions), batch_size):
            rows = slice(start, start + batch_size)
            tokens: VisionTokens | None = None
            if isinstance(images, VisionTokens):
                tokens = images[rows]
            elif images is not None:
                tokens = self.visual.encode(images[rows], batch_size=batch_size, with_cls=False)
            if tokens is not None:
                tokens = self.visible(tokens, keep_ratio, budget)
            answers += generate(self.backbone, tokens, questions[rows], max_new_tokens, keep_positions)
        return answers

    def check_keep_ratio(self, keep_ratio: float) -> None:
        """Check a keep ratio before any work.

        Raises:
            CraftError: it is out of range; or it is below 1, and the visual tokenizer has no code prior or
                one that does not hold one count for each codeword.
        """
        budget_of(keep_ratio, 1)
        if keep_ratio == 1:
            return
        codebook = self.visual.need_codes(f"keep_ratio={keep_ratio}")
        if codebook.is_product:
            raise CraftError(
                f"keep_ratio={keep_ratio} prunes visual tokens by how common their level-1 codes are (§3.3). "
                f"In the codebook of {self.name} no level comes first: each describes another part of a "
                "token (product quantisation). Use keep_ratio=1."
            )
        size, prior = codebook.size, self.visual.prior
        if prior is None:
            fault = "came without a code prior (level-1 code counts)"
        elif (wrong := counts_fault(prior, size)) is not None:
            fault = f"has a code prior that {wrong}"
        else:
            return
        raise CraftError(
            f"keep_ratio={keep_ratio} prunes visual tokens by how common their codes are, and the visual "
            f"tokenizer of {self.name} {fault}. An adapted encoder has one; `craft prior DATA --out FILE` "
            "makes one, for --prior FILE or lvlm.with_prior(...). Or use keep_ratio=1."
        )

    def visible(
        self, tokens: VisionTokens, keep_ratio: float = 1.0, budget: Budget = "exact"
    ) -> VisionTokens:
        """The visual tokens that the LLM sees: all of them, or the fraction `keep_ratio` (§3.3).

        Raises:
            CraftError: as `check_keep_ratio`.
        """
        self.check_keep_ratio(keep_ratio)
        return prune_tokens(tokens, self.visual.prior, keep_ratio, budget=budget)

    def with_prior(self, counts: Tensor | None) -> "LVLM":
        """The same LVLM, with all parts shared, and another code prior for pruning.

        Args:
            counts: level-1 code counts int64 `[K]`, or None.

        Raises:
            CraftError: these are no counts: they are not whole numbers, or are negative.
        """
        if counts is not None and (fault := counts_fault(counts)):
            raise CraftError(f"The code prior {fault}; `craft prior DATA --out FILE` makes one.")
        visual = copy.copy(self.visual)  # another module with the same parts
        visual.prior = counts
        return LVLM(visual, self.backbone, self.name, self.origin)

    def with_encoder(self, encoder: Encoder | str | Path) -> "LVLM":
        """The same backbone, shared and not copied, with an adapted vision tower.

        Args:
            encoder: a run folder, an artefact folder, or a loaded `craft.formats.artefact.Artefact`; or those
                of a baseline (`craft.formats.tuned`), whose tuned parts are copied.

        Raises:
            CodebookMismatchError: the encoder was adapted for another codebook; both fingerprints are named.
            CheckpointError: the artefact is missing, damaged, or its tower has another shape.
        """
        loaded = LVLM.read_encoder(encoder) if isinstance(encoder, str | Path) else encoder
        return loaded.apply(self)
