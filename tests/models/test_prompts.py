"""Prompt formats: exact text and ids around the image."""

import pytest

from builders import TEMPLATE, tiny_tokenizer
from craft.core.errors import ConfigError
from craft.models.prompts import FORMATS, build_prompt, decode


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
