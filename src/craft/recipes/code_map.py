"""The picture of `craft show`: codes, rarity and kept patches over one image, a row for each tower."""

import colorsys
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_bytes
from craft.pruning import budget_of

_CELL = 0.27  # inches that a patch with its number needs
_SMALL = 2.6  # inches of a panel, at least
_HEAD, _GAP, _BAR = 0.3, 0.15, 0.65  # inches of a title line, between panels, of the scale of rarities
_DROPPED = (1.0, 1.0, 1.0, 0.88)  # veil over a patch that is not kept


@dataclass(frozen=True, eq=False)
class CodeMap:
    """One image under one tower.

    Attributes:
        tower: "base" or "adapted".
        codes: int64 `[N, L]`.
        residual: e = |z - c⁽¹⁾|², float64 `[N]`.
        share: how often the level-1 code occurs in the prior, of all tokens, `[N]`; None without a prior.
        rank: place in the pruning order, int64 `[N]`: M tokens kept are those of rank below M; None likewise.
    """

    tower: str
    codes: np.ndarray
    residual: np.ndarray
    share: np.ndarray | None
    rank: np.ndarray | None


@dataclass(frozen=True, eq=False)
class ShownImage:
    """An image with its maps.

    Attributes:
        title: what it is called.
        pixels: what the tower sees, uint8 `[S, S, 3]`.
        grid: (rows, columns) of patches.
        maps: one per tower.
    """

    title: str
    pixels: np.ndarray
    grid: tuple[int, int]
    maps: list[CodeMap]


def code_colours(maps: Sequence[CodeMap]) -> dict[int, tuple[float, float, float]]:
    """A colour (RGB in [0, 1]) for every level-1 code that occurs more than once in some map.

    The most frequent get hues farthest apart; the same code has the same colour in all maps.
    """
    most: Counter[int] = Counter()
    for found in maps:
        for code, count in Counter(found.codes[:, 0].tolist()).items():
            most[code] = max(most[code], count)
    repeated = sorted((code for code, count in most.items() if count > 1), key=lambda c: (-most[c], c))
    return {
        code: colorsys.hsv_to_rgb(
            (0.58 + number * 0.618034) % 1, (0.6, 0.35)[number // 10 % 2], (1.0, 0.85)[number // 20 % 2]
        )
        for number, code in enumerate(repeated)
    }


def draw_codes(path: str | Path, image: ShownImage, keep: Sequence[float]) -> Path:
    """Write one image's picture as PNG; the same arguments give the same bytes.

    Args:
        path: where.
        image: with one map per tower.
        keep: keep ratios, a panel each (where there is a prior).

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    ruled = any(found.rank is not None for found in image.maps)
    large = max(_SMALL, _CELL * max(image.grid))
    lines = 2 if ruled and large >= 1.6 * _SMALL else 1  # of small panels beside a large one
    small = (large - _HEAD * (lines - 1)) / lines
    places = _places(small, lines, 2 + len(keep) if ruled else 1)
    right = max(left for left, _ in places) + small + (_BAR if len(places) == 2 or lines == 2 else 0)
    width = _GAP + large + right + _GAP
    height = _HEAD + (large + _HEAD + _GAP) * len(image.maps)
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")

    def panel(left: float, top: float, side: float) -> Any:
        return figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))

    head = {"ha": "left", "va": "top", "fontsize": 12, "weight": "bold"}
    figure.text(_GAP / width, 1 - 0.1 / height, image.title.replace("$", r"\$"), **head)
    colours = code_colours(image.maps)
    for row, found in enumerate(image.maps):
        top = 2 * _HEAD + row * (large + _HEAD + _GAP)
        _codes(panel(_GAP, top, large), image, found, colours, large)
        spots = [panel(_GAP + large + left, top + down, small) for left, down in places]
        _picture(spots[0], image, "picture")
        if found.share is None or found.rank is None:
            for spot in spots[1:]:
                spot.set_axis_off()
            continue
        _rarity(figure, spots[1], image, found.share)
        for spot, ratio in zip(spots[2:], keep, strict=True):
            _kept(spot, image, found.rank, ratio)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    atomic_write_bytes(path, data.getvalue())
    return Path(path)


def _places(small: float, lines: int, count: int) -> list[tuple[float, float]]:
    """Where small panels stand, in inches right of the large one and below its top edge.

    Picture and rarity open the first line, the rarity with room for its scale.
    """
    found: list[tuple[float, float]] = []
    for number in range(count):
        line, at = (0, number) if lines == 1 or number < 2 else (1, number - 2)
        bar = _BAR if line == 0 and at >= 2 else 0.0
        found.append((_GAP + at * (small + _GAP) + bar, line * (small + _HEAD)))
    return found


def _picture(axes: Any, image: ShownImage, title: str) -> None:
    """The image, whole, patches as units of both axes."""
    rows, columns = image.grid
    axes.imshow(image.pixels, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0))
    axes.set_title(title, fontsize=9, loc="left", pad=3)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)


def _over(axes: Any, image: ShownImage, veil: np.ndarray) -> None:
    rows, columns = image.grid
    axes.imshow(
        veil.reshape(rows, columns, 4), extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto"
    )


def _codes(
    axes: Any,
    image: ShownImage,
    found: CodeMap,
    colours: Mapping[int, tuple[float, float, float]],
    inches: float,
) -> None:
    """Level-1 codes as numbers; those that repeat in this image in a colour of their own."""
    rows, columns = image.grid
    first = found.codes[:, 0].tolist()
    counts = Counter(first)
    title = f"{found.tower} tower: {len(counts)} codes, {sum(n > 1 for n in counts.values())} repeated"
    _picture(axes, image, title)
    veil = np.array([(*colours[c], 0.72) if counts[c] > 1 else (1.0, 1.0, 1.0, 0.55) for c in first])
    _over(axes, image, veil)
    digits = max(len(str(code)) for code in first)
    points = min(8.0, 72 * inches / max(rows, columns) * 0.92 / (0.62 * max(digits, 2)))
    for number, code in enumerate(first):
        y, x = divmod(number, columns)
        axes.text(
            x + 0.5, y + 0.52, str(code), ha="center", va="center", fontsize=points,
            color="black" if counts[code] > 1 else "#444444",
        )  # fmt: skip
    for at in range(1, columns):
        axes.axvline(at, color="white", linewidth=0.4)
    for at in range(1, rows):
        axes.axhline(at, color="white", linewidth=0.4)


def _rarity(figure: Any, axes: Any, image: ShownImage, share: np.ndarray) -> None:
    """How rare each patch's code is in the prior: 1/p on a log scale, with its scale beside it."""
    rows, columns = image.grid
    rare = -np.log10(np.maximum(share, 1e-12))
    rare = np.where(share > 0, rare, np.ceil(rare[share > 0].max() + 0.5) if (share > 0).any() else 6.0)
    _picture(axes, image, "rarity of the code, 1/p")
    heat = axes.imshow(
        rare.reshape(rows, columns), extent=(0, columns, rows, 0), cmap="inferno", interpolation="nearest",
        aspect="auto", alpha=0.85,
    )  # fmt: skip
    box = axes.get_position()
    bar = figure.add_axes((box.x1 + 0.05 * box.width, box.y0, 0.04 * box.width, box.height))
    scale = figure.colorbar(heat, cax=bar)
    scale.outline.set_linewidth(0.5)
    scale.ax.tick_params(labelsize=7, width=0.5, length=2)
    scale.ax.yaxis.set_major_formatter(lambda value, _: f"{10**value:,.0f}")


def _kept(axes: Any, image: ShownImage, rank: np.ndarray, ratio: float) -> None:
    """The image with a veil on all patches that are dropped at a keep ratio."""
    keep = budget_of(ratio, len(rank))
    _picture(axes, image, f"kept at {ratio:g}: {keep} of {len(rank)}")
    veil = np.zeros((len(rank), 4))
    veil[rank >= keep] = _DROPPED
    _over(axes, image, veil)
