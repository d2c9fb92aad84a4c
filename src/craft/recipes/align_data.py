"""The data of an alignment: conversations, the codes of their images, and the rows of each stage."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from craft.core.errors import ConfigError, DataError
from craft.core.files import user_path
from craft.core.processes import on_main
from craft.core.progress import say
from craft.core.seeding import rng
from craft.data.chats import Conversation, read_conversations
from craft.formats.code_cache import CodeCache, ImageCodes
from craft.lessons.packing import PackedRow, answers_within, make_rows, whole_within
from craft.models.context import context_of
from craft.models.lvlm import LVLM
from craft.models.prompts import build_dialogue
from craft.models.visual_tokenizer import VisualTokenizer
from craft.training.config import AlignConfig

ConversationSource = str | Path | Sequence[str | Path] | Sequence[Conversation] | None
"""Conversations, or the names of their files, embedded domains or folders."""

Sets = dict[str, list[Conversation]]
"""The conversations of "data", "captions" and "text"."""


def source_names(source: ConversationSource) -> tuple[str, ...] | None:
    """The names of sources, for the settings; conversations in memory are "(given)"."""
    if source is None:
        return None
    items = [source] if isinstance(source, str | Path) else list(source)
    return tuple("(given)" if isinstance(item, Conversation) else str(item) for item in items[:100])


def unused(settings: AlignConfig) -> set[str]:
    """The sets, of "data", "captions" and "text", that the stage does not train on."""
    if settings.stage == "1":
        return {"text", "data" if settings.captions else "captions"}
    return {"captions"} if settings.stage == "2" else set()


def read_sets(
    settings: AlignConfig, data: ConversationSource, captions: ConversationSource, text: ConversationSource
) -> Sets:
    """Read the conversations of "data", "captions" and "text".

    Sets that the stage does not train on are empty, so that CRAFT does not encode their images.

    Args:
        settings: all settings, which name the files.
        data, captions, text: conversations in memory, which are used instead of files.

    Raises:
        DataError: there is no data, or a conversation of "text" has an image.
    """
    sets: Sets = {}
    for name, source in (("data", data), ("captions", captions), ("text", text)):
        if name in unused(settings):
            sets[name] = []
            continue
        items = [] if source is None or isinstance(source, str | Path) else list(source)
        if items and all(isinstance(item, Conversation) for item in items):
            sets[name] = [item for item in items if isinstance(item, Conversation)]
        else:
            names = getattr(settings, name)
            sets[name] = read_conversations(
                names,
                settings.root,
                settings.seed,
                settings.limit,
                splits=settings.splits,
                partial=settings.partial,
                overlap=settings.overlap,
            )
    if not sets["captions" if "data" in unused(settings) else "data"]:
        raise DataError("No data: name files of conversations, embedded domains or folders (--data).")
    with_image = [c.origin or c.id for c in sets["text"] if c.image is not None]
    if with_image:
        more = f" (as have {len(with_image) - 1} more)" if len(with_image) > 1 else ""
        raise DataError(
            f"{with_image[0]} has an image{more}; conversations of --text have none. Use --data for it."
        )
    return sets


def check_images(sets: Sets) -> None:
    """Check that all conversations of stage 2 have an image, as LoRA with the scope "image" needs.

    Raises:
        DataError: some have none.
    """
    without = [c.origin or c.id for name in ("data", "text") for c in sets[name] if c.image is None]
    if without:
        more = f" (as have {len(without) - 1} more)" if len(without) > 1 else ""
        raise DataError(
            f'{without[0]} has no image{more}, and LoRA with the scope "image" neither learns from such '
            "conversations nor acts on them: the LLM answers as before. Leave them out, or set "
            "lora.scope=all."
        )


def check_turns(sets: Sets, lvlm: LVLM) -> None:
    """Check, before training, that the prompt format can write conversations of several turns.

    Raises:
        ConfigError: it cannot.
    """
    prompt, tokenizer = lvlm.backbone.prompt, lvlm.backbone.tokenizer
    for conversations in sets.values():
        several = next((c for c in conversations if len(c.turns) > 1), None)
        if several is None:
            continue
        try:
            build_dialogue(prompt, tokenizer, several.turns, several.image is not None)
        except ConfigError as error:
            raise ConfigError(f"{several.origin or several.id}: {error}") from error


def leave_out_cut_off(sets: Sets, lvlm: LVLM, settings: AlignConfig) -> Sets:
    """The conversations whose first answer begins within `max_length` and the LLM's context. Prints a line
    about the others.

    Raises:
        DataError: no conversation of a set remains.
    """
    rows, columns = lvlm.visual.grid
    most = min(settings.max_length, context_of(lvlm.backbone.llm) or settings.max_length)
    begins = answers_within(lvlm.backbone, most, rows * columns)
    remaining = Sets()
    for name, conversations in sets.items():
        in_time = [begins(conversation) for conversation in conversations]
        pairs = list(zip(conversations, in_time, strict=True))
        remaining[name] = [conversation for conversation, good in pairs if good]
        omitted = [conversation.id for conversation, good in pairs if not good]
        if not omitted:
            continue
        examples = ", ".join(omitted[:5]) + (", …" if len(omitted) > 5 else "")
        subject = f"{len(omitted)} of the {len(conversations)} conversations in `{name}` ({examples})"
        limit = f"max_length={most}" if most == settings.max_length else f"the LLM's context of {most}"
        reason = f"the first answer does not begin within {limit} tokens"
        if not remaining[name]:
            raise DataError(
                f"In {subject} {reason}; raise it (--set max_length=…, or another LLM), or shorten the "
                "questions."
            )
        say(f"left out: {subject}, because {reason}")
    return remaining


def encode_sets(
    sets: Sets, visual: VisualTokenizer, settings: AlignConfig, codes: ImageCodes | None = None
) -> tuple[Sets, ImageCodes | None]:
    """Encode all images once.

    Args:
        sets: the conversations.
        visual: the visual tokenizer.
        settings: all settings.
        codes: cached codes; the images of the conversations are then rows of them (ints).

    Returns:
        The conversations, with rows of the codes instead of images, and the codes; None without images.

    Raises:
        DataError: an image cannot be read, or is not a row of `codes`.
        ConfigError: `codes` belong to another codebook.
    """
    with_image = [c for part in sets.values() for c in part if c.image is not None]
    if not with_image:
        return sets, None
    if codes is not None:
        rows = [c.image for c in with_image]
        if not all(isinstance(row, int) and 0 <= row < len(codes) for row in rows):
            raise DataError("With `codes`, every image must be its row in them (an int).")
        if codes.visual.codebook.fingerprint != visual.codebook.fingerprint:
            raise ConfigError("`codes` belong to another codebook than that of the visual tokenizer.")
        return sets, codes
    assert settings.out is not None
    folder = user_path(settings.codes or Path(settings.out).parent / "codes")
    cache, images = CodeCache(folder), [c.image for c in with_image]
    on_main(lambda: len(cache.encode(visual, images)))  # the other processes read the files
    codes = cache.encode(visual, images, progress=False)
    first: dict[int, int] = {}
    numbers = iter([first.setdefault(row, n) for n, row in enumerate(codes.rows.tolist())])
    encoded = {
        name: [c if c.image is None else Conversation(c.id, c.turns, next(numbers), c.origin) for c in part]
        for name, part in sets.items()
    }
    return encoded, codes


def stage_rows(settings: AlignConfig, sets: Sets, lvlm: LVLM) -> dict[str, list[PackedRow]]:
    """The rows of each stage that runs, by its name ("1", "2").

    Raises:
        DataError: stage 1 has no images.
    """
    height, width = lvlm.visual.grid
    whole = whole_within(lvlm.backbone, settings.max_length, height * width)

    def rows(conversations: list[Conversation]) -> list[PackedRow]:
        images = [c.image if isinstance(c.image, int) else None for c in conversations]
        return make_rows(conversations, images, settings.questions_per_row, whole)

    stages: dict[str, list[PackedRow]] = {}
    if settings.stage in ("1", "both"):
        first = [c for c in sets["captions"] or sets["data"] if c.image is not None]
        if not first:
            raise DataError("Stage 1 trains the projector, so it needs conversations with images.")
        stages["1"] = rows(first)
    if settings.stage in ("2", "both"):
        main, text = rows(sets["data"]), rows(sets["text"])
        share = settings.text_share if text else 0.0
        count = round(len(main) * share / (1 - share))
        random = rng(settings.seed, "text rows")
        passes = math.ceil(count / max(len(text), 1))
        mixed = [row for _ in range(passes) for row in random.sample(text, len(text))]
        stages["2"] = main + mixed[:count]
    return stages


def rows_fingerprint(stages: Mapping[str, list[PackedRow]], codes: ImageCodes | None) -> str:
    """SHA-256 over all rows and the codes of their images."""
    digest = hashlib.sha256()
    for name, rows in stages.items():
        for row in rows:
            digest.update(repr((name, row.image, [c.turns for c in row.conversations])).encode())
    if codes is not None:
        digest.update(codes.codes.numpy().tobytes() + codes.rows.numpy().tobytes())
    return digest.hexdigest()
