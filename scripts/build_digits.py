"""Build the shipped `digits` sheet from scikit-learn's copy of the UCI digits.

    pip install -e ".[tiny]"
    python scripts/build_digits.py

Writes, under `src/craft/data/domains/digits/`, one grayscale PNG sheet with all 1797 images in
scikit-learn's order, and one JSON with their labels and the indices of the test images. An image is 8 x 8;
its values 0 to 16 are stored as 0 to 255, rounded, so that each of the 17 values stays distinct. The output
is the same on every machine with the same Pillow.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from craft.data import stratified

OUT = Path(__file__).resolve().parent.parent / "src" / "craft" / "data" / "domains" / "digits"
COLUMNS, SIZE, TEST, SEED = 50, 8, 797, 0


def build() -> None:
    """Write `digits.png` and `digits.json`."""
    values, targets = load_digits(return_X_y=True)
    images = np.rint(values.reshape(-1, SIZE, SIZE) * (255 / 16)).astype(np.uint8)
    labels = targets.tolist()
    rows = -(-len(images) // COLUMNS)
    sheet = np.zeros((rows * SIZE, COLUMNS * SIZE), np.uint8)
    for n, image in enumerate(images):
        y, x = n // COLUMNS * SIZE, n % COLUMNS * SIZE
        sheet[y : y + SIZE, x : x + SIZE] = image
    Image.fromarray(sheet).save(OUT / "digits.png", optimize=True)
    _, test = stratified(
        range(len(images)),
        TEST,
        identity=lambda n: f"digits/{n:04d}",
        group=lambda n: str(labels[n]),
        seed=SEED,
        purpose="digits test",
    )
    meta = {"columns": COLUMNS, "size": SIZE, "labels": "".join(map(str, labels)), "test": test}
    (OUT / "digits.json").write_text(json.dumps(meta, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"digits: {len(images)} images, {(OUT / 'digits.png').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    build()
