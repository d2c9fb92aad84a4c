"""What a judge gets, what it says, and the figures that come of it (§4.3, §7).

A judge marks how an LVLM justified its answer, along five dimensions. Who judges is in `judge_services`,
`judge_local` and `judge_offline`; how a thousand cases are put to one of them is in `judge_run`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from craft.core.files import sha256_file
from craft.data import DIRECTIVES
from craft.evaluation.metrics import bootstrap_interval, mean

BINARY = ("correctness", "presence")
GRADED = ("relevance", "faithfulness", "verbosity")
DIMENSIONS = (*BINARY, *GRADED)
"""The five dimensions: shares in [0, 1], then grades from 0 to 5. Source: §4.3."""

DIRECTIVE = DIRECTIVES["reasons"]
"""What takes the place of "Answer in one letter only." and its like. Source: §4.3."""

Status = Literal["ok", "refused", "truncated", "invalid", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "refused", "truncated", "invalid", "failed")
"""judged; the judge declined; its reply was cut off, or was not the JSON asked for; the call failed."""

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
"""`Verdict` as the JSON schema that services are asked to keep to; an enum, since they refuse bounds."""


@dataclass(frozen=True)
class Case:
    """One answer to be judged.

    Attributes:
        id: the sample's.
        task: the question as it was asked, without its options.
        options: the options; empty for an open question.
        truth: the right answer in words; of a multiple-choice question, one of the options.
        response: what the LVLM said.
        image: a picture file, or None where the judge gets none.
        seen: False where the class was held out of training.
    """

    id: str
    task: str
    options: tuple[str, ...]
    truth: str
    response: str
    image: Path | None = None
    seen: bool = True

    @cached_property
    def content(self) -> str:
        """SHA-256 (hex) over all that a judge gets to see of the case."""
        picture = None if self.image is None else sha256_file(self.image)
        return digest([self.task, self.options, self.truth, self.response, picture])


@dataclass(frozen=True)
class Reply:
    """What came back for one case.

    Attributes:
        status: "ok", or why there is no verdict; such a case has no scores, rather than zeros.
        scores: by dimension, those that this judge gives.
        notes: the judge's reasons.
        model: the id of the model that answered.
        tokens: read and written, as the service counted them.
        detail: of a reply that is not "ok", what was wrong with it.
    """

    status: Status
    scores: Mapping[str, bool | int] = field(default_factory=dict)
    notes: str = ""
    model: str = ""
    tokens: tuple[int, int] = (0, 0)
    detail: str = ""


Ask = Callable[[Case], Reply]


@dataclass(frozen=True)
class Prompt:
    """What a judge that reads is told (`craft.evaluation.judge_prompt.read_prompt`).

    Attributes:
        system: the rubric, told once.
        user: one case, with `{task}`, `{options}`, `{truth}` and `{response}` to be filled in.
        version: of ours its number, of another the file's name.
        sha256: of the file: two texts never pass for one.
    """

    system: str
    user: str
    version: int | str
    sha256: str

    @property
    def identity(self) -> dict[str, str | int]:
        """Its part of a judge's identity."""
        return {"version": self.version, "sha256": self.sha256}


@dataclass(frozen=True)
class Judge:
    """Someone who judges.

    Attributes:
        name: for tables.
        identity: everything that its verdicts depend on: kind, model, settings, prompt. JSON-able; part of
            the key under which a verdict is kept.
        start: makes ready (key, model, connection) and gives the function that asks: one case in, one reply
            out. Both raise a `CraftError` where no case can succeed.
        ready: raises that error too, as far as it shows at no cost: no package, no key.
        dimensions: those that it scores.
        concurrency: so many cases may be asked at once.
        sees: whether it needs the picture.
        price: US dollars per million tokens read and written, where known.
        note: what a reader of its figures must know.
        prompt: what it is told; None where it goes by rules.
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
    prompt: Prompt | None = None

    def key(self, case: Case) -> str:
        """Under which the verdict on `case` is kept: SHA-256 (hex) of judge and content."""
        return digest([dict(self.identity), case.content])


def read_verdict(text: str) -> Verdict:
    """The verdict in a reply: one JSON object of the schema, a Markdown fence around it allowed.

    Raises:
        ValueError: it is anything else; the message says what.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", text, re.DOTALL)
    try:
        return Verdict.model_validate_json(fenced[1] if fenced else text.strip())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place + ': ' if place else ''}{first['msg']}") from error


def reply_of(text: str, model: str, tokens: tuple[int, int], cut: bool = False) -> Reply:
    """A reply from the text that a language model wrote.

    Args:
        text: all of it.
        model: the id of the model that answered.
        tokens: read and written.
        cut: whether the cap on tokens ended it.
    """
    try:
        found = read_verdict(text)
    except ValueError as error:
        status: Status = "truncated" if cut else "invalid"
        return Reply(status, model=model, tokens=tokens, detail=f"{error}; it said: {text[:300]!r}")
    scores = {name: getattr(found, name) for name in DIMENSIONS}
    return Reply("ok", scores, found.notes, model, tokens)


def overall(scores: Mapping[str, bool | int]) -> float | None:
    """Faithfulness + Relevance − Verbosity / 2; None where a part is missing. Source: §4.3."""
    if not set(GRADED) <= set(scores):
        return None
    return scores["faithfulness"] + scores["relevance"] - scores["verbosity"] / 2


@dataclass
class JudgeReport:
    """The figures of one judge on one set of answers.

    Attributes:
        figures: by dimension, and "overall": mean, 95 % bootstrap interval and count, over the cases with a
            verdict; None where the judge does not score it. Correctness and presence are shares in [0, 1],
            the others means of grades from 0 to 5; overall lies in [-2.5, 10].
        seen, unseen: the same over classes kept in, or held out of, training.
        statuses: how many cases ended how.
        models: the ids of the models that answered.
        tokens: read and written for these verdicts, whenever that was.
        samples: per case: id, seen, status, scores, overall, notes, response.
        settings: of answers and judge.
    """

    figures: dict[str, dict[str, Any] | None]
    seen: dict[str, dict[str, Any] | None]
    unseen: dict[str, dict[str, Any] | None]
    statuses: dict[str, int]
    models: list[str]
    tokens: tuple[int, int]
    samples: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, cases: Sequence[Case], replies: Sequence[Reply], settings: Mapping[str, Any] | None = None
    ) -> "JudgeReport":
        """The figures of cases and the replies to them, in one order."""
        rows = [_row(case, reply) for case, reply in zip(cases, replies, strict=True)]
        once = {id(reply): reply for reply in replies}.values()  # equal cases share one
        return cls(
            figures=_figures(rows),
            seen=_figures([row for row in rows if row["seen"]]),
            unseen=_figures([row for row in rows if not row["seen"]]),
            statuses={name: sum(reply.status == name for reply in replies) for name in STATUSES},
            models=sorted({reply.model for reply in replies if reply.model}),
            tokens=(sum(reply.tokens[0] for reply in once), sum(reply.tokens[1] for reply in once)),
            samples=rows,
            settings=dict(settings or {}),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict, the per-case list last."""
        names = ("figures", "seen", "unseen", "statuses", "models", "tokens", "settings", "samples")
        return {name: getattr(self, name) for name in names}


def _row(case: Case, reply: Reply) -> dict[str, Any]:
    return {
        "id": case.id,
        "seen": case.seen,
        "status": reply.status,
        **{name: reply.scores.get(name) for name in DIMENSIONS},
        "overall": overall(reply.scores),
        "notes": reply.notes,
        "detail": reply.detail,
        "truth": case.truth,
        "response": case.response,
    }


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any] | None]:
    found: dict[str, dict[str, Any] | None] = {}
    for name in (*DIMENSIONS, "overall"):
        values = [float(row[name]) for row in rows if row["status"] == "ok" and row[name] is not None]
        interval = list(bootstrap_interval(values))
        found[name] = {"mean": mean(values), "interval": interval, "count": len(values)} if values else None
    return found


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
