"""Conversations as token ids: the first turn is the prompt's, only answers are learned."""

import pytest

from builders import tiny_tokenizer
from craft.core.errors import ConfigError
from craft.models.prompts import FORMATS, build_dialogue, build_prompt, one_turn

TURNS = [("What is it?", "a bag"), ("What colour?", "red"), ("Sure?", "Yes.")]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer():
    made = tiny_tokenizer()
    made.chat_template = CHAT
    return made


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("image", [True, False])
def test_first_turn_is_the_prompt(tokenizer, name, image):
    if name == "llava":  # its templates are for lists of parts: without one it is LLaVA-1.5's own
        tokenizer.chat_template = None
    prompt = build_prompt(name, tokenizer, *TURNS[0], image)
    found = build_dialogue(name, tokenizer, TURNS[:1], image)
    asked = prompt.after if image else prompt.before + prompt.after
    assert found.before == (prompt.before if image else [])
    assert found.after == asked + prompt.answer
    assert found.learned == [False] * len(asked) + [True] * len(prompt.answer)
    assert not image or one_turn(prompt) == found


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "chameleon"])
def test_later_turns_follow(tokenizer, name):
    if name == "llava":
        tokenizer.chat_template = None
    one, all_three = (build_dialogue(name, tokenizer, TURNS[:n]) for n in (1, 3))
    assert all_three.after[: len(one.after)] == one.after
    learned = [t for t, keep in zip(all_three.after, all_three.learned, strict=True) if keep]
    text = tokenizer.decode(learned)
    end = "<|im_end|>" if name == "tar" else "</s>"
    assert [part.strip() for part in text.split(end)] == ["a bag", "red", "Yes.", ""]
    asked = [t for t, keep in zip(all_three.after, all_three.learned, strict=True) if not keep]
    assert "What colour?" in tokenizer.decode(asked) and "Sure?" in tokenizer.decode(asked)


def test_whole_chat_is_what_the_template_renders(tokenizer):
    found = build_dialogue("chat-template", tokenizer, TURNS, image=False)
    messages = [
        {"role": role, "content": text}
        for turn in TURNS
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    assert tokenizer.decode(found.after) == tokenizer.apply_chat_template(messages, tokenize=False).rstrip()


def test_a_template_that_rewrites_turns_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + CHAT
    with pytest.raises(ConfigError, match="one turn per conversation"):
        build_dialogue("chat-template", tokenizer, TURNS)


def test_chameleon_has_one_turn(tokenizer):
    with pytest.raises(ConfigError, match="has only one turn"):
        build_dialogue("chameleon", tokenizer, TURNS)
