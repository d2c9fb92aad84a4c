"""Your own questions, one JSON object a line:
{image, question, answer[, choices, label, captions, split, id, directive]}.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.captions import class_text, declarative
from craft.data.choices import DIRECTIVES, AnswerWith, answer_for
from craft.data.folder import SPLIT_NAMES, words
from craft.data.raw import Raw
from craft.data.sample import LETTERS, Sample

REQUIRED = ("image", "question", "answer")
OPTIONAL = ("choices", "label", "captions", "split", "id", "directive")
_EXAMPLE = '{"image": "a.jpg", "question": "What is this?", "answer": "an oak"}'


def read_jsonl(
    path: Path, root: Path | None = None, answer_with: AnswerWith = "option", domain: str | None = None
) -> Raw:
    """Read a JSONL of questions; image paths are relative to the file (or to `root`).

    With `choices` the prompt lists them with letters in the order given, and the answer (an option's text,
    or its letter) is asked for as `answer_with` says; without, it is an open question. The set is a
    "classification" if every row has choices and its label is its answer; otherwise "vqa". The contrastive
    loss gets question and answer as a statement, or, where a `domain` ("bird") is given and the label is the
    answer, the class text.

    Raises:
        DataError: bad JSON, a missing or wrong field, choices without the answer, a repeated id, or
            missing images; each named with file and line. Also a file without a single row.
    """
    base = root if root is not None else path.parent
    samples: list[Sample] = []
    lines: dict[str, str] = {}
    for number, row in _rows(path):
        sample = _sample(row, f"{path}:{number}", f"{path.name}:{number}", base, answer_with, domain)
        if sample.id in lines:
            raise DataError(
                f"{sample.origin}: the id '{sample.id}' was already used in {lines[sample.id]}. "
                "Give every row its own id, or leave ids out."
            )
        lines[sample.id] = sample.origin
        samples.append(sample)
    if not samples:
        raise DataError(f"{path} holds no rows. Write one JSON object a line, like {_EXAMPLE}")
    missing = [s for s in samples if not Path(str(s.image)).is_file()]
    if missing:
        shown = "; ".join(f"{s.image} ({s.origin})" for s in missing[:5])
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{len(missing)} of the {len(samples)} rows name an image that does not exist: {shown}{more}. "
            f"Paths are relative to {base}; correct them, or put the files there."
        )
    labelled = all(s.choices and s.label == s.answer_text for s in samples)
    task = "classification" if labelled else "vqa"
    return Raw(path.stem, task, domain or words(path.stem), samples, source=str(path))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}).") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not valid JSON ({error.msg}, column {error.colno}). "
                f"Every line must be one object, like {_EXAMPLE}"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{number}: a {type(row).__name__}, not an object. "
                f"Every line must be one object, like {_EXAMPLE}"
            )
        yield number, row


def _sample(
    row: dict[str, Any],
    origin: str,
    default_id: str,
    base: Path,
    answer_with: AnswerWith,
    domain: str | None,
) -> Sample:
    for name in REQUIRED:
        if name not in row:
            near = difflib.get_close_matches(name, [key for key in row if key not in OPTIONAL], 1, 0.7)
            hint = f" (did you mean it by '{near[0]}'?)" if near else ""
            raise DataError(
                f"{origin}: the field '{name}' is missing{hint}. A row needs {', '.join(REQUIRED)}."
            )
    for name in row:
        near = difflib.get_close_matches(name, OPTIONAL, 1, 0.85)
        if name not in (*REQUIRED, *OPTIONAL) and near:
            raise DataError(f"{origin}: unknown field '{name}'; did you mean '{near[0]}'?")
    question, answer = _text(row, "question", origin), _text(row, "answer", origin)
    label = _text(row, "label", origin) if row.get("label") is not None else None
    choices = _strings(row, "choices", origin)
    correct = None
    if choices:
        correct = _correct(choices, answer, origin)
        answer = answer_for(choices, choices[correct], answer_with)
    said = answer if correct is None else choices[correct]
    if label is not None and label.casefold() == said.casefold():
        label = said
    kind = answer_with if choices else "open"
    text = class_text(domain, said) if domain and label == said else declarative(question, said)
    return Sample(
        id=_text(row, "id", origin) if row.get("id") is not None else default_id,
        image=str(base / _text(row, "image", origin)),
        question=question,
        answer=answer,
        choices=choices,
        label=label,
        captions=_strings(row, "captions", origin),
        split=_split(row, origin),
        directive=_text(row, "directive", origin) if row.get("directive") else DIRECTIVES[kind],
        origin=origin,
        correct=correct,
        text=text,
    )


def _text(row: dict[str, Any], name: str, origin: str) -> str:
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{origin}: '{name}' must be a text that is not empty, not {value!r}.")
    return value.strip()


def _strings(row: dict[str, Any], name: str, origin: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{origin}: '{name}' must be a list of texts, not {value!r}.")
    strings = tuple(_text({name: item}, name, origin) for item in value)
    if name == "choices":
        if not 2 <= len(strings) <= len(LETTERS):
            raise DataError(f"{origin}: 'choices' must hold 2 to {len(LETTERS)} options, not {len(strings)}.")
        if len({option.casefold() for option in strings}) < len(strings):
            raise DataError(
                f"{origin}: 'choices' names an option twice: {list(strings)}. Make them distinct."
            )
    return strings


def _correct(choices: tuple[str, ...], answer: str, origin: str) -> int:
    if answer in choices:
        return choices.index(answer)
    folded = [choice.casefold() for choice in choices]
    if answer.casefold() in folded:
        return folded.index(answer.casefold())
    if len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(answer.upper())
    raise DataError(
        f"{origin}: the answer '{answer}' is not one of the choices {list(choices)}. "
        "Give an option's text, or its letter."
    )


def _split(row: dict[str, Any], origin: str) -> str:
    value = row.get("split")
    if value is None:
        return ""
    name = SPLIT_NAMES.get(str(value).lower())
    if name is None:
        raise DataError(f"{origin}: unknown split {value!r}. Use 'train', 'validation' or 'test'.")
    return name
