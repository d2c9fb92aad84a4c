"""The transfer matrix as a Markdown page."""

from collections.abc import Mapping
from typing import Any

from craft.core.text import table_row
from craft.recipes.matrix import GROUPS, ZERO_SHOT

Told = Mapping[str, Any]


def page(matrix: Told) -> str:
    """The page of `TransferMatrix.to_markdown`, made of its `to_json` alone: the JSON on disk gives it again.

    Source: the layout of Tables 3 and 7.
    """
    parts = ["# Transfer matrix", _about(matrix), _accuracies(matrix), "## Gains", _gains(matrix)]
    parts += ["## Means over cells", _means(matrix)]
    return "\n\n".join(parts) + "\n"


def _about(matrix: Told) -> str:
    told = matrix["settings"]
    chances = {report["chance"] for cell in matrix["cells"] for report in cell["reports"]}
    chance = sorted(value for value in chances if value is not None)
    lines = [
        "Strict exact match in percent, mean ± standard deviation over seeds; in brackets the gain over "
        "zero-shot on the same questions. A star: the encoder was adapted with this backbone's own LLM."
    ]
    if chance:
        lines.append(
            f"A blind guess scores {' to '.join(_percent(c) for c in {chance[0]: 0, chance[-1]: 0})}."
        )
    limit = told.get("limit")
    lines.append(
        f"Seeds: {', '.join(map(str, told.get('seeds', [])))}. "
        f"Test questions per seed: {'all' if limit is None else f'at most {limit}'}. "
        f"Commit: {', '.join(told.get('commits') or []) or 'not in a checkout'}."
    )
    lines.append(f"Made by `{told['command']}`." if told.get("command") else "")
    return "\n".join(line for line in lines if line)


def _accuracies(matrix: Told) -> str:
    """Backbone by backbone: zero-shot, then each encoder; one column per data set, and their mean."""
    several = len(matrix["data"]) > 1
    known = {(cell["data"], cell["encoder"], cell["backbone"]): cell for cell in matrix["table"]}
    rows = []
    for backbone in matrix["backbones"]:
        for encoder in matrix["encoders"]:
            cells = [known.get((data, encoder, backbone)) for data in matrix["data"]]
            own = any(cell is not None and cell["diagonal"] for cell in cells) and encoder != ZERO_SHOT
            row = [backbone, encoder + (" *" if own else ""), *map(_accuracy, cells)]
            if several:
                there = [cell for cell in cells if cell is not None]
                row.append(_mean_accuracy(there) if len(there) == len(cells) else "-")
            rows.append(row)
    heads = ["backbone", "encoder adapted with", *matrix["data"], *(["mean"] if several else [])]
    return _table(heads, rows)


def _accuracy(cell: Told | None) -> str:
    if cell is None:
        return "-"
    found, gain = cell["accuracy"], cell["gain"]["accuracy"]
    text = _percent(found["mean"]) + (f" ± {_percent(found['std'])}" if found["runs"] > 1 else "")
    return text if gain is None else f"{text} ({_signed(gain['mean'])})"


def _mean_accuracy(cells: list[Told]) -> str:
    mean = sum(cell["accuracy"]["mean"] for cell in cells) / len(cells)
    gains = [gain["mean"] for cell in cells if (gain := cell["gain"]["accuracy"]) is not None]
    return _percent(mean) + (f" ({_signed(sum(gains) / len(gains))})" if gains else "")


def _gains(matrix: Told) -> str:
    intro = (
        "Points over zero-shot [95 % bootstrap interval over questions], for all classes, those that "
        "training had (seen), and those held out of it (unseen)."
    )
    rows = []
    for cell in matrix["table"]:
        gains = [cell["gain"][name] for name in GROUPS]
        if gains[0] is not None:
            star = " *" if cell["diagonal"] else ""
            rows.append([cell["data"], cell["encoder"] + star, cell["backbone"], *map(_with_interval, gains)])
    return f"{intro}\n\n" + _table(
        ["data", "encoder adapted with", "backbone", "all", "seen", "unseen"], rows
    )


def _with_interval(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "-"
    low, high = gain["interval"]
    return f"{_signed(gain['mean'])} [{_signed(low)}, {_signed(high)}]"


def _means(matrix: Told) -> str:
    rows = [
        [
            found["data"],
            "same LLM" if found["diagonal"] else "another LLM",
            *(_signed(found[name]) for name in GROUPS),
            f"{found['positive']} of {found['cells']}",
            _signed(found["lowest"]),
        ]
        for found in matrix["summary"]
    ]
    return _table(["data", "backbone", "all", "seen", "unseen", "cells above zero-shot", "lowest"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(map(table_row, [head, ["---"] * len(head), *rows]))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"
