"""The reliability diagram draws what `calibration` measured."""

import io

import numpy as np
import pytest
from PIL import Image

from craft.evaluation.calibration import measure
from craft.pages.reliability import draw_reliability


def calibration(temperature=2.0, groups=("all", "seen", "unseen")):
    """Overconfident scores, before and after a temperature."""
    random = np.random.default_rng(0)
    scores = (4 * random.normal(size=(300, 4))).tolist()
    right = random.integers(0, 4, 300).tolist()
    after = {} if temperature is None else {"after": measure(scores, right, temperature).to_json()}
    return {
        "temperature": temperature,
        **{name: {"before": measure(scores, right).to_json(), **after} for name in groups},
    }


def colours(png):
    return {tuple(pixel) for pixel in np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)}


GREY, BLUE = (0x57, 0x60, 0x6A), (0x09, 0x69, 0xDA)


def test_both_groups_are_drawn_before_and_after():
    values = calibration()
    png, about = draw_reliability(values)
    assert {GREY, BLUE} <= colours(png)
    errors = [f"{100 * values['seen'][when]['error']:.1f}" for when in ("before", "after")]
    assert f"seen classes, 300 questions: ECE {errors[0]} → {errors[1]} points" in about
    assert "unseen classes, 300 questions" in about and "all classes" not in about
    assert draw_reliability(values)[0] == png


def test_without_a_temperature_there_is_nothing_after():
    png, about = draw_reliability(calibration(None, groups=("all",)))
    assert GREY in colours(png) and BLUE not in colours(png)
    assert about.startswith("all classes, 300 questions: ECE ") and "→" not in about


@pytest.mark.parametrize("position", [0.25, 0.75])
def test_a_point_stands_at_its_probability_and_accuracy(position):
    """One bin: the marker's middle lies where its mean probability and share of right answers are."""
    one = {"count": 20, "error": 0.0, "nll": 1.0, "bins": [[position, position, 20]]}
    png, _ = draw_reliability({"temperature": None, "all": {"before": one}})
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    legend_ends = pixels.shape[0] // 5
    rows, columns = np.nonzero((pixels[legend_ends:] == GREY).all(-1))
    height, width = pixels.shape[:2]
    across, up = columns.mean() / width, 1 - (rows.mean() + legend_ends) / height
    assert abs(across - up) < 0.12 and abs(across - (0.1 + 0.87 * position)) < 0.06


@pytest.mark.parametrize("count", [0, 10**12])
def test_an_impossible_bin_is_refused(count):
    values = calibration()
    values["seen"]["before"]["bins"][0][2] = count
    with pytest.raises(ValueError, match=f"a bin of {count} questions"):
        draw_reliability(values)
