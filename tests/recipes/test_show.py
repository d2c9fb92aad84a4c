"""`craft show`: the pictures and the page say what the codes are."""

import json
import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from builders import tiny_lvlm
from craft.core.errors import CraftError, DataError
from craft.models.visual_tokenizer import VisualTokenizer
from craft.pruning import prune_tokens
from craft.recipes import adapt
from craft.recipes.code_map import CodeMap, ShownImage, code_colours, draw_codes
from craft.recipes.code_page import write_page
from craft.recipes.show import show
from tiny_data import tiny_data

COUNTS = torch.arange(32) ** 2


def embedded(page):
    """The data in the page."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])


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
    found = show(pictures, lvlm, run.out, (0.5,), tmp_path)
    assert [path.name for path in found.pictures] == ["picture-1.png", "picture-2.png"]
    towers = {"base": lvlm, "adapted": lvlm.with_encoder(run.out)}
    data = embedded(found.page)
    for number, image in enumerate(data["images"]):
        assert [shown["tower"] for shown in image["maps"]] == ["base", "adapted"]
        for shown, (_, model) in zip(image["maps"], towers.items(), strict=True):
            tokens = model.encode([pictures[number]])
            assert shown["codes"] == tokens.codes[0].tolist()
            assert shown["residual"] == pytest.approx(tokens.residual[0].tolist(), rel=1e-3)
            prior = model.visual.prior
            share = (prior / prior.sum())[tokens.codes[0, :, 0]]
            assert shown["share"] == pytest.approx(share.tolist(), rel=1e-3)
            kept = [at for at, rank in enumerate(shown["rank"]) if rank < 8]
            assert kept == prune_tokens(tokens, prior, 0.5).positions[0].tolist()


class NoDoubles(torch.Tensor):
    """A tensor on a device without float64, as MPS is, until it is brought to the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return found.as_subclass(torch.Tensor)
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return found


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
    assert there.page.read_bytes() == usual.page.read_bytes()
    assert there.pictures[0].read_bytes() == usual.pictures[0].read_bytes()


def test_the_page_needs_nothing_else(tmp_path):
    images = [synthetic(16), synthetic(7)]  # of one title, as a/1.png and b/1.png are
    page = write_page(tmp_path / "page.html", "a </script> model", images, 16384)
    text = page.read_text()
    assert not re.search(r"(src|href)=|https?://|@import", text)
    assert embedded(page)["about"] == "a </script> model"
    assert text.count("</script>") == 2  # the data's own is escaped
    for image, told in zip(images, embedded(page)["images"], strict=True):
        assert set(told["colours"]) == {str(code) for code in code_colours(image.maps)}


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
    found = show(pictures, tiny_lvlm(), out=tmp_path)
    assert embedded(found.page)["images"][0]["maps"][0]["rank"] is None
    assert found.pictures[0].is_file()


def test_a_file_name_that_is_not_utf8(tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (30, 20), (200, 90, 10)).save(file)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    found = show([str(file)], tiny_lvlm(), out=tmp_path / "out")
    assert embedded(found.page)["images"][0]["title"] == "caf?"
    assert found.pictures[0].is_file()


def test_names_titles_and_mistakes(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (30, 20), (200, 90, 10)).save(tmp_path / place / "a $ b.png")
    files = [str(tmp_path / place / "a $ b.png") for place in ("one", "two")]
    found = show(files, tiny_lvlm(), out=tmp_path / "out")
    assert [path.name for path in found.pictures] == ["a-b.png", "a-b~2.png"]
    lvlm = tiny_lvlm()
    with pytest.raises(DataError, match="no picture"):
        show([], lvlm, out=tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.png"):
        show(["nowhere.png"], lvlm, out=tmp_path)
    with pytest.raises(CraftError, match="above 0"):
        show(files, lvlm, keep=(0.5, 2.0), out=tmp_path)
