"""What a judge sees of an answer, the rubric that it follows, and the form of its reply (§4.3, §7).

A judge grades along five dimensions how an LVLM justified its answer. `services` and `rules` define the
judges; `run` puts many cases to one of them.
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from craft.core.errors import ConfigError
from craft.core.files import sha256_file, user_path
from craft.core.text import json_digest
from craft.data import DIRECTIVES, LETTERS
from craft.data.images import ImageSource, open_image

BINARY = ("correctness", "presence")
GRADED = ("relevance", "faithfulness", "verbosity")
DIMENSIONS = (*BINARY, *GRADED)
"""The five dimensions: shares in [0, 1], then grades from 0 to 5. Source: §4.3."""

DIRECTIVE = DIRECTIVES["reasons"]
"""Replaces "Answer in one letter only." and similar directives. Source: §4.3."""

PROMPT_VERSION = 1
PROMPT_FILE = Path(__file__).with_name(f"prompt_v{PROMPT_VERSION}.md")
"""Our rubric."""

PROMPTS: dict[str, tuple[Path, int | str, str]] = {
    "craft": (
        PROMPT_FILE,
        PROMPT_VERSION,
        f"CRAFT's, version {PROMPT_VERSION} (§7 of the paper in our words)",
    ),
    "paper": (Path(__file__).with_name("prompt_paper.md"), "paper", "the paper's (§7, word for word)"),
}
"""The rubrics that CRAFT has, by name: file, version, and title."""

SHORTEST, LONGEST = 200, 1568
"""Pixels of the shorter and the longer side: smaller images are enlarged, larger ones reduced. Anthropic
advises against smaller images and reduces larger ones. Source: ours."""

Status = Literal["ok", "refused", "truncated", "invalid", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "refused", "truncated", "invalid", "failed")
"""judged; the judge declined; its reply was cut off, or was not the requested JSON; the call failed."""

Grade = Annotated[int, Field(ge=0, le=5)]


class Verdict(BaseModel):
    """A judge's reply, in exactly this form. Source: §7."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    correctness: bool
    presence: bool
    relevance: Grade
    faithfulness: Grade
    verbosity: Grade
    notes: str


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{name: {"type": "boolean"} for name in BINARY},
        **{name: {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]} for name in GRADED},
        "notes": {"type": "string"},
    },
    "required": [*DIMENSIONS, "notes"],
    "additionalProperties": False,
}
"""`Verdict` as the JSON schema that services receive; grades are an enum, since services reject bounds."""


@dataclass(frozen=True)
class Case:
    """One answer to be judged.

    Attributes:
        id: of the sample.
        task: the question, without its options.
        options: the options; empty for an open question.
        truth: the right answer in words; for a multiple-choice question, one of the options.
        response: what the LVLM answered.
        image: an image file, or None if the judge gets none.
        seen: False if the class was held out of training.
    """

    id: str
    task: str
    options: tuple[str, ...]
    truth: str
    response: str
    image: Path | None = None
    seen: bool = True

    @cached_property
    def picture(self) -> str | None:
        """SHA-256 (hex) of the image file, the same for equal images; None if there is no image."""
        return None if self.image is None else sha256_file(self.image)

    @cached_property
    def content(self) -> str:
        """SHA-256 (hex) over everything that a judge sees of the case."""
        return json_digest([self.task, self.options, self.truth, self.response, self.picture], compact=True)


@dataclass(frozen=True)
class Reply:
    """What a judge replied to one case.

    Attributes:
        status: "ok", or the reason why there is no verdict; such a case has no scores, rather than zeros.
        scores: by dimension, those that this judge gives.
        notes: the judge's reasons.
        model: the id of the model that replied.
        tokens: read and written, as the service counted them.
        detail: if the status is not "ok", what was wrong with the reply.
    """

    status: Status
    scores: Mapping[str, bool | int] = field(default_factory=dict)
    notes: str = ""
    model: str = ""
    tokens: tuple[int, int] = (0, 0)
    detail: str = ""


Ask = Callable[[Case], Reply]


@dataclass(frozen=True)
class Rubric:
    """The prompt of a judge that reads.

    Attributes:
        system: the rubric itself.
        user: one case, with `{task}`, `{options}`, `{truth}` and `{response}` to be filled in.
        version: the number of our rubric, or the name of another.
        sha256: of the file, so that two texts are never mistaken for one.
        title: which rubric it is, in words.
    """

    system: str
    user: str
    version: int | str
    sha256: str
    title: str

    @property
    def identity(self) -> dict[str, str | int]:
        """Its part of a judge's identity."""
        return {"version": self.version, "sha256": self.sha256}


@dataclass(frozen=True)
class Judge:
    """A model or a set of rules that judges.

    Attributes:
        name: for tables.
        identity: everything that its verdicts depend on: kind, model, settings, rubric. JSON-able; part of
            the key of a stored verdict.
        start: connects to the judge and returns the function that asks it: one case in, one reply out. Both
            raise a `CraftError` if no case can succeed.
        ready: raises that error too, as far as it can be detected for free (a missing package or key).
        dimensions: those that it scores.
        concurrency: how many cases may be asked at once.
        sees: whether it needs the image.
        price: US dollars per million tokens read and written, if known.
        note: what a reader of its figures must know.
        rubric: its prompt; None for rules.
    """

    name: str
    identity: Mapping[str, Any]
    start: Callable[[], Ask]
    dimensions: tuple[str, ...] = DIMENSIONS
    concurrency: int = 1
    sees: bool = True
    price: tuple[float, float] | None = None
    note: str = ""
    ready: Callable[[], object] = lambda: None
    rubric: Rubric | None = None

    def key(self, case: Case) -> str:
        """The key of the stored verdict on `case`: SHA-256 (hex) of judge and content."""
        return json_digest([dict(self.identity), case.content], compact=True)


def read_rubric(path: str | Path | None = None) -> Rubric:
    """A rubric from a file of the form of ours: the rubric under "## System", one case under "## User".

    Args:
        path: "craft" or None for ours, "paper" for the paper's, or the file of another.

    Raises:
        ConfigError: the file is missing or not of that form, or would not show the response to the judge.

    Source: §7.
    """
    path = path or "craft"
    if str(path) in PROMPTS:
        file, version, title = PROMPTS[str(path)]
    else:
        file = user_path(path)
        version = title = file.name
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(
            f"The judge's prompt {file} cannot be read: {reason}. Give a file, or {' or '.join(PROMPTS)}."
        ) from error
    parts = re.split(r"^## (System|User)[ \t]*$", text, flags=re.MULTILINE)[1:]
    sections = {heading: part.strip() for heading, part in zip(parts[::2], parts[1::2], strict=True)}
    if parts[::2] != ["System", "User"] or "{response}" not in sections["User"] or not sections["System"]:
        raise ConfigError(
            f"The judge's prompt {file} must have a rubric under a line `## System`, and one case under a "
            "line `## User` that contains {response}, and {task}, {options} and {truth} if you want them. "
            f"For an example see {PROMPT_FILE}"
        )
    sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return Rubric(sections["System"], sections["User"], version, sha256, title)


def user_text(rubric: Rubric, case: Case) -> str:
    """Task, options, truth and response of one case; placeholders in their text stay as they are.
    Source: §7."""
    lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, case.options, strict=False)]
    values = {
        "task": case.task,
        "options": "\n".join(lettered) or "(none: an open question)",
        "truth": next((line for line in lettered if line[3:] == case.truth), case.truth),
        "response": re.sub(r"</(?=\s*response)", "<\\/", case.response, flags=re.IGNORECASE),
    }
    return re.sub(r"\{(task|options|truth|response)\}", lambda match: values[match[1]], rubric.user)


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which the judge sees an image of this size."""
    short, long = sorted(size)
    scale = min(max(1.0, SHORTEST / short), LONGEST / long)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def png(source: ImageSource) -> bytes:
    """An image as the judge gets it: RGB, PNG, neither tiny nor huge.

    Raises:
        DataError: the image cannot be read.
    """
    image = open_image(source)
    size = shown_size(image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def read_verdict(text: str) -> Verdict:
    """The verdict in a reply: one JSON object of the schema, optionally within a Markdown fence.

    Raises:
        ValueError: the reply is anything else; the message says what.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", text, re.DOTALL)
    try:
        return Verdict.model_validate_json(fenced[1] if fenced else text.strip())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{name + ': ' if name else ''}{first['msg']}") from error


def reply_of(text: str, model: str, tokens: tuple[int, int], cut: bool = False) -> Reply:
    """A reply from the text that a language model wrote.

    Args:
        text: all of it.
        model: the id of the model that replied.
        tokens: read and written.
        cut: whether the cap on tokens ended it.
    """
    try:
        verdict = read_verdict(text)
    except ValueError as error:
        status: Status = "truncated" if cut else "invalid"
        return Reply(status, model=model, tokens=tokens, detail=f"{error}; it said: {text[:300]!r}")
    scores = {name: getattr(verdict, name) for name in DIMENSIONS}
    return Reply("ok", scores, verdict.notes, model, tokens)
