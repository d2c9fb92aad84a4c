"""What `craft align` trains: a backbone for a codebook, by next-token prediction on cached codes (§8)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import TrainingError
from craft.core.seeding import generator
from craft.core.tokens import VisionTokens
from craft.data.chats import Conversation
from craft.formats.code_cache import ImageCodes
from craft.losses import surrogate_alignment
from craft.losses.sal import IGNORED
from craft.models.backbone import Backbone
from craft.models.decoding import takes_masks
from craft.models.freezing import freeze_all_but
from craft.models.lvlm import LVLM
from craft.models.prompts import Dialogue, build_dialogue
from craft.training.config import AlignConfig
from craft.training.lesson import WHOLE, Lesson, Share
from craft.training.lora import add_lora, begin_lora

_CHARACTERS = 4  # that a token of text stands for, about
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


@dataclass(frozen=True)
class AlignBatch:
    """One (micro-)batch.

    Attributes:
        ids: the rows', for messages.
        tokens: of the rows that have an image, in their order; None where none has.
        rows: for each row whether it has an image, and its dialogues.
        share: of the whole step's batch.
    """

    ids: tuple[str, ...]
    tokens: VisionTokens | None
    rows: tuple[tuple[bool, tuple[Dialogue, ...]], ...]
    share: Share = WHOLE


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


class RowBatches:
    """Rows as batches: pure functions of the step."""

    def __init__(
        self, backbone: Backbone, rows: Sequence[Row], config: AlignConfig, codes: ImageCodes | None
    ) -> None:
        self.backbone = backbone
        self.rows = rows
        self.config = config
        self.codes = codes

    def make(self, indices: Sequence[int], step: int) -> AlignBatch:
        """The batch of these rows; `step` seeds which image tokens are left out.

        Raises:
            TrainingError: the rows are so long that no answer is left within `max_length`.
        """
        rows = [self.rows[index] for index in indices]
        tokens = None
        seeing = [row.image for row in rows if row.image is not None]
        if seeing:
            assert self.codes is not None
            tokens = self.codes.tokens(seeing)
            if self.config.keep_least < 1:
                tokens = keep_some(tokens, self.config.keep_least, self.config.seed, step, indices[0])
        count = 0 if tokens is None else tokens.codes.shape[1]
        dialogues = tuple((row.image is not None, self._dialogues(row, count)) for row in rows)
        ids = tuple(row.id for row in rows)
        if not any(any(dialogue.learned) for _, listed in dialogues for dialogue in listed):
            raise TrainingError(
                f"No answer of the rows {', '.join(ids)} lies within max_length={self.config.max_length} "
                "tokens; raise it, or leave long questions out."
            )
        return AlignBatch(ids, tokens, dialogues)

    def answer_tokens(self, batch: AlignBatch) -> int:
        """How many tokens the loss takes its mean over."""
        return sum(sum(dialogue.learned) for _, listed in batch.rows for dialogue in listed)

    def length(self, index: int) -> int:
        """Characters of the row's questions and answers, and for its image those of as many tokens."""
        row = self.rows[index]
        image = 0 if row.image is None else _CHARACTERS * self._image_tokens()
        return image + sum(len(text) for c in row.conversations for turn in c.turns for text in turn)

    def tokens(self, index: int) -> tuple[int, int, int]:
        """As `packed_size` says of the row's dialogues."""
        row = self.rows[index]
        image = 0 if row.image is None else self._image_tokens()
        return packed_size(self.backbone, image, self._dialogues(row, image))

    def _image_tokens(self) -> int:
        assert self.codes is not None
        return self.codes.codes.shape[1]

    def _dialogues(self, row: Row, image_tokens: int) -> tuple[Dialogue, ...]:
        """The row's dialogues as token ids, cut off at `max_length`."""
        room, listed = self.config.max_length, []
        for number, conversation in enumerate(row.conversations):
            backbone = self.backbone
            whole = build_dialogue(
                backbone.prompt, backbone.tokenizer, conversation.turns, row.image is not None
            )
            if number == 0:
                room -= len(whole.before) + (0 if row.image is None else image_tokens)
            elif len(whole.after) > room:
                break  # what shares a row is taken whole or not at all
            room = max(room, 0)
            listed.append(Dialogue(whole.before, whole.after[:room], whole.learned[:room]))
            room -= len(whole.after)
        return tuple(listed)


def keep_some(tokens: VisionTokens, least: float, *seeds: int) -> VisionTokens:
    """Each image keeps a random share of its tokens, between `least` and 1, by its `attention_mask`."""
    count = tokens.codes.shape[:2]
    made = generator("keep", *seeds)
    share = least + (1 - least) * torch.rand(count[0], 1, generator=made)
    lots = torch.rand(count, generator=made)
    kept = lots <= lots.sort(dim=1).values.gather(1, (share * count[1]).ceil().long().clamp(1, count[1]) - 1)
    return replace(tokens, attention_mask=kept.to(tokens.codes.device))


class AlignObjective(nn.Module):
    """Cross-entropy of the answers given images and questions, as a module so that it can be wrapped.

    Source: §8; the loss is that of Eq. 2, with the LLM as the learner.
    """

    def __init__(self, lvlm: LVLM) -> None:
        super().__init__()
        self.lvlm = lvlm

    def forward(self, batch: AlignBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over all answer tokens times the batch's share of them (a scalar with gradient), and
        the same detached by name."""
        backbone = self.lvlm.backbone
        inputs = pack(backbone, batch.tokens, batch.rows)
        hidden = backbone.hidden_states(inputs)
        mean = surrogate_alignment(hidden, backbone.lm_head, inputs["labels"])
        loss = batch.share.answers * mean
        if batch.tokens is None:  # every parameter that trains takes part in every step
            loss = loss + 0 * backbone.project(self.lvlm.visual.codebook.codewords[0, :1]).sum()
        return loss, {"loss": loss.detach()}


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


def alignment(
    lvlm: LVLM,
    rows: Sequence[Row],
    config: AlignConfig,
    stage: int,
    codes: ImageCodes | None,
    factors: Mapping[str, Tensor] | None = None,
) -> Lesson:
    """The projector (stage 1), or projector and LLM (stage 2), learn from `rows`; the rest is frozen.

    Args:
        lvlm: visual tokenizer and backbone, on their device.
        rows: the training set (`make_rows`).
        config: all settings.
        stage: 1 or 2.
        codes: of the rows' images; None where no row has one.
        factors: of an earlier result, for LoRA to go on from (`craft.training.lora.check_factors`).

    Raises:
        ConfigError: LoRA is wanted and cannot be had.

    Source: §8.
    """
    backbone = lvlm.backbone
    llm: Any = backbone.llm
    lora = stage == 2 and config.lora.rank > 0
    freeze_all_but(lvlm, ["projector"] if stage == 1 or lora else ["projector", "llm"])
    if lora:
        add_lora(llm, config.lora)  # its parameters train, and the LLM's own do not
        for name, parameter in llm.named_parameters():
            parameter.requires_grad_("lora_" in name)
    trained = {name: parameter for name, parameter in lvlm.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    if lora and factors:
        begin_lora(llm, factors)
    return Lesson(
        objective=AlignObjective(lvlm),
        trained=trained,
        batches=RowBatches(backbone, rows, config, codes),
        parts=("projector",) if stage == 1 else ("projector", "llm"),
        verb=f"aligning, stage {stage}",
    )
