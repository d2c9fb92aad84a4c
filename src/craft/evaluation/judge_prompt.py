"""The judge's prompt, from our versioned file or another, and pictures in the form that judges take (§7)."""

import hashlib
import io
import re
from pathlib import Path

from PIL import Image

from craft.core.errors import ConfigError
from craft.core.files import user_path
from craft.data import LETTERS
from craft.data.images import ImageSource, open_image
from craft.evaluation.judge import Case, Prompt

VERSION = 1
"""Of our prompt, `judge_prompt_v1.md`."""

SHORTEST, LONGEST = 200, 1568
"""Pixels on the shorter and the longer side: smaller pictures are enlarged, larger ones reduced. Anthropic
advises against less, and reduces what is more. Source: ours."""


OURS = Path(__file__).with_name(f"judge_prompt_v{VERSION}.md")


def read_prompt(path: str | Path | None = None) -> Prompt:
    """A prompt from a file of the form of ours: a rubric under "## System", one case under "## User".

    Args:
        path: another rubric, such as the paper's own words (§7); None is ours.

    Raises:
        ConfigError: the file is missing or not of that form, or would not show the judge the response.

    Source: §7, in our words.
    """
    place = OURS if path is None else user_path(path)
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"The judge's prompt {place} cannot be read: {reason}.") from error
    parts = re.split(r"^## (System|User)[ \t]*$", text, flags=re.MULTILINE)[1:]
    told = {heading: part.strip() for heading, part in zip(parts[::2], parts[1::2], strict=True)}
    if parts[::2] != ["System", "User"] or "{response}" not in told["User"] or not told["System"]:
        raise ConfigError(
            f"The judge's prompt {place} must have a rubric under a line `## System`, and one case under a "
            "line `## User`, with {task}, {options}, {truth} and {response} where these go; only {response} "
            f"is needed. A pattern: {OURS}"
        )
    named = VERSION if path is None else place.name
    return Prompt(told["System"], told["User"], named, hashlib.sha256(text.encode("utf-8")).hexdigest())


def user_text(prompt: Prompt, case: Case) -> str:
    """Task, options, truth and response of one case. What they say fills in no blanks. Source: §7."""
    lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, case.options, strict=False)]
    values = {
        "task": case.task,
        "options": "\n".join(lettered) or "(none: an open question)",
        "truth": next((line for line in lettered if line[3:] == case.truth), case.truth),
        "response": re.sub(r"</(?=\s*response)", "<\\/", case.response, flags=re.IGNORECASE),
    }
    return re.sub(r"\{(task|options|truth|response)\}", lambda found: values[found[1]], prompt.user)


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that a picture of this size is shown to the judge in."""
    short, long = sorted(size)
    scale = min(max(1.0, SHORTEST / short), LONGEST / long)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def png(source: ImageSource) -> bytes:
    """A picture as the judge gets it: RGB, PNG, neither tiny nor huge.

    Raises:
        DataError: it cannot be read.
    """
    image = open_image(source)
    size = shown_size(image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
