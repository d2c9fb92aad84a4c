"""Several conversations about one image in one row of the LLM, each blind to the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from craft.core.tokens import VisionTokens
from craft.data.chats import Conversation
from craft.losses.sal import IGNORED
from craft.models.backbone import Backbone
from craft.models.decoding import takes_masks
from craft.models.prompts import Dialogue, build_dialogue

_SEAMS = 16  # more tokens than may come of how a question joins what stands around it


@dataclass(frozen=True)
class Row:
    """One sequence: an image (its index in the codes) or none; conversations that do not see each other."""

    image: int | None
    conversations: tuple[Conversation, ...]

    @property
    def id(self) -> str:
        """The first conversation's."""
        return self.conversations[0].id


def answers_within(backbone: Backbone, max_length: int, image_tokens: int) -> Callable[[Conversation], bool]:
    """A function that says of a conversation whether its first answer begins within `max_length` tokens; if
    not, it is cut off before anything that is learned.

    Args:
        backbone: settles the prompt format.
        max_length: of a row.
        image_tokens: of one image.
    """

    def asked(question: str, answer: str, seeing: bool) -> int:
        prompt = backbone.tokenized(question, answer, seeing)
        return len(prompt.before) + len(prompt.after) + seeing * image_tokens

    frame = [asked("?", "!", seeing) + _SEAMS for seeing in (False, True)]

    def begins(conversation: Conversation) -> bool:
        (question, answer), seeing = conversation.turns[0], conversation.image is not None
        if frame[seeing] + len(question.encode("utf-8")) < max_length:  # a token has a byte at least
            return True  # most rows of a long `max_length`, without a look at their tokens
        return asked(question, answer, seeing) < max_length

    return begins


def whole_within(
    backbone: Backbone, max_length: int, image_tokens: int
) -> Callable[[Sequence[Conversation]], bool]:
    """A function that says of conversations about one image, or about none, whether all are whole in one row
    of `max_length` tokens.

    Args:
        backbone: settles the prompt format.
        max_length: of a row.
        image_tokens: of one image.
    """

    @cache
    def size(turns: tuple[tuple[str, str], ...], seeing: bool) -> tuple[int, int]:
        made = build_dialogue(backbone.prompt, backbone.tokenizer, turns, seeing)
        return len(made.before), len(made.after)

    frame = [sum(size((("?", "!"),), seeing)) + _SEAMS for seeing in (False, True)]

    def whole(group: Sequence[Conversation]) -> bool:
        seeing = group[0].image is not None
        room = max_length - seeing * image_tokens
        turns = [turn for conversation in group for turn in conversation.turns]
        if sum(frame[seeing] + len("".join(turn).encode("utf-8")) for turn in turns) <= room:
            return True  # a token has a byte at least
        sizes = [size(conversation.turns, seeing) for conversation in group]
        return sizes[0][0] + sum(after for _, after in sizes) <= room

    return whole


def make_rows(
    conversations: Sequence[Conversation],
    images: Sequence[int | None],
    questions_per_row: int = 1,
    whole: Callable[[Sequence[Conversation]], bool] = lambda group: True,
) -> list[Row]:
    """Conversations as rows; those about one image, and those without any, share rows, at most
    `questions_per_row` in each.

    Args:
        conversations: what is trained on.
        images: for each conversation its image's index in the codes, or None.
        questions_per_row: most conversations in a row.
        whole: whether conversations may share a row: what does not fit would be cut off (`whole_within`).
    """
    rows: list[Row] = []
    waiting: dict[int | None, list[Conversation]] = {}
    for conversation, image in zip(conversations, images, strict=True):
        group = waiting.setdefault(image, [])
        if group and not whole([*group, conversation]):
            rows.append(Row(image, tuple(group)))
            group.clear()
        group.append(conversation)
        if len(group) == questions_per_row:
            rows.append(Row(image, tuple(waiting.pop(image))))
    return rows + [Row(image, tuple(group)) for image, group in waiting.items()]


def pack(
    backbone: Backbone, tokens: VisionTokens | None, rows: Sequence[tuple[bool, Sequence[Dialogue]]]
) -> dict[str, Tensor]:
    """`inputs_embeds`, `attention_mask`, `position_ids`, `labels` of a batch.

    Where rows hold several dialogues, each continues from the image as if it were alone: its positions start
    behind the image, and `attention_mask` is `[B, 1, T, T]`: bool, or where the LLM's attention is eager (as
    Gemma 2's is) what is added to its scores. Where the LLM takes no mask of our own making (`takes_masks`),
    each gets a row of its own, and B is their number.

    Args:
        backbone: the backbone.
        tokens: of the rows that have an image, in their order; None where none has.
        rows: for each row whether it has an image, and its dialogues.
    """
    images: Iterator[Tensor] = iter(()) if tokens is None else _images(backbone, tokens)
    told = [([next(images)] if seeing else [], dialogues) for seeing, dialogues in rows]
    if not takes_masks(backbone, _longest(told)):
        told = [(image, [dialogue]) for image, dialogues in told for dialogue in dialogues]
    segments, positions, blocks, labels = [], [], [], []
    for image, dialogues in told:
        row: list[Tensor] = [torch.tensor(dialogues[0].before, dtype=torch.long), *image]
        prefix = sum(len(piece) for piece in row)
        place, block, label = [torch.arange(prefix)], [torch.zeros(prefix)], [torch.full((prefix,), IGNORED)]
        for number, dialogue in enumerate(dialogues, start=1):
            ids = torch.tensor(dialogue.after, dtype=torch.long)
            row.append(ids)
            place.append(prefix + torch.arange(len(ids)))
            block.append(torch.full((len(ids),), float(number)))
            label.append(ids.where(torch.tensor(dialogue.learned), torch.tensor(IGNORED)))
        segments.append(row)
        positions.append(torch.cat(place))
        blocks.append(torch.cat(block))
        labels.append(torch.cat(label))
    inputs = backbone.splice(segments, padding="right", positions=positions)
    device = inputs["inputs_embeds"].device
    pad = torch.nn.utils.rnn.pad_sequence
    inputs["labels"] = pad(labels, batch_first=True, padding_value=IGNORED).to(device)
    if any(len(dialogues) > 1 for _, dialogues in told):
        block = pad(blocks, batch_first=True, padding_value=-1.0)
        same = (block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0)
        mask = same.tril()[:, None].to(device)
        llm: Any = backbone.llm
        if llm.config._attn_implementation == "eager":  # which adds masks of our own making to its scores
            dtype = inputs["inputs_embeds"].dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        inputs["attention_mask"] = mask
    return inputs


def packed_size(backbone: Backbone, image: int, dialogues: Sequence[Dialogue]) -> tuple[int, int, int]:
    """What `pack` makes of dialogues about one image of so many tokens: how many rows, how many tokens the
    longest of them has, and how many tokens are learned in all."""
    prefix, lengths = len(dialogues[0].before) + image, [len(dialogue.after) for dialogue in dialogues]
    learned = sum(sum(dialogue.learned) for dialogue in dialogues)
    if takes_masks(backbone, prefix + max(lengths)):
        return 1, prefix + sum(lengths), learned
    return len(dialogues), prefix + max(lengths), learned


def _longest(told: Sequence[tuple[list[Tensor], Sequence[Dialogue]]]) -> int:
    """Tokens of the longest dialogue, with what stands before it."""
    return max(
        len(dialogue.before) + sum(map(len, image)) + len(dialogue.after)
        for image, dialogues in told
        for dialogue in dialogues
    )


def _images(backbone: Backbone, tokens: VisionTokens) -> Any:
    """Per image its projected tokens `[n, h]`, those that are kept."""
    projected = backbone.project(tokens.quantized.to(backbone.device))
    if tokens.attention_mask is None:
        return iter(projected)
    mask = tokens.attention_mask.to(projected.device)
    return (row[kept] for row, kept in zip(projected, mask, strict=True))
