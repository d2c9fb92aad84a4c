"""LLaVA's and OpenAI's conversations that cannot be used."""

import json
from pathlib import Path

from data.damage.making import damage, said, talk


@damage("{root}/chat.json, entry 2: 2 <image> tags for 1 image. Put one into the first question.")
def two_tags(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image><image>What?"), ("gpt", "This.")))


@damage("{root}/chat.json, entry 2: 0 <image> tags for 1 image. Put one into the first question.")
def no_tag(root: Path) -> Path:
    return talk(root, conversations=said(("human", "What?"), ("gpt", "This.")))


@damage("{root}/chat.json, entry 2: 2 images. A row must be about exactly one; leave others out.")
def two_images(root: Path) -> Path:
    return talk(root, images=["0.png", "1.png"])


@damage(
    "{root}/chat.json, entry 2: 'conversations' must go from a question to its answer in turns; entry 1 does not."
)
def answer_first(root: Path) -> Path:
    return talk(root, conversations=said(("gpt", "<image>This."), ("human", "What?")))


@damage(
    "{root}/chat.json, entry 2: 'conversations' must go from a question to its answer in turns; entry 3 does not."
)
def question_unanswered(root: Path) -> Path:
    turns = said(("human", "<image>What?"), ("gpt", "This."), ("human", "And?"))
    return talk(root, conversations=turns)


@damage("{root}/chat.json, entry 2: entry 2 of 'conversations' is empty.")
def empty_reply(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("gpt", " ")))


@damage(
    "{root}/chat.json, entry 2: 'robot' in entry 2 of 'conversations' is none of human, user, gpt, assistant, system."
)
def unknown_speaker(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("robot", "This.")))


@damage("{root}/chat.json, entry 2: entry 2 of 'conversations' holds half a character. Correct it.")
def half_a_character(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("gpt", "A smile \ud83d")))


@damage("{root}/chat.json, entry 2: 'conversations' must be a list of turns, not 'What?'.")
def conversation_is_a_text(root: Path) -> Path:
    return talk(root, conversations="What?")


@damage("{root}/chat.json, entry 2: entry 1 of 'conversations' must have 'from' and 'value'.")
def turn_without_value(root: Path) -> Path:
    return talk(root, conversations=[{"from": "human", "text": "<image>What?"}])


@damage("{root}/m.jsonl:1: a part of type 'audio' in 'messages' is neither text nor image.")
def audio_in_a_message(root: Path) -> Path:
    messages = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]
    (root / "m.jsonl").write_text(json.dumps({"messages": messages}))
    return root / "m.jsonl"


@damage("{root}/m.jsonl:1: 0 images. A row must be about exactly one; leave others out.")
def message_without_image(root: Path) -> Path:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    (root / "m.jsonl").write_text(json.dumps({"messages": messages}))
    return root / "m.jsonl"


@damage("{root}/c.json:1: not valid JSON (Expecting value, column 2).")
def broken_json_list(root: Path) -> Path:
    (root / "c.json").write_text("[nothing")
    return root / "c.json"


@damage("{root}/c.json, entry 1: a int, not an object.")
def number_in_a_json_list(root: Path) -> Path:
    (root / "c.json").write_text("[1]")
    return root / "c.json"
