"""Conversations about a picture: LLaVA's `conversations` and OpenAI's `messages` as pairs."""

from collections.abc import Mapping
from typing import Any

from craft.core.errors import DataError
from craft.data.folder import is_text

TAG = "<image>"
"""Where the picture stands in a conversation."""


def conversation(
    values: Mapping[str, Any], origin: str, text: bool = False
) -> tuple[Any, list[tuple[str, str]]]:
    """The picture of a conversation, as it was given, and its questions with their answers.

    With `text`, a conversation may do without a picture; then None is in its place.

    System messages are left out: a backbone has its own.

    Raises:
        DataError: not exactly one picture, or not exactly one tag for it in a question; no turns, or turns
            that do not alternate; an empty question or answer.
    """
    images = _as_list(values.get("images") or values.get("image"))  # tables have null in what a row lacks
    if "conversations" in values:
        field, turns = "conversations", _llava(values["conversations"], origin)
    else:
        field = "messages"
        turns, inside = _openai(values["messages"], origin)
        images += inside
    if len(images) != 1 and not (text and not images):
        raise DataError(f"{origin}: {len(images)} images. A row must be about exactly one; leave others out.")
    if not turns:
        raise DataError(f"{origin}: '{field}' holds no question and answer. Leave the row out.")
    tags = sum(text.count(TAG) for _, text in turns)
    if tags != len(images):
        told = "1 image. Put one into the first question." if images else "no image. Leave them out."
        raise DataError(f"{origin}: {tags} {TAG} tags for {told}")
    pairs = []
    for number in range(0, len(turns), 2):
        (asking, question), answer = turns[number], turns[number + 1 : number + 2]
        if asking != "user" or not answer or answer[0][0] != "assistant":
            raise DataError(
                f"{origin}: '{field}' must go from a question to its answer in turns; "
                f"entry {number + 1} does not."
            )
        asked, said = question.replace(TAG, "").strip(), answer[0][1].strip()
        if not asked or not said:
            raise DataError(f"{origin}: entry {number + 1 + bool(asked)} of '{field}' is empty.")
        if TAG in said:
            raise DataError(f"{origin}: the {TAG} tag stands in an answer. Put it into the first question.")
        pairs.append((asked, said))
    return images[0] if images else None, pairs


def _llava(value: Any, origin: str) -> list[tuple[str, str]]:
    names = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": ""}
    return _entries(value, origin, "conversations", "from", "value", names)


def _openai(value: Any, origin: str) -> tuple[list[tuple[str, str]], list[Any]]:
    """The turns, with a tag for each picture that stands inside them, and those pictures."""
    inside: list[Any] = []
    flat = []
    for entry in value if isinstance(value, list) else []:
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, list):
            parts = []
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if kind == "text":
                    parts.append(str(part.get("text") or ""))
                elif kind in ("image", "image_url"):
                    parts.append(TAG)
                    picture = part.get("image_url", part.get("image", part.get("url")))
                    inside += [picture] if picture is not None else []
                else:
                    raise DataError(
                        f"{origin}: a part of type {kind!r} in 'messages' is neither text nor image."
                    )
            entry = {**entry, "content": "".join(parts)}
        flat.append(entry)
    names = {"user": "user", "assistant": "assistant", "system": ""}
    told = flat if isinstance(value, list) else value
    return _entries(told, origin, "messages", "role", "content", names), inside


def _entries(
    value: Any, origin: str, field: str, who: str, what: str, names: Mapping[str, str]
) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        raise DataError(f"{origin}: '{field}' must be a list of turns, not {value!r}.")
    turns = []
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get(what), str) or who not in entry:
            raise DataError(f"{origin}: entry {number} of '{field}' must have '{who}' and '{what}'.")
        if not is_text(entry[what]):
            raise DataError(f"{origin}: entry {number} of '{field}' holds half a character. Correct it.")
        if entry[who] not in names:
            raise DataError(
                f"{origin}: '{entry[who]}' in entry {number} of '{field}' is none of {', '.join(names)}."
            )
        if names[entry[who]]:  # what a system message says is left out: the backbone has its own
            turns.append((names[entry[who]], entry[what]))
    return turns


def _as_list(value: Any) -> list[Any]:
    """A list of what is there; an empty text, as some tables have for no picture, is not."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
