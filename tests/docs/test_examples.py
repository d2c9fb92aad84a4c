"""The examples run, here with random models."""

import runpy

import numpy as np
from PIL import Image

from docs.reading import ROOT

EXAMPLES = ROOT / "examples"


def test_hello(tiny_family, capsys):
    runpy.run_path(str(EXAMPLES / "hello.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "Which of these choices" in said and "right:" in said


def test_own_pictures(tiny_family, tmp_path, capsys):
    draw = np.random.default_rng(0)
    for number, name in enumerate(("ash", "beech", "elm", "fir", "oak")):
        folder = tmp_path / "trees" / name
        folder.mkdir(parents=True)
        for copy in range(5):
            noise = draw.integers(0, 60, (20, 20, 3), dtype=np.uint8)
            noise[..., number % 3] += 100
            Image.fromarray(noise).save(folder / f"{copy}.png")
    main = runpy.run_path(str(EXAMPLES / "own_pictures.py"))["main"]
    main([str(tmp_path / "trees"), "--out", str(tmp_path / "run"), "--steps", "2"])
    said = capsys.readouterr().out
    assert "craft-tiny/llama: " in said and "craft-tiny/qwen2: " in said
    assert "unseen classes" in said
    assert (tmp_path / "run/encoder/craft.json").is_file()
