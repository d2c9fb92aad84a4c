"""The figure of `craft demo`: test images with answers before and after, changed patches, and the losses.

The curves of `craft report` are drawn here too.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_bytes

_RIGHT, _WRONG, _CHANGED, _GREY = "#1a7f37", "#cf222e", "#ff8c1a", "#57606a"
_CURVES = {
    "sal": ("Surrogate alignment (Eq. 2)", "#0969da"),
    "commitment": ("Commitment (Eq. 3)", "#8250df"),
    "contrastive": ("Contrastive (Eq. 4)", "#bf3989"),
    "retention": ("Retention (ours)", "#bc4c00"),
}
_LINE = 0.2  # inches per line of answers
_LONGEST = 15  # characters of an answer that fit into a column


@dataclass(frozen=True)
class Example:
    """One test image in the figure.

    Attributes:
        pixels: the tower's input, uint8 `[S, S, 3]`.
        answer: the correct answer.
        seen: False if the class was held out of training.
        replies: for each line of the figure, the reply of a model and whether it is correct.
        changed: bool `[h, w]`, the patches whose level-1 code the adaptation changed.
    """

    pixels: np.ndarray
    answer: str
    seen: bool
    replies: tuple[tuple[str, bool], ...]
    changed: np.ndarray


def draw_demo(
    path: str | Path,
    title: str,
    lines: Sequence[str],
    examples: Sequence[Example],
    metrics: Sequence[Mapping[str, Any]],
) -> Path:
    """Write the figure as PNG; the same arguments give the same bytes.

    Args:
        lines: names of the entries of `Example.replies`, such as "craft-tiny/llama, adapted".
        examples: at least one.
        metrics: the lines of metrics.jsonl.

    Raises:
        ConfigError: the path cannot be written to.
    """
    from matplotlib.figure import Figure

    curves = {name: _curve(metrics, name) for name in _CURVES}
    curves = {name: points for name, points in curves.items() if len(points[0])}
    text = _LINE * (len(lines) + 1) + 0.1
    heights = [1.2, text, 1.2]
    figure = Figure(figsize=(2.3 + 1.22 * len(examples), sum(heights) + 3.2), dpi=120, facecolor="white")
    width, height = figure.get_size_inches()
    figure.text(0.01, 1 - 0.16 / height, title, ha="left", va="top", fontsize=13, fontweight="bold")
    upper = figure.add_gridspec(
        3,
        len(examples) + 1,
        left=0.005,
        right=0.995,
        top=1 - 0.5 / height,
        bottom=2.35 / height,
        width_ratios=[1.8] + [1] * len(examples),
        height_ratios=heights,
        wspace=0.06,
        hspace=0.05,
    )
    _labels(figure, upper, lines)
    for column, example in enumerate(examples, start=1):
        _image(figure.add_subplot(upper[0, column]), example, overlay=False)
        _answers(figure.add_subplot(upper[1, column]), example, len(lines))
        _image(figure.add_subplot(upper[2, column]), example, overlay=True)
    if curves:
        side = 0.55 / width
        lower = figure.add_gridspec(
            1,
            len(curves),
            left=side,
            right=1 - 0.15 / width,
            top=1.75 / height,
            bottom=0.45 / height,
            wspace=0.22,
        )
        for column, (name, points) in enumerate(curves.items()):
            plot_curve(figure.add_subplot(lower[0, column]), *_CURVES[name], *points)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # answers may be in any script
        atomic_write_bytes(path, png_of(figure))
    return Path(path)


def png_of(figure: Any) -> bytes:
    """A figure of matplotlib as PNG; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _labels(figure: Any, grid: Any, lines: Sequence[str]) -> None:
    """The left column: names of the rows."""
    for row, words in (
        (0, "test image, as the\nvision tower sees it"),
        (2, "patches whose level-1\ncode changed"),
    ):
        axes = _blank(figure.add_subplot(grid[row, 0]))
        axes.text(0.96, 0.5, words, ha="right", va="center", fontsize=9, color=_GREY)
    axes = _blank(figure.add_subplot(grid[1, 0]))
    for number, words in enumerate(("right answer", *lines)):
        weight = "bold" if number == 0 else "normal"
        axes.text(
            0.96, _height(number, len(lines)), words, ha="right", va="center", fontsize=9, fontweight=weight
        )
    _stripes(axes, len(lines))


def _answers(axes: Any, example: Example, count: int) -> None:
    """The correct answer (in italics if its class was held out of training), then the models' replies."""
    _blank(axes)
    axes.text(
        0.5,
        _height(0, count),
        _short(example.answer) + ("" if example.seen else " *"),
        ha="center",
        va="center",
        fontsize=9,
        fontweight="bold",
        style="normal" if example.seen else "italic",
    )
    for number, (reply, right) in enumerate(example.replies, start=1):
        mark, colour = ("✓", _RIGHT) if right else ("✗", _WRONG)
        text = f"{_short(reply) or '(nothing)'} {mark}"
        axes.text(0.5, _height(number, count), text, ha="center", va="center", fontsize=8.5, color=colour)
    _stripes(axes, count)


def _stripes(axes: Any, count: int) -> None:
    """A grey background for every second line, since zero-shot and adapted alternate."""
    for number in range(2, count + 1, 2):
        middle = _height(number, count)
        axes.axhspan(middle - 0.5 / (count + 1), middle + 0.5 / (count + 1), color="#f0f2f5", zorder=0)


def _height(number: int, count: int) -> float:
    return 1 - (number + 0.5) / (count + 1)


def _short(text: str) -> str:
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    line = line.replace("$", r"\$")  # a lone dollar would begin a formula
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _image(axes: Any, example: Example, overlay: bool) -> None:
    """The image, and with `overlay` a colour over each patch whose code changed."""
    _blank(axes)
    whole: dict[str, Any] = {"extent": (0, 1, 0, 1), "interpolation": "nearest", "aspect": "equal"}
    axes.imshow(example.pixels, **whole)
    if not overlay:
        return
    rows, columns = example.changed.shape
    colours = np.zeros((rows, columns, 4))
    colours[..., :3] = [int(_CHANGED[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    colours[..., 3] = np.where(example.changed, 0.42, 0.0)
    axes.imshow(colours, **whole)
    for at in range(1, columns):
        axes.axvline(at / columns, color="white", linewidth=0.4, alpha=0.6)
    for at in range(1, rows):
        axes.axhline(at / rows, color="white", linewidth=0.4, alpha=0.6)
    share = f"{100 * example.changed.mean():.0f} %"
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.text(0.96, 0.04, share, ha="right", va="bottom", fontsize=8, color="black", bbox=box)


def _blank(axes: Any) -> Any:
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor("none")
    return axes


def _curve(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one loss, float64."""
    points = [(line["step"], line[name]) for line in metrics if name in line]
    return np.array([x for x, _ in points], dtype=float), np.array([y for _, y in points], dtype=float)


def plot_curve(axes: Any, title: str, colour: str, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw the values as a thin line and their running mean as a thick one.

    Args:
        steps: float64 `[T]`.
        values: float64 `[T]`.
    """
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
    window = max(1, len(values) // 20)
    means = np.array([values[max(0, at - window) : at + window + 1].mean() for at in range(len(values))])
    axes.plot(steps, means, color=colour, linewidth=1.8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8, labelpad=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.02)
    lowest, highest = float(values.min()), float(values.max())
    if lowest > 0 and highest > 15 * lowest:  # a steep start would flatten all the rest
        axes.set_yscale("log")
    elif lowest >= 0:
        axes.set_ylim(bottom=0)


CURVES = ("loss", *_CURVES, "ldifs", "codes_changed", "validation", "lr")
"""Columns of metrics.jsonl that `draw_curves` draws if they change."""


def draw_curves(metrics: Sequence[Mapping[str, Any]]) -> tuple[bytes, str]:
    """Draw `CURVES` over steps, three in a row.

    Args:
        metrics: the lines of metrics.jsonl.

    Returns:
        A PNG, and first and last value of each curve in words; both empty if nothing changes.
    """
    from matplotlib.figure import Figure

    curves = {}
    for name in CURVES:
        points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        finite = np.array([point for point in points if np.isfinite(point[1])], dtype=float)
        if len(finite) and np.ptp(finite[:, 1]) > 0:
            curves[name.replace("_", " ")] = finite
    if not curves:
        return b"", ""
    rows = -(-len(curves) // 3)
    figure, titles = Figure(figsize=(12, 2.3 * rows), dpi=100, layout="constrained"), []
    for number, (name, points) in enumerate(curves.items(), start=1):
        titles.append(f"{name}: {points[0, 1]:.4g} → {points[-1, 1]:.4g}")
        plot_curve(figure.add_subplot(rows, 3, number), titles[-1], "#0550ae", points[:, 0], points[:, 1])
    return png_of(figure), "; ".join(titles)
