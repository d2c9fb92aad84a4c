"""Conversations about an image: LLaVA's `conversations` and OpenAI's `messages` as pairs."""

from collections.abc import Mapping
from typing import Any

from craft.core.errors import DataError
from craft.data.spelling import is_text

TAG = "<image>"
"""Stands for the image in the text of a conversation."""


def conversation(
    values: Mapping[str, Any], origin: str, text: bool = False
) -> tuple[Any, list[tuple[str, str]]]:
    """The image of a conversation, as the row names it, and its (question, answer) pairs.

    System messages are left out, because a backbone has its own.

    Args:
        values: a row with `conversations` or `messages`.
        origin: where the row is, for messages.
        text: allow a conversation without an image; its image is None.

    Raises:
        DataError: not exactly one image, or not exactly one tag for it in a question; no turns, or turns
            that do not alternate; an empty question or answer.
    """
    images = _as_list(values.get("images") or values.get("image"))  # tables have null for a missing value
    if "conversations" in values:
        field, turns = "conversations", _llava(values["conversations"], origin)
    else:
        field = "messages"
        turns, inside = _openai(values["messages"], origin)
        images += inside
    if len(images) != 1 and not (text and not images):
        raise DataError(
            f"{origin}: {len(images)} images. A row must be about exactly one; leave other rows out."
        )
    if not turns:
        raise DataError(f"{origin}: '{field}' contains no question and answer. Leave the row out.")
    tags = sum(text.count(TAG) for _, text in turns)
    if tags != len(images):
        fix = "1 image. Put one tag into the first question." if images else "no image. Remove them."
        raise DataError(f"{origin}: {tags} {TAG} tags for {fix}")
    return images[0] if images else None, _pairs(turns, field, origin)


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
        question, answer = question.replace(TAG, "").strip(), reply[0][1].strip()
        if not question or not answer:
            raise DataError(f"{origin}: entry {number + 1 + bool(question)} of '{field}' is empty.")
        if TAG in answer:
            raise DataError(f"{origin}: the {TAG} tag is in an answer. Put it into the first question.")
        pairs.append((question, answer))
    return pairs


def _llava(value: Any, origin: str) -> list[tuple[str, str]]:
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": ""}
    return _turns(value, origin, "conversations", ("from", "value"), roles)


def _openai(value: Any, origin: str) -> tuple[list[tuple[str, str]], list[Any]]:
    """The turns, with a tag for each image inside them, and those images."""
    pictures: list[Any] = []
    if isinstance(value, list):
        value = [_flattened(entry, origin, pictures) for entry in value]
    roles = {"user": "user", "assistant": "assistant", "system": ""}
    return _turns(value, origin, "messages", ("role", "content"), roles), pictures


def _flattened(entry: Any, origin: str, pictures: list[Any]) -> Any:
    """A message whose content is one text; its images are appended to `pictures`."""
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, list):
        return entry
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(str(part.get("text") or ""))
        elif kind in ("image", "image_url"):
            texts.append(TAG)
            picture = part.get("image_url", part.get("image", part.get("url")))
            pictures += [picture] if picture is not None else []
        else:
            raise DataError(f"{origin}: a part of type {kind!r} in 'messages' is neither text nor image.")
    return {**entry, "content": "".join(texts)}


def _turns(
    value: Any, origin: str, field: str, keys: tuple[str, str], roles: Mapping[str, str]
) -> list[tuple[str, str]]:
    """(role, text) of each entry that is not a system message.

    Args:
        value: the list of entries.
        origin, field: for messages.
        keys: the keys of role and text in an entry.
        roles: the format's name of a role -> "user", "assistant" or "".
    """
    if not isinstance(value, list):
        raise DataError(f"{origin}: '{field}' must be a list of turns, not {value!r}.")
    who, what = keys
    turns = []
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get(what), str) or who not in entry:
            raise DataError(f"{origin}: entry {number} of '{field}' must have '{who}' and '{what}'.")
        if not is_text(entry[what]):
            raise DataError(f"{origin}: entry {number} of '{field}' contains half a character. Correct it.")
        if entry[who] not in roles:
            raise DataError(
                f"{origin}: '{entry[who]}' in entry {number} of '{field}' is none of {', '.join(roles)}."
            )
        if roles[entry[who]]:
            turns.append((roles[entry[who]], entry[what]))
    return turns


def _as_list(value: Any) -> list[Any]:
    """A value as a list; None and an empty text, which some tables have for no image, give an empty one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
