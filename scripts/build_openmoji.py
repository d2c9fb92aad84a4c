"""Build the art of the embedded domains `sketch` and `scenes` from OpenMoji's vector drawings.

    python -m train_tiny.fetch --cache CACHE        # names that the family knows, and from which art
    PYTHONPATH=src:. python scripts/build_openmoji.py --cache CACHE

Fetches npm's `openmoji` (vector files only) into CACHE and writes, below `src/craft/data/domains/`:

- `sketch/train.png`, `test.png`, `classes.json`: OpenMoji's *black* drawings, several renderings a class. A
  test rendering is mirrored, tilted further and drawn with other pens than any training rendering, so that no
  test image is a training image, or one of them moved.
- `scenes/objects.png`, `glyphs.png`, `sprites.json`: OpenMoji's *colour* drawings of some of these classes
  in three sizes, and letters and digits in Computer Modern (from matplotlib), for
  `craft.data.domains.scenes`.

Classes are emoji whose names the family learned from other art (Noto and Twemoji, matched by hexcode), in the
groups that its training did not pass over.
"""

import argparse
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from craft.data.images import lazy_image

OPENMOJI = "openmoji@17.0.0"
OUT = Path(__file__).resolve().parent.parent / "src" / "craft" / "data" / "domains"
SIZE, COLUMNS, MASTER = 112, 50, 224
SPLITS = {"train": 6, "test": 3}
PENS = {"train": (1.4, 2.0, 2.8), "test": (1.7, 2.4)}
"""Widths of the line in the drawing's own units (of 72), which has 2."""
TILTS = {"train": (0, 10), "test": (12, 20)}
"""Least and most degrees, to either side."""
LONGEST = 7
"""Letters of a name: one short word is a short answer in every LLM's tokens."""
UNSUITABLE = {  # the drawing does not tell the name, or tells that of another class
    "bank", "cooking", "ewe", "falafel", "glasses", "hamsa", "herb", "hotel", "houses", "ice", "joker",
    "knot", "lime", "link", "locked", "mate", "metro", "moose", "piata", "sake", "salt", "seat", "station",
    "wedding",
}  # fmt: skip
GROUPS_WITHOUT = {"shape", "weather", "place"}
"""Names of these tell a colour, a phase or a landscape, which black lines do not show."""

OBJECTS = (
    "cat", "dog", "horse", "cow", "pig", "rabbit", "fox", "turtle", "fish", "duck", "owl", "swan", "snail",
    "spider", "crab", "lion", "lemon", "banana", "pear", "tomato", "cactus", "carrot", "pizza", "taco",
    "teapot", "cookie", "kite", "key", "bell", "camera", "guitar", "drum", "ship", "bus", "train",
    "rocket", "chair", "crown", "hammer", "tulip",
)  # fmt: skip
"""What scenes are made of: words of at most six letters fit on a sign."""
OBJECT_SIZES = (22, 30, 44)
FONTS = ("cmr10", "cmss10", "cmtt10")
LETTER_HEIGHT, DIGIT_HEIGHT = 26, 60


def fetch(cache: Path) -> Path:
    """The unpacked package: `black/svg`, `color/svg` and its licence."""
    folder = cache / "openmoji"
    if not folder.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit("npm is needed for OpenMoji; install Node.js and run this again.")
        run = subprocess.run([npm, "pack", OPENMOJI], cwd=cache, check=True, capture_output=True, text=True)
        archive = cache / run.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if "/svg/" in m.name or m.name.count("/") == 1]
            tar.extractall(folder, members, filter="data")
        archive.unlink()
    return folder / "package"


def classes(cache: Path, art: Path) -> list[tuple[str, str, str]]:
    """(name, group, OpenMoji's hexcode) of every class, by name."""
    from train_tiny.backbone import PASSED_OVER
    from train_tiny.names import concepts

    rows = []
    for concept in concepts(cache):
        name, emoji = concept.name, concept.emoji
        if emoji is None or concept.category in PASSED_OVER | GROUPS_WITHOUT or name in UNSUITABLE:
            continue
        if not re.fullmatch(f"[a-z]{{3,{LONGEST}}}", name):
            continue
        code = emoji.removesuffix(".png").upper()
        drawn = [c for c in (code, code.replace("-FE0F", "")) if (art / f"black/svg/{c}.svg").is_file()]
        if drawn:
            rows.append((name, concept.category, drawn[0]))
    return sorted(rows)


def raster(svg: str, size: int) -> np.ndarray:
    """RGBA uint8 `[size, size, 4]` of an SVG."""
    import resvg_py

    drawn = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(lazy_image(io.BytesIO(drawn)).convert("RGBA"))


def sketch(svg: str, split: str, rng: random.Random) -> np.ndarray:
    """One rendering of a black drawing: ink uint8 `[SIZE, SIZE]`, 0 for none; pen, pose, slight wobble."""
    pen = rng.choice(PENS[split])
    svg = re.sub(
        r'stroke-width="([\d.]+)"', lambda match: f'stroke-width="{float(match[1]) * pen / 2:.3f}"', svg
    )
    ink = Image.fromarray(raster(svg, MASTER)[..., 3])
    if split == "test":
        ink = ink.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = np.deg2rad(rng.choice((-1, 1)) * rng.uniform(*TILTS[split]))
    zoom = MASTER / SIZE / rng.uniform(0.82, 1.0)
    shift = [rng.uniform(-5, 5) for _ in range(2)]
    cells = 4
    wobble = [
        [[rng.uniform(-1.3, 1.3) for _ in range(2)] for _ in range(cells + 1)] for _ in range(cells + 1)
    ]

    def source(i: int, j: int) -> tuple[float, float]:
        """Where the corner (i, j) of the grid over the rendering comes from."""
        x = i * SIZE / cells - SIZE / 2 + wobble[j][i][0] - shift[0]
        y = j * SIZE / cells - SIZE / 2 + wobble[j][i][1] - shift[1]
        turned = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        return tuple(MASTER / 2 + zoom * part for part in turned)  # type: ignore[return-value]

    big, step = 2 * SIZE, 2 * SIZE // cells  # twice too large, then averaged: smooth lines
    mesh = [
        (
            (i * step, j * step, (i + 1) * step, (j + 1) * step),
            (*source(i, j), *source(i, j + 1), *source(i + 1, j + 1), *source(i + 1, j)),
        )
        for j in range(cells)
        for i in range(cells)
    ]
    warped = ink.transform((big, big), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    return np.asarray(warped.resize((SIZE, SIZE), Image.Resampling.BOX))


def sheet(pictures: list[np.ndarray], columns: int, bits: int) -> bytes:
    """Grey images of one size in rows, as a PNG of `2 ** bits` shades."""
    size = pictures[0].shape[0]
    rows = -(-len(pictures) // columns)
    page = np.zeros((rows * size, columns * size), np.uint8)
    for n, picture in enumerate(pictures):
        y, x = n // columns * size, n % columns * size
        page[y : y + size, x : x + size] = picture
    shades = 2**bits - 1
    levels = (page.astype(int) * shades + 127) // 255
    image = Image.fromarray(levels.astype(np.uint8), "P")
    image.putpalette([value * 255 // shades for value in range(shades + 1) for _ in range(3)])
    stream = io.BytesIO()
    image.save(stream, "PNG", bits=bits, optimize=True)
    return stream.getvalue()


def build_sketch(art: Path, kinds: list[tuple[str, str, str]]) -> None:
    """Write the black drawings as white-paper images."""
    out = OUT / "sketch"
    out.mkdir(exist_ok=True)
    for split, count in SPLITS.items():
        pictures = []
        for _, _, code in kinds:
            svg = (art / f"black/svg/{code}.svg").read_text(encoding="utf-8")
            rng = random.Random(f"{split} {code}")
            pictures += [255 - sketch(svg, split, rng) for _ in range(count)]
        (out / f"{split}.png").write_bytes(sheet(pictures, COLUMNS, bits=2))
        print(f"sketch {split}: {len(pictures)}, {(out / f'{split}.png').stat().st_size / 1e6:.2f} MB")
    about = {
        "size": SIZE,
        "columns": COLUMNS,
        "renderings": SPLITS,
        "classes": [{"name": name, "hexcode": code} for name, _, code in kinds],
    }
    (out / "classes.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def trimmed(rgba: np.ndarray, size: int) -> np.ndarray:
    """The drawing without its margin, scaled to fit `[size, size, 4]`."""
    image = Image.fromarray(rgba)
    image = image.crop(image.getchannel("A").getbbox())
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = Image.fromarray(_premultiplied(np.asarray(image))).resize((width, height), Image.Resampling.BOX)
    page = np.zeros((size, size, 4), np.uint8)
    y, x = (size - height) // 2, (size - width) // 2
    page[y : y + height, x : x + width] = np.asarray(small)
    return page


def _premultiplied(rgba: np.ndarray) -> np.ndarray:
    out = rgba.astype(int)
    out[..., :3] = out[..., :3] * out[..., 3:] // 255
    return out.astype(np.uint8)


def glyph(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Ink uint8 `[height, advance]` of one letter or digit, all of a font on one baseline."""
    ascent, descent = font.getmetrics()
    image = Image.new("L", (round(font.getlength(text)) + 2, ascent + descent), 0)
    ImageDraw.Draw(image).text((1, 0), text, font=font, fill=255)
    return np.asarray(image)


def build_scenes(art: Path, kinds: list[tuple[str, str, str]]) -> None:
    """Write objects (colour times alpha, and alpha) and glyphs, each size in a row of its own."""
    import matplotlib

    out = OUT / "scenes"
    out.mkdir(exist_ok=True)
    codes = {name: code for name, _, code in kinds}
    rows = []
    for size in OBJECT_SIZES:
        row = [
            trimmed(raster((art / f"color/svg/{codes[name]}.svg").read_text(encoding="utf-8"), 352), size)
            for name in OBJECTS
        ]
        rows.append(np.concatenate(row, 1))
    width = max(row.shape[1] for row in rows)
    page = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
    Image.fromarray(page).save(out / "objects.png", optimize=True)

    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    strips, places, y = [], {}, 0
    for name in FONTS:
        for kind, letters, height in (
            ("letters", "abcdefghijklmnopqrstuvwxyz", LETTER_HEIGHT),
            ("digits", "0123456789", DIGIT_HEIGHT),
        ):
            font = ImageFont.truetype(fonts / f"{name}.ttf", height)
            drawn = [glyph(letter, font) for letter in letters]
            widths = [part.shape[1] for part in drawn]
            strips.append(np.concatenate(drawn, 1))
            places[f"{name} {kind}"] = {"y": y, "height": strips[-1].shape[0], "widths": widths}
            y += strips[-1].shape[0]
    width = max(strip.shape[1] for strip in strips)
    page = np.concatenate([np.pad(strip, ((0, 0), (0, width - strip.shape[1]))) for strip in strips])
    Image.fromarray(page).save(out / "glyphs.png", optimize=True)
    about = {"objects": list(OBJECTS), "sizes": OBJECT_SIZES, "glyphs": places}
    (out / "sprites.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print("scenes:", sum(path.stat().st_size for path in out.iterdir()) / 1e3, "kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    cache = parser.parse_args().cache
    art = fetch(cache)
    kinds = classes(cache, art)
    print(f"{len(kinds)} classes: {' '.join(name for name, _, _ in kinds)}")
    build_sketch(art, kinds)
    build_scenes(art, kinds)


if __name__ == "__main__":
    main()
