"""The data of an alignment: conversations, the codes of their images, and the rows of each stage."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import cast

from craft.core.errors import ConfigError, DataError
from craft.core.files import user_path
from craft.core.processes import on_main
from craft.core.progress import say
from craft.core.seeding import rng
from craft.data.chats import Conversation, read_conversations
from craft.formats.code_cache import CodeCache, ImageCodes
from craft.lessons.packing import Row, answers_within, make_rows, whole_within
from craft.models.lvlm import LVLM
from craft.models.prompts import build_dialogue
from craft.models.visual_tokenizer import VisualTokenizer
from craft.training.config import AlignConfig

Source = str | Path | Sequence[str | Path] | Sequence[Conversation] | None
Sets = dict[str, list[Conversation]]


def source_names(source: Source) -> tuple[str, ...] | None:
    """Sources by name; loaded conversations have none."""
    if source is None:
        return None
    listed = [source] if isinstance(source, str | Path) else list(source)
    return tuple("(given)" if isinstance(item, Conversation) else str(item) for item in listed[:100])


def unused(settings: AlignConfig) -> set[str]:
    """What of "data", "captions" and "text" the stage does not train on."""
    if settings.stage == "1":
        return {"text", "data" if settings.captions else "captions"}
    return {"captions"} if settings.stage == "2" else set()


def read_sets(settings: AlignConfig, sources: Mapping[str, Source]) -> Sets:
    """The conversations of "data", "captions" and "text". `sources` that are conversations already are used
    as they are; the settings name the others. A set that the stage does not train on is empty, so its images
    are not encoded.

    Raises:
        DataError: there is no data, or text has an image.
    """
    sets: Sets = {}
    for name, source in sources.items():
        conversations = [] if source is None or isinstance(source, str | Path) else list(source)
        if name in unused(settings):
            sets[name] = []
        elif conversations and all(isinstance(item, Conversation) for item in conversations):
            sets[name] = cast(list[Conversation], conversations)
        else:
            names = getattr(settings, name)
            sets[name] = read_conversations(names, settings.root, settings.seed, settings.limit)
    if not sets["captions" if "data" in unused(settings) else "data"]:
        raise DataError("No data: name files of conversations, embedded domains or folders (--data).")
    strangers = [c.origin or c.id for c in sets["text"] if c.image is not None]
    if strangers:
        more = f" (and so have {len(strangers) - 1} more)" if len(strangers) > 1 else ""
        raise DataError(
            f"{strangers[0]} has an image{more}; what is mixed in as text has none. Give it as data."
        )
    return sets


def check_turns(sets: Sets, lvlm: LVLM) -> None:
    """Check that the backbone's prompt format can write several turns, if a conversation has several.

    Raises:
        ConfigError: it cannot. Without this check, stage 2 would fail at the first such row.
    """
    prompt, tokenizer = lvlm.backbone.prompt, lvlm.backbone.tokenizer
    for listed in sets.values():
        several = next((c for c in listed if len(c.turns) > 1), None)
        if several is None:
            continue
        try:
            build_dialogue(prompt, tokenizer, several.turns, several.image is not None)
        except ConfigError as error:
            raise ConfigError(f"{several.origin or several.id}: {error}") from error


def leave_out_cut_off(sets: Sets, lvlm: LVLM, settings: AlignConfig) -> Sets:
    """The conversations whose first answer begins within `max_length`; a message names the others.

    Raises:
        DataError: none of a set remains.
    """
    rows, columns = lvlm.visual.grid
    begins, remaining = answers_within(lvlm.backbone, settings.max_length, rows * columns), Sets()
    for name, listed in sets.items():
        begun = [begins(conversation) for conversation in listed]
        remaining[name] = list(compress(listed, begun))
        if all(begun):
            continue
        cut_off = [conversation.id for conversation, whole in zip(listed, begun, strict=True) if not whole]
        shown = ", ".join(cut_off[:5]) + (", …" if len(cut_off) > 5 else "")
        which = f"{len(cut_off)} of the {len(listed)} conversations in `{name}` ({shown})"
        why = f"the first answer does not begin within max_length={settings.max_length} tokens"
        if not remaining[name]:
            raise DataError(f"In {which} {why}; raise it (--set max_length=…), or shorten the questions.")
        say(f"left out: {which}, where {why}")
    return remaining


def encode_sets(
    sets: Sets, visual: VisualTokenizer, settings: AlignConfig, codes: ImageCodes | None = None
) -> tuple[Sets, ImageCodes | None]:
    """The conversations with rows of the codes instead of their images, and the codes (None: no images).

    Raises:
        DataError: an image cannot be read, or is not a row of `codes`.
        ConfigError: `codes` are of another codebook.
    """
    seeing = [c for part in sets.values() for c in part if c.image is not None]
    if not seeing:
        return sets, None
    if codes is not None:
        rows = [c.image for c in seeing]
        if not all(isinstance(row, int) and 0 <= row < len(codes) for row in rows):
            raise DataError("With `codes`, every image is its row in them (an int).")
        if codes.visual.codebook.fingerprint != visual.codebook.fingerprint:
            raise ConfigError("The given codes are of another codebook than the visual tokenizer's.")
        return sets, codes
    assert settings.out is not None
    cache = CodeCache(user_path(settings.codes or Path(settings.out).parent / "codes"))
    images = [c.image for c in seeing]
    on_main(lambda: len(cache.encode(visual, images)))  # the others read what it wrote
    codes = cache.encode(visual, images, progress=False)
    first: dict[int, int] = {}
    numbers = iter([first.setdefault(row, n) for n, row in enumerate(codes.rows.tolist())])
    changed = {
        name: [c if c.image is None else Conversation(c.id, c.turns, next(numbers), c.origin) for c in part]
        for name, part in sets.items()
    }
    return changed, codes


def stage_rows(settings: AlignConfig, sets: Sets, lvlm: LVLM) -> dict[str, list[Row]]:
    """The rows of each stage to run, by its name. Conversations that share a row are whole in it.

    Raises:
        DataError: stage 1 has no images.
    """
    height, width = lvlm.visual.grid
    whole = whole_within(lvlm.backbone, settings.max_length, height * width)

    def rows(conversations: list[Conversation]) -> list[Row]:
        images = [c.image if isinstance(c.image, int) else None for c in conversations]
        return make_rows(conversations, images, settings.questions_per_row, whole)

    stages: dict[str, list[Row]] = {}
    if settings.stage in ("1", "both"):
        first = [c for c in sets["captions"] or sets["data"] if c.image is not None]
        if not first:
            raise DataError("Stage 1 trains the projector, so it needs conversations with images.")
        stages["1"] = rows(first)
    if settings.stage in ("2", "both"):
        main, text = rows(sets["data"]), rows(sets["text"])
        share = settings.text_share if text else 0.0
        wanted = round(len(main) * share / (1 - share))
        random = rng(settings.seed, "text rows")
        passes = -(-wanted // max(len(text), 1))
        mixed = [row for _ in range(passes) for row in random.sample(text, len(text))]
        stages["2"] = main + mixed[:wanted]
    return stages


def rows_fingerprint(stages: Mapping[str, list[Row]], codes: ImageCodes | None) -> str:
    """SHA-256 over all rows and the codes of their images."""
    digest = hashlib.sha256()
    for name, rows in stages.items():
        for row in rows:
            digest.update(repr((name, row.image, [c.turns for c in row.conversations])).encode())
    if codes is not None:
        digest.update(codes.codes.numpy().tobytes() + codes.rows.numpy().tobytes())
    return digest.hexdigest()
