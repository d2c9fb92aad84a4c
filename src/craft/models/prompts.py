"""Prompt formats: a question (and answer) -> the token ids around one image.

A backbone is used with the format it was trained with. A format is a plain function in `FORMATS`, and
`build_prompt` selects it by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from craft.core.errors import ConfigError

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TAR_SYSTEM = "You are a helpful assistant."
_TAR_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
_LLAVA_IMAGE = "<image>"
CHAMELEON_TOKENS = ("<racm3:break>", "<image>", "<eoss>")
"""The tokens before, at and after an image in Chameleon's text. Source: its processor in transformers."""
IMAGE_SLOT = "\ue000"  # a private-use character that marks the image while a chat template is filled in
_NO_THINKING = {"enable_thinking": False}  # for LLMs that may think first (Qwen3): answers have 5 tokens
# Templates that write today's date into the prompt (Llama 3.2, SmolLM3) get a fixed one, Llama's default. So
# a run that is resumed or evaluated later has the same prompts as in training.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    "|replace('%d', '26')|replace('%b', 'Jul')|replace('%B', 'July')|replace('%m', '07')"
    "|replace('%Y', '2024')|replace('%A', 'Friday')|replace('%H:%M:%S', '00:00:00')"
    " }}{%- endmacro %}\n"
)


@dataclass(frozen=True)
class Prompt:
    """Token ids around one image.

    Attributes:
        before: ids before the image (for a text-only prompt: the whole prompt).
        after: ids after it, up to the beginning of the answer.
        answer: ids of the answer and its end token; empty without an answer.
    """

    before: list[int]
    after: list[int]
    answer: list[int]


def piece_ids(tokenizer: PreTrainedTokenizerBase, text: str, bos: bool) -> list[int]:
    """Ids of a piece of text, with the tokenizer's BOS only if `bos`.

    SentencePiece puts a space before every text; transformers' fast Llama tokenizer omits it if the text
    starts with one. One more space gives the ids of SentencePiece.
    """
    if (
        text.startswith(" ")
        and getattr(tokenizer, "add_prefix_space", False)
        and _is_sentencepiece(tokenizer)
    ):
        text = " " + text
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    start = _special_id(tokenizer, "bos")
    if not bos and start is not None and ids[:1] == [start]:
        ids = ids[1:]
    return ids


def bare_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a piece of text without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _special_id(tokenizer: PreTrainedTokenizerBase, name: Literal["bos", "eos"]) -> int | None:
    """The id of the beginning or end token, or None; transformers declares a wider type."""
    return cast("int | None", getattr(tokenizer, f"{name}_token_id"))


def _is_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.convert_tokens_to_ids("<0x0A>") != tokenizer.unk_token_id


def _split_answer(full: list[int], question: list[int]) -> tuple[list[int], list[int]]:
    """Split `full` after `question`; earlier if the question's last token merged with the answer."""
    end = 0
    while end < min(len(full), len(question)) and full[end] == question[end]:
        end += 1
    return full[:end], full[end:]


def _ends(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token can end an answer: the tokenizer's end token, or a special token of the template, such
    as the end of a turn in Gemma and Phi."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or bool(added is not None and added.special)


def _ended(tokenizer: PreTrainedTokenizerBase, tail: list[int]) -> list[int]:
    """An answer with an end token. If the template writes one, no other is added: the LLM would never have
    seen another one after it."""
    end = _special_id(tokenizer, "eos")
    return tail if end is None or (tail and _ends(tokenizer, tail[-1])) else [*tail, end]


def vila_u(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None, image: bool = True
) -> Prompt:
    """VILA-U's conversation (vicuna v1): `SYSTEM USER: <image>\\nQUESTION ASSISTANT: ANSWER</s>`.

    As in the reference, the image is wrapped in `<im_start>`/`<im_end>` if an answer follows (training) and
    not at inference. Each piece of text around the image is tokenised separately.
    """
    opening, request = f"{VICUNA_SYSTEM} USER: ", f"{question} ASSISTANT:"
    ending = "" if answer is None else f" {answer}{tokenizer.eos_token or ''}"
    if not image:
        text = opening + request
        prompt, tail = _split_answer(
            piece_ids(tokenizer, text + ending, True), piece_ids(tokenizer, text, True)
        )
        return Prompt(prompt, [], tail)
    request = "\n" + request
    added: dict[str, int] = cast(Any, tokenizer).get_added_vocab()  # the base class does not declare it
    if answer is not None and "<im_start>" in added and "<im_end>" in added:
        opening, request = opening + "<im_start>", "<im_end>" + request
    after, tail = _split_answer(
        piece_ids(tokenizer, request + ending, False), piece_ids(tokenizer, request, False)
    )
    return Prompt(piece_ids(tokenizer, opening, True), after, tail)


def filled_template(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], **more: Any) -> str:
    """The tokenizer's chat template filled in with turns; the text does not depend on the date."""
    if "strftime_now" in str(tokenizer.chat_template):
        more["chat_template"] = _FIXED_DATE + tokenizer.get_chat_template()
    return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **more))


def chat_template(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None, image: bool = True
) -> Prompt:
    """The text tokenizer's own chat template, with the image at the start of the user's turn.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "The prompt format 'chat-template' needs a text tokenizer with a chat template, and this one has "
            "none; use an instruction-tuned LLM, or the prompt format 'plain'."
        )
    question = question.replace(IMAGE_SLOT, "")
    turns = [{"role": "user", "content": f"{IMAGE_SLOT}\n{question}" if image else question}]
    text = filled_template(tokenizer, turns, add_generation_prompt=True, **_NO_THINKING)
    before, _, after = text.partition(IMAGE_SLOT) if image else (text, "", "")

    tail: list[int] = []
    if answer is not None:
        whole = filled_template(tokenizer, [*turns, {"role": "assistant", "content": answer}], **_NO_THINKING)
        ending = whole[len(text) :] if whole.startswith(text) else answer
        tail = _ended(tokenizer, bare_ids(tokenizer, ending.rstrip("\n")))
    return Prompt(bare_ids(tokenizer, before), bare_ids(tokenizer, after), tail)


def plain(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None, image: bool = True
) -> Prompt:
    """craft-tiny's format: BOS, image, `User: QUESTION\\nAssistant:`, ` ANSWER`, EOS. Source: ours."""
    start, stop = _special_id(tokenizer, "bos"), _special_id(tokenizer, "eos")
    before = [] if start is None else [start]
    after = bare_ids(tokenizer, f"User: {question}\nAssistant:")
    end = [] if stop is None else [stop]
    tail = [] if answer is None else bare_ids(tokenizer, f" {answer}") + end
    return Prompt(before, after, tail) if image else Prompt(before + after, [], tail)


def llava(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None, image: bool = True
) -> Prompt:
    """LLaVA's: the checkpoint's chat template, in which `<image>` marks the visual tokens.

    Without a template it is LLaVA-1.5's: `USER: <image>\nQUESTION ASSISTANT:`, ` ANSWER</s>`. The text is
    tokenised as a whole, as in transformers' processor.
    """
    question = question.replace(_LLAVA_IMAGE, "")
    parts = [{"type": "image"}] * image + [{"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    text = f"USER: {f'{_LLAVA_IMAGE}{chr(10)}' if image else ''}{question} ASSISTANT:"
    whole = f"{text} {answer}"
    if getattr(tokenizer, "chat_template", None):
        text = filled_template(tokenizer, turns, add_generation_prompt=True)
        turns += [{"role": "assistant", "content": [{"type": "text", "text": answer or ""}]}]
        whole = filled_template(tokenizer, turns).rstrip()

    def ids(piece: str) -> list[int]:  # BOS only if the template does not write it
        first = not (tokenizer.bos_token and piece.startswith(str(tokenizer.bos_token)))
        return list(tokenizer(piece, add_special_tokens=first)["input_ids"])

    before, tail = ids(text), list[int]()
    if answer is not None:
        full = ids(whole)
        if not _ends(tokenizer, full[-1]):
            full = ids(whole + str(tokenizer.eos_token or ""))
        before, tail = _split_answer(full, before)
    if not image:
        return Prompt(before, [], tail)
    mark = tokenizer.get_vocab().get(_LLAVA_IMAGE)
    if mark is None:  # not a LLaVA checkpoint's tokenizer: each side of the mark is tokenised separately
        front, _, back = text.partition(_LLAVA_IMAGE)
        return Prompt(ids(front), bare_ids(tokenizer, back), tail)
    index = before.index(mark)
    return Prompt(before[:index], before[index + 1 :], tail)


def tar(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None, image: bool = True
) -> Prompt:
    """Tar's: ChatML with a system line that Tar always writes; the image and a line break begin the turn.

    Codes have no tokens around them when the LLM reads an image, at any scale.
    """
    opening, request = f"{_chatml('system', TAR_SYSTEM)}<|im_start|>user\n", f"{question}{_TAR_ANSWER}"
    tail = [] if answer is None else bare_ids(tokenizer, f"{answer}<|im_end|>")
    if image:
        return Prompt(bare_ids(tokenizer, opening), bare_ids(tokenizer, f"\n{request}"), tail)
    return Prompt(bare_ids(tokenizer, opening + request), [], tail)


def _chatml(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def chameleon(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None, image: bool = True
) -> Prompt:
    """Chameleon's: BOS, the image in its two marks, `QUESTION<sep>ANSWER</s>`, tokenised as a whole.

    Source: transformers' `ChameleonProcessor`, with the image before the question, as in its examples.
    """
    start, mark, end = CHAMELEON_TOKENS
    text = f"{question.replace(mark, '')}{tokenizer.sep_token or ''}"
    text = f"{start}{mark}{end}{text}" if image else text
    before, tail = list(tokenizer(text)["input_ids"]), list[int]()
    if answer is not None:
        before, tail = _split_answer(list(tokenizer(text + answer)["input_ids"]), before)
        tail = _ended(tokenizer, tail)
    if not image:
        return Prompt(before, [], tail)
    token = tokenizer.get_vocab().get(mark)
    if token is None:  # not a Chameleon checkpoint's tokenizer: each side of the mark is tokenised separately
        front, _, back = text.partition(mark)
        return Prompt(piece_ids(tokenizer, front, True), bare_ids(tokenizer, back), tail)
    index = before.index(token)
    return Prompt(before[:index], before[index + 1 :], tail)


FORMATS: dict[str, Callable[..., Prompt]] = {
    "vila-u": vila_u,
    "chat-template": chat_template,
    "plain": plain,
    "llava": llava,
    "tar": tar,
    "chameleon": chameleon,
}


def build_prompt(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str | None = None,
    image: bool = True,
) -> Prompt:
    """Fill in the prompt format `name`.

    Args:
        name: a key of `FORMATS`.
        question: the user's text, without an image mark.
        answer: the text to be learned, or None at inference.
        image: False for a text-only prompt, which is entirely in `before`.

    Raises:
        ConfigError: the format is unknown, or does not fit the tokenizer.
    """
    if name not in FORMATS:
        raise ConfigError(f"The prompt format {name!r} is unknown; use one of {', '.join(FORMATS)}.")
    return FORMATS[name](tokenizer, question, answer, image)


def end_of_answer(name: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends every answer in the prompt format `name`, or None.

    Raises:
        ConfigError: as `build_prompt`.
    """
    last = build_prompt(name, tokenizer, "?", "yes").answer[-1]
    return last if _ends(tokenizer, last) else None


@dataclass(frozen=True)
class Dialogue:
    """Token ids of a whole conversation around one image.

    Attributes:
        before: ids before the image (empty for text alone).
        after: ids after it, up to the end of the last answer.
        learned: for each id of `after`, whether it belongs to an answer.
    """

    before: list[int]
    after: list[int]
    learned: list[bool]


def one_turn(prompt: Prompt) -> Dialogue:
    """A prompt with an image and an answer, as a dialogue of one turn."""
    learned = [False] * len(prompt.after) + [True] * len(prompt.answer)
    return Dialogue(prompt.before, prompt.after + prompt.answer, learned)


def build_dialogue(
    name: str, tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], image: bool = True
) -> Dialogue:
    """Several questions and answers in the prompt format `name`; the first turn is that of `build_prompt`.

    Args:
        name: a key of `FORMATS`.
        turns: (question, answer) pairs, at least one.
        image: whether the first question is about an image.

    Raises:
        ConfigError: the format is unknown or does not fit the tokenizer, or its chat template rewrites
            earlier turns.
    """
    first = build_prompt(name, tokenizer, *turns[0], image)
    before, request = (first.before, first.after) if image else ([], first.before + first.after)
    pieces = [(request, False), (first.answer, True)]
    for number in range(1, len(turns)):
        request, answer = _NEXT[name](tokenizer, turns[:number], *turns[number])
        pieces += [(request, False), (answer, True)]
    after = [token for ids, _ in pieces for token in ids]
    return Dialogue(before, after, [learned for ids, learned in pieces for _ in ids])


def _next_vila_u(
    tokenizer: PreTrainedTokenizerBase, _: Sequence[tuple[str, str]], question: str, answer: str
) -> tuple[list[int], list[int]]:
    request = f"USER: {question} ASSISTANT:"
    whole = piece_ids(tokenizer, f"{request} {answer}{tokenizer.eos_token or ''}", False)
    return _split_answer(whole, piece_ids(tokenizer, request, False))


def _next_plain(
    tokenizer: PreTrainedTokenizerBase, _: Sequence[tuple[str, str]], question: str, answer: str
) -> tuple[list[int], list[int]]:
    prompt = plain(tokenizer, question, answer)
    return prompt.after, prompt.answer


def _next_chat(
    tokenizer: PreTrainedTokenizerBase, earlier: Sequence[tuple[str, str]], question: str, answer: str
) -> tuple[list[int], list[int]]:
    """What the template adds for one more turn: the difference of two renderings, with and without it."""

    def messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": r, "content": c} for turn in turns for r, c in zip(roles, turn, strict=True)]

    def render(listed: list[dict[str, str]], **more: bool) -> str:
        return filled_template(tokenizer, listed, **_NO_THINKING, **more)

    past = messages(earlier)
    old = render(past).rstrip("\n")
    prompt = render([*past, {"role": "user", "content": question}], add_generation_prompt=True)
    whole = render(messages([*earlier, (question, answer)])).rstrip("\n")
    if not (prompt.startswith(old) and whole.startswith(prompt)):
        raise ConfigError(
            "This LLM's chat template renders earlier turns differently from the last one, so CRAFT cannot "
            "train on a conversation of several turns in one sequence; give one turn per conversation, or "
            "use the prompt format 'plain' (--set prompt=plain)."
        )
    request, tail = prompt[len(old) :], whole[len(prompt) :]
    return bare_ids(tokenizer, request), _ended(tokenizer, bare_ids(tokenizer, tail))


def _next_llava(
    tokenizer: PreTrainedTokenizerBase, _: Sequence[tuple[str, str]], question: str, answer: str
) -> tuple[list[int], list[int]]:
    if getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "The prompt format 'llava' with a chat template has only one turn; give one per conversation."
        )
    return _next_vila_u(tokenizer, _, question, answer)  # LLaVA-1.5 and VILA-U share vicuna's format


def _next_tar(
    tokenizer: PreTrainedTokenizerBase, _: Sequence[tuple[str, str]], question: str, answer: str
) -> tuple[list[int], list[int]]:
    request = f"\n<|im_start|>user\n{question}{_TAR_ANSWER}"
    return bare_ids(tokenizer, request), bare_ids(tokenizer, f"{answer}<|im_end|>")


def _next_chameleon(
    tokenizer: PreTrainedTokenizerBase, _: Sequence[tuple[str, str]], question: str, answer: str
) -> tuple[list[int], list[int]]:
    raise ConfigError(
        "The prompt format 'chameleon' has only one turn, because its authors' processor writes no other; "
        "give one per conversation."
    )


_NEXT = {
    "vila-u": _next_vila_u,
    "chat-template": _next_chat,
    "plain": _next_plain,
    "llava": _next_llava,
    "tar": _next_tar,
    "chameleon": _next_chameleon,
}


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Token ids -> text without special tokens, stripped.

    Runs of byte tokens (`<0x25>`) that are not valid UTF-8 are decoded as in SentencePiece: only the invalid
    bytes become U+FFFD. The fast tokenizers would replace the whole run. Ids above the tokenizer's, to which
    an LLM's vocabulary may be padded, are ignored.
    """
    converted = tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
    tokens = [token for token in converted if token is not None]
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or not any(_byte(token) is not None for token in tokens):
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    pieces: list[str] = []
    run = bytearray()
    for token in [*tokens, None]:
        value = None if token is None else _byte(token)
        if value is not None:
            run.append(value)
            continue
        if run:
            pieces.append(run.decode("utf-8", errors="replace"))
            run.clear()
        if token is not None:
            pieces.append(token)
    return decoder.decode(pieces).strip()


def _byte(token: str) -> int | None:
    """The value of a byte token `<0xNN>`, else None."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None
