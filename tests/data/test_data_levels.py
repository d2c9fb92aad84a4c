"""Images of more than 8 bits: one white level for a whole data set."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from craft.core.errors import DataError
from craft.data import Wanted, check_data, load_data, open_image, prepare, verify_images
from craft.data.compose import whole
from craft.data.images import Deep
from craft.data.load import read_data
from replicas import class_folders, pixels


def scan(number: int, bits: int = 12, peak: float = 1.0, side: int = 16) -> np.ndarray:
    """Noise `[side, side]` uint16 between 0 and `peak` of the values of `bits` bits, both in it."""
    top = int((2**bits - 1) * peak)
    values = np.random.default_rng(number).integers(0, top + 1, (side, side))
    values[0, :2] = 0, top
    return values.astype(np.uint16)


def scans(root: Path, bits: int = 12, ending: str = ".tif", kind: type = np.uint16) -> Path:
    """train/ and test/ with dark scans and bright ones in each: all of one scale."""
    for number, split in enumerate(("train", "test")):
        for c, name in enumerate(("ash", "elm")):
            for n in range(4):
                path = root / split / name / f"{n}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                values = scan(100 * number + 10 * c + n, bits, peak=1.0 if n == 3 else 0.2)
                Image.fromarray(values.astype(kind)).save(path)
    return root


def raw_tiff(values: np.ndarray, photometric: int = 1, form: int = 1) -> bytes:
    """A TIFF of any type, which Pillow itself would not write; colour is [H, W, 3]."""
    bits, bands = values.dtype.itemsize * 8, values.shape[2] if values.ndim == 3 else 1
    after = 8 + 2 + 12 * 10 + 4
    entries = [(256, 4, 1, values.shape[1]), (257, 4, 1, values.shape[0])]
    entries += [(258, 3, bands, bits if bands == 1 else after), (259, 3, 1, 1), (262, 3, 1, photometric)]
    entries += [(273, 4, 1, after + 6), (277, 3, 1, bands), (278, 4, 1, values.shape[0])]
    entries += [(279, 4, 1, values.nbytes), (339, 3, 1, form)]
    head = b"II*\0" + struct.pack("<IH", 8, 10) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + struct.pack("<I3H", 0, bits, bits, bits) + values.tobytes()


def shown(source: object) -> np.ndarray:
    """The grey values as a tower sees them."""
    return np.asarray(open_image(source))[:, :, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", [".tif", ".png"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_every_image_of_a_set_has_one_scale(tmp_path: Path, bits: int, ending: str) -> None:
    root, white = scans(tmp_path, bits, ending), 2**bits - 1
    data = load_data(root, unseen_fraction=0)
    assert verify_images(data, progress=False) == 16
    for sample in data.all_samples():
        values = np.asarray(Image.open(root / sample.id)).astype(np.int64)
        assert np.array_equal(shown(sample.image), values * 255 // white)
        assert (shown(sample.image).max() == 255) == sample.id.endswith(f"3{ending}")
    (note,) = data.notes
    assert f"16 images have more than 8 bits; {white} is white" in note


def test_one_scale_through_a_limit_a_manifest_and_a_run_on_the_test_images(tmp_path: Path) -> None:
    root = scans(tmp_path / "scans")
    full = {sample.id: shown(sample.image) for sample in load_data(root, unseen_fraction=0).test}
    prepare(root, None, tmp_path / "m", progress=False)
    for data in (load_data(root, unseen_fraction=0, limit=2), load_data(tmp_path / "m", unseen_fraction=0)):
        assert data.test and all(np.array_equal(shown(s.image), full[s.id]) for s in data.test)


def test_the_white_level_can_be_named_and_is_recorded(tmp_path: Path) -> None:
    root = scans(tmp_path / "scans")
    wanted = load_data(root, unseen_fraction=0, white_level=2000.0)
    prepare(root, None, tmp_path / "m", Wanted(white_level=2000.0), progress=False)
    data = load_data(tmp_path / "m", unseen_fraction=0)
    for sample, other in zip(data.test, wanted.test, strict=True):
        values = np.asarray(Image.open(root / sample.id)).astype(np.int64)
        assert np.array_equal(shown(sample.image), np.minimum(values, 2000) * 255 // 2000)
        assert np.array_equal(shown(sample.image), shown(other.image))
    assert "--white-level" in data.notes[0] and wanted.fingerprint != load_data(root).fingerprint


def test_a_brighter_image_than_those_looked_at_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.levels.LOOKED_AT", 2)
    root = scans(tmp_path)  # both that are looked at are dark
    with pytest.raises(DataError, match=r"3\.tif has the value 4095, but white is 1023.*--white-level VALUE"):
        verify_images(load_data(root, unseen_fraction=0), progress=False)
    verify_images(load_data(root, unseen_fraction=0, white_level=4095.0), progress=False)


@pytest.mark.parametrize(("top", "white"), [(1.0, 1.0), (255.0, 255.0), (4095.0, 4095.0)])
def test_floats_are_read_by_their_range(tmp_path: Path, top: float, white: float) -> None:
    root = tmp_path / "scans"
    for n in range(8):
        path = root / ("ash", "elm")[n % 2] / f"{n}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (scan(n, 12, 1.0 if n == 7 else 0.1) / 4095 * top).astype(np.float32)
        Image.fromarray(values).save(path)
    data = load_data(root, unseen_fraction=0)
    for sample in data.all_samples():
        values = np.asarray(Image.open(root / sample.id)).astype(np.float64)
        assert np.array_equal(shown(sample.image), np.rint(values / white * 255).astype(np.uint8))
    assert {f.kind for f in check_data(whole(read_data(root)), progress=False)} == {
        "of floating-point values"
    }


@pytest.mark.parametrize(
    ("bits", "white"), [(8, 255), (12, 4095), (16, 65535), (24, 2**24 - 1), (32, 2**32 - 1)]
)
def test_integers_of_32_bits_are_read_by_their_range(bits: int, white: int) -> None:
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint32).reshape(8, 8)
    assert np.array_equal(shown(raw_tiff(values)), values.astype(np.int64) * 255 // white)


def test_white_is_zero_is_turned_around() -> None:
    values = scan(1)
    assert np.array_equal(
        shown(raw_tiff(values, photometric=0)), (4095 - values.astype(np.int64)) * 255 // 4095
    )


def test_a_file_that_declares_its_bits_is_read_by_them() -> None:
    """12 bits packed in a TIFF, and a PGM whose header names white: a dark one stays dark."""
    pgm = b"P5\n4 1\n4095\n" + np.array([0, 100, 200, 300], ">u2").tobytes()
    assert shown(pgm).max() == 300 * 255 // 4095
    packed = bytearray(raw_tiff(np.zeros((8, 8), np.uint16)))
    packed[packed.index(struct.pack("<HHII", 258, 3, 1, 16)) + 8] = 12
    packed = packed[: len(packed) - 128] + bytes([0x10, 0x01, 0x00] * 32)
    assert shown(bytes(packed)).max() == 256 * 255 // 4095


@pytest.mark.parametrize(
    ("values", "form", "words"),
    [
        (np.full((8, 8), -1000, np.int16), 2, r"below 0, down to -1000 \(as CT has\)"),
        (np.full((8, 8), -1, np.int32), 2, "below 0"),
        (np.full((8, 8), np.nan, np.float32), 3, "NaN"),
        (np.full((8, 8), np.inf, np.float32), 3, "infinite"),
    ],
)
def test_values_that_are_no_brightness_are_refused(values: np.ndarray, form: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_image(raw_tiff(values, form=form))


def test_colour_of_16_bits_that_uses_12_is_refused_with_the_way_out(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "trees", ("ash", "elm"))
    for n in range(4):
        colour = np.repeat(scan(n)[:, :, None], 3, axis=2)
        (root / "ash" / f"{n}.tif").write_bytes(raw_tiff(colour, photometric=2))
    with pytest.raises(DataError, match=r"4 images are 16-bit colour.*12 bits only.*-level 0,4095.*65535"):
        load_data(root)
    assert load_data(root, white_level=65535.0).all_samples()
    colour = np.repeat(scan(5, 16)[:, :, None], 3, axis=2)
    (root / "ash" / "5.tif").write_bytes(raw_tiff(colour, photometric=2))
    assert load_data(root).notes == []  # one that is bright: 16 bits it is


def test_integers_among_floats_are_refused(tmp_path: Path) -> None:
    root = scans(tmp_path)
    Image.fromarray(np.eye(16, dtype=np.float32)).save(root / "train" / "ash" / "f.tif")
    with pytest.raises(DataError, match=r"integers \(.*0\.tif\) and of floats \(.*f\.tif\)"):
        load_data(root)


def test_floats_behind_bright_integers_are_refused(tmp_path: Path) -> None:
    """Integers of 16 bits settle a level; the floats would all be black."""
    root = scans(tmp_path / "scans", 16)
    Image.fromarray(scan(0).astype(np.float32) / 4095).save(root / "train" / "elm" / "z.tif")
    with pytest.raises(DataError, match=r"integers .* and of floats \(.*z\.tif\)"):
        load_data(root)


def test_eight_bit_images_of_the_set_stay_as_they_are(tmp_path: Path) -> None:
    root = scans(tmp_path)
    Image.fromarray(pixels(5, 16)).save(root / "train" / "ash" / "colour.png")
    Image.fromarray(pixels(6, 16)[:, :, 0]).save(root / "train" / "ash" / "grey.tif")
    samples = {s.id: s.image for s in whole(read_data(root)).train}
    assert np.array_equal(np.asarray(open_image(samples["train/ash/colour.png"])), pixels(5, 16))
    assert np.array_equal(shown(samples["train/ash/grey.tif"]), pixels(6, 16)[:, :, 0])
    assert isinstance(samples["train/ash/0.tif"], Deep)


def test_images_in_parquet_are_prepared_first(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for n in range(8):
        stream = io.BytesIO()
        Image.fromarray(scan(n, peak=1.0 if n == 0 else 0.2)).save(stream, "PNG")
        rows.append({"image": {"bytes": stream.getvalue(), "path": None}, "label": ("ash", "elm")[n % 2]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"values up to \d+, and one image in a larger file.*data prepare"):
        verify_images(load_data(tmp_path / "train.parquet"), progress=False)
    prepare(tmp_path / "train.parquet", None, tmp_path / "m", progress=False)
    data = load_data(tmp_path / "m", unseen_fraction=0)
    assert verify_images(data, progress=False) == 8 and "4095 is white" in data.notes[-1]
    assert sorted(shown(s.image).max() for s in data.all_samples()) == [51] * 7 + [255]


def test_constant_and_almost_black_images_are_findings(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ("ash", "elm"))
    Image.new("RGB", (16, 16), (10, 200, 30)).save(root / "ash" / "constant.png")
    Image.new("L", (16, 16)).save(root / "ash" / "black.png")
    Image.fromarray((pixels(3, 16) // 17).astype(np.uint8)).save(root / "elm" / "dark.png")
    findings = {f.kind: f for f in check_data(whole(read_data(root)), progress=False)}
    assert findings["of one colour"].count == 2 and findings["of one colour"].warning
    assert findings["almost black"].where == (str(root / "elm" / "dark.png"),)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK"])
def test_other_modes_of_tiff_and_png_are_read(mode: str) -> None:
    image = Image.fromarray(pixels(3, 16)).convert(mode)
    form = "TIFF" if mode == "CMYK" else "PNG" if mode == "PA" else "TIFF"
    stream = io.BytesIO()
    (image.convert("P") if mode == "PA" else image).save(stream, form)
    assert open_image(stream.getvalue()).size == (16, 16) and shown(stream.getvalue()).max() > 16


@pytest.mark.parametrize("white", [0.0, -3.0, float("nan")])
def test_a_white_level_below_1_is_refused(tmp_path: Path, white: float) -> None:
    with pytest.raises(DataError, match=r"--white-level must be 1 or more"):
        load_data(scans(tmp_path), white_level=white)


@pytest.mark.parametrize("format", ["TIFF", "PNG"])
def test_exif_rotation_is_applied_to_more_than_8_bits(format: str) -> None:
    values, stream, exif = scan(1)[:, :9], io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(stream, format, exif=exif)
    turned = np.rot90(values.astype(np.int64) * 255 // 4095, -1)
    assert np.array_equal(shown(stream.getvalue()), turned)


def test_only_the_first_page_of_a_tiff_is_read_and_that_is_a_warning(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ("ash", "elm"))
    pages = [Image.fromarray(pixels(n, 16)) for n in (50, 51, 52)]
    pages[0].save(root / "ash" / "stack.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(np.asarray(open_image(root / "ash" / "stack.tif")), pixels(50, 16))
    (finding,) = check_data(whole(read_data(root)), progress=False)
    assert finding.warning and "several pages, of which the first is used" in finding.text
