"""Decoded pictures on disk, and decoding ahead: the same bits, each picture once."""

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import craft
from builders import tiny_lvlm
from craft.core.errors import ConfigError, DataError
from craft.data import load_data, read_data
from craft.models.images import square_bytes
from craft.training import pixel_store
from craft.training.image_cache import ImageCache
from craft.training.pixel_store import PixelStore, decoders
from replicas import class_folders, parquet, pixels, png


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    class_folders(tmp_path / "p", ("ash", "elm"), each=4)
    return [str(sample.image) for sample in read_data(tmp_path / "p").samples]


def test_pictures_come_back_bit_for_bit(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PixelStore(tmp_path / "store", 20, "pad")
    assert store.get(files[0]) is None and store.fill(files, progress=False) == 8
    again = PixelStore(tmp_path / "store", 20, "pad")
    assert len(again) == 8 and again.fill(files, progress=False) == 0
    for path in files:
        found = again.get(path)
        assert found is not None and np.array_equal(found, square_bytes(path, 20, "pad"))
        assert isinstance(found.base, np.memmap)
    assert len(PixelStore(tmp_path / "store", 20, "resize")) == 0  # another size or aspect is another store
    assert again.fill([png(1), pixels(1), Image.fromarray(pixels(1))], progress=False) == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PixelStore("~/store", 20, "pad").path == again.path


def test_a_changed_file_is_another_picture(files: list[str], tmp_path: Path) -> None:
    store = PixelStore(tmp_path / "store", 8)
    store.fill(files[:2], progress=False)
    Image.fromarray(pixels(99, 30)).save(files[0])
    assert store.get(files[0]) is None and store.fill(files[:2], progress=False) == 1
    assert np.array_equal(store.get(files[0]), square_bytes(files[0], 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["picture", "name", "both"])
def test_an_interrupted_filling_goes_on(files: list[str], tmp_path: Path, damage: str) -> None:
    store = PixelStore(tmp_path / "store", 8)
    store.fill(files[:4], progress=False)
    if damage != "name":
        os.truncate(store.path, 3 * 192 + 100)
    if damage != "picture":
        os.truncate(store.names, store.names.stat().st_size - 5)
    again = PixelStore(tmp_path / "store", 8)
    assert len(again) == 3 and again.fill(files, progress=False) == 5
    assert all(np.array_equal(again.get(path), square_bytes(path, 8)) for path in files)  # type: ignore[arg-type]


def test_two_runs_that_fill_a_store_at_once_take_turns(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = PixelStore(tmp_path / "store", 8), PixelStore(tmp_path / "store", 8)
    under_way, opened = threading.Event(), threading.Event()

    def decoded(source: str, size: int, aspect: str) -> np.ndarray:
        if source == files[3]:  # three pictures are there
            under_way.set()
            assert opened.wait(20)
        return square_bytes(source, size, aspect)

    monkeypatch.setattr(pixel_store, "square_bytes", decoded)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.fill, files, progress=False)
        assert under_way.wait(20)
        with open(one.path, "ab") as half:
            half.write(bytes(50))  # as if it stood within a picture: who opens must not cut that off
        assert len(PixelStore(tmp_path / "store", 8)) == 3
        assert one.path.stat().st_size == 3 * 192 + 50
        os.truncate(one.path, 3 * 192)
        second = pool.submit(two.fill, files, progress=False)
        opened.set()
        assert (first.result(60), second.result(60)) == (8, 0)
    assert all(np.array_equal(two.get(path), square_bytes(path, 8)) for path in files)  # type: ignore[arg-type]


def test_who_has_to_wait_is_told_so(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = PixelStore(tmp_path / "store", 8)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(store.path.with_suffix(".lock")):
            waiting = pool.submit(store.fill, files, progress=False)
            while "waiting for another run" not in capsys.readouterr().err:
                assert not waiting.done()
        assert waiting.result(60) == 8


def test_pictures_in_parquet_are_stored_too(tmp_path: Path) -> None:
    parquet(tmp_path / "p.parquet", [{"image": png(n), "label": str(n % 2)} for n in range(4)])
    sources = [sample.image for sample in read_data(tmp_path / "p.parquet").samples]
    store = PixelStore(tmp_path / "store", 8)
    assert store.fill(sources, progress=False) == 4
    assert np.array_equal(store.get(sources[2]), square_bytes(png(2), 8))  # type: ignore[arg-type]


def test_what_cannot_be_stored(files: list[str], tmp_path: Path) -> None:
    store = PixelStore(tmp_path / "store", 8)
    Path(files[2]).write_text("nothing")
    with pytest.raises(DataError, match="not a picture"):
        store.fill(files, progress=False)
    assert len(PixelStore(tmp_path / "store", 8)) == 2  # those before it are kept
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another place"):
        PixelStore(tmp_path / "file", 8)


@pytest.mark.slow
def test_processes_and_store_change_no_bit_of_a_run(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", ("ash", "elm", "oak"), each=6)
    data = load_data(tmp_path / "p", unseen_fraction=0)
    lvlm, towers = tiny_lvlm(), []
    for name, extra in {
        "plain": {},
        "ahead": {"workers": 2, "cache_mib": 0},
        "stored": {"pixel_cache": str(tmp_path / "store")},
        "both": {"workers": 1, "pixel_cache": str(tmp_path / "store2")},
    }.items():
        options = {"trainable": "all", "batch_size": 4, "device": "cpu", **extra}
        result = craft.adapt(lvlm, data, tmp_path / name, max_steps=3, **options)
        towers.append(result.lvlm.visual.vision_tower.state_dict())
    for tower in towers[1:]:
        assert all(torch.equal(tower[name], value) for name, value in towers[0].items())
    assert len(PixelStore(tmp_path / "store", 32)) == len(data.train)


def test_images_that_are_expected_are_decoded_elsewhere(files: list[str], tmp_path: Path) -> None:
    samples, visual = read_data(Path(files[0]).parents[1]).samples, tiny_lvlm().visual
    cache = ImageCache(visual, 0, pool=decoders(1))
    cache.expect(samples[:3])
    cache.expect(samples[:3])
    wanted = visual.preprocess([sample.image for sample in samples])
    assert torch.equal(cache.get(samples), wanted)
    cache.expect(samples[:1])
    cache.close()
    assert torch.equal(cache.get(samples[:1]), wanted[:1])


def test_ctrl_c_is_not_for_the_processes() -> None:
    """A terminal sends it to all, and the step that is finished before the run stops needs their pictures."""
    pool = decoders(1)
    assert pool.submit(signal.raise_signal, signal.SIGINT).exception() is None
    pool.shutdown()


def test_a_run_outlives_its_processes(files: list[str]) -> None:
    """`timeout` and clusters send SIGTERM to all processes of a run; its last step is finished yet."""
    samples, visual = read_data(Path(files[0]).parents[1]).samples, tiny_lvlm().visual
    wanted = visual.preprocess([sample.image for sample in samples])
    pool = decoders(1)
    cache = ImageCache(visual, 0, pool=pool)
    cache.expect(samples[:2])
    assert torch.equal(cache.get(samples[:2]), wanted[:2])
    for process in list(pool._processes):
        os.kill(process, signal.SIGTERM)
    for start in (2, 5):
        cache.expect(samples[start : start + 3])
        assert torch.equal(cache.get(samples[start : start + 3]), wanted[start : start + 3])
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
