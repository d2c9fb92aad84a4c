"""The backbone of one codebook: projector or token table, LLM, text tokenizer, prompt format (§3.1, §8)."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MoeModelOutputWithPast

from craft.core.errors import CheckpointError, CraftError
from craft.core.tokens import VisionTokens
from craft.losses.sal import IGNORED
from craft.models.image_lora import acting_on, has_image_lora
from craft.models.projector import Projector
from craft.models.prompts import Prompt, build_prompt, end_of_answer
from craft.models.sequence_projector import SequenceProjector
from craft.models.token_table import TokenTable

Segment = Tensor  # int64 [n]: token ids; or float [n, h]: embeddings
Side = Literal["left", "right"]
"""Where a batch is padded."""

CACHED_PROMPTS = 8192
"""Number of prompts whose token ids a backbone caches, because later epochs and measurements repeat them."""

_LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings of LLMs that cap or scale the logits of their output embedding (Gemma 2, Granite, Cohere)."""


@dataclass(frozen=True, eq=False)
class Borrowed:
    """An LLM that a backbone names instead of holding it.

    Attributes:
        name: as for `craft.formats.llm_source.find_llm`.
        lora: the LoRA factors, in the dtype that they have on disk; empty if the LLM is unchanged.
    """

    name: str
    lora: dict[str, Tensor]


class Backbone(nn.Module):
    """Reads visual tokens and text, writes text. One class for every LLM architecture.

    Attributes:
        projector: g_φ, d -> h, or None if the LLM reads a token table.
        table: the `TokenTable`, or None if the LLM reads what the projector makes of z̃.
        llm: a transformers causal LM of width h.
        tokenizer: its text tokenizer.
        prompt: the name of its prompt format (a key of `craft.models.prompts.FORMATS`).
        codebook_fingerprint: which codebook it was trained for.
        borrowed: the source of the LLM (`craft.formats.llm_source`), or None if the backbone holds its LLM.

    Args:
        projector: the projector, or the token table.
        llm, prompt, codebook_fingerprint, borrowed: see the attributes.
        tokenizer: see the attributes; None only for sizes without values (`craft.models.paper_sizes`), which
            read no text.

    Raises:
        CheckpointError: the LLM has recurrent layers, or lacks the tokenizer's first or last token.
    """

    projector: Projector | SequenceProjector | None
    table: TokenTable | None
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        projector: Projector | SequenceProjector | TokenTable,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        prompt: str,
        codebook_fingerprint: str,
        borrowed: Borrowed | None = None,
    ) -> None:
        super().__init__()
        if getattr(llm, "_is_stateful", False):  # transformers marks so a state that cannot be split by token
            raise CheckpointError(
                f"An LLM of the type {llm.config.model_type} has recurrent layers, as Qwen 3.5, Falcon H1 "
                "and other hybrids have, and CRAFT caches prompts as keys and values; use an LLM with "
                "attention in all layers, such as Llama, Qwen 2.5 or Qwen 3."
            )
        rows = cast(nn.Embedding, llm.get_input_embeddings()).weight.shape[0]
        for name in ("bos", "eos"):
            number = getattr(tokenizer, f"{name}_token_id", None)
            if number is not None and number >= rows:
                raise CheckpointError(
                    f"The text tokenizer's {name} token {getattr(tokenizer, f'{name}_token')!r} has the id "
                    f"{number}, and the LLM has {rows} tokens; the two do not belong together."
                )
        self.projector = None if isinstance(projector, TokenTable) else projector
        self.table = projector if isinstance(projector, TokenTable) else None
        last = -1 if self.table is None or self.table.ids.is_meta else int(self.table.ids.max())
        if last >= rows:
            raise CheckpointError(
                f"The token table needs the token id {last}, and the LLM has {rows} tokens; the two do not "
                "belong together."
            )
        self.llm = llm
        self.tokenizer = cast(PreTrainedTokenizerBase, tokenizer)
        self.prompt = prompt
        self.codebook_fingerprint = codebook_fingerprint
        self.borrowed = borrowed
        self._build_prompt = lru_cache(CACHED_PROMPTS)(build_prompt)

    @property
    def reader(self) -> Projector | SequenceProjector | TokenTable:
        """The projector or the token table: what turns visual tokens into the LLM's input."""
        reader = self.projector or self.table
        assert reader is not None
        return reader

    @property
    def device(self) -> torch.device:
        """Where the LLM's weights are."""
        return self.embeddings.weight.device

    @property
    def embeddings(self) -> nn.Embedding:
        """The LLM's input embeddings: ids int64 `[...]` -> `[..., h]`."""
        return cast(nn.Embedding, self.llm.get_input_embeddings())

    @property
    def base_llm(self) -> nn.Module:
        """The LLM without its output embedding, which returns the last hidden states."""
        return getattr(self.llm, self.llm.base_model_prefix)

    @property
    def counts_positions(self) -> bool:
        """Whether the LLM derives positions from the attention mask and takes no position ids, as with ALiBi
        (BLOOM, MPT, Falcon's `alibi`). Such an LLM takes no custom attention masks either."""
        base = getattr(self.llm, self.llm.base_model_prefix, self.llm)
        takes_ids = "position_ids" in inspect.signature(base.forward).parameters
        return not takes_ids or bool(getattr(self.llm.config, "alibi", False))

    def check_positions(self, keep_positions: bool) -> None:
        """Refuse `keep_positions` before any work if the LLM takes no position ids.

        Raises:
            CraftError: `keep_positions` is set, and the LLM counts positions itself.
        """
        if keep_positions and self.counts_positions:
            raise CraftError(
                f"An LLM of the type {self.llm.config.model_type} counts positions itself (ALiBi), so pruned "
                "tokens cannot keep their positions in the full grid; leave keep_positions out."
            )

    @property
    def lm_head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states `[..., h]` -> the LLM's logits `[..., V]`: its output embedding, then its capping or
        scaling of logits."""
        if any(getattr(self.llm.config, name, None) for name in _LOGIT_SETTINGS):
            return partial(_logits_by_forward, self.llm)
        return cast(nn.Module, self.llm.get_output_embeddings())

    def read(self, tokens: VisionTokens) -> Tensor:
        """The visual tokens as the LLM gets them: `[B, N, h]` on the LLM's device.

        The gradient goes to z̃ through the projector, or to the features by the table's rule.

        Raises:
            CraftError: as `TokenTable.read`.
        """
        if self.table is not None:
            return self.table.read(tokens, self.embeddings)
        assert self.projector is not None
        quantized = tokens.quantized.to(self.device)
        return self.projector(quantized.to(next(self.projector.parameters()).dtype))

    def tokenized(self, question: str, answer: str | None = None, image: bool = True) -> Prompt:
        """The token ids of a question (and answer) in this backbone's prompt format. The last
        `CACHED_PROMPTS` prompts are cached, so do not change them in place.

        Raises:
            ConfigError: the format does not fit the text tokenizer.
        """
        return self._build_prompt(self.prompt, self.tokenizer, question, answer, image)

    def inputs(
        self,
        tokens: VisionTokens | None,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        keep_positions: bool = False,
        padding: Side | None = None,
    ) -> dict[str, Tensor]:
        """The LLM's inputs: prompts with the visual tokens inserted.

        Args:
            tokens: the images' tokens, one image per question; None for text only.
            questions: B texts.
            answers: B texts to be learned, or None at inference.
            keep_positions: give a pruned image's tokens their positions in the full grid, and the text after
                them the positions it has without pruning. By default positions are consecutive.
            padding: "right" or "left"; by default right with answers (training) and left without
            (generation).

        Returns:
            `inputs_embeds` `[B, T, h]`, `attention_mask` bool `[B, T]`, `position_ids` int64 `[B, T]` (0 on
            padding) and, with answers, `labels` int64 `[B, T]`, -100 except on the answer's tokens.

        Raises:
            CraftError: numbers of images, questions and answers differ.
        """
        count = len(questions)
        if (tokens is not None and len(tokens) != count) or (answers is not None and len(answers) != count):
            raise CraftError(
                f"Each question needs one image and one answer: got {count} questions, "
                f"{'no' if tokens is None else len(tokens)} images, "
                f"{'no' if answers is None else len(answers)} answers."
            )
        targets: Sequence[str | None] = answers if answers is not None else [None] * count
        prompts = [
            self.tokenized(question, answer, tokens is not None)
            for question, answer in zip(questions, targets, strict=True)
        ]
        rows, jumps = self.segments(prompts, tokens, keep_positions)
        side: Side = padding or ("left" if answers is None else "right")
        spliced = self.splice(rows, padding=side, positions=jumps)
        if answers is not None:
            spliced["labels"] = self._labels(prompts, spliced["attention_mask"], side)
        return spliced

    def segments(
        self,
        prompts: Sequence[Prompt],
        tokens: VisionTokens | None,
        keep_positions: bool = False,
        image_of: Sequence[int] | None = None,
    ) -> tuple[list[list[Segment]], list[Tensor] | None]:
        """The segments for `splice`: per prompt the text before the image, the image, the text after it.

        Args:
            prompts: B prompts.
            tokens: the images' tokens, or None for text only (then there is no image segment).
            keep_positions: as in `inputs`.
            image_of: per prompt the index of its image in `tokens`; None: one image per prompt, in order.

        Returns:
            The segments, and with `keep_positions` the position ids int64 `[T_i]` (else None).

        Raises:
            CraftError: `keep_positions` is set, and the LLM counts positions itself.
        """
        self.check_positions(keep_positions)
        ids = [
            [torch.tensor(part, dtype=torch.long) for part in (p.before, p.after + p.answer)] for p in prompts
        ]
        if tokens is None:
            return [[before, rest] for before, rest in ids], None
        images = self.read(tokens)
        positions = tokens.positions.cpu() if keep_positions else None  # without it, no wait for the GPU
        rows: list[list[Segment]] = []
        jumps: list[Tensor] = []
        for index, (before, rest) in zip(image_of or range(len(ids)), ids, strict=True):
            image = images[index]
            mask = None if tokens.attention_mask is None else tokens.attention_mask[index]
            rows.append([before, image if mask is None else image[mask.to(image.device)], rest])
            if positions is None:
                continue
            raster = positions[index] if mask is None else positions[index][mask.cpu()]
            end = len(before) + tokens.grid[0] * tokens.grid[1]
            jumps.append(
                torch.cat([torch.arange(len(before)), len(before) + raster, end + torch.arange(len(rest))])
            )
        return rows, jumps if keep_positions else None

    def splice(
        self,
        rows: Sequence[Sequence[Segment]],
        padding: Side = "right",
        positions: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Join segments into one padded batch of embeddings.

        Args:
            rows: per sample a list of segments, each token ids int64 `[n]` or embeddings float `[n, h]`; any
                number of images per sample.
            padding: "right" or "left"; padding rows are zeros.
            positions: per sample its position ids int64 `[T_i]`; None: consecutive from 0.

        Returns:
            `inputs_embeds`, `attention_mask`, `position_ids` as in `inputs`. If the LLM has LoRA that acts on
            prompts with an image only, also `images`, bool `[B]` on the CPU: whether the row has embeddings.
        """
        table = self.embeddings
        text = [segment for row in rows for segment in row if not segment.is_floating_point()]
        flat = torch.cat(text) if text else torch.zeros(0, dtype=torch.long)
        embedded = iter(table(flat.to(self.device)).split([len(segment) for segment in text]))
        joined = [
            torch.cat([s.to(table.weight.dtype) if s.is_floating_point() else next(embedded) for s in row])
            for row in rows
        ]
        lengths = [row.shape[0] for row in joined]
        width = max(lengths)
        embeds, mask = [], torch.zeros(len(rows), width, dtype=torch.bool)
        position_ids = torch.zeros(len(rows), width, dtype=torch.long)
        for index, (row, length) in enumerate(zip(joined, lengths, strict=True)):
            gap = row.new_zeros(width - length, row.shape[1])
            embeds.append(torch.cat([gap, row] if padding == "left" else [row, gap]))
            span = slice(width - length, width) if padding == "left" else slice(0, length)
            mask[index, span] = True
            position_ids[index, span] = torch.arange(length) if positions is None else positions[index]
        spliced = {
            "inputs_embeds": torch.stack(embeds),
            "attention_mask": mask.to(self.device),
            "position_ids": position_ids.to(self.device),
        }
        if has_image_lora(self.llm):
            spliced["images"] = torch.tensor([any(s.is_floating_point() for s in row) for row in rows])
        return spliced

    def _labels(self, prompts: Sequence[Prompt], mask: Tensor, padding: Side) -> Tensor:
        """int64 `[B, T]`: the answer's ids at the end of every row, -100 elsewhere."""
        labels = torch.full(mask.shape, IGNORED, dtype=torch.long)
        ends = [mask.shape[1]] * len(prompts) if padding == "left" else mask.sum(dim=1).tolist()
        for index, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
            labels[index, end - len(prompt.answer) : end] = torch.tensor(prompt.answer, dtype=torch.long)
        return labels.to(mask.device)

    def hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Last hidden states `[B, T, h]` of the LLM, before its output embedding, which is the costly part.

        Args:
            inputs: as `inputs` or `splice` returns them; labels are not used.
        """
        return self.run(self.base_llm, inputs, use_cache=False).last_hidden_state

    def run(self, part: nn.Module, inputs: dict[str, Tensor], **settings: Any) -> Any:
        """The output of the LLM or its `base_llm`. LoRA with the scope "image" acts on rows with an image.

        Args:
            part: `llm` or `base_llm`.
            inputs: as `inputs` or `splice` returns them; labels are not used. Without `images`, all rows have
                an image.
            settings: further arguments of the part.
        """
        names = ("inputs_embeds", "attention_mask", "position_ids")
        with acting_on(inputs.get("images")):
            return part(**{name: inputs[name] for name in names}, **settings)

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits `[B, T, V]` at every position, for tests and inspection; training needs only a few."""
        return self.lm_head(self.hidden_states(inputs))

    def end_ids(self) -> set[int]:
        """The ids at which generation stops: those of the generation config, the tokenizer's end token, and
        the token that ends an answer in the prompt format."""
        config = getattr(self.llm, "generation_config", None)
        listed = getattr(config, "eos_token_id", None)
        ends = {*(listed if isinstance(listed, (list, tuple)) else [listed])}
        ends |= {cast("int | None", self.tokenizer.eos_token_id), end_of_answer(self.prompt, self.tokenizer)}
        return {int(end) for end in ends if end is not None}


class _Identity(nn.Module):
    """Replaces an LLM's layers (with or without experts): returns the input embeddings as hidden states."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]


def _logits_by_forward(llm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits by the LLM's forward pass without its layers."""
    bare = copy.copy(llm)  # shares all parts
    bare._modules = {**llm._modules, llm.base_model_prefix: _Identity()}
    logits = bare(inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1]), use_cache=False).logits
    return logits.reshape(*hidden.shape[:-1], -1)
