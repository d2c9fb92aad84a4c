"""Pictures that cannot be used."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from data.damage.making import damage, folder, lines, one_bad, row
from replicas import parquet, pixels, png


@damage(
    "{root}/ash/0.png",
    "not an image that can be opened (it is an HTML page)",
    "Replace the file, or remove it",
)
def text_for_a_picture(root: Path) -> Path:
    return one_bad(root, b"<html>404</html>")


@damage(
    "{root}/ash/0.png",
    "not an image that can be opened (it is an empty file (0 bytes))",
    "Replace the file, or remove it",
)
def empty_file(root: Path) -> Path:
    return one_bad(root, b"")


@damage(
    "{root}/ash/0.jpg",
    "truncated or corrupt (image file is truncated (17 bytes not processed))",
    "Replace the file, or remove it",
)
def cut_jpeg(root: Path) -> Path:
    stream = io.BytesIO()
    Image.fromarray(pixels(1, 64)).save(stream, format="JPEG")
    return one_bad(root, stream.getvalue()[: stream.tell() // 2], ".jpg")


@damage(
    "{root}/ash/0.png",
    "truncated or corrupt (broken data stream when reading image file)",
    "Replace the file, or remove it",
)
def corrupt_png(root: Path) -> Path:
    whole = png(1)
    place = whole.index(b"IDAT") + 20
    return one_bad(root, whole[:place] + b"\0" * 200)


@damage("{root}/ash/0.png", "too large", "400000000 pixels", "smaller")
def decompression_bomb(root: Path) -> Path:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return one_bad(root, content)


@damage(
    "{root}/q.jsonl:3",
    "{root}/img/2.png",
    "not an image that can be opened (cannot identify image file)",
    "Replace the file, or remove it",
)
def bad_picture_of_a_row(root: Path) -> Path:
    path = lines(root)
    (root / "img" / "2.png").write_bytes(b"nothing")
    return path


@damage(
    "{root}/p.parquet, row 3",
    "{root}/p.parquet (image, row 2 of group 0)",
    "not an image that can be opened (cannot identify image file)",
    "Replace the file, or remove it",
)
def bad_picture_in_parquet(root: Path) -> Path:
    rows = [{"image": png(n) if n != 2 else b"nothing", "label": str(n % 2)} for n in range(4)]
    return parquet(root / "p.parquet", rows)


@damage("{root}/q.jsonl:2", "image bytes", "not an image that can be opened (cannot identify image file)")
def bad_data_uri(root: Path) -> Path:
    return lines(root, row(1, image="data:image/png;base64,bm90aGluZw=="))


@damage(
    "2 of 8 images",
    "{root}/ash/1.png",
    "{root}/elm/0.png",
    "not an image that can be opened (cannot identify image file)",
    "Replace the file, or remove it",
)
def two_bad_pictures(root: Path) -> Path:
    folder(root, "ash", "elm")
    for name in ("ash/1.png", "elm/0.png"):
        (root / name).write_bytes(b"nothing")
    return root
