"""`craft report`: runs, evaluations and results on one HTML page that needs nothing else."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError, DataError
from craft.core.files import atomic_write_text, read_json
from craft.core.provenance import machine
from craft.core.text import flat
from craft.data import open_image
from craft.experiments import EXPERIMENTS
from craft.experiments.publish import NOT_THEIRS
from craft.experiments.report_html import (
    Section,
    curve,
    escape,
    html_table,
    markdown,
    page,
    pairs,
    picture,
    table,
)
from craft.judging.cases import BINARY, DIMENSIONS
from craft.recipes.matrix_page import page as matrix_page
from craft.training.run_folder import RunFolder

CURVES = (
    "loss",
    "sal",
    "commitment",
    "contrastive",
    "retention",
    "ldifs",
    "codes_changed",
    "validation",
    "lr",
)
"""Columns of metrics.jsonl that are drawn, where they are there and change."""

MISTAKES = 12
"""Pairs of right and wrong option that are listed."""

ANSWERS = 40
"""Judged answers that are listed."""

EDGE = 216
"""Most pixels of a side of their pictures: three times what is shown, where judges get up to 1568."""

Told = Mapping[str, Any]


def report(places: Sequence[str | Path], out: str | Path, title: str = "CRAFT report") -> Path:
    """Write one page of everything that is found.

    Args:
        places: run folders, what `craft eval --out`, `craft transfer --out`, `craft judge` and
            `craft reproduce` left (files or folders), or folders of such.
        out: the page.
        title: its heading.

    Raises:
        DataError: there is nothing at a place, or nothing of these kinds; or a judged picture cannot be read.
        CheckpointError: a file is damaged.
        ConfigError: the page cannot be written.
    """
    sections: list[Section] = []
    for place in places:
        found = sections_of(Path(os.path.abspath(place)))  # "." has a name too
        if not found:
            raise DataError(
                f"{place} holds nothing to report. Give a run folder, or what craft eval --out, transfer "
                "--out, judge or reproduce wrote."
            )
        sections += found
    told = machine()
    versions = told["versions"]
    about = f"craft {versions['craft-vlm']}, torch {versions['torch']}"
    atomic_write_text(out, page(title, about, sections))
    return Path(out)


def sections_of(place: Path, below: bool = True) -> list[Section]:
    """What is at a place: one section for each run or result.

    Args:
        place: a file or folder.
        below: look into the folders in it too.

    Raises:
        DataError: there is no such place.
        CheckpointError: a file is damaged.
    """
    if not place.exists():
        raise DataError(f"There is nothing at {place}; check the path.")
    if place.is_file():
        return _of_file(place) if place.suffix == ".json" else []
    if (place / "run.json").is_file():
        judged = [one for path in sorted(place.glob("judge/*/report-*.json")) for one in _of_file(path)]
        stages = [_run(file.parent) for file in sorted(place.glob("stage-*/run.json"))]  # of an alignment
        return [_run(place), *stages, *judged]
    files = [one for path in sorted(place.glob("*.json")) for one in _of_file(path)]
    folders = sorted(path for path in place.iterdir() if path.is_dir()) if below else []
    return files + [one for path in folders for one in sections_of(path, below=False)]


def _of_file(path: Path) -> list[Section]:
    """The section of a JSON file, or none where it is something else."""
    told = read_json(path)
    if not isinstance(told, dict):
        return []
    try:
        for keys, make in KINDS:
            if keys <= told.keys():
                return [make(told, path)]
    except NOT_THEIRS as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); make it again."
        ) from error
    return []


# Runs


def _run(folder: Path) -> Section:
    """A training: what it was, how it went, what it left unchanged."""
    run, told = RunFolder(folder), read_json(folder / "run.json")
    data, config = told.get("data") or {}, told.get("config") or {}
    metrics = told.get("metrics") or {}
    before, after = told.get("hashes_before") or {}, told.get("hashes_after") or {}
    frozen = [name for name in before if after and before[name] == after.get(name)]
    llm = config.get("llm")  # of an alignment
    body = pairs(
        {
            "status": told.get("status"),
            "method": told.get("method") or ("align" if llm else "craft"),
            "model": told.get("surrogate") or llm,
            "data": data.get("name"),
            "training samples": data.get("train"),
            "never trained on": ", ".join(told.get("held_out") or ()),
            "seed": told.get("seed"),
            "steps": told.get("steps"),
            "minutes": metrics.get("minutes"),
            "kept step": metrics.get("best_step"),
            "codes in use": metrics.get("codes_used"),
            "byte for byte unchanged": ", ".join(frozen),
            "device": told.get("device"),
            "commit": (told.get("machine") or {}).get("commit"),
        }
    )
    lines = run.metrics()
    drawn = []
    for name in CURVES:
        points = [(float(line["step"]), float(line[name])) for line in lines if line.get(name) is not None]
        if len({value for _, value in points}) > 1:
            drawn.append(curve(name.replace("_", " "), points))
    body += f'<div class="curves">{"".join(drawn)}</div>\n' if drawn else ""
    settings = [[escape(name), escape(value)] for name, value in sorted(flat(config).items())]
    if settings:
        listed = html_table(["setting", "value"], settings)
        body += f"<details><summary>all settings</summary>{listed}</details>\n"
    return Section(folder.name, "training", body)


# Results


def _result(told: Told, path: Path) -> Section:
    """A result of `craft reproduce`: its page."""
    experiment = EXPERIMENTS.get(str(told["experiment"]))
    if experiment is None:
        raise ValueError(f"there is no experiment {told['experiment']}")
    text = experiment.page(dict(told))
    return Section(text.split("\n", 1)[0].removeprefix("# "), "experiment", markdown(text, path.parent))


def _transfer(told: Told, path: Path) -> Section:
    """A matrix of `craft transfer`, with its heat map."""
    text = matrix_page(told)
    heat = path.with_suffix(".png")
    shown = picture(heat.read_bytes(), "the matrix as a heat map") if heat.is_file() else ""
    return Section("Transfer matrix", "transfer", shown + markdown(text, path.parent))


def _evaluation(told: Told, path: Path) -> Section:
    """What `craft eval --out` wrote: figures per seed, classes, mistakes."""
    reports: list[Told] = told["reports"]
    first = reports[0]["settings"]
    heads = ("seed", "questions", "accuracy", "95 % interval", "seen", "unseen", "lenient", "unparseable")
    rows = [
        [
            str(one["settings"].get("seed", "-")),
            str(one["count"]),
            _percent(one["accuracy"]),
            " to ".join(map(_percent, one["interval"])),
            *(_percent(one[name]) for name in ("seen", "unseen", "lenient", "unparseable")),
        ]
        for one in reports
    ]
    encoder = first.get("encoder")
    body = pairs(
        {
            "backbone": first.get("backbone"),
            "encoder": "none: zero-shot" if encoder is None else encoder,
            "data": first.get("data"),
            "keep ratio": first.get("keep_ratio"),
            "chance, %": None if told["chance"] is None else _percent(told["chance"]),
        }
    )
    body += table(heads, rows)
    if len(reports) > 1 and (found := told["spread"]["accuracy"]):
        body += f"<p>Mean {_percent(found['mean'])} ± {_percent(found['std'])} over seeds, in percent.</p>\n"
    for one in reports:
        seed = f", seed {one['settings'].get('seed')}" if len(reports) > 1 else ""
        if one.get("classes"):
            shown = [
                [
                    str(row["label"]),
                    "" if row["seen"] else "unseen",
                    str(row["count"]),
                    _percent(row["strict"]),
                ]
                for row in one["classes"]
            ]
            listed = table(("class", "", "questions", "accuracy"), shown)
            body += f"<details><summary>classes{escape(seed)}</summary>{listed}</details>\n"
        if one.get("confusion"):
            shown = [
                [
                    str(row["correct"]),
                    str(row["named"] or "no option"),
                    str(row["count"]),
                    str(row["offered"]),
                ]
                for row in one["confusion"][:MISTAKES]
            ]
            listed = table(("right", "named instead", "times", "of"), shown)
            body += f"<details><summary>most frequent mistakes{escape(seed)}</summary>{listed}</details>\n"
    return Section(f"{first.get('backbone')} on {first.get('data')}", "evaluation", body)


def _judged(told: Told, path: Path) -> Section:
    """What `craft judge` wrote: the five dimensions, and answers with their pictures."""
    heads = ("cases", *DIMENSIONS, "overall")
    groups = [("all", told["figures"]), ("seen", told["seen"]), ("unseen", told["unseen"])]
    rows = [
        [name, *(_dimension(head, figures.get(head)) for head in heads[1:])]
        for name, figures in groups
        if any(figures.get(head) for head in heads[1:])
    ]
    answers = told["settings"].get("answers") or {}
    note = told["settings"].get("note")
    body = pairs(
        {
            "answered by": answers.get("backbone"),
            "encoder": "none: zero-shot" if answers.get("zero_shot") else None,
            "data": answers.get("data"),
            "judge": (told["settings"].get("judge") or {}).get("judge"),
            "cases": ", ".join(f"{count} {name}" for name, count in told["statuses"].items() if count),
        }
    )
    body += table(heads, rows) + (f'<p class="warn">Note: {escape(note)}.</p>\n' if note else "")
    pictures = _pictures(path.parent)
    shown = [
        [
            pictures.get(row["id"], ""),
            escape(row["truth"]),
            escape(row["response"]),
            *(escape({True: "yes", False: "no"}.get(row[name], "-")) for name in BINARY),
        ]
        for row in told["samples"][:ANSWERS]
    ]
    listed = html_table(["picture", "right answer", "response", *BINARY], shown)
    body += f"<details open><summary>the first {len(shown)} answers</summary>{listed}</details>\n"
    return Section(f"{answers.get('backbone') or path.parent.name}, judged", "judge", body)


def _pictures(folder: Path) -> dict[str, str]:
    """The pictures of judged answers by id, as HTML."""
    from craft.judging.answers import read_rows

    place, found = folder / "answers.jsonl", dict[str, str]()
    for row in read_rows(place)[:ANSWERS] if place.is_file() else ():
        file = folder / str(row.get("image") or "")
        if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
            found[str(row["id"])] = picture(_reduced(file), "the picture", small=True)
    return found


def _reduced(file: Path) -> bytes:
    """A picture as PNG, no larger than a page that is to be sent needs it."""
    image = open_image(str(file))
    image.thumbnail((EDGE, EDGE))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def _dimension(name: str, found: Told | None) -> str:
    if found is None:
        return "-"
    by, digits = (100, 1) if name in BINARY else (1, 2)
    mean, (low, high) = found["mean"] * by, (edge * by for edge in found["interval"])
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


KINDS: tuple[tuple[set[str], Callable[[Told, Path], Section]], ...] = (
    ({"experiment", "provenance"}, _result),
    ({"encoders", "backbones", "table", "cells", "summary"}, _transfer),
    ({"statuses", "figures", "samples"}, _judged),
    ({"reports", "spread", "accuracy"}, _evaluation),
)
"""What a JSON file is, by the keys that it has, and what makes a section of it."""
