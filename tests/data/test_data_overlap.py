"""A picture that stands in the test split never trains without consent, in whatever form it comes again."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from craft.core.errors import DataError
from craft.data import EMBEDDED, load_data, verify_images
from craft.data.chats import read_conversations
from craft.data.check import settle_overlap
from craft.data.compose import compose
from replicas import paint


def scene(number: int, size: int = 64) -> Image.Image:
    """A smooth picture that looks like no other."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, quality: int = 70) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    return Image.open(stream)


def noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(float)
    pixels += np.random.default_rng(0).normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


CAUGHT: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image,
    "as JPEG": as_jpeg,
    "as JPEG of low quality": lambda image: as_jpeg(image, 25),
    "half as large": lambda image: image.resize((32, 32), Image.Resampling.BICUBIC),
    "twice as large": lambda image: image.resize((128, 128), Image.Resampling.BICUBIC),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "with noise": noisy,
    "in grey": lambda image: image.convert("L"),
}
NOT_CAUGHT: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "cropped": lambda image: image.crop((12, 12, 64, 64)),
    "much darker": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
}


def divided(root: Path, again: Callable[[Image.Image], Image.Image] | None) -> Path:
    """train/ and test/ with two classes; one test picture comes again in training."""
    for split, shift in (("train", 0), ("test", 100)):
        for c, name in enumerate(("ash", "elm")):
            for n in range(6):
                path = root / split / name / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                scene(shift + 10 * c + n).save(path)
    if again is not None:
        again(scene(103)).save(root / "train" / "elm" / "again.png")
    return root


def test_pictures_apart_are_no_overlap(tmp_path: Path) -> None:
    data = load_data(divided(tmp_path, None), unseen_fraction=0)
    assert verify_images(data, progress=False, overlap="refuse") == 24


@pytest.mark.parametrize("way", CAUGHT)
def test_what_is_caught(tmp_path: Path, way: str) -> None:
    data = load_data(divided(tmp_path, CAUGHT[way]), unseen_fraction=0)
    with pytest.raises(DataError) as caught:
        verify_images(data, progress=False, overlap="refuse")
    message = str(caught.value)
    kind = "1 with the same pixels" if way == "the same" else "1 nearly the same"
    assert f"training images of {tmp_path.name} stand in the test split too ({kind})" in message
    assert f"{tmp_path / 'train' / 'elm' / 'again.png'} and {tmp_path / 'test' / 'ash' / '3.png'}" in message
    assert "--overlap drop" in message and "--overlap train" in message
    assert verify_images(data, progress=False) == verify_images(data, progress=False, overlap="train") == 25
    less = settle_overlap(data, "drop", progress=False)
    assert len(less.train) + len(less.validation) == 12 and len(less.test) == 12
    assert less.notes == ["left out of training: 1 images that stand in the test split too"]
    assert verify_images(less, progress=False, overlap="refuse") == 24


@pytest.mark.parametrize("way", NOT_CAUGHT)
def test_what_is_not_caught(tmp_path: Path, way: str) -> None:
    """As docs/data.md says."""
    data = load_data(divided(tmp_path, NOT_CAUGHT[way]), unseen_fraction=0)
    assert verify_images(data, progress=False, overlap="refuse") == 25


def test_a_limit_hides_no_test_picture(tmp_path: Path) -> None:
    root = divided(tmp_path, None)
    for path in (root / "test").rglob("*.png"):
        (root / "train" / path.parent.name / f"again-{path.name}").write_bytes(path.read_bytes())
    for path in (root / "train").rglob("?.png"):
        path.unlink()
    data = load_data(root, unseen_fraction=0, limit=2)
    assert len(data.test) == 2 and len(data.train) + len(data.validation) == 3
    with pytest.raises(
        DataError, match=r"training images of .* stand in the test split too \(3 with the same pixels\)"
    ):
        verify_images(data, progress=False, overlap="refuse")


def test_validation_pictures_count_too(tmp_path: Path) -> None:
    root = divided(tmp_path, None)
    (root / "val" / "ash").mkdir(parents=True)
    (root / "val" / "ash" / "0.png").write_bytes((root / "test" / "ash" / "0.png").read_bytes())
    with pytest.raises(DataError, match="training images"):
        verify_images(load_data(root, unseen_fraction=0), progress=False, overlap="refuse")


@pytest.mark.parametrize("form", ["jsonl", "same file", "group"])
def test_tables(tmp_path: Path, form: str) -> None:
    """Pictures of one name in the folders of two splits are two pictures; one file in two splits is one."""
    rows = []
    for number, split in enumerate(("train", "test")):
        for n in range(6):
            image = f"{split}/{n}.png"
            paint(tmp_path / image, 100 * number + n, 32)
            rows.append({"image": image, "label": "ab"[n % 2], "split": split, "group": f"{split} {n}"})
    if form == "jsonl":
        table = tmp_path / "q.jsonl"
    elif form == "same file":
        rows.append({"image": "test/1.png", "question": "What is it?", "answer": "b", "split": "train"})
        rows = [
            row if "answer" in row else row | {"question": "Which?", "answer": row["label"]} for row in rows
        ]
        table = tmp_path / "q.jsonl"
    else:
        rows[0]["group"] = rows[11]["group"]
        table = tmp_path / "q.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_data(table, unseen_fraction=0)
    if form == "jsonl":
        assert verify_images(data, progress=False, overlap="refuse") == 12
        return
    kind = "with the same pixels" if form == "same file" else "of the same group"
    with pytest.raises(DataError, match=rf"training images of q stand in the test split too \(1 {kind}\)"):
        verify_images(data, progress=False, overlap="refuse")


def test_align_looks_too(tmp_path: Path) -> None:
    root = divided(tmp_path, CAUGHT["as JPEG"])
    with pytest.raises(DataError, match="stand in the test split too"):
        read_conversations([root])
    assert len(read_conversations([root], overlap="train")) == 1 + len(
        read_conversations([root], overlap="drop")
    )


def test_embedded_domains_are_as_they_were_measured() -> None:
    """Their splits are fixed; apparel has one near-duplicate (docs/data.md), the others none."""
    for name in EMBEDDED:
        data = compose(EMBEDDED[name].load())
        assert settle_overlap(data, "refuse") is data and verify_images(
            data, progress=False, overlap="refuse"
        )
        data.licence = ""  # as files of your own of that name
        if name == "apparel":
            with pytest.raises(DataError, match=r"\(1 nearly the same\)"):
                verify_images(data, progress=False, overlap="refuse")
        else:
            assert verify_images(data, progress=False, overlap="refuse")


def test_damaged_pictures_are_named_before_anything_is_dropped(tmp_path: Path) -> None:
    root = divided(tmp_path, None)
    for split in ("train", "test"):
        (root / split / "ash" / "0.png").write_bytes(b"nothing")
    data = load_data(root, unseen_fraction=0)
    for overlap in ("drop", "refuse"):
        with pytest.raises(DataError, match="2 of 24 images cannot be used"):
            settle_overlap(data, overlap, progress=False)
