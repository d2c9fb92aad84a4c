"""Conversations about an image as pairs: LLaVA's `conversations`, OpenAI's `messages`, ms-swift's
`query` and `response`, LLaMA-Factory's `instruction` and `output`; and the tags that stand for images."""

import re
from collections.abc import Mapping
from typing import Any

from craft.core.errors import DataError
from craft.data.choices import list_in_text
from craft.data.spelling import brief, is_text

TAG = "<image>"
"""Stands for the image in the text of a conversation."""

_TAGS = re.compile(
    r"<\|?(?:image|img)(?:[ _-]?\d+)?\s*/?\|?>|<ImageHere>|<start_of_image>|<\|vision_start\|><\|image_pad\|>"
    r"<\|vision_end\|>",
    re.IGNORECASE,
)
"""`TAG`, as data sets for other models write it too: `<image 1>` (MMMU), `<|image_1|>` (Phi), `<img>`, ..."""

_NAMED = re.compile(r"<img>.*?</img>|<img\s[^>]*>", re.IGNORECASE | re.DOTALL)
"""An image that is named inside the text: Qwen-VL's form, and HTML's."""

_PAIRS = (("query", "response"), ("instruction", "output"))
"""The fields for question and answer in ms-swift's and LLaMA-Factory's rows."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": ""}
"""A format's name of a role -> "user", "assistant" or "" (left out)."""


def is_conversation(values: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation by its fields, rather than a question or a labelled image."""
    return "conversations" in values or "messages" in values or _pair_fields(values) is not None


def _pair_fields(values: Mapping[str, Any]) -> tuple[str, str] | None:
    if not values.keys().isdisjoint(("question", "answer", "label")):
        return None
    return next((pair for pair in _PAIRS if values.keys() >= set(pair)), None)


def conversation(
    values: Mapping[str, Any], origin: str, text: bool = False
) -> tuple[Any, list[tuple[str, str]]]:
    """The image of a conversation, as the row names it, and its (question, answer) pairs.

    System messages are left out, because a backbone has its own.

    Args:
        values: a row for which `is_conversation` holds.
        origin: where the row is, for messages.
        text: allow a conversation without an image; its image is None.

    Raises:
        DataError: not exactly one image, or not exactly one tag for it in a question (`query` and
            `instruction` may lack it); no turns, or turns that do not alternate; an empty question or answer.
    """
    images = images_in(values, origin)
    if pair := _pair_fields(values):
        field, turns = pair[0], _instruction(values, pair, origin)
        if images and turns and not any(_TAGS.search(text) for _, text in turns):
            turns[0] = ("user", f"{TAG}\n{turns[0][1]}")
    else:
        field = "conversations" if "conversations" in values else "messages"
        value = values[field]
        if isinstance(value, str):  # in a CSV file
            value = list_in_text(value, field, origin) or value
        turns, inside = _turns(value, field, origin)
        images += inside
    if len(images) != 1 and not (text and not images):
        raise DataError(
            f"{origin}: {len(images)} images. A row must be about exactly one; leave other rows out."
        )
    if not turns:
        raise DataError(f"{origin}: '{field}' contains no question and answer. Leave the row out.")
    _check_tags(sum(len(_TAGS.findall(text)) for _, text in turns), len(images), origin)
    return images[0] if images else None, _pairs(turns, field, origin)


def untagged(question: str, images: int, origin: str) -> str:
    """The question of a flat row without the tag for its image, which it may have or lack.

    Raises:
        DataError: there are more tags than `images`, or nothing else, or the text itself names an image.
    """
    if "<" not in question:  # most; the patterns are slow
        return question
    refuse_named(question, "question", origin)
    text, tags = _TAGS.subn("", question)
    if not tags:
        return question
    if tags > images:
        _check_tags(tags, images, origin)
    if not text.strip():
        raise DataError(f"{origin}: 'question' is the {TAG} tag alone. Write a question.")
    return text.strip()


def refuse_tag(text: str, name: str, origin: str) -> None:
    """Refuse a tag in a text that is no question.

    Raises:
        DataError: there is one.
    """
    if "<" not in text:
        return
    refuse_named(text, name, origin)
    if match := _TAGS.search(text):
        raise DataError(
            f"{origin}: the {match[0]} tag is in '{name}'. Remove it; only a question may have it."
        )


def refuse_named(text: str, name: str, origin: str) -> None:
    """Refuse a text that itself names an image.

    Raises:
        DataError: it does.
    """
    if "<" in text and (match := _NAMED.search(text)):
        raise DataError(
            f"{origin}: '{name}' names an image in its text ({brief(match[0])}). Name it in 'image' instead."
        )


def _check_tags(tags: int, images: int, origin: str) -> None:
    if tags != images:
        fix = "1 image. Put one tag into the first question." if images else "no image. Remove them."
        raise DataError(f"{origin}: {tags} {TAG} tags for {fix}")


def _pairs(turns: list[tuple[str, str]], field: str, origin: str) -> list[tuple[str, str]]:
    """Alternating turns as (question, answer), without tags."""
    pairs = []
    for number in range(0, len(turns), 2):
        (role, question), reply = turns[number], turns[number + 1 : number + 2]
        if role != "user" or not reply or reply[0][0] != "assistant":
            raise DataError(
                f"{origin}: '{field}' must alternate between a question and its answer; entry {number + 1} "
                "does not."
            )
        question, answer = _TAGS.sub("", question).strip(), reply[0][1].strip()
        if not question or not answer:
            raise DataError(f"{origin}: entry {number + 1 + bool(question)} of '{field}' is empty.")
        if _TAGS.search(answer):
            raise DataError(f"{origin}: the {TAG} tag is in an answer. Put it into the first question.")
        pairs.append((question, answer))
    return pairs


def _instruction(values: Mapping[str, Any], pair: tuple[str, str], origin: str) -> list[tuple[str, str]]:
    """The turns of ms-swift's and LLaMA-Factory's rows: `history`, then the question (with LLaMA-Factory's
    `input` below it) and the answer."""
    turns = []
    for earlier in listed(values.get("history"), "history", origin):
        if not (isinstance(earlier, list | tuple) and len(earlier) == 2):
            raise DataError(f"{origin}: 'history' must hold [question, answer], not {brief(earlier)}.")
        turns += [("user", earlier[0]), ("assistant", earlier[1])]
    ask, reply = pair
    more = values.get("input") if ask == "instruction" else None
    question = f"{values[ask]}\n{more}" if more else values[ask]
    turns += [("user", question), ("assistant", values[reply])]
    for number, (_, text) in enumerate(turns, start=1):
        _check_turn(text, number, ask, origin)
    return turns


def _turns(value: Any, field: str, origin: str) -> tuple[list[tuple[str, str]], list[Any]]:
    """(role, text) of each entry that is not a system message, with a tag for each image inside them, and
    those images. Entries have the keys `role` and `content`, or `from` and `value`."""
    if not isinstance(value, list):
        raise DataError(f"{origin}: '{field}' must be a list of turns, not {brief(value)}.")
    turns, pictures = [], list[Any]()
    for number, entry in enumerate(value, start=1):
        openai = "role" in entry or "content" in entry if isinstance(entry, dict) else field == "messages"
        who, what = ("role", "content") if openai else ("from", "value")
        if not isinstance(entry, dict) or who not in entry or what not in entry:
            raise DataError(f"{origin}: entry {number} of '{field}' must have '{who}' and '{what}'.")
        text = entry[what]
        if isinstance(text, list):
            text = _flattened(text, field, origin, pictures)
        _check_turn(text, number, field, origin)
        if entry[who] not in _ROLES:
            raise DataError(
                f"{origin}: '{entry[who]}' in entry {number} of '{field}' is none of {', '.join(_ROLES)}."
            )
        if _ROLES[entry[who]]:
            turns.append((_ROLES[entry[who]], text))
    return turns, pictures


def _check_turn(text: Any, number: int, field: str, origin: str) -> None:
    if not isinstance(text, str):
        raise DataError(f"{origin}: entry {number} of '{field}' must be a text, not {brief(text)}.")
    if not is_text(text):
        raise DataError(f"{origin}: entry {number} of '{field}' contains half a character. Correct it.")
    refuse_named(text, field, origin)


def _flattened(content: list[Any], field: str, origin: str, pictures: list[Any]) -> str:
    """The parts of a message as one text; its images are appended to `pictures`."""
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(str(part.get("text") or ""))
        elif kind in ("image", "image_url"):
            texts.append(TAG)
            named = [part[key] for key in ("image_url", "image", "url") if part.get(key) is not None]
            pictures += named[:1]
        else:
            raise DataError(f"{origin}: a part of type {kind!r} in '{field}' is neither text nor image.")
    return "".join(texts)


def images_in(values: Mapping[str, Any], origin: str) -> list[Any]:
    """The images that a row names in `image` and `images`, each once, or else in `file_name` (the metadata of
    an image folder)."""
    images = listed(values.get("image"), "image", origin)
    images += [image for image in listed(values.get("images"), "images", origin) if image not in images]
    return images or listed(values.get("file_name"), "file_name", origin)


def listed(value: Any, name: str, origin: str) -> list[Any]:
    """A value as a list, which may be written as text (in a CSV file); None and an empty text, which some
    tables have for no image, give an empty one.

    Raises:
        DataError: the text is a list that cannot be read.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str) and (items := list_in_text(value, name, origin)) is not None:
        return items
    return list(value) if isinstance(value, list | tuple) else [value]
