"""The command line as a user has it: tiny models and pictures on disk, words in, status and text out."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders import tiny_lvlm
from craft.cli import main
from craft.formats.native import save_native

SOURCE = Path(__file__).parents[2] / "src"
FAST = ("--set", "batch_size=4", "--set", "learning_rate=1e-3", "--device", "cpu")
COLOURS = {
    "coat": (30, 30, 220),
    "dress": (220, 220, 30),
    "red bag": (220, 30, 30),
    "shirt": (40, 220, 220),
    "shoe": (30, 220, 30),
}


@dataclass
class Outcome:
    """What a command left: its exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one paragraph behind `craft: `, when the user was at fault."""
        assert self.status == 2, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("craft: ") and self.err.count("craft: ") == 1
        return last.removeprefix("craft: ")


def run(*words: str | Path, main: Callable[[list[str]], int] = main) -> Outcome:
    """`craft WORDS`, or another command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def craft() -> Callable[..., Outcome]:
    """`craft("eval", …)` runs the command line in this process."""
    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For the command line as a process of its own."""
    paths = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random backbones behind one visual tokenizer: FAMILY/llama, FAMILY/qwen2."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for kind in ("llama", "qwen2"):
        save_native(folder, kind, tiny_lvlm(kind), dtype="float32")
    return folder


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of another codebook."""
    return save_native(tmp_path_factory.mktemp("models") / "other", "llama", tiny_lvlm(codebook_seed=1))


def paint(folder: Path, classes: dict[str, tuple[int, int, int]], count: int = 8) -> Path:
    """Class folders of small noisy pictures, one colour per class."""
    draw = np.random.default_rng(0)
    for name, colour in classes.items():
        place = folder / name
        place.mkdir(parents=True)
        for number in range(count):
            noise = draw.integers(-25, 25, (24, 24, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(
                place / f"{number}.png"
            )
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of eight pictures."""
    return paint(tmp_path_factory.mktemp("data") / "blobs", COLOURS)


@pytest.fixture(scope="session")
def encoder(family: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run folder made by `craft adapt`, and what the command said."""
    out = tmp_path_factory.mktemp("runs") / "blobs"
    return out, run("adapt", family / "llama", "--data", pictures, "--out", out, "--max-steps", "3", *FAST)


@pytest.fixture(scope="session")
def vila_u(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small VILA-U checkpoint, and a run folder adapted from it."""
    golden = Path(__file__).parents[1] / "golden" / "vila_u_small"
    base = tmp_path_factory.mktemp("models") / "vila_u_small"
    base.mkdir()
    for part in ("config.json", "llm", "vision_tower", "mm_projector", "siglip_config"):
        (shutil.copytree if (golden / part).is_dir() else shutil.copyfile)(golden / part, base / part)
    out = tmp_path_factory.mktemp("runs") / "vila_u"
    steps = ("--max-steps", "2", "--losses.contrastive.weight", "0")
    said = run("adapt", base, "--data", pictures, "--out", out, *steps, *FAST)
    assert said.status == 0, said.err
    return base, out
