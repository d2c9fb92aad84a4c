"""The code cache gives back the bits that were encoded, runs the tower once per picture, and never mixes two
towers, precisions or pictures up."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from builders import tiny_lvlm, tiny_visual
from craft.core.errors import DataError
from craft.formats import code_cache
from craft.formats.code_cache import CodeCache
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize.search import SEARCHES


@pytest.fixture
def pictures(tmp_path):
    """Five files of noise; the last has the bytes of the first."""
    paths = []
    for number in (0, 1, 2, 3, 0):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        paths.append(tmp_path / f"{len(paths)}.png")
        Image.fromarray(noise).save(paths[-1])
    return paths


@pytest.fixture
def encoded(monkeypatch):
    """How many images each pass of a tower took."""
    passes = []
    encode = VisualTokenizer.encode
    monkeypatch.setattr(
        VisualTokenizer, "encode", lambda self, i, **k: passes.append(len(i)) or encode(self, i, **k)
    )
    return passes


@pytest.mark.parametrize("on_disk", [False, True])
def test_bits_come_back_and_the_tower_runs_once(pictures, encoded, tmp_path, on_disk):
    visual = tiny_visual()
    exact = visual.encode(pictures)
    encoded.clear()
    cache = CodeCache(tmp_path / "codes" if on_disk else None)
    first = cache.encode(visual, pictures, batch_size=3, progress=False)
    assert encoded == [3, 1]  # four distinct pictures
    again = (CodeCache(tmp_path / "codes") if on_disk else cache).encode(visual, pictures[::-1])
    assert encoded == [3, 1]
    for images, order in ((first, [0, 1, 2, 3, 4]), (again, [4, 3, 2, 1, 0])):
        tokens = images.tokens()
        assert len(images) == 5 and images.codes.shape[0] == 4
        for name in ("codes", "quantized", "positions"):
            assert torch.equal(getattr(tokens, name), getattr(exact, name)[order]), name
        # matrix products of other batch sizes may round the last bit otherwise
        torch.testing.assert_close(tokens.residual, exact.residual[order])
    some = first.tokens([2, 0, 2])
    assert torch.equal(some.codes, exact.codes[[2, 0, 2]])
    assert torch.equal(first.tokens(slice(1, 3)).codes, exact.codes[1:3])


def test_answers_are_those_without_the_cache(pictures):
    lvlm = tiny_lvlm()
    asked = ["What is shown in the picture?"] * 5
    images = CodeCache().encode(lvlm.visual, pictures)
    assert lvlm.answer(images.tokens(), asked) == lvlm.answer(pictures, asked)


def test_real_size_needs_three_kib_an_image(pictures, tmp_path):
    cache, visual = CodeCache(tmp_path / "codes"), tiny_visual()
    images = cache.encode(visual, pictures, progress=False)
    assert images.codes.dtype == torch.int16
    each = images.codes[0].numel() * 2 + images.residual[0].numel() * 4
    (part,) = tmp_path.glob("codes/*/part-*.safetensors")
    assert part.stat().st_size < 4 * (each + 32) + 400
    assert 256 * 4 * 2 + 256 * 4 == 3 * 1024  # the docstring's figure: N = 256, L = 4


@pytest.mark.parametrize("change", ["tower", "codebook", "aspect", "dtype"])
def test_another_tower_or_precision_has_other_codes(pictures, encoded, change):
    cache, visual = CodeCache(), tiny_visual()
    cache.encode(visual, pictures, progress=False)
    other = tiny_visual(seed=change == "tower", codebook_seed=change == "codebook")
    if change == "aspect":
        other.aspect = "pad"
    if change == "dtype":
        other.vision_tower.bfloat16()
    encoded.clear()
    cache.encode(other, pictures, progress=False)
    assert encoded == [4]
    cache.encode(tiny_visual(), pictures, progress=False)  # the same weights, another object
    assert encoded == [4]


def test_a_changed_file_is_another_picture(pictures, encoded, tmp_path):
    visual = tiny_visual()
    before = CodeCache(tmp_path / "codes").encode(visual, pictures[:1], progress=False)
    Image.new("RGB", (32, 32), "red").save(pictures[0])
    after = CodeCache(tmp_path / "codes").encode(visual, pictures[:1], progress=False)
    assert encoded == [1, 1] and not torch.equal(before.codes, after.codes)


def test_pictures_in_memory_are_told_apart_by_what_is_seen():
    """Equal palette indices under two palettes are two pictures."""
    indices = np.random.default_rng(0).integers(0, 2, (32, 32)).astype(np.uint8)
    one, two = (Image.fromarray(indices).convert("P") for _ in range(2))
    one.putpalette([255, 0, 0, 0, 255, 0])
    two.putpalette([0, 0, 255, 0, 0, 0])
    assert CodeCache().encode(tiny_visual(), [one, two], progress=False).codes.shape[0] == 2


def test_an_unreadable_image_loses_no_work(pictures, encoded, tmp_path):
    visual, bad = tiny_visual(), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        CodeCache(tmp_path / "codes").encode(visual, [*pictures, bad], batch_size=2, progress=False)
    encoded.clear()
    CodeCache(tmp_path / "codes").encode(visual, pictures, progress=False)
    assert encoded == []


def test_parts_are_written_as_it_goes(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(code_cache, "PART", 2)
    CodeCache(tmp_path / "codes").encode(tiny_visual(), pictures, batch_size=1, progress=False)
    assert len(list(tmp_path.glob("codes/*/part-*.safetensors"))) == 2
    (told,) = tmp_path.glob("codes/*/cache.json")
    assert json.loads(told.read_text())["codebook"] == tiny_visual().codebook.fingerprint


@pytest.mark.parametrize("damage", ["cut", "shape", "range"])
def test_a_damaged_part_is_named_and_encoded_again(pictures, encoded, tmp_path, capsys, damage):
    visual = tiny_visual()
    exact = CodeCache(tmp_path / "codes").encode(visual, pictures, progress=False)
    (part,) = tmp_path.glob("codes/*/part-*.safetensors")
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-7])
    else:
        tensors = code_cache.load_tensors(part)
        tensors["codes"] = tensors["codes"][:, 1:] if damage == "shape" else tensors["codes"] + 1000
        code_cache.save_tensors(part, tensors)
    encoded.clear()
    again = CodeCache(tmp_path / "codes").encode(visual, pictures, progress=False)
    assert encoded == [4] and torch.equal(again.codes, exact.codes)
    assert part.name in capsys.readouterr().err


def test_codes_of_another_search_are_kept_apart(pictures, encoded, tmp_path, monkeypatch):
    monkeypatch.setitem(SEARCHES, "fused", SEARCHES["exact"])  # which runs without a GPU
    visual = tiny_visual()
    cache = CodeCache(tmp_path / "codes")
    exact = cache.encode(visual, pictures, progress=False)
    narrow = cache.encode(visual, pictures, progress=False, search="fused")
    assert encoded == [4, 4] and torch.equal(exact.codes, narrow.codes)
    told = [json.loads(path.read_text()) for path in tmp_path.glob("codes/*/cache.json")]
    assert {one.get("search") for one in told} == {None, "fused"}


def test_pictures_that_are_made_as_they_are_asked_for(pictures):
    class Lazy(Sequence):  # as a column of `datasets`: an object of its own at each access, soon collected
        def __len__(self):
            return len(pictures)

        def __getitem__(self, index):
            with Image.open(pictures[index]) as picture:
                return picture.convert("RGB")

    visual = tiny_visual()
    found = CodeCache().encode(visual, Lazy(), progress=False)
    assert torch.equal(found.tokens().codes, visual.encode(pictures).codes)
