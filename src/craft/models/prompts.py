"""Prompt formats: a question (and answer) -> the token ids around one image.

Each backbone was trained with one format and is used with that one. A format is a plain function in
`FORMATS`; `build_prompt` picks it by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from craft.core.errors import ConfigError

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA_IMAGE = "<image>"
_SLOT = "\ue000"  # a private-use character stands for the image while a chat template is filled in
_SAY_IT = {"enable_thinking": False}  # to LLMs that may think first (Qwen3): answers have 5 tokens (§4.1)
# Templates that write the day into the prompt (Llama 3.2, SmolLM3) get one that stays, which is Llama's own
# where no day is known: a run that is resumed, or evaluated tomorrow, has the prompts that it was trained on.
_ONE_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    "|replace('%d', '26')|replace('%b', 'Jul')|replace('%B', 'July')|replace('%m', '07')"
    "|replace('%Y', '2024')|replace('%A', 'Friday')|replace('%H:%M:%S', '00:00:00')"
    " }}{%- endmacro %}\n"
)


@dataclass(frozen=True)
class Prompt:
    """Token ids around one image.

    Attributes:
        before: ids in front of the image (for a text-only prompt: the whole prompt).
        after: ids behind it, up to where the answer begins.
        answer: ids of the answer and its end token; empty when no answer was given.
    """

    before: list[int]
    after: list[int]
    answer: list[int]


def _ids(tokenizer: Any, text: str, bos: bool) -> list[int]:
    """Ids of a piece of text; with the tokenizer's own BOS in front only if `bos`.

    SentencePiece puts a space in front of every text; transformers' fast Llama tokenizer leaves it out where
    the text starts with one. One more space in front makes the ids those of SentencePiece.
    """
    if (
        text.startswith(" ")
        and getattr(tokenizer, "add_prefix_space", False)
        and _is_sentencepiece(tokenizer)
    ):
        text = " " + text
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    start = tokenizer.bos_token_id
    if not bos and start is not None and ids[:1] == [start]:
        ids = ids[1:]
    return ids


def _is_sentencepiece(tokenizer: Any) -> bool:
    return tokenizer.convert_tokens_to_ids("<0x0A>") != tokenizer.unk_token_id


def _split_answer(full: list[int], asked: list[int]) -> tuple[list[int], list[int]]:
    """Split `full` where the question `asked` ends; earlier, if its last token merged with the answer."""
    end = 0
    while end < min(len(full), len(asked)) and full[end] == asked[end]:
        end += 1
    return full[:end], full[end:]


def _ends(tokenizer: Any, token: int) -> bool:
    """Whether a token can end an answer: the tokenizer's end token, or a special one of the template's, such
    as Gemma's and Phi's end of a turn."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or bool(added is not None and added.special)


def _ended(tokenizer: Any, tail: list[int]) -> list[int]:
    """An answer with an end token: where the template writes one of its own, that; an LLM that was trained
    with it would never say another one behind it."""
    end = tokenizer.eos_token_id
    return tail if end is None or (tail and _ends(tokenizer, tail[-1])) else [*tail, end]


def vila_u(tokenizer: Any, question: str, answer: str | None = None, image: bool = True) -> Prompt:
    """VILA-U's conversation (vicuna v1): `SYSTEM USER: <image>\\nQUESTION ASSISTANT: ANSWER</s>`.

    As in the reference, the image is wrapped in `<im_start>`/`<im_end>` when an answer follows (training)
    and is not wrapped at inference; each piece of text around it is tokenised by itself.
    """
    opening, asked = f"{VICUNA_SYSTEM} USER: ", f"{question} ASSISTANT:"
    ending = "" if answer is None else f" {answer}{tokenizer.eos_token or ''}"
    if not image:
        text = opening + asked
        prompt, tail = _split_answer(_ids(tokenizer, text + ending, True), _ids(tokenizer, text, True))
        return Prompt(prompt, [], tail)
    asked = "\n" + asked
    known = tokenizer.get_added_vocab()
    if answer is not None and "<im_start>" in known and "<im_end>" in known:
        opening, asked = opening + "<im_start>", "<im_end>" + asked
    after, tail = _split_answer(_ids(tokenizer, asked + ending, False), _ids(tokenizer, asked, False))
    return Prompt(_ids(tokenizer, opening, True), after, tail)


def _filled(tokenizer: Any, turns: Sequence[Any], **more: Any) -> str:
    """The tokenizer's chat template with these turns in it; the same text on every day."""
    if "strftime_now" in str(tokenizer.chat_template):
        more["chat_template"] = _ONE_DAY + tokenizer.get_chat_template()
    return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **more))


def chat_template(tokenizer: Any, question: str, answer: str | None = None, image: bool = True) -> Prompt:
    """The text tokenizer's own chat template, with the image at the start of the user's turn.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "The prompt format 'chat-template' needs a text tokenizer that has a chat template, and this "
            "one has none; use an instruction-tuned LLM, or the prompt format 'plain'."
        )
    question = question.replace(_SLOT, "")
    turns = [{"role": "user", "content": f"{_SLOT}\n{question}" if image else question}]
    text = _filled(tokenizer, turns, add_generation_prompt=True, **_SAY_IT)
    before, _, after = text.partition(_SLOT) if image else (text, "", "")

    def ids(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False)["input_ids"]) if piece else []

    tail: list[int] = []
    if answer is not None:
        whole = _filled(tokenizer, [*turns, {"role": "assistant", "content": answer}], **_SAY_IT)
        ending = whole[len(text) :] if whole.startswith(text) else answer
        tail = _ended(tokenizer, ids(ending.rstrip("\n")))
    return Prompt(ids(before), ids(after), tail)


def plain(tokenizer: Any, question: str, answer: str | None = None, image: bool = True) -> Prompt:
    """craft-tiny's format: BOS, image, `User: QUESTION\\nAssistant:`, ` ANSWER`, EOS. Source: ours."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    after = ids(f"User: {question}\nAssistant:")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tail = [] if answer is None else ids(f" {answer}") + end
    return Prompt(before, after, tail) if image else Prompt(before + after, [], tail)


def llava(tokenizer: Any, question: str, answer: str | None = None, image: bool = True) -> Prompt:
    """LLaVA's: the checkpoint's chat template, whose `<image>` stands for the picture's tokens.

    Without a template, LLaVA-1.5's: `USER: <image>\nQUESTION ASSISTANT:`, ` ANSWER</s>`. The text is
    tokenised as a whole, as transformers' processor does it.
    """
    question = question.replace(_LLAVA_IMAGE, "")
    parts = [{"type": "image"}] * image + [{"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    text = f"USER: {f'{_LLAVA_IMAGE}{chr(10)}' if image else ''}{question} ASSISTANT:"
    whole = f"{text} {answer}"
    if getattr(tokenizer, "chat_template", None):
        text = _filled(tokenizer, turns, add_generation_prompt=True)
        turns += [{"role": "assistant", "content": [{"type": "text", "text": answer or ""}]}]
        whole = _filled(tokenizer, turns).rstrip()

    def ids(piece: str) -> list[int]:  # BOS once: where the template does not write it already
        first = not (tokenizer.bos_token and piece.startswith(tokenizer.bos_token))
        return list(tokenizer(piece, add_special_tokens=first)["input_ids"])

    asked, tail = ids(text), list[int]()
    if answer is not None:
        full = ids(whole)
        if not _ends(tokenizer, full[-1]):
            full = ids(whole + (tokenizer.eos_token or ""))
        asked, tail = _split_answer(full, asked)
    if not image:
        return Prompt(asked, [], tail)
    mark = tokenizer.get_vocab().get(_LLAVA_IMAGE)
    if mark is None:  # not a LLaVA checkpoint's tokenizer: the two sides of the mark by themselves
        before, _, after = text.partition(_LLAVA_IMAGE)
        return Prompt(ids(before), list(tokenizer(after, add_special_tokens=False)["input_ids"]), tail)
    place = asked.index(mark)
    return Prompt(asked[:place], asked[place + 1 :], tail)


FORMATS: dict[str, Callable[..., Prompt]] = {
    "vila-u": vila_u,
    "chat-template": chat_template,
    "plain": plain,
    "llava": llava,
}


def build_prompt(
    name: str, tokenizer: Any, question: str, answer: str | None = None, image: bool = True
) -> Prompt:
    """Fill in the prompt format `name`.

    Args:
        name: a key of `FORMATS`.
        tokenizer: the LLM's text tokenizer (transformers).
        question: the user's text, without any image mark.
        answer: the text to be learned, or None at inference.
        image: False for a text-only prompt (then everything is in `before`).

    Raises:
        ConfigError: the format is unknown, or does not fit the tokenizer.
    """
    if name not in FORMATS:
        raise ConfigError(f"Prompt format {name!r} is not known; use one of {', '.join(FORMATS)}.")
    return FORMATS[name](tokenizer, question, answer, image)


def end_of_answer(name: str, tokenizer: Any) -> int | None:
    """The token that ends every answer in the prompt format `name`; None where nothing does.

    Raises:
        ConfigError: as `build_prompt`.
    """
    last = build_prompt(name, tokenizer, "?", "yes").answer[-1]
    return last if _ends(tokenizer, last) else None


@dataclass(frozen=True)
class Dialogue:
    """Token ids of a whole conversation around one image.

    Attributes:
        before: ids in front of the image (for text alone: empty).
        after: ids behind it, to the end of the last answer.
        learned: of each id of `after`, whether it is a part of an answer.
    """

    before: list[int]
    after: list[int]
    learned: list[bool]


def one_turn(prompt: Prompt) -> Dialogue:
    """A prompt with an image and an answer as the dialogue that it is."""
    learned = [False] * len(prompt.after) + [True] * len(prompt.answer)
    return Dialogue(prompt.before, prompt.after + prompt.answer, learned)


def build_dialogue(
    name: str, tokenizer: Any, turns: Sequence[tuple[str, str]], image: bool = True
) -> Dialogue:
    """Several questions and answers in the prompt format `name`; the first is exactly `build_prompt`'s.

    Args:
        name: a key of `FORMATS`.
        tokenizer: the LLM's text tokenizer.
        turns: (question, answer) pairs, at least one.
        image: whether an image comes with the first question.

    Raises:
        ConfigError: the format is unknown or does not fit the tokenizer, or its chat template rewrites
            earlier turns.
    """
    first = build_prompt(name, tokenizer, *turns[0], image)
    before, asked = (first.before, first.after) if image else ([], first.before + first.after)
    pieces = [(asked, False), (first.answer, True)]
    for number in range(1, len(turns)):
        asked, answer = _NEXT[name](tokenizer, turns[:number], *turns[number])
        pieces += [(asked, False), (answer, True)]
    after = [token for ids, _ in pieces for token in ids]
    return Dialogue(before, after, [learned for ids, learned in pieces for _ in ids])


def _next_vila_u(tokenizer: Any, _: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    asked = f"USER: {question} ASSISTANT:"
    whole = _ids(tokenizer, f"{asked} {answer}{tokenizer.eos_token or ''}", False)
    return _split_answer(whole, _ids(tokenizer, asked, False))


def _next_plain(tokenizer: Any, _: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    prompt = plain(tokenizer, question, answer)
    return prompt.after, prompt.answer


def _next_chat(
    tokenizer: Any, earlier: Sequence[tuple[str, str]], question: str, answer: str
) -> tuple[list[int], list[int]]:
    """What the template adds for one more turn: it is rendered with and without."""

    def messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": r, "content": c} for turn in turns for r, c in zip(roles, turn, strict=True)]

    def render(listed: list[dict[str, str]], **more: bool) -> str:
        return _filled(tokenizer, listed, **_SAY_IT, **more)

    past = messages(earlier)
    old = render(past).rstrip("\n")
    prompt = render([*past, {"role": "user", "content": question}], add_generation_prompt=True)
    whole = render(messages([*earlier, (question, answer)])).rstrip("\n")
    if not (prompt.startswith(old) and whole.startswith(prompt)):
        raise ConfigError(
            "This LLM's chat template writes earlier turns differently from the last one, so that a "
            "conversation of several turns cannot be learned in one piece; give one turn per conversation, "
            "or use the prompt format 'plain' (--set prompt=plain)."
        )
    asked, tail = (
        list(tokenizer(piece, add_special_tokens=False)["input_ids"])
        for piece in (prompt[len(old) :], whole[len(prompt) :])
    )
    return asked, _ended(tokenizer, tail)


def _next_llava(tokenizer: Any, _: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    if getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "Prompts of the format 'llava' with a chat template have one turn; give single turns."
        )
    return _next_vila_u(tokenizer, _, question, answer)  # LLaVA-1.5 and VILA-U have vicuna's


_NEXT = {
    "vila-u": _next_vila_u,
    "chat-template": _next_chat,
    "plain": _next_plain,
    "llava": _next_llava,
}


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Token ids -> text without special tokens, stripped.

    Runs of byte tokens (`<0x25>`) that are not valid UTF-8 are decoded as SentencePiece does: only the bytes
    at fault become U+FFFD. The fast tokenizers would replace the whole run. Ids beyond the tokenizer's, to
    which an LLM's vocabulary may be padded, say nothing.
    """
    found = tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
    tokens = [token for token in found if token is not None]
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or not any(_byte(token) is not None for token in tokens):
        return tokenizer.decode(ids, skip_special_tokens=True).strip()
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
