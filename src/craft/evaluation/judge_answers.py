"""Answers with their reasons, asked of an LVLM or read from a file, in a folder that holds all a judge needs.

FOLDER/{answers.json (settings), answers.jsonl (one row per sample), images/}
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.files import atomic_write_bytes, read_json, write_json
from craft.core.interrupt import Interrupted, stop_wish
from craft.core.progress import say, track
from craft.data import LETTERS, Sample
from craft.data.folder import is_text
from craft.data.images import ImageSource, image_bytes_hash
from craft.evaluation.judge import DIRECTIVE, Case
from craft.evaluation.judge_prompt import png
from craft.evaluation.judge_run import append, whole_lines
from craft.models.lvlm import LVLM


def explain(
    lvlm: LVLM,
    samples: Sequence[Sample],
    folder: Path,
    settings: Mapping[str, Any],
    max_new_tokens: int = 1024,
    keep_ratio: float = 1.0,
    batch_size: int = 32,
) -> list[Case]:
    """Greedy answers to all samples, each asked to justify itself (§4.3). Goes on where it was interrupted.

    Rows are written by whole batches, so a resumed file is the unbroken one, byte for byte.

    Args:
        lvlm: the model.
        samples: with questions written.
        folder: where the answers are, or will be.
        settings: of model and data: what must be the same for answers to be taken as these.
        max_new_tokens: the cap on an answer (§4.1: 1024).
        keep_ratio: share of visual tokens that the LLM sees.
        batch_size: questions per forward pass.

    Raises:
        ConfigError: the folder holds answers under other settings, or cannot be written to.
        CraftError: `keep_ratio` is out of range, or there is no code prior for it.
        DataError: a picture cannot be read.
        Interrupted: stopped by the user; the same call goes on from here.
    """
    full = {
        **settings,
        "max_new_tokens": max_new_tokens,
        "keep_ratio": keep_ratio,
        "batch_size": batch_size,
        "directive": DIRECTIVE,
        "count": len(samples),
    }
    lvlm.check_keep_ratio(keep_ratio)
    _claim(folder, full)
    path = folder / "answers.jsonl"
    done = _whole_batches(path, batch_size, len(samples))
    starts = range(done, len(samples), batch_size)
    with stop_wish() as wish:
        for start in track(starts, f"asking {lvlm.name} to justify its answers"):
            batch = samples[start : start + batch_size]
            prompts = [sample.prompt(DIRECTIVE) for sample in batch]
            images = [sample.image for sample in batch]
            said = lvlm.answer(images, prompts, max_new_tokens, keep_ratio=keep_ratio, batch_size=batch_size)
            rows = [
                {**row_of(sample, answer), "image": _keep_picture(sample.image, folder)}
                for sample, answer in zip(batch, said, strict=True)
            ]
            append(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            if wish.asked:  # behind the last batch too: what follows may be a judge who is paid
                raise Interrupted(
                    f"stopped after {start + len(batch)} of {len(samples)} answers; the same command goes on "
                    "from there."
                )
    return read_cases(folder)


def adopt(
    source: Path, rows: Sequence[Mapping[str, Any]], samples: Mapping[str, Sample], folder: Path
) -> list[Case]:
    """Put answers that were written before into a folder, their pictures beside them.

    Args:
        source: the file that they come from.
        rows: as `read_rows` gave them.
        samples: by id, for the pictures of rows without an `image` of their own; may be empty.
        folder: where to.

    Raises:
        ConfigError: the folder holds other answers, or cannot be written to.
        DataError: a picture cannot be read.
    """
    _claim(folder, {"answers": str(source.resolve()), "rows": [row["id"] for row in rows]})
    kept = []
    for row in rows:
        image = picture_of(row, source, samples)
        kept.append({**row, "image": None if image is None else _keep_picture(image, folder)})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    atomic_write_bytes(folder / "answers.jsonl", text.encode("utf-8"))
    return read_cases(folder)


def picture_of(row: Mapping[str, Any], source: Path, samples: Mapping[str, Sample]) -> ImageSource | None:
    """The picture of a row: its own, beside the file, or that of the sample of its id."""
    if row.get("image"):
        return str(source.parent / str(row["image"]))
    sample = samples.get(str(row["id"]))
    return None if sample is None else sample.image


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a per-sample JSONL, ours or your own: `id`, `prompt`, `prediction`, the right answer as
    `correct` or `answer`, and if there are any `choices` and `image` (a path beside the file).

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
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number} is not JSON ({error.msg}). Restore the line or take it out."
            ) from error
        if not is_text(json.dumps(row, ensure_ascii=False)):
            raise DataError(f"{path}:{number} holds half a character, which cannot be written. Correct it.")
        rows.append(_named(row, path, number))
    if not rows:
        raise DataError(f"{path} holds no answers.")
    return rows


def read_cases(folder: Path) -> list[Case]:
    """The cases of a folder of answers.

    Raises:
        DataError: a row is not of the form that `read_rows` says.
    """
    rows = read_rows(folder / "answers.jsonl")
    return [case_of(row, folder / str(row["image"]) if row.get("image") else None) for row in rows]


def case_of(row: Mapping[str, Any], image: Path | None = None) -> Case:
    """A row and its picture as a case."""
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
    """The prompt without its lettered options: the judge gets those apart."""
    options = {f"{letter}. {text}" for letter, text in zip(LETTERS, row.get("choices") or (), strict=False)}
    return "\n".join(line for line in str(row["prompt"]).split("\n") if line not in options)


def _truth(row: Mapping[str, Any]) -> str:
    """The right answer in words: `correct`, unless that is a mark (true, false), or `answer`; "" without."""
    for value in (row.get("correct"), row.get("answer")):
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return ""


def _keep_picture(image: ImageSource, folder: Path) -> str:
    """Write a picture as judges get it, once; its place in the folder."""
    place = f"images/{image_bytes_hash(image)[:24]}.png"
    if not (folder / place).is_file():
        atomic_write_bytes(folder / place, png(image))
    return place


def _named(row: Any, path: Path, number: int | None = None) -> dict[str, Any]:
    place = path if number is None else f"{path}:{number}"
    if not isinstance(row, dict):
        raise DataError(f"{place} must be a JSON object with id, prompt, prediction and answer.")
    lacking = [name for name in ("id", "prompt", "prediction") if not isinstance(row.get(name), str | int)]
    if not _truth(row):
        lacking.append("answer (or correct)")
    if lacking:
        raise DataError(
            f"{place} has no {', '.join(lacking)}; a judge needs id, prompt, prediction and answer."
        )
    return row


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or check that those in the folder are the same. A folder without any must have
    neither answers nor pictures: they would be someone's."""
    place = folder / "answers.json"
    wanted = json.loads(json.dumps(settings))
    if not place.is_file():
        if strange := [name for name in ("answers.jsonl", "images") if (folder / name).exists()]:
            raise ConfigError(
                f"{folder} holds {', '.join(strange)} that no judging left there. Give another --out."
            )
        write_json(place, wanted)
        return
    before = read_json(place)
    if before != wanted:
        changed = [
            f"{name} was {before.get(name)!r} and is {wanted.get(name)!r}"
            for name in sorted({*before, *wanted})
            if before.get(name) != wanted.get(name)
        ]
        shown = "; ".join(changed)
        raise ConfigError(
            f"{folder} holds answers under other settings ({shown[:400]}). Give another --out, or "
            "--overwrite."
        )


def _whole_batches(path: Path, batch_size: int, count: int) -> int:
    """How many rows of complete batches there are; what a crash left of another batch is cut off."""
    lines = whole_lines(path)
    if len(lines) > count:
        raise CheckpointError(f"{path} holds more answers than were asked for; take --overwrite.")
    if len(lines) == count:
        return count
    kept = len(lines) // batch_size * batch_size
    if kept < len(lines):
        os.truncate(path, sum(len(line) + 1 for line in lines[:kept]))
    if kept:
        say(f"{path} has {kept} of {count} answers already")
    return kept
