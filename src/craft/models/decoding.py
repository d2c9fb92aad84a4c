"""Reading prompts into key/value caches, once per image, and answering from there.

reading = read(backbone, tokens, questions, image_of)   # one pass; the image of several questions once
ids, margins = write(backbone, reading, 5)              # greedy answers
scores = score(backbone, reading, options)              # log-probabilities of given answers, one pass
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.models.backbone import Backbone
from craft.models.prompts import decode

SHARED = 0.75
"""Images are read apart where a batch has at most so many per question: the extra pass has a price."""

_TAIL = 4  # tokens at a prompt's end that show whether it was split there
_HEAD_BLOCK = 256  # positions whose logits over the vocabulary are held at once


@dataclass
class Reading:
    """Prompts that the LLM has read.

    Attributes:
        cache: their keys and values (transformers' `DynamicCache`), T positions; `write` adds to it.
        mask: bool `[B, T]`, False on padding.
        last: int64 `[B, 1]`, the position id of each prompt's last token.
        logits: float32 `[B, V]` behind the last token.
    """

    cache: Any
    mask: Tensor
    last: Tensor
    logits: Tensor


@torch.no_grad()
def prefill(backbone: Backbone, inputs: dict[str, Tensor], cache: Any = None) -> Reading:
    """Read left-padded inputs, as `Backbone.inputs` gives them without answers.

    Args:
        backbone: the backbone.
        inputs: embeddings, positions, and the mask of all positions, those in the cache included.
        cache: what was read before; it grows. None: nothing.
    """
    from transformers import DynamicCache

    cache = DynamicCache() if cache is None else cache
    logits = _logits(backbone, inputs, cache)
    return Reading(cache, inputs["attention_mask"], inputs["position_ids"][:, -1:], logits)


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
        backbone: what answers.
        tokens: one image per question, or None for text only.
        questions: B texts.
        max_new_tokens: generation stops here, or at the LLM's end token.
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


def generate_ids(backbone: Backbone, inputs: dict[str, Tensor], max_new_tokens: int) -> list[list[int]]:
    """Greedy token ids per row, up to and without the end token.

    Args:
        backbone: what answers.
        inputs: left-padded, as `Backbone.inputs` gives them without answers.
        max_new_tokens: the most tokens per row.
    """
    return write(backbone, prefill(backbone, inputs), max_new_tokens)[0]


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

    Where several questions are about one image, everything up to the image's last token is read once per
    image, and its keys and values are handed to all of them: the same numbers up to rounding. Padding then
    stands in the middle of rows, which is not for every LLM (`takes_masks`).

    Args:
        backbone: the backbone.
        tokens: the images' tokens, or None for text only.
        questions: B texts.
        image_of: per question the index of its image in `tokens`; None: one image each, in order.
        keep_positions: as in `Backbone.inputs`.
        room: tokens that will stand behind a prompt at most: of its answer, or of an option to score.
    """
    from transformers import DynamicCache

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
    base = getattr(backbone.llm, backbone.llm.base_model_prefix)  # type: ignore[arg-type]
    cache = DynamicCache()
    base(**fronts, past_key_values=cache, use_cache=True)
    order = {image: index for index, image in enumerate(first)}
    select = torch.tensor([order[image] for image in image_of or ()], device=backbone.device)
    cache.batch_select_indices(select)
    inputs = backbone.splice(
        [row[2:] for row in rows], "left", [p[n:] for p, n in zip(positions, split, strict=True)]
    )
    inputs["attention_mask"] = torch.cat([fronts["attention_mask"][select], inputs["attention_mask"]], dim=1)
    return prefill(backbone, inputs, cache)


@torch.no_grad()
def write(backbone: Backbone, reading: Reading, max_new_tokens: int) -> tuple[list[list[int]], list[float]]:
    """Greedy answers.

    Returns:
        Token ids per prompt, up to and without the end token; and per prompt the smallest lead that a chosen
        token had over the next best, as a share of that step's largest logit in absolute value. A lead of the
        size of rounding errors means that another batch could have answered otherwise.
    """
    ends = backbone.end_ids()
    mask, last, logits = reading.mask, reading.last, reading.logits
    rows: list[list[int]] = [[] for _ in range(len(mask))]
    done = [False] * len(rows)
    margins = [float("inf")] * len(rows)
    for step in range(max_new_tokens):
        best = logits.topk(2, dim=-1).values
        lead = ((best[:, 0] - best[:, 1]) / logits.abs().amax(dim=-1)).tolist()
        chosen = logits.argmax(dim=-1)
        for row, token in enumerate(chosen.tolist()):
            if not done[row]:
                margins[row] = min(margins[row], lead[row])
            done[row] = done[row] or token in ends
            if not done[row]:
                rows[row].append(token)
        if all(done) or step == max_new_tokens - 1:
            break
        last = last + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        embeds = backbone.llm.get_input_embeddings()(chosen[:, None])  # type: ignore[operator]
        inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": last}
        logits = _logits(backbone, inputs, reading.cache)
    return rows, margins


@torch.no_grad()
def score(
    backbone: Backbone, reading: Reading, options: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Log-probabilities of given answers, all options of all prompts in one pass.

    A prompt's options stand one behind the other; each sees the prompt and itself, by its attention mask.
    One-token options (letters) need no pass at all: the prompt's own logits have them.

    Args:
        backbone: the backbone.
        reading: of B prompts; may have been written from.
        options: per prompt its options' token ids, as `option_ids` gives them; none is allowed.

    Returns:
        Per prompt the options' sums of log-probabilities.

    Raises:
        CraftError: the LLM's attention takes no masks of our own making.
    """
    start = reading.logits.log_softmax(dim=-1)
    scores = [[float(start[row, ids[0]]) for ids in some] for row, some in enumerate(options)]
    fed = [[list(ids[:-1]) for ids in some] for some in options]
    width = max((sum(map(len, some)) for some in fed), default=0)
    if width == 0:
        return scores
    kind = getattr(backbone.llm.config, "_attn_implementation", "sdpa")
    if kind not in ("sdpa", "eager"):
        raise CraftError(
            f"Option scoring needs an LLM loaded with sdpa or eager attention, and this has {kind}."
        )
    count, known = reading.mask.shape
    if not takes_masks(backbone, known + max(len(part) for some in fed for part in some)):
        return _score_in_turn(backbone, reading, options, scores)
    past = int(reading.cache.get_seq_length())
    allowed = torch.zeros(count, width, past + width, dtype=torch.bool)
    allowed[:, :, :known] = reading.mask[:, None].cpu()
    allowed[:, :, past:] = torch.eye(width, dtype=torch.bool)
    ids = torch.zeros(count, width, dtype=torch.long)
    offsets = torch.zeros(count, width, dtype=torch.long)
    places: list[_Place] = []
    for row, some in enumerate(fed):
        at = 0
        for option, part in enumerate(some):
            end = at + len(part)
            ids[row, at:end] = torch.tensor(part, dtype=torch.long)
            offsets[row, at:end] = torch.arange(len(part))
            allowed[row, at:end, past + at : past + end] = torch.ones(len(part), len(part)).tril().bool()
            places += [(row, option, at + n, options[row][option][n + 1]) for n in range(len(part))]
            at = end
    embeds = backbone.llm.get_input_embeddings()(ids.to(backbone.device))  # type: ignore[operator]
    bias = torch.zeros(allowed.shape, dtype=embeds.dtype).masked_fill_(
        ~allowed, torch.finfo(embeds.dtype).min
    )
    hidden = _hidden(backbone, reading, embeds, bias[:, None].to(backbone.device), offsets)
    _add_scores(backbone, hidden, places, scores)
    return scores


_Place = tuple[int, int, int, int]  # prompt, option, position fed, token that should follow


def _score_in_turn(
    backbone: Backbone,
    reading: Reading,
    options: Sequence[Sequence[Sequence[int]]],
    scores: list[list[float]],
) -> list[list[float]]:
    """`score` by a pass for each option, for LLMs that take no mask of our own making."""
    count, known = reading.mask.shape
    for option in range(max(map(len, options))):
        fed = [list(some[option][:-1]) if option < len(some) else [] for some in options]
        width = max(map(len, fed))
        if width == 0:
            continue
        ids, real = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, width, dtype=torch.bool)
        places: list[_Place] = []
        for row, part in enumerate(fed):
            ids[row, : len(part)], real[row, : len(part)] = torch.tensor(part, dtype=torch.long), True
            places += [(row, option, n, options[row][option][n + 1]) for n in range(len(part))]
        if behind := int(reading.cache.get_seq_length()) - known:  # what was written, or the option before
            reading.cache.crop(-behind)
        embeds = backbone.llm.get_input_embeddings()(ids.to(backbone.device))  # type: ignore[operator]
        mask = torch.cat([reading.mask, real.to(reading.mask.device)], dim=1)
        hidden = _hidden(backbone, reading, embeds, mask, torch.arange(width).expand(count, width))
        _add_scores(backbone, hidden, places, scores)
    return scores


def _hidden(backbone: Backbone, reading: Reading, embeds: Tensor, mask: Tensor, offsets: Tensor) -> Tensor:
    """Last hidden states `[B, n, h]` of tokens behind the prompts."""
    base = getattr(backbone.llm, backbone.llm.base_model_prefix)  # type: ignore[arg-type]
    return base(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=reading.last + 1 + offsets.to(backbone.device),
        past_key_values=reading.cache,
        use_cache=True,
    ).last_hidden_state


def _add_scores(
    backbone: Backbone, hidden: Tensor, places: Sequence[_Place], scores: list[list[float]]
) -> None:
    """Add the log-probability of each token that should follow to its option's."""
    for block in range(0, len(places), _HEAD_BLOCK):
        some = places[block : block + _HEAD_BLOCK]
        rows, _, at, wanted = (list(column) for column in zip(*some, strict=True))
        found = backbone.lm_head(hidden[rows, at]).float().log_softmax(-1)
        values = found[range(len(some)), wanted].tolist()
        for (row, option, _, _), value in zip(some, values, strict=True):
            scores[row][option] += value


def takes_masks(backbone: Backbone, length: int) -> bool:
    """Whether the LLM reads prompts of so many tokens with padding in their middle and masks of our own
    making: not where it counts positions itself, nor where a sliding window would be switched off."""
    window = window_of(backbone.llm)
    return not backbone.own_positions and (window is None or length <= window)


def window_of(llm: Any) -> int | None:
    """How many tokens the most short-sighted layers of an LLM see (their sliding window); None: all."""
    config = llm.config
    if set(getattr(config, "layer_types", None) or ()) == {"full_attention"}:
        return None
    named = ("sliding_window", "attention_chunk_size", "window_size")  # Mistral, Gemma; Llama 4; GPT-Neo
    sizes = [getattr(config, name, None) for name in named]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def option_ids(
    backbone: Backbone, question: str, options: Sequence[str], image: bool = True, end: bool = True
) -> list[list[int]]:
    """Token ids of the answers that the options are, as the backbone would write them.

    Args:
        backbone: the backbone.
        question: what is asked.
        options: the answers.
        image: whether there is one.
        end: with the end token, so that "red" is not always likelier than "red cat"; where all options are
            one token long (letters) it is left out all the same.

    Raises:
        CraftError: the text tokenizer joins the prompt's last token with an option's first.
    """
    ends = backbone.end_ids()
    found: list[list[int]] = []
    asked = backbone.tokenized(question, None, image)
    for option in options:
        told = backbone.tokenized(question, option, image)
        before, after = (p.after if image else p.before for p in (asked, told))
        if before[-_TAIL:] != after[-_TAIL:] or not told.answer:
            raise CraftError(
                f"The text tokenizer joins the end of the prompt with the option {option!r}, so that its "
                "probability is not defined token by token; use the protocol 'generate'."
            )
        stop = next((n for n, token in enumerate(told.answer) if token in ends), len(told.answer))
        found.append(told.answer[: stop + 1])
    bare = [ids[:-1] if ids[-1] in ends else ids for ids in found]
    return found if end and any(len(ids) > 1 for ids in bare) else bare


def _logits(backbone: Backbone, inputs: dict[str, Tensor], cache: Any) -> Tensor:
    """float32 `[B, V]` behind the last token."""
    output = backbone.llm(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].float()
