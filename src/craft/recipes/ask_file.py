"""The file of answers of `craft ask`: rows, and a record of what gave them, so that none are mixed."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import read_json, write_json
from craft.core.progress import say
from craft.core.store import json_lines, whole_lines
from craft.core.tensors import hash_tensors
from craft.data.choices import DIRECTIVES
from craft.data.sample import Sample
from craft.evaluation.config import AskConfig
from craft.models.freezing import answer_hashes
from craft.models.lvlm import LVLM

LISTED = 26
"""Up to this many options are listed in the prompt, with their letters; more are only scored."""

COLUMNS: tuple[str, ...] = (
    "image",
    "question",
    "answer",
    "probability",
    "runner_up",
    "runner_up_probability",
    "margin",
    "error",
)
"""Columns of a CSV file of answers."""


@dataclass(frozen=True)
class Wanted:
    """A question about one image.

    Attributes:
        image: the image's path.
        question: the question line.
        options: the answers to choose from; empty for a written answer.
    """

    image: str
    question: str
    options: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompt: question, lettered options and directive, as in training."""
        listed = self.options if len(self.options) <= LISTED else ()
        directive = DIRECTIVES["option"] if self.options else ""
        return Sample("", "", self.question, "", choices=listed, directive=directive).prompt()


def earlier_rows(out: str, wanted: Sequence[Wanted], resume: bool) -> list[dict[str, Any]]:
    """The rows of an interrupted run, which are the answers to the first questions.

    Raises:
        ConfigError: the file exists and `resume` is not set, or its rows answer other questions.
    """
    path = Path(out)
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ConfigError(f"--out {out}: answers are written as .jsonl or .csv.")
    if not path.exists() or path.stat().st_size == 0:
        return []
    if not resume:
        raise ConfigError(f"{out} exists; --resume continues it, or choose another file.")
    rows = _read(path)
    if [(row.get("image"), row.get("question")) for row in rows] != [
        (w.image, w.question) for w in wanted[: len(rows)]
    ]:
        raise ConfigError(f"{out} has answers to other images or questions; choose another file.")
    if rows:
        say(f"{len(rows)} of {len(wanted)} images are answered already in {out}")
    return rows


RECORD = ".record.json"
"""What follows the name of a file of answers in that of the record of what answered."""

DECIDES = ("keep_ratio", "max_new_tokens", "temperature", "top_p", "seed", "min_probability", "batch_size")
"""Settings that answers depend on, besides the images and questions, which the rows name."""


def answer_record(
    lvlm: LVLM, settings: AskConfig, temperature: float, wanted: Sequence[Wanted]
) -> dict[str, Any]:
    """What answers depend on: hashes of the model's parts, options, settings. No name: names can be reused.

    Args:
        lvlm: with its encoder.
        settings: of the command.
        temperature: of the probabilities of options.
        wanted: the questions.
    """
    options = list(dict.fromkeys(one.options for one in wanted))
    asked = {"options": options, **{name: getattr(settings, name) for name in DECIDES}}
    engine = settings.engine is not None
    prior = {} if lvlm.visual.prior is None else {"prior": hash_tensors({"counts": lvlm.visual.prior})}
    dtype = str(lvlm.backbone.embeddings.weight.dtype).removeprefix("torch.")
    record = {**answer_hashes(lvlm), **prior, **asked, "engine": engine, "dtype": dtype}
    return json.loads(json.dumps({**record, "answer_temperature": temperature}))


def keep_record(out: str, record: Mapping[str, Any], resumed: bool) -> None:
    """Write the record beside the file of answers, or compare it with that of the run to resume.

    Args:
        out: the file of answers.
        record: of this run.
        resumed: the file has rows of an earlier run.

    Raises:
        ConfigError: another model, encoder or setting gave the earlier answers; the message names what.
    """
    path = Path(out + RECORD)
    if not resumed:
        write_json(path, dict(record))
        return
    earlier = read_json(path) if path.is_file() else None
    if not isinstance(earlier, dict):
        raise ConfigError(
            f"{path}, the record of what gave the answers in {out}, is missing, so they cannot be continued; "
            "choose another file."
        )
    different = [name for name in {**earlier, **record} if earlier.get(name) != record.get(name)]
    if different:
        raise ConfigError(
            f"The answers in {out} were given with another {', '.join(different)} (recorded in {path}). "
            "Resume with what was used then, or choose another file."
        )


def _read(path: Path) -> list[dict[str, Any]]:
    lines = whole_lines(path)
    if path.suffix.lower() == ".jsonl":
        return [json.loads(line) for line in lines]
    table = csv.DictReader(io.StringIO("\n".join(line.decode() for line in lines)))
    rows = [{key: value for key, value in row.items() if value != ""} for row in table]
    return [row if "answer" in row or "error" in row else row | {"answer": ""} for row in rows]


def written(rows: Sequence[dict[str, Any]], out: str) -> str:
    """Rows as lines of the file `out`: JSONL, or CSV with its header if the file is new or empty."""
    if Path(out).suffix.lower() == ".jsonl":
        return json_lines(rows)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n", restval="")
    if not Path(out).exists() or Path(out).stat().st_size == 0:
        writer.writeheader()
    for row in rows:  # one line each, so that a cut file can be continued
        writer.writerow(
            {key: " ".join(v.splitlines()) if isinstance(v, str) else v for key, v in row.items()}
        )
    return stream.getvalue()
