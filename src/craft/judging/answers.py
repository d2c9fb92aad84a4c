"""Answers with their reasons, asked of an LVLM or read from a file, in a folder that holds all a judge needs.

FOLDER/{answers.json (settings), answers.jsonl (one row per sample), images/}
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.files import (
    append_text,
    atomic_write_bytes,
    atomic_write_text,
    member,
    read_json,
    write_json,
)
from craft.core.interrupt import Interrupted, stop_wish
from craft.core.progress import say, track
from craft.core.store import json_lines, whole_lines
from craft.data import LETTERS, Sample
from craft.data.images import ImageSource, image_bytes_hash
from craft.data.spelling import is_text
from craft.evaluation.lengths import check_questions
from craft.judging.cases import DIRECTIVE, Case, png
from craft.models.lvlm import LVLM

Preview = list[tuple[Case, ImageSource | None]]


@dataclass(frozen=True)
class Answers:
    """The answers to be judged; creating this asks no LVLM.

    Attributes:
        folder: the folder that has them, or will have them.
        collect: returns them, after asking an LVLM for those that are missing.
        preview: returns the cases as far as they are known (with an empty response if the LVLM has not
            answered yet), and their images.
        disposable: whether `collect` can make them again.
        written: whether all of them exist already, so that an empty response is an answer too.
    """

    folder: Path
    collect: Callable[[], list[Case]]
    preview: Callable[[], Preview]
    disposable: bool = True
    written: bool = False


def explain(
    lvlm: LVLM,
    samples: Sequence[Sample],
    folder: Path,
    settings: Mapping[str, Any],
    max_new_tokens: int = 1024,
    keep_ratio: float = 1.0,
    batch_size: int = 32,
) -> list[Case]:
    """Greedy answers to all samples, each asked to justify itself (§4.3). Continues after an interruption.

    Rows are written in whole batches, so a resumed file equals an uninterrupted one, byte for byte.

    Args:
        lvlm, samples: the model, and the samples with their questions.
        folder: the folder of the answers.
        settings: of model and data; answers in the folder count only if these are the same.
        max_new_tokens: the cap on an answer (§4.1: 1024).
        keep_ratio: share of the visual tokens that the LLM sees.
        batch_size: questions per forward pass.

    Raises:
        ConfigError: the folder holds answers under other settings, or cannot be written to.
        CraftError: `keep_ratio` is out of range, or there is no code prior for it.
        DataError: an image cannot be read, or a question is longer than the LLM's context.
        Interrupted: the user stopped it; the same call continues.
    """
    all_settings = {
        **settings,
        "max_new_tokens": max_new_tokens,
        "keep_ratio": keep_ratio,
        "batch_size": batch_size,
        "directive": DIRECTIVE,
        "count": len(samples),
    }
    lvlm.check_keep_ratio(keep_ratio)
    check_questions(lvlm, samples, DIRECTIVE, keep_ratio)
    _claim(folder, all_settings)
    path = folder / "answers.jsonl"
    done = _whole_batches(path, batch_size, len(samples))
    starts = range(done, len(samples), batch_size)
    with stop_wish() as wish:
        for start in track(starts, f"asking {lvlm.name} to justify its answers"):
            batch = samples[start : start + batch_size]
            prompts = [sample.prompt(DIRECTIVE) for sample in batch]
            images = [sample.image for sample in batch]
            answers = lvlm.answer(
                images, prompts, max_new_tokens, keep_ratio=keep_ratio, batch_size=batch_size
            )
            rows = [
                {**row_of(sample, answer), "image": _copy_image(sample.image, folder)}
                for sample, answer in zip(batch, answers, strict=True)
            ]
            append_text(path, json_lines(rows))
            if wish.requested:  # after the last batch too, since a paid judge may come next
                raise Interrupted(
                    f"stopped after {start + len(batch)} of {len(samples)} answers; the same command "
                    "continues from there."
                )
    return read_cases(folder)


def adopt(
    source: Path, rows: Sequence[Mapping[str, Any]], samples: Mapping[str, Sample], folder: Path
) -> list[Case]:
    """Copy existing answers and their images into a folder.

    Args:
        source: the file of the answers.
        rows: as `read_rows` returned them.
        samples: by id, for the images of rows that have no `image`; may be empty.
        folder: the destination.

    Raises:
        ConfigError: the folder holds other answers, or cannot be written to.
        DataError: an image cannot be read.
    """
    _claim(folder, {"answers": str(source.resolve()), "rows": [row["id"] for row in rows]})
    copies = []
    for row in rows:
        image = image_of(row, source, samples)
        copies.append({**row, "image": None if image is None else _copy_image(image, folder)})
    atomic_write_text(folder / "answers.jsonl", json_lines(copies))
    return read_cases(folder)


def image_of(row: Mapping[str, Any], source: Path, samples: Mapping[str, Sample]) -> ImageSource | None:
    """The image of a row: the one it names, relative to the file, or that of the sample with its id."""
    if row.get("image"):
        return str(source.parent / str(row["image"]))
    sample = samples.get(str(row["id"]))
    return None if sample is None else sample.image


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a per-sample JSONL, CRAFT's or your own: `id`, `prompt`, `prediction`, the right answer as
    `correct` or `answer`, and optionally `choices` and `image` (a path relative to the file).

    Raises:
        DataError: the file is missing or empty, or a row is not of that form; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the answers {path}: {error}. Check the path.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error.msg}). Restore or remove the line.") from error
        if not is_text(json.dumps(row, ensure_ascii=False)):
            raise DataError(f"{where} holds half a character, which cannot be written. Correct it.")
        _check_row(row, where)
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no answers.")
    return rows


def _check_row(row: object, where: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object with id, prompt, prediction and answer.")
    missing = [name for name in ("id", "prompt", "prediction") if not isinstance(row.get(name), str | int)]
    if not _truth(row):
        missing.append("answer (or correct)")
    if missing:
        raise DataError(
            f"{where} has no {', '.join(missing)}; a judge needs id, prompt, prediction and answer."
        )


def read_cases(folder: Path) -> list[Case]:
    """The cases of a folder of answers.

    Raises:
        DataError: a row is not of the form that `read_rows` describes.
        CheckpointError: the image of a row is outside the folder.
    """
    source = folder / "answers.jsonl"
    return [
        case_of(row, member(folder, row["image"], source, nested=True) if row.get("image") else None)
        for row in read_rows(source)
    ]


def preview_of(cases: Sequence[Case]) -> Preview:
    """Written cases with their images."""
    return [(case, None if case.image is None else str(case.image)) for case in cases]


def case_of(row: Mapping[str, Any], image: Path | None = None) -> Case:
    """A row and its image as a case."""
    return Case(
        id=str(row["id"]),
        task=_task(row),
        options=tuple(map(str, row.get("choices") or ())),
        truth=_truth(row),
        response=str(row["prediction"]),
        image=image,
        seen=bool(row.get("seen", True)),
    )


def row_of(sample: Sample, answer: str) -> dict[str, Any]:
    """A row as `craft eval --out` writes it, without the marks."""
    return {
        "id": sample.id,
        "prompt": sample.prompt(DIRECTIVE),
        "answer": sample.answer,
        "prediction": answer,
        "seen": sample.seen,
        "label": sample.label,
        "correct": sample.answer_text,
        "choices": list(sample.choices),
    }


def _task(row: Mapping[str, Any]) -> str:
    """The prompt without its lettered options, which the judge gets separately."""
    options = {f"{letter}. {text}" for letter, text in zip(LETTERS, row.get("choices") or (), strict=False)}
    return "\n".join(line for line in str(row["prompt"]).split("\n") if line not in options)


def _truth(row: Mapping[str, Any]) -> str:
    """The right answer in words: `correct`, unless that is a mark (true, false), or `answer`; else ""."""
    for value in (row.get("correct"), row.get("answer")):
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return ""


def _copy_image(image: ImageSource, folder: Path) -> str:
    """Write an image as judges get it, unless it is there; returns its path relative to the folder."""
    name = f"images/{image_bytes_hash(image)[:24]}.png"
    if not (folder / name).is_file():
        atomic_write_bytes(folder / name, png(image))
    return name


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or check that those in the folder are the same. A folder without settings must
    hold neither answers nor images, since CRAFT did not write them."""
    path = folder / "answers.json"
    settings = json.loads(json.dumps(settings))
    if not path.is_file():
        if foreign := [name for name in ("answers.jsonl", "images") if (folder / name).exists()]:
            raise ConfigError(
                f"{folder} holds {', '.join(foreign)} that `craft judge` did not write. Choose another --out."
            )
        write_json(path, settings)
        return
    before = read_json(path)
    if before != settings:
        shown = "; ".join(
            f"{name} was {before.get(name)!r} and is {settings.get(name)!r}"
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        )
        raise ConfigError(
            f"{folder} holds answers under other settings ({shown[:400]}). Choose another --out, or give "
            "--overwrite."
        )


def _whole_batches(path: Path, batch_size: int, count: int) -> int:
    """The number of rows in complete batches; rows of a batch that a crash cut short are removed."""
    lines = whole_lines(path)
    if len(lines) > count:
        raise CheckpointError(f"{path} holds more answers than there are questions; use --overwrite.")
    if len(lines) == count:
        return count
    complete = len(lines) // batch_size * batch_size
    if complete < len(lines):
        os.truncate(path, sum(len(line) + 1 for line in lines[:complete]))
    if complete:
        say(f"{path} has {complete} of {count} answers already")
    return complete
