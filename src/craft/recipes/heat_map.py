"""The transfer matrix as a picture: accuracy and gain of every encoder with every backbone."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_bytes
from craft.recipes.matrix import ZERO_SHOT, TransferMatrix

_ACROSS = 3  # panels in a row
_GREY = "#eef0f2"
_CAPTION = "Rows: who adapted the encoder. Columns: who answers (framed: the same LLM). Strict accuracy in %."


def draw(matrix: TransferMatrix, path: str | Path) -> Path:
    """Write the heat map as PNG: a panel per data set and one of their mean; the same matrix, the same bytes.

    Colours are gains over zero-shot in points, one scale for all panels; zero-shot itself is grey. A frame
    marks the encoders that were adapted with the backbone's own LLM.

    Returns:
        The path.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    panels = [(name, [name]) for name in matrix.data]
    if len(matrix.data) > 1:
        panels.append(("mean", matrix.data))
    values = {title: _values(matrix, names) for title, names in panels}
    gains = np.concatenate([100 * gain[np.isfinite(gain)] for _, gain, _ in values.values()])
    most = max(5.0, float(np.abs(gains).max())) if gains.size else 5.0
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    side = 1.15 * len(matrix.backbones) + 1.5
    figure = Figure(
        figsize=(side * across + 1, (0.62 * len(matrix.encoders) + 1.2) * down + 0.4),
        dpi=120,
        layout="constrained",
    )
    axes = figure.subplots(down, across, squeeze=False)
    norm = TwoSlopeNorm(0.0, -most, most)
    image: Any = None
    for number, place in enumerate(axes.flat):
        if number >= len(panels):
            place.set_visible(False)
            continue
        title = panels[number][0]
        image = _panel(place, matrix, title, *values[title], norm)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("gain over zero-shot (points)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(_CAPTION, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    atomic_write_bytes(path, stream.getvalue())
    return Path(path)


def _values(matrix: TransferMatrix, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy and gain `[encoders, backbones]`, means over data sets (nan where one is absent); diagonal."""
    shape = (len(matrix.encoders), len(matrix.backbones))
    accuracy, gain, diagonal = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, bool)
    for i, encoder in enumerate(matrix.encoders):
        for j, backbone in enumerate(matrix.backbones):
            cells = [matrix.cells.get((name, encoder, backbone)) for name in names]
            if any(cell is None for cell in cells):
                continue
            known = [cell for cell in cells if cell is not None]
            accuracy[i, j] = np.mean([cell.figure() or 0.0 for cell in known])
            diagonal[i, j] = known[0].diagonal
            if encoder != ZERO_SHOT:
                gain[i, j] = np.mean([(cell.gain() or {"mean": np.nan})["mean"] for cell in known])
    return accuracy, gain, diagonal


def _panel(
    axes: Any,
    matrix: TransferMatrix,
    title: str,
    accuracy: np.ndarray,
    gain: np.ndarray,
    diagonal: np.ndarray,
    norm: Any,
) -> Any:
    from matplotlib.patches import Rectangle

    image = axes.imshow(100 * gain, cmap="RdBu", norm=norm, aspect="auto")
    axes.set_facecolor(_GREY)
    axes.set_title(title, fontsize=11, fontweight="bold")
    axes.set_xticks(range(len(matrix.backbones)), _short(matrix.backbones), fontsize=9)
    axes.set_yticks(range(len(matrix.encoders)), _short(matrix.encoders), fontsize=9)
    axes.tick_params(length=0)
    for (i, j), value in np.ndenumerate(accuracy):
        if np.isnan(value):
            continue
        better = gain[i, j]
        dark = np.isfinite(better) and abs(norm(100 * better) - 0.5) > 0.33
        text = f"{100 * value:.1f}" + ("" if np.isnan(better) else f"\n{100 * better:+.1f}")
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        if diagonal[i, j] and np.isfinite(better):
            axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, linewidth=1.4))
    return image


def _short(names: Sequence[str]) -> list[str]:
    """The names without the folder that all models share ("craft-tiny/")."""
    models = [name for name in names if name != ZERO_SHOT]
    folders = {name.rpartition("/")[0] for name in models}
    return [name.rpartition("/")[2] if len(folders) == 1 else name for name in names]
