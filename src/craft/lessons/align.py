"""The lesson of `craft align`: a backbone learns to read a codebook by next-token prediction (§8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from craft.core.errors import TrainingError
from craft.core.tokens import VisionTokens
from craft.formats.code_cache import ImageCodes
from craft.lessons.packing import PackedRow, pack, packed_size
from craft.losses import surrogate_alignment
from craft.models.backbone import Backbone
from craft.models.context import context_of
from craft.models.freezing import freeze_all_but
from craft.models.lvlm import LVLM
from craft.models.prompts import Dialogue, build_dialogue
from craft.training.config import AlignConfig
from craft.training.lesson import WHOLE, Lesson, Objective, Share
from craft.training.lora import add_lora, begin_lora

_CHARACTERS = 4  # per token of text, approximately


@dataclass(frozen=True)
class AlignBatch:
    """One (micro-)batch.

    Attributes:
        ids: the ids of the rows, for messages.
        tokens: the visual tokens of the rows with an image, in their order; None if no row has one.
        rows: for each row, whether it has an image, and its dialogues.
        share: the share of the step's whole batch.
    """

    ids: tuple[str, ...]
    tokens: VisionTokens | None
    rows: tuple[tuple[bool, tuple[Dialogue, ...]], ...]
    share: Share = WHOLE


class RowBatches:
    """The training set as batches of rows.

    Args:
        backbone: the backbone that trains.
        rows: the training set.
        config: all settings.
        codes: the codes of the images; None if no row has an image.
    """

    def __init__(
        self, backbone: Backbone, rows: Sequence[PackedRow], config: AlignConfig, codes: ImageCodes | None
    ) -> None:
        self.backbone = backbone
        self.rows = rows
        self.config = config
        self.codes = codes

    def make(self, indices: Sequence[int], step: int) -> AlignBatch:
        """The batch of these rows, the same in every step.

        Raises:
            TrainingError: no answer of the rows is within `max_length`.
        """
        rows = [self.rows[index] for index in indices]
        tokens = None
        images = [row.image for row in rows if row.image is not None]
        if images:
            assert self.codes is not None
            tokens = self.codes.tokens(images)
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
        """The number of tokens over which the loss is averaged."""
        return sum(sum(dialogue.learned) for _, listed in batch.rows for dialogue in listed)

    def length(self, index: int) -> int:
        """The number of characters in questions and answers, plus `_CHARACTERS` for each image token."""
        row = self.rows[index]
        image = 0 if row.image is None else _CHARACTERS * self._image_tokens()
        return image + sum(len(text) for c in row.conversations for turn in c.turns for text in turn)

    def tokens(self, index: int) -> tuple[int, int, int]:
        """The result of `packed_size` for the row's dialogues."""
        row = self.rows[index]
        image = 0 if row.image is None else self._image_tokens()
        return packed_size(self.backbone, image, self._dialogues(row, image))

    def _image_tokens(self) -> int:
        assert self.codes is not None
        return self.codes.codes.shape[1]

    def _dialogues(self, row: PackedRow, image_tokens: int) -> tuple[Dialogue, ...]:
        """The row's dialogues as token ids: at most `max_length` in all, each within the LLM's context."""
        room, listed = self.config.max_length, []
        context = context_of(self.backbone.llm) or room
        for number, conversation in enumerate(row.conversations):
            backbone = self.backbone
            dialogue = build_dialogue(
                backbone.prompt, backbone.tokenizer, conversation.turns, row.image is not None
            )
            prefix = len(dialogue.before) + (0 if row.image is None else image_tokens)
            if number == 0:
                room -= prefix
            elif len(dialogue.after) > room:
                break  # only the first conversation of a row may be cut off
            room = max(room, 0)
            end = max(min(room, context - prefix), 0)
            listed.append(Dialogue(dialogue.before, dialogue.after[:end], dialogue.learned[:end]))
            room -= len(dialogue.after)
        return tuple(listed)


class AlignObjective(Objective):
    """Cross-entropy of the answers given images and questions, as a module that data parallelism can wrap.

    Source: §8. The loss is that of Eq. 2, but here projector and LLM learn.
    """

    def __init__(self, lvlm: LVLM) -> None:
        super().__init__()
        self.lvlm = lvlm

    def forward(self, batch: AlignBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with gradient), and the same value detached, by name.

        The loss is the mean over answer tokens, times the batch's share of those of the step.
        """
        backbone = self.lvlm.backbone
        inputs = pack(backbone, batch.tokens, batch.rows)
        hidden = backbone.hidden_states(inputs)
        mean = surrogate_alignment(hidden, backbone.lm_head, inputs["labels"])
        loss = batch.share.answers * mean
        if batch.tokens is None:  # so that the projector has a gradient in every step
            assert backbone.projector is not None
            weight = next(backbone.projector.parameters())
            loss = loss + 0 * backbone.projector(weight.new_zeros(1, 1, self.lvlm.visual.codebook.dim)).sum()
        return loss, {"loss": loss.detach()}


def alignment(
    lvlm: LVLM,
    rows: Sequence[PackedRow],
    config: AlignConfig,
    stage: int,
    codes: ImageCodes | None,
    factors: Mapping[str, Tensor] | None = None,
) -> Lesson:
    """The lesson in which the projector (stage 1), or projector and LLM (stage 2), learn from `rows`.

    Args:
        lvlm: visual tokenizer and backbone, on their device.
        rows: the training set (`make_rows`).
        config: all settings.
        stage: 1 or 2.
        codes: the codes of the images; None if no row has an image.
        factors: LoRA of an earlier result, from which LoRA continues (`craft.training.lora.check_factors`).

    Raises:
        ConfigError: the settings ask for LoRA, and peft is not installed or no linear map has such a name.

    Source: §8.
    """
    backbone = lvlm.backbone
    llm = backbone.llm
    lora = stage == 2 and config.lora.rank > 0
    freeze_all_but(lvlm, ["projector"] if stage == 1 or lora else ["projector", "llm"])
    if lora:
        add_lora(llm, config.lora)
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
