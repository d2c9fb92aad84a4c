"""Prompt formats: exact text and ids around the image."""

import pytest
from tokenizers import AddedToken

from builders import TEMPLATE, tiny_lvlm, tiny_tokenizer
from craft.core.errors import ConfigError
from craft.models.prompts import FORMATS, build_dialogue, build_prompt, decode, end_of_answer


def text(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_plain() -> None:
    words = tiny_tokenizer()
    prompt = build_prompt("plain", words, "what?", "a cat")
    assert prompt.before == [words.bos_token_id]
    assert text(words, prompt.after) == "User: what?\nAssistant:"
    assert text(words, prompt.answer) == " a cat</s>"
    assert build_prompt("plain", words, "what?").answer == []
    alone = build_prompt("plain", words, "what?", "a cat", image=False)
    assert (alone.before, alone.after) == (prompt.before + prompt.after, [])
    assert alone.answer == prompt.answer


def test_chat_template() -> None:
    words = tiny_tokenizer(template=TEMPLATE)
    prompt = build_prompt("chat-template", words, "what?", "a cat")
    assert text(words, prompt.before) == "<|user|>"
    assert text(words, prompt.after) == "\nwhat?</s>\n<|assistant|>"
    assert text(words, prompt.answer) == "a cat</s>"
    assert prompt.answer[-1] == words.eos_token_id
    alone = build_prompt("chat-template", words, "what?", image=False)
    assert text(words, alone.before) == "<|user|>what?</s>\n<|assistant|>"
    assert alone.after == []


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ["chat-template", "llava"])
def test_the_end_that_a_template_writes_is_the_end_of_an_answer(name: str, special: bool) -> None:
    """Gemma's and Phi's templates end a turn with a token of its own, and their tokenizers name another one
    as the end: behind it would stand what these LLMs never say. A token that is not special is text."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text or '' }}{% endfor %}{% endif %}<turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    words = tiny_tokenizer(template=template)
    words.add_tokens([AddedToken("<turn>", special=special)], special_tokens=special)
    turn = words.convert_tokens_to_ids("<turn>")
    ending = [turn] if special else [turn, words.eos_token_id]
    prompt = build_prompt(name, words, "what?", "a cat", image=False)
    assert text(words, prompt.answer[: -len(ending)]) == "a cat" and prompt.answer[-len(ending) :] == ending
    assert end_of_answer(name, words) == ending[-1]
    if name == "chat-template":
        two = build_dialogue(name, words, [("what?", "a cat"), ("where?", "here")])
        learned = [token for token, mine in zip(two.after, two.learned, strict=True) if mine]
        assert [token for token in learned if token in (turn, words.eos_token_id)] == 2 * ending


def test_generation_stops_at_the_end_that_the_template_writes() -> None:
    lvlm = tiny_lvlm()
    lvlm.backbone.tokenizer = words = tiny_tokenizer(template=TEMPLATE.replace("</s>", "<pad>"))
    lvlm.backbone.prompt = "chat-template"
    assert lvlm.backbone.end_ids() >= {words.eos_token_id, words.pad_token_id}
    lvlm.backbone.prompt = "plain"
    assert words.pad_token_id not in lvlm.backbone.end_ids()


def test_llms_that_may_think_first_are_told_not_to() -> None:
    template = (  # as Qwen3's
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    words = tiny_tokenizer(template=template)
    prompt = build_prompt("chat-template", words, "what?", "a cat")
    assert text(words, prompt.after).endswith("<|assistant|><think>\n\n</think>\n\n")
    assert text(words, prompt.answer) == "a cat</s>"
    assert build_prompt("chat-template", words, "what?").after == prompt.after


@pytest.mark.parametrize("name", ["chat-template", "llava"])
def test_prompts_are_the_same_on_every_day(name: str) -> None:
    template = (  # the day as in Llama 3.2's, which asks whether it can know it; and within a macro
        "\n{% macro head(role) %}<|{{ role }}|>{% if role == 'user' %}{{ strftime_now('%B %d, %Y') }} "
        "{% endif %}{% endmacro %}{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
        "{% else %}{% set day = 'unknown' %}{% endif %}Today: {{ day }}, {{ strftime_now('%Y-%m-%d') }}\n"
        "{% for m in messages %}{{ head(m.role) }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text or '<image>' }}{% endfor %}{% endif %}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
    )
    words = tiny_tokenizer(template=template)
    prompt = build_prompt(name, words, "what?", "a cat")
    assert text(words, prompt.before).removeprefix("<s>") == (
        "\nToday: 26 Jul 2024, 2024-07-26\n<|user|>July 26, 2024 "
    )
    assert text(words, prompt.answer).startswith("a cat</s>")


def test_chat_template_of_a_question_that_holds_the_slot_mark() -> None:
    words = tiny_tokenizer(template=TEMPLATE)
    marked = build_prompt("chat-template", words, "wh\ue000at?")
    assert marked == build_prompt("chat-template", words, "what?")


def test_chat_template_without_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="chat template"):
        build_prompt("chat-template", tiny_tokenizer(), "what?")


def test_unknown_format_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        build_prompt("vicuna", tiny_tokenizer(), "what?")
    assert all(name in str(caught.value) for name in FORMATS)


def test_decode_strips_and_drops_special_tokens() -> None:
    words = tiny_tokenizer()
    ids = [words.bos_token_id, *words(" a cat ", add_special_tokens=False)["input_ids"], words.eos_token_id]
    assert decode(words, ids) == "a cat"
    assert decode(words, []) == ""


def test_ids_beyond_the_tokenizer_say_nothing() -> None:
    """LLMs pad their vocabularies (Qwen2 has ids that no token has), and may choose one of these."""
    words = tiny_tokenizer()
    known = words("cat", add_special_tokens=False)["input_ids"]
    assert decode(words, [len(words) + 3, *known, len(words) + 20]) == "cat"
    assert decode(words, [len(words)]) == ""
