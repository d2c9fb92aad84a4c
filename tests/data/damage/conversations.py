"""LLaVA's and OpenAI's conversations that cannot be used."""

import json
from pathlib import Path

from data.damage.making import damage, said, talk


@damage("{root}/chat.json, entry 2", "2 <image> tags for 1 image", "Put one")
def two_tags(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image><image>What?"), ("gpt", "This.")))


@damage("{root}/chat.json, entry 2", "0 <image> tags for 1 image", "Put one")
def no_tag(root: Path) -> Path:
    return talk(root, conversations=said(("human", "What?"), ("gpt", "This.")))


@damage("{root}/chat.json, entry 2", "2 images", "exactly one")
def two_images(root: Path) -> Path:
    return talk(root, images=["0.png", "1.png"])


@damage("{root}/chat.json, entry 2", "'conversations'", "entry 1")
def answer_first(root: Path) -> Path:
    return talk(root, conversations=said(("gpt", "<image>This."), ("human", "What?")))


@damage("{root}/chat.json, entry 2", "'conversations'", "entry 3")
def question_unanswered(root: Path) -> Path:
    turns = said(("human", "<image>What?"), ("gpt", "This."), ("human", "And?"))
    return talk(root, conversations=turns)


@damage("{root}/chat.json, entry 2", "entry 2 of 'conversations' is empty")
def empty_reply(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("gpt", " ")))


@damage("{root}/chat.json, entry 2", "'robot'", "entry 2", "human, user, gpt, assistant, system")
def unknown_speaker(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("robot", "This.")))


@damage("{root}/chat.json, entry 2", "entry 2", "half a character", "Correct it")
def half_a_character(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("gpt", "A smile \ud83d")))


@damage("{root}/chat.json, entry 2", "'conversations'", "list", "'What?'")
def conversation_is_a_text(root: Path) -> Path:
    return talk(root, conversations="What?")


@damage("{root}/chat.json, entry 2", "entry 1", "'from' and 'value'")
def turn_without_value(root: Path) -> Path:
    return talk(root, conversations=[{"from": "human", "text": "<image>What?"}])


@damage("{root}/m.jsonl:1", "'audio'", "'messages'")
def audio_in_a_message(root: Path) -> Path:
    messages = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]
    (root / "m.jsonl").write_text(json.dumps({"messages": messages}))
    return root / "m.jsonl"


@damage("{root}/m.jsonl:1", "0 images", "exactly one")
def message_without_image(root: Path) -> Path:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    (root / "m.jsonl").write_text(json.dumps({"messages": messages}))
    return root / "m.jsonl"


@damage("{root}/c.json:1", "not valid JSON", "column 2")
def broken_json_list(root: Path) -> Path:
    (root / "c.json").write_text("[nothing")
    return root / "c.json"


@damage("{root}/c.json, entry 1", "int", "object")
def number_in_a_json_list(root: Path) -> Path:
    (root / "c.json").write_text("[1]")
    return root / "c.json"
