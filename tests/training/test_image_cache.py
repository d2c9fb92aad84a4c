"""Decoding ahead in processes: the same bits, and a run that outlives them."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

import craft
from builders import tiny_lvlm
from craft.core.errors import ConfigError
from craft.data import load_data, read_data
from craft.training.image_cache import ImageCache, decoders
from replicas import class_folders


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    class_folders(tmp_path / "p", ("ash", "elm"), each=4)
    return [str(sample.image) for sample in read_data(tmp_path / "p").samples]


@pytest.mark.slow
def test_processes_change_no_bit_of_a_run(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", ("ash", "elm", "oak"), each=6)
    data = load_data(tmp_path / "p", unseen_fraction=0)
    lvlm, towers = tiny_lvlm(), []
    for name, extra in {
        "plain": {},
        "ahead": {"workers": 2, "cache_mib": 0},
        "ahead and kept": {"workers": 1},
    }.items():
        options = {"trainable": "all", "batch_size": 4, "device": "cpu", **extra}
        result = craft.adapt(lvlm, data, tmp_path / name, max_steps=3, **options)
        towers.append(result.lvlm.visual.vision_tower.state_dict())
    for tower in towers[1:]:
        assert all(torch.equal(tower[name], value) for name, value in towers[0].items())


def test_images_that_are_expected_are_decoded_elsewhere(files: list[str], tmp_path: Path) -> None:
    samples, visual = read_data(Path(files[0]).parents[1]).samples, tiny_lvlm().visual
    cache = ImageCache(visual, 0, pool=decoders(1))
    cache.expect(samples[:3])
    cache.expect(samples[:3])
    expected = visual.preprocess([sample.image for sample in samples])
    assert torch.equal(cache.get(samples), expected)
    cache.expect(samples[:1])
    cache.close()
    assert torch.equal(cache.get(samples[:1]), expected[:1])


def test_ctrl_c_is_not_for_the_processes() -> None:
    """A terminal sends it to all, and the step that is finished before the run stops needs their pictures."""
    pool = decoders(1)
    assert pool.submit(signal.raise_signal, signal.SIGINT).exception() is None
    pool.shutdown()


def test_a_run_outlives_its_processes(files: list[str]) -> None:
    """`timeout` and clusters send SIGTERM to all processes of a run; its last step is finished yet."""
    samples, visual = read_data(Path(files[0]).parents[1]).samples, tiny_lvlm().visual
    expected = visual.preprocess([sample.image for sample in samples])
    pool = decoders(1)
    cache = ImageCache(visual, 0, pool=pool)
    cache.expect(samples[:2])
    assert torch.equal(cache.get(samples[:2]), expected[:2])
    for process in list(pool._processes):
        os.kill(process, signal.SIGTERM)
    for start in (2, 5):
        cache.expect(samples[start : start + 3])
        assert torch.equal(cache.get(samples[start : start + 3]), expected[start : start + 3])
    assert cache.pool is None
    cache.close()


def test_processes_that_ended_are_told_when_pictures_are_given_to_them(files: list[str]) -> None:
    class Ended(ProcessPoolExecutor):
        def submit(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise BrokenProcessPool("a child process terminated abruptly")

    samples = read_data(Path(files[0]).parents[1]).samples
    cache = ImageCache(tiny_lvlm().visual, 0, pool=Ended(1))
    with pytest.raises(ConfigError, match="or set workers=0"):
        cache.expect(samples[:1])
