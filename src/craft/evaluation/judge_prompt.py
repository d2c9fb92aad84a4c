"""The judge's prompt, from its versioned file, and pictures in the form that judges take (§7)."""

import functools
import hashlib
import io
import re
from pathlib import Path

from PIL import Image

from craft.data import LETTERS
from craft.data.images import ImageSource, open_image
from craft.evaluation.judge import Case

VERSION = 1
"""Of the prompt in use: `judge_prompt_v1.md`."""

SHORTEST, LONGEST = 200, 1568
"""Pixels on the shorter and the longer side: smaller pictures are enlarged, larger ones reduced. Anthropic
advises against less, and reduces what is more. Source: ours."""


@functools.cache
def _parts() -> tuple[str, str, str]:
    """System text, user template, SHA-256 of the file."""
    text = Path(__file__).with_name(f"judge_prompt_v{VERSION}.md").read_text(encoding="utf-8")
    _, system, user = re.split(r"^## (?:System|User)$", text, flags=re.MULTILINE)
    return system.strip(), user.strip(), hashlib.sha256(text.encode("utf-8")).hexdigest()


def identity() -> dict[str, str | int]:
    """Version and hash of the prompt: two texts never pass for one."""
    return {"version": VERSION, "sha256": _parts()[2]}


def system_text() -> str:
    """The rubric: what the judge is told once. Source: §7, in our words."""
    return _parts()[0]


def user_text(case: Case) -> str:
    """Task, options, truth and response of one case. What they say fills in no blanks. Source: §7."""
    lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, case.options, strict=False)]
    values = {
        "task": case.task,
        "options": "\n".join(lettered) or "(none: an open question)",
        "truth": next((line for line in lettered if line[3:] == case.truth), case.truth),
        "response": re.sub(r"</(?=\s*response)", "<\\/", case.response, flags=re.IGNORECASE),
    }
    return re.sub(r"\{(task|options|truth|response)\}", lambda found: values[found[1]], _parts()[1])


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
