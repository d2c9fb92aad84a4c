"""The embedded domain `scenes`: questions about several things in one picture, drawn by program.

Counting, comparing, reading and locating, after IconQA. The things are OpenMoji's colour drawings and the
writing is Computer Modern; the general training of craft-tiny saw neither. Everything is put together from
finished art in whole numbers, so that a seed gives the same bytes on every machine.
"""

import functools
import json
import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import numpy as np

from craft.core.seeding import rng
from craft.data.sample import Sample

SIZE = 112
"""Height and width of a picture in pixels."""

KINDS = {
    "counting": ("count",),
    "comparing": ("most", "largest"),
    "reading": ("number", "word"),
    "locating": ("ring", "corner"),
}
"""The kinds of question by what they ask for. Every four pictures in a row ask for each once."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLURALS = {"bus": "buses", "fish": "fish", "fox": "foxes", "tomato": "tomatoes"}
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_PAPER = (
    (255, 255, 255),
    (246, 240, 226),
    (226, 240, 248),
    (232, 246, 228),
    (250, 232, 236),
    (238, 234, 250),
)
_INK = ((20, 20, 20), (150, 30, 40), (30, 60, 150), (20, 100, 60), (110, 40, 130))
_SMALL, _MIDDLE, _LARGE = 22, 30, 44
_FOLDER = files("craft.data").joinpath("scenes")


@dataclass(frozen=True)
class _Art:
    """Things: (word, size) -> colour times alpha, and alpha, uint8 `[size, size, 4]`; letters and digits: by
    font, character -> ink uint8 `[height, width]`."""

    things: dict[tuple[str, int], np.ndarray]
    letters: list[dict[str, np.ndarray]]
    digits: list[dict[str, np.ndarray]]


@functools.cache
def _about() -> dict[str, Any]:
    """What is where on the shipped sheets, which scripts/build_openmoji.py built."""
    return json.loads(_FOLDER.joinpath("sprites.json").read_text(encoding="utf-8"))


@functools.cache
def _art() -> _Art:
    from PIL import Image

    about, pages = _about(), {}
    for name in ("objects", "glyphs"):
        with _FOLDER.joinpath(f"{name}.png").open("rb") as stream, Image.open(stream) as page:
            pages[name] = np.asarray(page)
    things, y = {}, 0
    for size in about["sizes"]:
        for n, word in enumerate(about["objects"]):
            things[word, size] = pages["objects"][y : y + size, n * size : (n + 1) * size]
        y += size
    fonts: dict[str, list[dict[str, np.ndarray]]] = {"letters": [], "digits": []}
    for name, strip in about["glyphs"].items():
        kind = name.split()[1]
        edges = np.cumsum([0, *strip["widths"]])
        rows = pages["glyphs"][strip["y"] : strip["y"] + strip["height"]]
        characters = "abcdefghijklmnopqrstuvwxyz" if kind == "letters" else "0123456789"
        fonts[kind].append({c: rows[:, edges[n] : edges[n + 1]] for n, c in enumerate(characters)})
    return _Art(things, fonts["letters"], fonts["digits"])


def scene_words() -> tuple[str, ...]:
    """The words for all things that occur, sorted."""
    return tuple(sorted(_about()["objects"]))


def draw_scenes(
    count: int, seed: int = 0, split: str = "train", without: Collection[str] = ()
) -> list[Sample]:
    """Draw so many pictures, each with one question, four options and their answer.

    A picture is a pure function of seed, split, its number and `without`; "train" and "test" never share one.

    Args:
        count: how many; the first of a longer series are those of a shorter one.
        seed: of everything that is drawn by lot.
        split: "train" or "test".
        without: words for things that are not drawn, written, or named as an option.

    Returns:
        Samples with choices; `label` is the word for the thing asked about, or None where a digit is read.

    Source: ours, after the tasks of IconQA (Lu et al. 2021).
    """
    words = [word for word in scene_words() if word not in without]
    return [_one(split, number, seed, words) for number in range(count)]


def _one(split: str, number: int, seed: int, words: list[str]) -> Sample:
    """The picture of one number, with its question."""
    families = list(KINDS.values())
    family = families[number % len(families)]
    kind = family[number // len(families) % len(family)]
    scene = _Scene(rng("scenes", seed, split, number), words)
    _DRAW[kind](scene)
    id = f"scenes/{split}/{number:05d}/{kind}"
    return replace(scene.sample(), id=id, split=split, origin=id, kind=kind)


@dataclass
class _Scene:
    """A picture under way, and its question."""

    draw: random.Random
    words: list[str]
    question: str = ""
    answer: str = ""
    label: str | None = None
    options: list[str] = field(default_factory=list)
    pixels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.empty((SIZE, SIZE, 3), np.uint8)
        self.pixels[:] = self.draw.choice(_PAPER)

    def sample(self) -> Sample:
        """The finished picture with its options in an order drawn by lot."""
        options = sorted(self.options)
        self.draw.shuffle(options)
        return Sample(
            id="",
            image=self.pixels,
            question=self.question,
            answer=self.answer,
            choices=tuple(options),
            label=self.label,
            correct=options.index(self.answer),
        )

    def ask(self, question: str, answer: str, options: list[str], label: str | None) -> None:
        self.question, self.answer, self.options, self.label = question, answer, options, label

    def others(self, count: int, besides: Collection[str]) -> list[str]:
        """So many words besides the given ones."""
        return self.draw.sample([word for word in self.words if word not in besides], count)

    def put(self, word: str, size: int, x: int, y: int) -> None:
        """Draw a thing with its middle at (x, y), mirrored in half of the cases."""
        sprite = _art().things[word, size]
        if self.draw.random() < 0.5:
            sprite = sprite[:, ::-1]
        top, left = min(max(y - size // 2, 0), SIZE - size), min(max(x - size // 2, 0), SIZE - size)
        under = self.pixels[top : top + size, left : left + size]
        alpha = sprite[..., 3:].astype(np.int64)
        mixed = sprite[..., :3] + (under * (255 - alpha) + 127) // 255
        under[:] = np.minimum(mixed, 255)

    def scatter(self, things: list[tuple[str, int]], cells: int) -> list[tuple[int, int]]:
        """Put things into cells of a square grid, one in each, in places drawn by lot: their middles."""
        step = SIZE // cells
        chosen = self.draw.sample([(i, j) for i in range(cells) for j in range(cells)], len(things))
        middles = []
        for (i, j), (word, size) in zip(chosen, things, strict=True):
            room = min(8, max(0, (step - size) // 2))
            x, y = (step * n + step // 2 + self.draw.randint(-room, room) for n in (i, j))
            self.put(word, size, x, y)
            middles.append((x, y))
        return middles

    def write(self, glyphs: list[np.ndarray], x: int, y: int) -> None:
        """Write ink with its top left corner at (x, y) in a dark colour."""
        ink = np.concatenate(glyphs, 1)[..., None].astype(np.int64)
        under = self.pixels[y : y + ink.shape[0], x : x + ink.shape[1]]
        colour = np.array(self.draw.choice(_INK))
        under[:] = (colour * ink + under * (255 - ink) + 127) // 255


def _count(scene: _Scene) -> None:
    """How many of one thing there are, two to six of them; up to two of another thing beside them."""
    word, other = scene.others(2, ())
    number = scene.draw.randint(2, 6)
    size = scene.draw.choice((_SMALL, _MIDDLE))
    scene.scatter([(word, size)] * number + [(other, size)] * scene.draw.randint(0, 2), 3)
    wrong = scene.draw.sample([n for n in range(2, 7) if n != number], 3)
    question = f"How many {_PLURALS.get(word, word + 's')} are there?"
    scene.ask(question, NUMBERS[number], [NUMBERS[n] for n in (number, *wrong)], word)


def _most(scene: _Scene) -> None:
    """Of which of two things there are more; the other options are not in the picture."""
    more, fewer, *absent = scene.others(4, ())
    many = scene.draw.randint(4, 6)
    few = scene.draw.randint(1, many - 2)
    things = [(more, _MIDDLE)] * many + [(fewer, _MIDDLE)] * min(few, 9 - many)
    scene.scatter(things, 3)
    scene.ask("Which of these is there most of?", more, [more, fewer, *absent], more)


def _largest(scene: _Scene) -> None:
    """Which of four things is drawn largest."""
    things = scene.others(4, ())
    sizes = (_LARGE, *(scene.draw.choice((_SMALL, _MIDDLE)) for _ in things[1:]))
    scene.scatter(list(zip(things, sizes, strict=True)), 2)
    scene.ask("Which of these is the largest?", things[0], things, things[0])


def _number(scene: _Scene) -> None:
    """Which digit is written, beside a thing that does not matter."""
    digit, *wrong = scene.draw.sample(range(10), 4)
    glyph = scene.draw.choice(_art().digits)[str(digit)]
    side = scene.draw.random() < 0.5
    x = scene.draw.randint(4, 16) + (SIZE // 2 if side else 0)
    y = scene.draw.randint(4, SIZE - glyph.shape[0] - 4)
    scene.write([glyph], min(x, SIZE - glyph.shape[1]), y)
    thing_x = SIZE // 4 if side else SIZE * 3 // 4
    scene.put(scene.others(1, ())[0], _MIDDLE, thing_x, scene.draw.randint(20, SIZE - 20))
    words = [NUMBERS[n] for n in (digit, *wrong)]
    scene.ask("Which number is written in the picture?", words[0], words, None)


def _word(scene: _Scene) -> None:
    """Which word is written on a sign; a picture of another of the options stands beside it."""
    word, shown, *rest = scene.others(4, ())
    font = scene.draw.choice(_art().letters)
    glyphs = [font[letter] for letter in word]
    height, width = glyphs[0].shape[0], sum(glyph.shape[1] for glyph in glyphs)
    above = scene.draw.random() < 0.5
    x = scene.draw.randint(3, SIZE - width - 3)
    y = scene.draw.randint(6, 16) + (0 if above else SIZE - height - 22)
    scene.pixels[y - 3 : y + height + 3, x - 3 : x + width + 3] = 60
    scene.pixels[y - 1 : y + height + 1, x - 1 : x + width + 1] = 255
    scene.write(glyphs, x, y)
    scene.put(shown, _LARGE, scene.draw.randint(24, SIZE - 24), SIZE - 28 if above else 28)
    scene.ask("Which word is written on the sign?", word, [word, shown, *rest], word)


def _ring(scene: _Scene) -> None:
    """Which of four things is in the ring."""
    things = scene.others(4, ())
    x, y = scene.scatter([(word, _MIDDLE) for word in things], 2)[0]
    down, along = np.mgrid[:SIZE, :SIZE]
    distance = (down - y) ** 2 + (along - x) ** 2
    scene.pixels[(distance <= 25**2) & (distance >= 22**2)] = scene.draw.choice(_INK)
    scene.ask("Which of these is in the ring?", things[0], things, things[0])


def _corner(scene: _Scene) -> None:
    """Which of four things is at the top left, and so on."""
    things = scene.others(4, ())
    middles = scene.scatter([(word, scene.draw.choice((_MIDDLE, _LARGE))) for word in things], 2)
    x, y = middles[0]
    corner = _CORNERS[2 * (y > SIZE // 2) + (x > SIZE // 2)]
    scene.ask(f"Which of these is at the {corner}?", things[0], things, things[0])


_DRAW = {
    "count": _count,
    "most": _most,
    "largest": _largest,
    "number": _number,
    "word": _word,
    "ring": _ring,
    "corner": _corner,
}
