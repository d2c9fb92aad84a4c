"""The reliability diagram of `craft eval`: how often the likeliest option is right, by its probability.

Source: Guo et al. 2017, Figure 1; its bins here have equal mass.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from craft.core.text import percent
from craft.evaluation.metrics import Group, interval
from craft.pages.figure import png_of

_COLOURS = {"before": "#57606a", "after": "#0969da"}
_MARKS = {"before": "o", "after": "s"}

MOST = 2**20
"""The most questions in a bin, so that a foreign file cannot take all memory."""


def draw_reliability(calibration: Mapping[str, Any]) -> tuple[bytes, str]:
    """Draw accuracy over the mean probability of each bin, before and after the temperature.

    Vertical lines are 95 % intervals of a bin's accuracy; each question counts as one image. On the diagonal
    a probability means what it says.

    Args:
        calibration: of `Report.calibration`.

    Returns:
        A PNG with a panel for seen and one for unseen classes, and the panels' titles in words. Equal
        arguments give equal bytes.

    Raises:
        ValueError: a bin has no questions, or more than `MOST`.
    """
    from matplotlib.figure import Figure

    groups = [name for name in ("seen", "unseen") if name in calibration] or ["all"]
    figure = Figure(figsize=(4.6 * len(groups), 4.9), dpi=110, layout="constrained", facecolor="white")
    titles = []
    for number, group in enumerate(groups, start=1):
        axes = figure.add_subplot(1, len(groups), number)
        axes.plot([0, 1], [0, 1], color="#afb8c1", linewidth=1, linestyle="--")
        for when in calibration[group]:
            label = when if when == "before" else f"after: temperature {calibration['temperature']:.2f}"
            _plot(axes, calibration[group][when]["bins"], when, label)
        titles.append(_title(group, calibration[group]))
        axes.set_title(titles[-1], fontsize=10, loc="left")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        axes.set_xlabel("mean probability of the likeliest option", fontsize=9)
        axes.set_ylabel("share of right answers", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", fontsize=8, frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return png_of(figure), "; ".join(title.replace("\n", ": ") for title in titles)


def _plot(axes: Any, bins: Sequence[Sequence[Any]], when: str, label: str) -> None:
    """One point per bin, with the interval of its accuracy."""
    means, shares = [mean for mean, _, _ in bins], [share for _, share, _ in bins]
    ends = [_interval(share, count) for _, share, count in bins]
    colour = _COLOURS[when]
    axes.vlines(means, *zip(*ends, strict=True), color=colour, linewidth=0.8, alpha=0.45)
    axes.plot(means, shares, color=colour, linewidth=0.6, alpha=0.45)
    axes.plot(means, shares, color=colour, marker=_MARKS[when], markersize=4, linestyle="", label=label)


def _interval(share: float, count: int) -> tuple[float, float]:
    if not 0 < count <= MOST:
        raise ValueError(f"a bin of {count} questions")
    right = round(share * count)
    return interval([Group([1.0] * right + [0.0] * (count - right), range(count))])


def _title(group: str, measured: Mapping[str, Any]) -> str:
    """The group with its number of questions; below, error and negative log-likelihood, before and after."""
    errors = " → ".join(percent(one["error"]) for one in measured.values())
    nll = " → ".join(f"{one['nll']:.3f}" for one in measured.values())
    return f"{group} classes, {measured['before']['count']} questions\nECE {errors} points, NLL {nll}"
