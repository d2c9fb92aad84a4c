"""Build the shipped `apparel` subset from Fashion-MNIST's own files.

    python scripts/build_apparel.py /usr/share/datasets/fashion-mnist

The folder holds the four `*-ubyte.gz` files (Debian: `apt install dataset-fashion-mnist`). Writes, under
`src/craft/data/domains/apparel/`, one grayscale PNG sheet and one JSON of labels and original indices per
split: 300 images a class from the train files, 100 a class from the t10k files, drawn with a fixed seed. The
output is the same on every machine with the same Pillow.
"""

import gzip
import json
import random
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "src" / "craft" / "data" / "domains" / "apparel"
SPLITS = {"train": ("train", 300), "test": ("t10k", 100)}
COLUMNS, SIZE, SEED = 50, 28, 2017


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (big-endian: magic, dimensions, uint8 data) as an array."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def build(source: Path, split: str) -> None:
    """Write `<split>.png` and `<split>.json`."""
    stem, per_class = SPLITS[split]
    images = read_idx(source / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{stem}-labels-idx1-ubyte.gz")
    draw = random.Random(SEED)
    indices = sorted(
        i for label in range(10) for i in draw.sample(np.flatnonzero(labels == label).tolist(), per_class)
    )
    rows = -(-len(indices) // COLUMNS)
    sheet = np.zeros((rows * SIZE, COLUMNS * SIZE), np.uint8)
    for n, i in enumerate(indices):
        y, x = n // COLUMNS * SIZE, n % COLUMNS * SIZE
        sheet[y : y + SIZE, x : x + SIZE] = images[i]
    Image.fromarray(sheet).save(OUT / f"{split}.png", optimize=True)
    meta = {
        "columns": COLUMNS,
        "size": SIZE,
        "labels": "".join(str(labels[i]) for i in indices),
        "indices": indices,
    }
    (OUT / f"{split}.json").write_text(json.dumps(meta, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{split}: {len(indices)} images, {(OUT / f'{split}.png').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    OUT.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        build(Path(sys.argv[1]), name)
