"""What `craft align` trains: a backbone for a codebook, by next-token prediction on cached codes (§8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from craft.core.errors import TrainingError
from craft.core.tokens import VisionTokens
from craft.formats.code_cache import ImageCodes
from craft.lessons.packing import Row, pack, packed_size
from craft.losses import surrogate_alignment
from craft.models.backbone import Backbone
from craft.models.freezing import freeze_all_but
from craft.models.lvlm import LVLM
from craft.models.prompts import Dialogue, build_dialogue
from craft.training.config import AlignConfig
from craft.training.lesson import WHOLE, Lesson, Share
from craft.training.lora import add_lora, begin_lora

_CHARACTERS = 4  # that a token of text stands for, about


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
        """The batch of these rows, the same in every step.

        Raises:
            TrainingError: the rows are so long that no answer is left within `max_length`.
        """
        rows = [self.rows[index] for index in indices]
        tokens = None
        seeing = [row.image for row in rows if row.image is not None]
        if seeing:
            assert self.codes is not None
            tokens = self.codes.tokens(seeing)
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
