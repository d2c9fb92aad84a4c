"""What files add to the samples of a data set: captions and statements, and wrong options."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.problems import Problems
from craft.data.readers.conversations import refuse_tag
from craft.data.readers.rows import parse_json
from craft.data.readers.text import json_lines, read_text
from craft.data.sample import Sample
from craft.data.spelling import is_text, squeezed


def with_texts(samples: Sequence[Sample], path: Path) -> list[Sample]:
    """Samples with the captions and statements of a JSONL file: T_i of §3.2.

    Each row names a sample by `id`, or all samples of an image by `image` (the end of its path), and has
    `captions` (a list), `statement` (question and answer as one sentence), or both.

    Raises:
        DataError: a row is broken, names no sample, or names several images by the end of a path.
    """
    by_id = {sample.id: n for n, sample in enumerate(samples)}
    by_name: dict[str, list[int]] = {}
    for n, sample in enumerate(samples):
        if isinstance(sample.image, str):
            by_name.setdefault(Path(sample.image).name, []).append(n)
    changed = list(samples)
    problems = Problems("rows")
    rows = list(json_lines(path, problems, example='{"id": "a.jpg", "captions": ["An oak in a field."]}'))
    problems.stop(len(rows) + len(problems.messages))
    for origin, row in ((row.origin, row.values) for row in rows):
        if "id" in row:
            matches = [by_id[str(row["id"])]] if str(row["id"]) in by_id else []
        else:
            name = str(row.get("image", ""))
            matches = _named(samples, by_name.get(Path(name).name, ()), name)
            _check_one_picture(samples, matches, name, origin)
        if not matches:
            raise DataError(f"{origin}: no sample has the id or image {row.get('id', row.get('image'))!r}.")
        captions, statement = _texts(row, origin)
        for n in matches:
            old = changed[n]
            new = [text for text in captions if text not in old.captions]
            changed[n] = replace(old, captions=(*old.captions, *new), text=statement or old.text)
    return changed


def _texts(row: dict[str, Any], origin: str) -> tuple[list[str], str]:
    """The distinct captions and the statement of a row."""
    captions, statement = row.get("captions", []), row.get("statement", "")
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise DataError(f"{origin}: 'captions' must be a list of texts.")
    if not isinstance(statement, str):
        raise DataError(f"{origin}: 'statement' must be a text.")
    if not all(map(is_text, (*captions, statement))):
        raise DataError(f"{origin}: a text contains half a character. Correct it.")
    for text in (*captions, statement):
        refuse_tag(text, "captions" if text in captions else "statement", origin)
    return list(dict.fromkeys(text.strip() for text in captions if text.strip())), statement.strip()


def with_options(samples: Sequence[Sample], path: Path) -> list[Sample]:
    """Labelled samples with the wrong options of a file in FOCI's format, unchanged:
    {class: [{"image", "options": [correct, wrong, ...], "groundtruth"}]}.

    Images are found by the end of their path. A bare name that several images have means the test
    image, because FOCI's own files are about those. A sample that the file does not name gets random
    options later.

    Raises:
        DataError: another format, a class that the data does not have, a name that several images have, or
            no image in common.
    """
    try:
        content = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"the option file {path} cannot be read as JSON ({error}).") from error
    labels = sorted({sample.label for sample in samples if sample.label is not None})
    classes = {squeezed(label): label for label in labels} | {label: label for label in labels}
    by_name: dict[str, list[int]] = {}
    for n, sample in enumerate(samples):
        by_name.setdefault(Path(str(sample.image)).name, []).append(n)
    changed, used = list(samples), False
    for entry in _entries(content, path):
        correct, *wrong = (_class(option, classes, path) for option in entry["options"])
        name = str(entry["image"])
        matches = _named(samples, by_name.get(Path(name).name, ()), name)
        matches = [n for n in matches if samples[n].split == "test"] if len(matches) > 1 else matches
        _check_one_picture(samples, matches, name, str(path))
        for n in matches:
            if correct != samples[n].label:
                raise DataError(
                    f"{path} says that {name} is '{correct}'; the data says '{samples[n].label}'."
                )
            changed[n], used = replace(samples[n], distractors=tuple(wrong)), True
    if not used:
        raise DataError(f"{path} names no image of this data.")
    return changed


def _entries(content: Any, path: Path) -> list[dict[str, Any]]:
    """The entries of all classes of an option file."""
    lists = list(content.values()) if isinstance(content, dict) else [None]
    entries = []
    for entry in (entry for value in lists for entry in (value if isinstance(value, list) else [None])):
        options = entry.get("options") if isinstance(entry, dict) and "image" in entry else None
        if not isinstance(options, list) or not options:
            raise DataError(
                f"{path} is not an option file of FOCI's format: "
                '{class: [{"image": …, "options": [correct, wrong, …]}]}.'
            )
        entries.append(entry)
    return entries


def _class(option: Any, classes: dict[str, str], path: Path) -> str:
    """The class of the data that an option names."""
    name = classes.get(option) or classes.get(squeezed(option)) if isinstance(option, str) else None
    if name is None:
        raise DataError(f"{path}: the option {option!r} is not a class of this data.")
    return name


def _named(samples: Sequence[Sample], candidates: Sequence[int], name: str) -> list[int]:
    """Which of the candidates have an image of this path, or otherwise one whose path ends with it."""
    paths = {n: str(samples[n].image) for n in candidates}
    exact = [n for n, path in paths.items() if path == name]
    return exact or [n for n, path in paths.items() if f"/{path}".endswith(f"/{name.lstrip('/')}")]


def _check_one_picture(samples: Sequence[Sample], matches: Sequence[int], name: str, origin: str) -> None:
    if len({str(samples[n].image) for n in matches}) > 1:
        raise DataError(f"{origin}: several images are called {name}; add their folder to the name.")
