"""Read prompts into key/value caches, once per image, and answer from them.

reading = read(backbone, tokens, questions, image_of)   # one pass; an image with several questions once
ids, margins = write(backbone, reading, 5)              # greedy answers
scores = score(backbone, reading, options)              # log-probabilities of candidate answers, one pass
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.models.backbone import Backbone
from craft.models.context import context_of
from craft.models.prompts import decode

SHARED = 0.75
"""Images are read in a separate pass if a batch has at most this many per question; the pass has a cost."""

_TAIL = 4  # tokens at the end of a prompt that show whether it was split there
_NEVER = torch.finfo(torch.bfloat16).min  # or lower: the logit of a token that an LLM never writes
_HEAD_BLOCK = 256  # positions whose logits over the vocabulary are in memory at once


@dataclass
class Reading:
    """Prompts that the LLM has read.

    Attributes:
        cache: their keys and values at T positions; `write` appends to it.
        mask: bool `[B, T]`, False on padding.
        last: int64 `[B, 1]`, the position id of each prompt's last token.
        logits: float32 `[B, V]` that predict the token after each prompt.
        images: as `Backbone.splice` returns it, for the tokens that follow; None if it returns none.
    """

    cache: Cache
    mask: Tensor
    last: Tensor
    logits: Tensor
    images: Tensor | None = None

    def following(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """The LLM's inputs for n tokens after the prompts.

        Args:
            embeds: `[B, n, h]`.
            mask: of all positions, including those in the cache.
            positions: int64 `[B, n]`.
        """
        inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
        return inputs if self.images is None else {**inputs, "images": self.images}


@torch.no_grad()
def prefill(backbone: Backbone, inputs: dict[str, Tensor], cache: Cache | None = None) -> Reading:
    """Read left-padded inputs, as `Backbone.inputs` returns them without answers.

    Args:
        inputs: embeddings, positions, and the mask of all positions, including those in the cache.
        cache: keys and values of what was read before, to which this appends; None for a new cache.
    """
    cache = DynamicCache() if cache is None else cache
    logits = _logits(backbone, inputs, cache)
    last = inputs["position_ids"][:, -1:]
    return Reading(cache, inputs["attention_mask"], last, logits, inputs.get("images"))


@torch.no_grad()
def generate(
    backbone: Backbone,
    tokens: VisionTokens | None,
    questions: Sequence[str],
    max_new_tokens: int = 5,
    keep_positions: bool = False,
) -> list[str]:
    """Greedy answers.

    Args:
        tokens: one image per question, or None for text only.
        questions: B texts.
        max_new_tokens: maximum length; generation also stops at an end token.
        keep_positions: as in `Backbone.inputs`.

    Returns:
        B texts without special tokens, stripped.

    Raises:
        CraftError: the numbers of images and questions differ.
    """
    if len(questions) == 0:
        return []
    inputs = backbone.inputs(tokens, questions, keep_positions=keep_positions)
    return [decode(backbone.tokenizer, row) for row in generate_ids(backbone, inputs, max_new_tokens)]


def generate_ids(
    backbone: Backbone,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    prompts: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Greedy token ids per row, without the end token.

    Args:
        inputs: left-padded, as `Backbone.inputs` returns them without answers.
        repetition_penalty, prompts: as for `write`.
    """
    return write(backbone, prefill(backbone, inputs), max_new_tokens, repetition_penalty, prompts)[0]


@torch.no_grad()
def read(
    backbone: Backbone,
    tokens: VisionTokens | None,
    questions: Sequence[str],
    image_of: Sequence[int] | None = None,
    keep_positions: bool = False,
    room: int = 0,
) -> Reading:
    """Run the LLM over B prompts.

    If several questions are about one image, everything up to the image's last token is read once per image,
    and all its questions share the keys and values: the same numbers up to rounding. Rows then have padding
    in the middle, which not every LLM supports (`takes_masks`).

    Args:
        tokens: the images' tokens, or None for text only.
        questions: B texts.
        image_of: per question the index of its image in `tokens`; None: one image each, in order.
        keep_positions: as in `Backbone.inputs`.
        room: maximum number of tokens that will follow a prompt: of its answer, or of an option to score.
    """
    prompts = [backbone.tokenized(question, None, tokens is not None) for question in questions]
    rows, jumps = backbone.segments(prompts, tokens, keep_positions, image_of)
    first = {image: row for row, image in reversed(list(enumerate(image_of or ())))}
    alike = all(
        prompts[row].before == prompts[first[image]].before for row, image in enumerate(image_of or ())
    )
    share = tokens is not None and alike and 0 < len(first) <= SHARED * len(questions)
    split = [len(row[0]) + len(row[1]) for row in rows]
    if not share or not takes_masks(backbone, max(split) + max(len(row[2]) for row in rows) + room):
        return prefill(backbone, backbone.splice(rows, padding="left", positions=jumps))
    positions = jumps or [torch.arange(n + len(row[2])) for n, row in zip(split, rows, strict=True)]
    chosen = list(first.values())
    fronts = backbone.splice(
        [rows[i][:2] for i in chosen], "left", [positions[i][: split[i]] for i in chosen]
    )
    cache = DynamicCache()
    backbone.run(backbone.base_llm, fronts, past_key_values=cache, use_cache=True)
    order = {image: index for index, image in enumerate(first)}
    select = torch.tensor([order[image] for image in image_of or ()], device=backbone.device)
    cache.batch_select_indices(select)
    inputs = backbone.splice(
        [row[2:] for row in rows], "left", [p[n:] for p, n in zip(positions, split, strict=True)]
    )
    inputs["attention_mask"] = torch.cat([fronts["attention_mask"][select], inputs["attention_mask"]], dim=1)
    inputs.pop("images", None)  # it describes the text after the images
    return prefill(backbone, inputs, cache)


@torch.no_grad()
def write(
    backbone: Backbone,
    reading: Reading,
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    prompts: Sequence[Sequence[int]] | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Greedy answers.

    Args:
        backbone: the backbone that `reading` is from.
        reading: of B prompts.
        max_new_tokens: maximum length of an answer.
        repetition_penalty: positive logits of tokens that occurred are divided by it, negative ones
            multiplied, as in transformers.
        prompts: per prompt the token ids that count as occurred from the start; None: only new tokens, as
            transformers does for a prompt of embeddings.

    Returns:
        Token ids per prompt, without the end token; and per prompt the smallest margin of a chosen token over
        the second best, as a fraction of that step's largest absolute logit. A margin of the size of rounding
        errors means that the answer could differ in another batch. An answer ends where the context does.
    """
    end_ids = backbone.end_ids()
    mask, last, logits = reading.mask, reading.last, reading.logits
    rows: list[list[int]] = [[] for _ in range(len(mask))]
    done = [False] * len(rows)
    margins = [float("inf")] * len(rows)
    context = context_of(backbone.llm)
    room = [max_new_tokens if context is None else context - 1 - start for start in last[:, 0].tolist()]
    occurred = [list(ids) for ids in prompts or rows]
    for step in range(max_new_tokens):
        if repetition_penalty != 1:
            logits = _penalised(logits, occurred, repetition_penalty)
        best = logits.topk(2, dim=-1).values
        margin = ((best[:, 0] - best[:, 1]) / largest(logits)).tolist()
        if any(map(math.isnan, margin)):
            _refuse_nan(backbone, logits)
        chosen = logits.argmax(dim=-1)
        for row, token in enumerate(chosen.tolist()):
            if not done[row]:
                margins[row] = min(margins[row], margin[row])
            done[row] = done[row] or token in end_ids or step >= room[row]
            if not done[row]:
                rows[row].append(token)
                occurred[row].append(token)
        if all(done) or step == max_new_tokens - 1:
            break
        last = last + 1 if context is None else (last + 1).clamp(max=context - 1)  # of rows that are done
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        embeds = backbone.embeddings(chosen[:, None])
        logits = _logits(backbone, reading.following(embeds, mask, last), reading.cache)
    return rows, margins


@torch.no_grad()
def score(
    backbone: Backbone, reading: Reading, options: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Log-probabilities of candidate answers, all options of all prompts in one pass.

    A prompt's options follow each other; by the attention mask each sees the prompt and itself. One-token
    options (letters) need no pass, because the prompt's logits already have their probabilities.

    Args:
        reading: of B prompts; `write` may have been called with it.
        options: per prompt the token ids of its options, as from `option_ids`; a prompt may have none.

    Returns:
        Per prompt the sum of log-probabilities of each option.

    Raises:
        CraftError: the LLM's attention implementation takes no custom masks.
    """
    start = reading.logits.log_softmax(dim=-1)
    _refuse_nan(backbone, reading.logits)
    scores = [[float(start[row, ids[0]]) for ids in answers] for row, answers in enumerate(options)]
    inputs = [[list(ids[:-1]) for ids in answers] for answers in options]
    width = max((sum(map(len, answers)) for answers in inputs), default=0)
    if width == 0:
        return scores
    kind = getattr(backbone.llm.config, "_attn_implementation", "sdpa")
    if kind not in ("sdpa", "eager"):
        raise CraftError(
            f"Option scoring needs an LLM loaded with sdpa or eager attention, and this one has {kind}."
        )
    count, prompt = reading.mask.shape
    if not takes_masks(backbone, prompt + max(len(ids) for answers in inputs for ids in answers)):
        return _score_in_turn(backbone, reading, options, scores)
    past = int(reading.cache.get_seq_length())
    allowed = torch.zeros(count, width, past + width, dtype=torch.bool)
    allowed[:, :, :prompt] = reading.mask[:, None].cpu()
    allowed[:, :, past:] = torch.eye(width, dtype=torch.bool)
    tokens = torch.zeros(count, width, dtype=torch.long)
    offsets = torch.zeros(count, width, dtype=torch.long)
    targets: list[_Target] = []
    for row, answers in enumerate(inputs):
        at = 0
        for option, ids in enumerate(answers):
            end = at + len(ids)
            tokens[row, at:end] = torch.tensor(ids, dtype=torch.long)
            offsets[row, at:end] = torch.arange(len(ids))
            allowed[row, at:end, past + at : past + end] = torch.ones(len(ids), len(ids)).tril().bool()
            targets += [_Target(row, option, at + n, options[row][option][n + 1]) for n in range(len(ids))]
            at = end
    embeds = backbone.embeddings(tokens.to(backbone.device))
    bias = torch.zeros(allowed.shape, dtype=embeds.dtype).masked_fill_(
        ~allowed, torch.finfo(embeds.dtype).min
    )
    hidden = _hidden(backbone, reading, embeds, bias[:, None].to(backbone.device), offsets)
    _add_scores(backbone, hidden, targets, scores)
    return scores


def _penalised(logits: Tensor, occurred: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Logits `[B, V]` with the repetition penalty of transformers (arXiv 1909.05858)."""
    penalised = logits.clone()
    for row, ids in zip(penalised, occurred, strict=True):
        chosen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=row.device)
        row[chosen] = torch.where(row[chosen] > 0, row[chosen] / penalty, row[chosen] * penalty)
    return penalised


class _Target(NamedTuple):
    """A token of an option whose log-probability counts: that of `token` after input `position`."""

    row: int
    option: int
    position: int
    token: int


def _score_in_turn(
    backbone: Backbone,
    reading: Reading,
    options: Sequence[Sequence[Sequence[int]]],
    scores: list[list[float]],
) -> list[list[float]]:
    """`score` with one pass per option, for LLMs that take no custom masks."""
    count, prompt = reading.mask.shape
    for option in range(max(map(len, options))):
        inputs = [list(answers[option][:-1]) if option < len(answers) else [] for answers in options]
        width = max(map(len, inputs))
        if width == 0:
            continue
        tokens = torch.zeros(count, width, dtype=torch.long)
        present = torch.zeros(count, width, dtype=torch.bool)
        targets: list[_Target] = []
        for row, ids in enumerate(inputs):
            tokens[row, : len(ids)], present[row, : len(ids)] = torch.tensor(ids, dtype=torch.long), True
            targets += [_Target(row, option, n, options[row][option][n + 1]) for n in range(len(ids))]
        if surplus := int(reading.cache.get_seq_length()) - prompt:  # an answer, or the previous option
            reading.cache.crop(-surplus)  # pyright: ignore[reportAttributeAccessIssue]
        embeds = backbone.embeddings(tokens.to(backbone.device))
        mask = torch.cat([reading.mask, present.to(reading.mask.device)], dim=1)
        hidden = _hidden(backbone, reading, embeds, mask, torch.arange(width).expand(count, width))
        _add_scores(backbone, hidden, targets, scores)
    return scores


def _hidden(backbone: Backbone, reading: Reading, embeds: Tensor, mask: Tensor, offsets: Tensor) -> Tensor:
    """Last hidden states `[B, n, h]` of tokens that follow the prompts."""
    inputs = reading.following(embeds, mask, reading.last + 1 + offsets.to(backbone.device))
    output = backbone.run(backbone.base_llm, inputs, past_key_values=reading.cache, use_cache=True)
    return output.last_hidden_state


def largest(logits: Tensor) -> Tensor:
    """The largest absolute logit `[B]` of logits float32 `[B, V]`, without tokens that the LLM never writes.

    Some give them the lowest number of the dtype, as Chameleon gives it to the tokens of images.
    """
    return logits.masked_fill(logits <= _NEVER, 0).abs().amax(dim=-1)


def _refuse_nan(backbone: Backbone, logits: Tensor) -> None:
    """
    Raises:
        CraftError: there is NaN among the logits, and so no likeliest token.
    """
    if bool(logits.isnan().any()):
        raise CraftError(
            f"The logits of the LLM ({backbone.llm.config.model_type}, {logits.dtype}) are NaN, so it cannot "
            "answer: a weight is not finite, or its number format has too small a range. Load the model "
            "again, with dtype float32 if it was float16."
        )


def _add_scores(
    backbone: Backbone, hidden: Tensor, targets: Sequence[_Target], scores: list[list[float]]
) -> None:
    """Add the log-probability of each target to the score of its option."""
    for start in range(0, len(targets), _HEAD_BLOCK):
        block = targets[start : start + _HEAD_BLOCK]
        states = hidden[[target.row for target in block], [target.position for target in block]]
        log_probabilities = backbone.lm_head(states).float().log_softmax(-1)
        values = log_probabilities[range(len(block)), [target.token for target in block]].tolist()
        for target, value in zip(block, values, strict=True):
            scores[target.row][target.option] += value


def takes_masks(backbone: Backbone, length: int) -> bool:
    """Whether the LLM reads prompts of `length` tokens with padding in the middle and with custom masks.

    It does not if it counts positions itself, or if a custom mask would switch off its sliding window.
    """
    window = window_of(backbone.llm)
    return not backbone.counts_positions and (window is None or length <= window)


def window_of(llm: PreTrainedModel) -> int | None:
    """The smallest sliding window of an LLM's layers, in tokens; None if all layers see everything."""
    config = llm.config
    if set(getattr(config, "layer_types", None) or ()) == {"full_attention"}:
        return None
    names = ("sliding_window", "attention_chunk_size", "window_size")  # Mistral, Gemma; Llama 4; GPT-Neo
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def option_ids(
    backbone: Backbone, question: str, options: Sequence[str], image: bool = True, end: bool = True
) -> list[list[int]]:
    """Token ids of options as answers in the backbone's prompt format.

    Args:
        image: whether the question is about an image.
        end: with the end token, so that "red" is not always likelier than "red cat". If all options are one
            token long (letters), it is left out in any case.

    Raises:
        CraftError: the text tokenizer joins the prompt's last token with an option's first.
    """
    end_ids = backbone.end_ids()
    answers: list[list[int]] = []
    open_prompt = backbone.tokenized(question, None, image)
    for option in options:
        prompt = backbone.tokenized(question, option, image)
        before, after = (p.after if image else p.before for p in (open_prompt, prompt))
        if before[-_TAIL:] != after[-_TAIL:] or not prompt.answer:
            raise CraftError(
                f"The text tokenizer joins the end of the prompt with the option {option!r}, so its "
                "probability is not defined token by token; use the protocol 'generate'."
            )
        stop = next((n for n, token in enumerate(prompt.answer) if token in end_ids), len(prompt.answer))
        answers.append(prompt.answer[: stop + 1])
    bare = [ids[:-1] if ids[-1] in end_ids else ids for ids in answers]
    return answers if end and any(len(ids) > 1 for ids in bare) else bare


def _logits(backbone: Backbone, inputs: dict[str, Tensor], cache: Cache) -> Tensor:
    """float32 `[B, V]` after the last token."""
    output = backbone.run(backbone.llm, inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].float()
