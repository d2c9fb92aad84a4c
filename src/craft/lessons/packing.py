"""Several conversations about one image in one row of the LLM, none of which attends to the others."""

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

_SEAMS = 16  # upper bound of the additional tokens where a question joins the text around it


@dataclass(frozen=True)
class PackedRow:
    """One sequence of the LLM.

    Attributes:
        image: the index of its image in the codes; None without an image.
        conversations: about that image; they do not attend to each other.
    """

    image: int | None
    conversations: tuple[Conversation, ...]

    @property
    def id(self) -> str:
        """The id of the first conversation."""
        return self.conversations[0].id


def answers_within(backbone: Backbone, max_length: int, image_tokens: int) -> Callable[[Conversation], bool]:
    """A function that returns whether the first answer of a conversation begins within `max_length` tokens.

    A conversation for which it does not has no tokens to learn.

    Args:
        backbone: for its prompt format and tokenizer.
        max_length: the largest number of tokens in a row.
        image_tokens: the number of tokens of one image.
    """

    def prompt_length(question: str, answer: str, seeing: bool) -> int:
        prompt = backbone.tokenized(question, answer, seeing)
        return len(prompt.before) + len(prompt.after) + seeing * image_tokens

    frame = [prompt_length("?", "!", seeing) + _SEAMS for seeing in (False, True)]

    def begins(conversation: Conversation) -> bool:
        (question, answer), seeing = conversation.turns[0], conversation.image is not None
        if frame[seeing] + len(question.encode("utf-8")) < max_length:  # a token has at least one byte
            return True  # saves tokenizing most rows if `max_length` is long
        return prompt_length(question, answer, seeing) < max_length

    return begins


def whole_within(
    backbone: Backbone, max_length: int, image_tokens: int
) -> Callable[[Sequence[Conversation]], bool]:
    """A function that returns whether conversations about one image (or none) fit whole into one row.

    Args:
        backbone: for its prompt format and tokenizer.
        max_length: the largest number of tokens in a row.
        image_tokens: the number of tokens of one image.
    """

    @cache
    def size(turns: tuple[tuple[str, str], ...], seeing: bool) -> tuple[int, int]:
        dialogue = build_dialogue(backbone.prompt, backbone.tokenizer, turns, seeing)
        return len(dialogue.before), len(dialogue.after)

    frame = [sum(size((("?", "!"),), seeing)) + _SEAMS for seeing in (False, True)]

    def whole(group: Sequence[Conversation]) -> bool:
        seeing = group[0].image is not None
        room = max_length - seeing * image_tokens
        turns = [turn for conversation in group for turn in conversation.turns]
        if sum(frame[seeing] + len("".join(turn).encode("utf-8")) for turn in turns) <= room:
            return True  # a token has at least one byte
        sizes = [size(conversation.turns, seeing) for conversation in group]
        return sizes[0][0] + sum(after for _, after in sizes) <= room

    return whole


def make_rows(
    conversations: Sequence[Conversation],
    images: Sequence[int | None],
    questions_per_row: int = 1,
    whole: Callable[[Sequence[Conversation]], bool] = lambda group: True,
) -> list[PackedRow]:
    """Group conversations into rows. Those about the same image, and those without an image, share rows.

    Args:
        conversations: the training data.
        images: for each conversation the index of its image in the codes, or None.
        questions_per_row: the largest number of conversations in a row.
        whole: whether conversations fit into one row without being cut off (`whole_within`).
    """
    rows: list[PackedRow] = []
    waiting: dict[int | None, list[Conversation]] = {}
    for conversation, image in zip(conversations, images, strict=True):
        group = waiting.setdefault(image, [])
        if group and not whole([*group, conversation]):
            rows.append(PackedRow(image, tuple(group)))
            group.clear()
        group.append(conversation)
        if len(group) == questions_per_row:
            rows.append(PackedRow(image, tuple(waiting.pop(image))))
    return rows + [PackedRow(image, tuple(group)) for image, group in waiting.items()]


def pack(
    backbone: Backbone, tokens: VisionTokens | None, rows: Sequence[tuple[bool, Sequence[Dialogue]]]
) -> dict[str, Tensor]:
    """`inputs_embeds`, `attention_mask`, `position_ids`, `labels` of a batch.

    If a row has several dialogues, each continues from the image as if there were no others: its positions
    start after the image, and `attention_mask` is `[B, 1, T, T]`. The mask is bool, or a summand of the
    scores if the LLM's attention is eager (as in Gemma 2). If the LLM does not accept such masks
    (`takes_masks`), each dialogue gets its own row, and B is the number of dialogues.

    Args:
        backbone: the backbone.
        tokens: the visual tokens of the rows with an image, in their order; None if no row has one.
        rows: for each row, whether it has an image, and its dialogues.
    """
    images: Iterator[Tensor] = iter(()) if tokens is None else _images(backbone, tokens)
    packed = [([next(images)] if seeing else [], dialogues) for seeing, dialogues in rows]
    if not takes_masks(backbone, _longest(packed)):
        packed = [(image, [dialogue]) for image, dialogues in packed for dialogue in dialogues]
    segments, positions, blocks, labels = [], [], [], []
    for image, dialogues in packed:
        row: list[Tensor] = [torch.tensor(dialogues[0].before, dtype=torch.long), *image]
        prefix = sum(len(piece) for piece in row)
        position, block = [torch.arange(prefix)], [torch.zeros(prefix)]
        label = [torch.full((prefix,), IGNORED)]
        for number, dialogue in enumerate(dialogues, start=1):
            ids = torch.tensor(dialogue.after, dtype=torch.long)
            row.append(ids)
            position.append(prefix + torch.arange(len(ids)))
            block.append(torch.full((len(ids),), float(number)))
            label.append(ids.where(torch.tensor(dialogue.learned), torch.tensor(IGNORED)))
        segments.append(row)
        positions.append(torch.cat(position))
        blocks.append(torch.cat(block))
        labels.append(torch.cat(label))
    inputs = backbone.splice(segments, padding="right", positions=positions)
    device = inputs["inputs_embeds"].device
    pad = torch.nn.utils.rnn.pad_sequence
    inputs["labels"] = pad(labels, batch_first=True, padding_value=IGNORED).to(device)
    if any(len(dialogues) > 1 for _, dialogues in packed):
        block = pad(blocks, batch_first=True, padding_value=-1.0)
        same = (block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0)
        mask = same.tril()[:, None].to(device)
        llm: Any = backbone.llm
        if llm.config._attn_implementation == "eager":  # it adds the mask to its scores
            dtype = inputs["inputs_embeds"].dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        inputs["attention_mask"] = mask
    return inputs


def packed_size(backbone: Backbone, image: int, dialogues: Sequence[Dialogue]) -> tuple[int, int, int]:
    """The size of what `pack` returns for dialogues about one image.

    Args:
        backbone: the backbone.
        image: the number of image tokens.
        dialogues: all about that image.

    Returns:
        The number of rows, the number of tokens in the longest, and the number of tokens with a loss.
    """
    prefix, lengths = len(dialogues[0].before) + image, [len(dialogue.after) for dialogue in dialogues]
    learned = sum(sum(dialogue.learned) for dialogue in dialogues)
    if takes_masks(backbone, prefix + max(lengths)):
        return 1, prefix + sum(lengths), learned
    return len(dialogues), prefix + max(lengths), learned


def _longest(packed: Sequence[tuple[list[Tensor], Sequence[Dialogue]]]) -> int:
    """The number of tokens of the longest dialogue, including image and prompt."""
    return max(
        len(dialogue.before) + sum(map(len, image)) + len(dialogue.after)
        for image, dialogues in packed
        for dialogue in dialogues
    )


def _images(backbone: Backbone, tokens: VisionTokens) -> Iterator[Tensor]:
    """The tokens `[n, h]` of each image as the LLM gets them, without pruned ones."""
    images = backbone.read(tokens)
    if tokens.attention_mask is None:
        return iter(images)
    mask = tokens.attention_mask.to(images.device)
    return (row[selected] for row, selected in zip(images, mask, strict=True))
