"""`craft show`: the pictures show the codes that the model gives."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from builders import tiny_lvlm
from craft.core.errors import CraftError, DataError
from craft.models.visual_tokenizer import VisualTokenizer
from craft.pages.code_map import CodeMap, ShownImage, code_colours, draw_codes
from craft.pruning import prune_tokens
from craft.recipes import adapt
from craft.recipes.show import show
from tiny_data import tiny_data

COUNTS = torch.arange(32) ** 2


def synthetic(side, towers=("base", "adapted"), title="blobs"):
    """An image of side x side patches with random codes."""
    draw = np.random.default_rng(side)
    maps = []
    for tower in towers:
        count = side * side
        codes = draw.zipf(1.3, (count, 4)) % 16384
        cues = draw.random(count), draw.random(count) / 100
        maps.append(CodeMap(tower, codes, *cues, draw.permutation(count)))
    pixels = draw.integers(0, 255, (side * 14, side * 14, 3)).astype(np.uint8)
    return ShownImage(title, pixels, (side, side), maps)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return adapt(tiny_lvlm(), tiny_data(), out, max_steps=2, batch_size=4, device="cpu", learning_rate=1e-2)


def test_base_and_adapted_side_by_side(run, tmp_path):
    lvlm = tiny_lvlm().with_prior(COUNTS)
    pictures = [sample.image for sample in tiny_data().test[:2]]
    shown = show(pictures, lvlm, run.out, (0.5,), tmp_path)
    assert [path.name for path in shown.pictures] == ["picture-1.png", "picture-2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture-1.png", "picture-2.png"]
    towers = {"base": lvlm, "adapted": lvlm.with_encoder(run.out)}
    for picture, image in zip(pictures, shown.images, strict=True):
        assert [code_map.tower for code_map in image.maps] == ["base", "adapted"]
        for code_map, model in zip(image.maps, towers.values(), strict=True):
            tokens = model.encode([picture])
            assert code_map.codes.tolist() == tokens.codes[0].tolist()
            assert code_map.residual == pytest.approx(tokens.residual[0].numpy(), rel=1e-5)
            prior = model.visual.prior
            share = (prior / prior.sum())[tokens.codes[0, :, 0]]
            assert code_map.share == pytest.approx(share.numpy(), rel=1e-5)
            kept = np.flatnonzero(code_map.rank < 8).tolist()
            assert kept == prune_tokens(tokens, prior, 0.5).positions[0].tolist()


class NoDoubles(torch.Tensor):
    """A tensor on a device without float64, as MPS is, until it is brought to the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return result


def test_a_device_without_float64(tmp_path, monkeypatch):
    lvlm, pictures = tiny_lvlm().with_prior(COUNTS), [tiny_data().test[0].image]
    usual = show(pictures, lvlm, out=tmp_path / "usual")
    encode = VisualTokenizer.encode

    def elsewhere(self, images):
        tokens = encode(self, images)
        names = ("codes", "residual", "positions")
        return replace(tokens, **{name: getattr(tokens, name).as_subclass(NoDoubles) for name in names})

    monkeypatch.setattr(VisualTokenizer, "encode", elsewhere)
    there = show(pictures, lvlm, out=tmp_path / "there")
    assert there.pictures[0].read_bytes() == usual.pictures[0].read_bytes()


@pytest.mark.parametrize("side", [7, 16, 27])
def test_every_patch_has_room_for_its_number(side, tmp_path):
    path = draw_codes(tmp_path / "a.png", synthetic(side), (0.8, 0.4))
    with Image.open(path) as image:
        width, height = image.size
    assert height > 2 * side * 33 and width > side * 33  # 33 dots a patch, two towers
    again = draw_codes(tmp_path / "b.png", synthetic(side), (0.8, 0.4))
    assert path.read_bytes() == again.read_bytes()


def test_colours_are_one_per_repeated_code():
    image = synthetic(16)
    colours = code_colours(image.maps)
    assert len(set(colours.values())) == len(colours) > 20
    most = Counter(image.maps[0].codes[:, 0].tolist()) | Counter(image.maps[1].codes[:, 0].tolist())
    assert set(colours) == {code for code, count in most.items() if count > 1}


def test_without_a_prior_codes_are_still_shown(tmp_path):
    pictures = [sample.image for sample in tiny_data().test[:1]]
    shown = show(pictures, tiny_lvlm(), out=tmp_path)
    assert shown.images[0].maps[0].rank is None and shown.images[0].maps[0].share is None
    assert shown.pictures[0].is_file()


def test_a_file_name_that_is_not_utf8(tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (30, 20), (200, 90, 10)).save(file)
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8, so no image has one")
    shown = show([str(file)], tiny_lvlm(), out=tmp_path / "out")
    assert shown.images[0].title == "caf?"
    assert shown.pictures[0].is_file()


def test_names_titles_and_mistakes(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (30, 20), (200, 90, 10)).save(tmp_path / place / "a $ b.png")
    files = [str(tmp_path / place / "a $ b.png") for place in ("one", "two")]
    shown = show(files, tiny_lvlm(), out=tmp_path / "out")
    assert [path.name for path in shown.pictures] == ["a-b.png", "a-b~2.png"]
    lvlm = tiny_lvlm()
    with pytest.raises(DataError, match="no image"):
        show([], lvlm, out=tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.png"):
        show(["nowhere.png"], lvlm, out=tmp_path)
    with pytest.raises(CraftError, match="above 0"):
        show(files, lvlm, keep_ratios=(0.5, 2.0), out=tmp_path)
