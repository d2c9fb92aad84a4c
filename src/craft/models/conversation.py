"""Conversations with several turns and images -> token ids around the images.

One turn with one image gives the prompt of `craft.models.prompts.build_prompt`, so that every way to ask
gives the same answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from craft.core.errors import CraftError
from craft.models import prompts

Role = Literal["system", "user", "assistant"]

Piece: TypeAlias = list[int]
"""Token ids of text between two images."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: who speaks.
        text: what is said, without image marks.
        images: the number of images in front of the text; only the user shows images.
    """

    role: Role
    text: str
    images: int = 0


def build_conversation(name: str, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[Piece]:
    """Fill in the prompt format `name` with a conversation that ends with the user's turn.

    Args:
        name: a key of `craft.models.prompts.FORMATS`.
        turns: an optional system turn, then user and assistant in turns.

    Returns:
        One piece more than the conversation has images: image i stands between pieces i and i + 1.

    Raises:
        CraftError: roles do not alternate, or the format has no form for the conversation (several images, an
            image in a later turn, a system turn); the message names what it lacks.
        ConfigError: the format does not fit the tokenizer.
    """
    _check(turns)
    pieces = _FORMATS[name](tokenizer, turns)
    wanted = 1 + sum(turn.images for turn in turns)
    if len(pieces) != wanted:  # a template that drops or repeats a turn
        raise CraftError(
            f"The prompt format {name!r} of this LLM renders {len(pieces) - 1} of {wanted - 1} images; ask "
            "with one turn and one image."
        )
    return pieces


def _check(turns: Sequence[Turn]) -> None:
    spoken = [turn for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise CraftError("Only the first message can have the role 'system'.")
    expected = ["user", "assistant"] * len(spoken)
    if not spoken or len(spoken) % 2 == 0 or [t.role for t in spoken] != expected[: len(spoken)]:
        raise CraftError(
            "A conversation has the roles user and assistant in turns and ends with the user; got "
            f"{', '.join(turn.role for turn in turns) or 'no message'}."
        )
    if any(turn.images for turn in turns if turn.role != "user"):
        raise CraftError("Only messages of the user can have images.")


def _plain(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[Piece]:
    """craft-tiny's: BOS, image, `User: QUESTION\\nAssistant:`, ` ANSWER`, EOS, and the next turn."""
    if turns[0].role == "system":
        raise CraftError("The prompt format 'plain' of this LLM has no system message; leave it out.")
    images = [turn.images for turn in turns]
    if images[0] > 1 or any(images[1:]):
        raise CraftError(
            "The prompt format 'plain' of this LLM has one image, before the first question; got "
            f"{sum(images)} image(s)."
        )
    first = prompts.plain(tokenizer, turns[0].text, image=bool(images[0]))
    pieces = [list(first.before), list(first.after)] if images[0] else [list(first.before)]
    for number in range(2, len(turns), 2):
        answered = prompts.plain(tokenizer, turns[number - 2].text, turns[number - 1].text)
        pieces[-1] += answered.answer + prompts.plain(tokenizer, turns[number].text).after
    return pieces


def _vila_u(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[Piece]:
    """VILA-U's vicuna conversation; a system turn replaces vicuna's. Each text between images is tokenised
    separately, as in the reference."""
    system = turns[0].text if turns[0].role == "system" else prompts.VICUNA_SYSTEM
    text = f"{system} "
    for turn in turns:
        if turn.role == "user":
            text += f"USER: {_with_slots(turn)} ASSISTANT:"
        elif turn.role == "assistant":
            text += f" {turn.text}{tokenizer.eos_token or ''}"
    parts = text.split(prompts.IMAGE_SLOT)
    return [prompts.piece_ids(tokenizer, part, bos=index == 0) for index, part in enumerate(parts)]


def _chat_template(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[Piece]:
    """The text tokenizer's own chat template, with each image in front of its turn's text."""
    messages = [{"role": turn.role, "content": _with_slots(turn)} for turn in turns]
    text = prompts.filled_template(tokenizer, messages, add_generation_prompt=True, enable_thinking=False)
    return [prompts.bare_ids(tokenizer, part) for part in text.split(prompts.IMAGE_SLOT)]


def _tar(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[Piece]:
    """Tar's ChatML, with its system line unless the conversation has one."""
    system = () if turns[0].role == "system" else (Turn("system", prompts.TAR_SYSTEM),)
    text = "".join(f"<|im_start|>{turn.role}\n{_with_slots(turn)}<|im_end|>\n" for turn in (*system, *turns))
    parts = f"{text}<|im_start|>assistant\n".split(prompts.IMAGE_SLOT)
    return [prompts.bare_ids(tokenizer, part) for part in parts]


def _one_turn(name: str) -> Callable[[PreTrainedTokenizerBase, Sequence[Turn]], list[Piece]]:
    """Formats of checkpoints that were made for one image and one question."""

    def pieces(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[Piece]:
        if len(turns) == 1 and turns[0].images <= 1:
            prompt = prompts.build_prompt(name, tokenizer, turns[0].text, image=bool(turns[0].images))
            return [prompt.before, prompt.after] if turns[0].images else [prompt.before]
        raise CraftError(f"The prompt format {name!r} is used with one turn and at most one image here.")

    return pieces


def _with_slots(turn: Turn) -> str:
    """The turn's text after one slot and line break per image; a slot in the text itself is dropped."""
    return f"{prompts.IMAGE_SLOT}\n" * turn.images + turn.text.replace(prompts.IMAGE_SLOT, "")


_FORMATS: dict[str, Callable[[PreTrainedTokenizerBase, Sequence[Turn]], list[Piece]]] = {
    "plain": _plain,
    "vila-u": _vila_u,
    "chat-template": _chat_template,
    "llava": _one_turn("llava"),
    "tar": _tar,
    "chameleon": _one_turn("chameleon"),
}
