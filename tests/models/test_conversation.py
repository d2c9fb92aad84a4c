"""Conversations: one turn is the prompt of every other way to ask; more turns continue it."""

import pytest

from builders import TEMPLATE, tiny_tokenizer
from craft.core.errors import CraftError
from craft.models.conversation import Turn, build_conversation
from craft.models.prompts import FORMATS, build_dialogue, build_prompt

ASKED = [Turn("user", "what?", 1), Turn("assistant", "a cat"), Turn("user", "where?")]


@pytest.mark.parametrize("name", FORMATS)
def test_one_turn_is_the_prompt_of_the_format(name):
    words = tiny_tokenizer(template=TEMPLATE)
    with_image, text_only = (
        build_prompt(name, words, "what?"),
        build_prompt(name, words, "what?", image=False),
    )
    assert build_conversation(name, words, [Turn("user", "what?", 1)]) == [
        with_image.before,
        with_image.after,
    ]
    assert build_conversation(name, words, [Turn("user", "what?")]) == [text_only.before + text_only.after]


@pytest.mark.parametrize("name", ["plain", "vila-u", "chat-template"])
def test_several_turns_are_those_of_training(name):
    words = tiny_tokenizer(template=TEMPLATE)
    before, after = build_conversation(name, words, ASKED)
    trained = build_dialogue(name, words, [("what?", "a cat"), ("where?", "here")])
    text = words.decode(trained.after)
    assert before == trained.before or name == "vila-u"  # its training marks the image's start and end
    assert text.removeprefix("<im_end>").startswith(words.decode(after).rstrip())


def test_a_template_takes_several_images_and_a_system_message():
    words = tiny_tokenizer(template=TEMPLATE)
    pieces = build_conversation(
        "chat-template", words, [Turn("system", "be brief"), Turn("user", "same?", 2)]
    )
    assert [words.decode(piece) for piece in pieces] == [
        "<|system|>be brief</s>\n<|user|>", "\n", "\nsame?</s>\n<|assistant|>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, turns, message",
    [
        ("plain", [Turn("user", "q", 2)], "one image"),
        ("plain", [Turn("user", "q"), Turn("assistant", "a"), Turn("user", "q", 1)], "one image"),
        ("plain", [Turn("system", "s"), Turn("user", "q")], "no system message"),
        ("llava", ASKED, "one turn"),
        ("plain", [], "no message"),
        ("plain", [Turn("assistant", "a")], "ends with the user"),
        ("plain", [Turn("user", "q"), Turn("user", "q")], "in turns"),
        ("plain", [Turn("user", "q"), Turn("assistant", "a")], "ends with the user"),
        ("plain", [Turn("user", "q"), Turn("system", "s"), Turn("user", "q")], "Only the first"),
        ("plain", [Turn("user", "q"), Turn("assistant", "a", 1), Turn("user", "q")], "of the user"),
    ],
)  # fmt: skip
def test_what_a_format_lacks_is_refused_by_name(name, turns, message):
    with pytest.raises(CraftError, match=message):
        build_conversation(name, tiny_tokenizer(template=TEMPLATE), turns)


def test_a_slot_in_the_text_is_no_image():
    words = tiny_tokenizer(template=TEMPLATE)
    clean = build_conversation("chat-template", words, [Turn("user", "ab", 1)])
    assert build_conversation("chat-template", words, [Turn("user", "a\ue000b", 1)]) == clean
