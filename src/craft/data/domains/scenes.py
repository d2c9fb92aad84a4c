"""The embedded domain `scenes`: questions about several things in one image, drawn by program.

The questions ask to count, compare, read and locate, after IconQA. The things are OpenMoji's colour drawings
and the letters are Computer Modern; the general training of craft-tiny saw neither. Images are composed of
finished drawings in integer arithmetic, so that a seed gives the same bytes on every machine.
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
from craft.data.images import lazy_image
from craft.data.sample import Sample

SIZE = 112
"""Height and width of an image in pixels."""

KINDS = {
    "counting": ("count",),
    "comparing": ("most", "largest"),
    "reading": ("number", "word"),
    "locating": ("ring", "corner"),
}
"""The kinds of question by what they ask for. Of four successive images, each asks for another."""

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
_SMALL, _MEDIUM, _LARGE = 22, 30, 44
_FOLDER = files("craft.data.domains").joinpath("scenes")


@dataclass(frozen=True)
class _Art:
    """Things: (word, size) -> colour times alpha, and alpha, uint8 `[size, size, 4]`; letters and digits: by
    font, character -> ink uint8 `[height, width]`."""

    things: dict[tuple[str, int], np.ndarray]
    letters: list[dict[str, np.ndarray]]
    digits: list[dict[str, np.ndarray]]


@functools.cache
def _about() -> dict[str, Any]:
    """Where everything is on the shipped sheets, which scripts/build_openmoji.py builds."""
    return json.loads(_FOLDER.joinpath("sprites.json").read_text(encoding="utf-8"))


@functools.cache
def _art() -> _Art:
    about, pages = _about(), {}
    for name in ("objects", "glyphs"):
        with _FOLDER.joinpath(f"{name}.png").open("rb") as stream, lazy_image(stream) as page:
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
    """The words for all things, sorted."""
    return tuple(sorted(_about()["objects"]))


def draw_scenes(
    count: int, seed: int = 0, split: str = "train", without: Collection[str] = ()
) -> list[Sample]:
    """Draw images, each with one question, four options and the answer.

    An image is a pure function of seed, split, its number and `without`; "train" and "test" never share one.

    Args:
        count: the number of images; a longer series begins with the images of a shorter one.
        seed: of everything random.
        split: "train" or "test".
        without: words for things that are not drawn, written, or named as an option.

    Returns:
        Samples with choices; `label` is the word for the thing in question, or None if a digit is read.

    Source: ours, after the tasks of IconQA (Lu et al. 2021).
    """
    words = [word for word in scene_words() if word not in without]
    return [_one(split, number, seed, words) for number in range(count)]


def _one(split: str, number: int, seed: int, words: list[str]) -> Sample:
    """Image `number`, with its question."""
    families = list(KINDS.values())
    family = families[number % len(families)]
    kind = family[number // len(families) % len(family)]
    scene = _Scene(rng("scenes", seed, split, number), words)
    _DRAW[kind](scene)
    id = f"scenes/{split}/{number:05d}/{kind}"
    return replace(scene.sample(), id=id, split=split, origin=id, kind=kind)


@dataclass
class _Scene:
    """An unfinished image, and its question."""

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
        """The finished image with its options in random order."""
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
        """`count` random words that are not in `besides`."""
        return self.draw.sample([word for word in self.words if word not in besides], count)

    def put(self, word: str, size: int, x: int, y: int) -> None:
        """Draw a thing centred at (x, y), mirrored in half of the cases."""
        sprite = _art().things[word, size]
        if self.draw.random() < 0.5:
            sprite = sprite[:, ::-1]
        top, left = min(max(y - size // 2, 0), SIZE - size), min(max(x - size // 2, 0), SIZE - size)
        under = self.pixels[top : top + size, left : left + size]
        alpha = sprite[..., 3:].astype(np.int64)
        mixed = sprite[..., :3] + (under * (255 - alpha) + 127) // 255
        under[:] = np.minimum(mixed, 255)

    def scatter(self, things: list[tuple[str, int]], cells: int) -> list[tuple[int, int]]:
        """Put each thing into a random cell of a square grid; return their centres."""
        step = SIZE // cells
        chosen = self.draw.sample([(i, j) for i in range(cells) for j in range(cells)], len(things))
        centres = []
        for (i, j), (word, size) in zip(chosen, things, strict=True):
            room = min(8, max(0, (step - size) // 2))
            x, y = (step * n + step // 2 + self.draw.randint(-room, room) for n in (i, j))
            self.put(word, size, x, y)
            centres.append((x, y))
        return centres

    def write(self, glyphs: list[np.ndarray], x: int, y: int) -> None:
        """Write glyphs in a dark colour with the top left corner at (x, y)."""
        ink = np.concatenate(glyphs, 1)[..., None].astype(np.int64)
        under = self.pixels[y : y + ink.shape[0], x : x + ink.shape[1]]
        colour = np.array(self.draw.choice(_INK))
        under[:] = (colour * ink + under * (255 - ink) + 127) // 255


def _count(scene: _Scene) -> None:
    """How many of one thing there are: two to six, with up to two of another thing."""
    word, other = scene.others(2, ())
    number = scene.draw.randint(2, 6)
    size = scene.draw.choice((_SMALL, _MEDIUM))
    scene.scatter([(word, size)] * number + [(other, size)] * scene.draw.randint(0, 2), 3)
    wrong = scene.draw.sample([n for n in range(2, 7) if n != number], 3)
    question = f"How many {_PLURALS.get(word, word + 's')} are there?"
    scene.ask(question, NUMBERS[number], [NUMBERS[n] for n in (number, *wrong)], word)


def _most(scene: _Scene) -> None:
    """Which of two things there is more of; the other options are not in the image."""
    more, fewer, *absent = scene.others(4, ())
    many = scene.draw.randint(4, 6)
    few = scene.draw.randint(1, many - 2)
    things = [(more, _MEDIUM)] * many + [(fewer, _MEDIUM)] * min(few, 9 - many)
    scene.scatter(things, 3)
    scene.ask("Which of these is there most of?", more, [more, fewer, *absent], more)


def _largest(scene: _Scene) -> None:
    """Which of four things is drawn largest."""
    things = scene.others(4, ())
    sizes = (_LARGE, *(scene.draw.choice((_SMALL, _MEDIUM)) for _ in things[1:]))
    scene.scatter(list(zip(things, sizes, strict=True)), 2)
    scene.ask("Which of these is the largest?", things[0], things, things[0])


def _number(scene: _Scene) -> None:
    """Which digit is written, next to a thing that does not matter."""
    digit, *wrong = scene.draw.sample(range(10), 4)
    glyph = scene.draw.choice(_art().digits)[str(digit)]
    side = scene.draw.random() < 0.5
    x = scene.draw.randint(4, 16) + (SIZE // 2 if side else 0)
    y = scene.draw.randint(4, SIZE - glyph.shape[0] - 4)
    scene.write([glyph], min(x, SIZE - glyph.shape[1]), y)
    thing_x = SIZE // 4 if side else SIZE * 3 // 4
    scene.put(scene.others(1, ())[0], _MEDIUM, thing_x, scene.draw.randint(20, SIZE - 20))
    words = [NUMBERS[n] for n in (digit, *wrong)]
    scene.ask("Which number is written in the picture?", words[0], words, None)


def _word(scene: _Scene) -> None:
    """Which word is written on a sign; another option is drawn next to it."""
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
    x, y = scene.scatter([(word, _MEDIUM) for word in things], 2)[0]
    down, along = np.mgrid[:SIZE, :SIZE]
    distance = (down - y) ** 2 + (along - x) ** 2
    scene.pixels[(distance <= 25**2) & (distance >= 22**2)] = scene.draw.choice(_INK)
    scene.ask("Which of these is in the ring?", things[0], things, things[0])


def _corner(scene: _Scene) -> None:
    """Which of four things is at the top left, and so on."""
    things = scene.others(4, ())
    centres = scene.scatter([(word, scene.draw.choice((_MEDIUM, _LARGE))) for word in things], 2)
    x, y = centres[0]
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
