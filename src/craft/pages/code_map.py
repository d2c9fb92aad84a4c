"""The figure of `craft show`: codes, their rarity and what pruning keeps, over one image per tower."""

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_bytes
from craft.pages.figure import png_of
from craft.pruning import budget_of

# All lengths are in inches.
_PATCH = 0.27  # side of a patch with its number
_SMALL = 2.6  # smallest side of a panel
_HEAD, _GAP, _BAR = 0.3, 0.15, 0.65  # title line, space between panels, colour bar of the rarities
_DROPPED = (1.0, 1.0, 1.0, 0.88)  # overlay (RGBA) of a pruned patch

Colour = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class CodeMap:
    """One image under one tower.

    Attributes:
        tower: "base" or "adapted".
        codes: int64 `[N, L]`.
        residual: e = |z - c⁽¹⁾|², float64 `[N]`.
        share: frequency of the level-1 code in the prior, float64 `[N]`; None without a prior.
        rank: rank in the pruning order, int64 `[N]`: with M tokens, pruning keeps ranks below M. None without
            a prior.
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
        title: its name.
        pixels: the tower's input, uint8 `[S, S, 3]`.
        grid: (rows, columns) of patches.
        maps: one per tower.
    """

    title: str
    pixels: np.ndarray
    grid: tuple[int, int]
    maps: list[CodeMap]


def code_colours(maps: Sequence[CodeMap]) -> dict[int, Colour]:
    """A colour (RGB in [0, 1]) for every level-1 code that occurs more than once in some map.

    The most frequent codes get the most different hues. A code has the same colour in all maps.
    """
    highest: Counter[int] = Counter()
    for code_map in maps:
        highest |= Counter(code_map.codes[:, 0].tolist())
    repeated = sorted((c for c, count in highest.items() if count > 1), key=lambda c: (-highest[c], c))
    return {
        code: colorsys.hsv_to_rgb(
            (0.58 + number * 0.618034) % 1, (0.6, 0.35)[number // 10 % 2], (1.0, 0.85)[number // 20 % 2]
        )
        for number, code in enumerate(repeated)
    }


def draw_codes(path: str | Path, image: ShownImage, keep_ratios: Sequence[float]) -> Path:
    """Write the figure of one image as PNG; the same arguments give the same bytes.

    Raises:
        ConfigError: the path cannot be written to.
    """
    from matplotlib.figure import Figure

    ranked = any(code_map.rank is not None for code_map in image.maps)
    large = max(_SMALL, _PATCH * max(image.grid))
    lines = 2 if ranked and large >= 1.6 * _SMALL else 1  # lines of small panels next to each large one
    small = (large - _HEAD * (lines - 1)) / lines
    corners = _corners(small, lines, 2 + len(keep_ratios) if ranked else 1)
    right = max(left for left, _ in corners) + small + (_BAR if len(corners) == 2 or lines == 2 else 0)
    width = _GAP + large + right + _GAP
    height = _HEAD + (large + _HEAD + _GAP) * len(image.maps)
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")

    def panel(left: float, top: float, side: float) -> Any:
        return figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))

    head = {"ha": "left", "va": "top", "fontsize": 12, "weight": "bold"}
    figure.text(_GAP / width, 1 - 0.1 / height, image.title.replace("$", r"\$"), **head)
    colours = code_colours(image.maps)
    for row, code_map in enumerate(image.maps):
        top = 2 * _HEAD + row * (large + _HEAD + _GAP)
        _codes(panel(_GAP, top, large), image, code_map, colours, large)
        panels = [panel(_GAP + large + left, top + down, small) for left, down in corners]
        _picture(panels[0], image, "picture")
        if code_map.share is None or code_map.rank is None:
            for axes in panels[1:]:
                axes.set_axis_off()
            continue
        _rarity(figure, panels[1], image, code_map.share)
        for axes, ratio in zip(panels[2:], keep_ratios, strict=True):
            _pruned(axes, image, code_map.rank, ratio)
    atomic_write_bytes(path, png_of(figure))
    return Path(path)


def _corners(small: float, lines: int, count: int) -> list[tuple[float, float]]:
    """The upper left corners of the small panels: right of the large panel, and below its upper edge.

    The first line begins with image and rarity, and leaves space for the colour bar of the rarity.
    """
    corners: list[tuple[float, float]] = []
    for number in range(count):
        line, column = (0, number) if lines == 1 or number < 2 else (1, number - 2)
        bar = _BAR if line == 0 and column >= 2 else 0.0
        corners.append((_GAP + column * (small + _GAP) + bar, line * (small + _HEAD)))
    return corners


def _picture(axes: Any, image: ShownImage, title: str) -> None:
    """The whole image; one patch is one unit of both axes."""
    rows, columns = image.grid
    axes.imshow(image.pixels, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0))
    axes.set_title(title, fontsize=9, loc="left", pad=3)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)


def _overlay(axes: Any, image: ShownImage, colours: np.ndarray) -> None:
    """Colours (RGBA) over the patches, `[N, 4]`."""
    rows, columns = image.grid
    axes.imshow(
        colours.reshape(rows, columns, 4),
        extent=(0, columns, rows, 0),
        interpolation="nearest",
        aspect="auto",
    )


def _codes(
    axes: Any,
    image: ShownImage,
    code_map: CodeMap,
    colours: Mapping[int, Colour],
    inches: float,
) -> None:
    """Level-1 codes as numbers; every code that repeats in this image has its own colour."""
    rows, columns = image.grid
    first = code_map.codes[:, 0].tolist()
    counts = Counter(first)
    title = f"{code_map.tower} tower: {len(counts)} codes, {sum(n > 1 for n in counts.values())} repeated"
    _picture(axes, image, title)
    overlay = [(*colours[c], 0.72) if counts[c] > 1 else (1.0, 1.0, 1.0, 0.55) for c in first]
    _overlay(axes, image, np.array(overlay))
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
    """How rare the code of each patch is in the prior: 1/p on a log scale, with a colour bar."""
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


def _pruned(axes: Any, image: ShownImage, rank: np.ndarray, keep_ratio: float) -> None:
    """The image at a keep ratio, with an overlay on all pruned patches."""
    budget = budget_of(keep_ratio, len(rank))
    _picture(axes, image, f"kept at {keep_ratio:g}: {budget} of {len(rank)}")
    overlay = np.zeros((len(rank), 4))
    overlay[rank >= budget] = _DROPPED
    _overlay(axes, image, overlay)
