"""General training images: sprites (emoji art and drawings), strongly augmented in batches."""

import glob
import io
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from craft.data.images import lazy_image
from train_tiny.names import COLOURS, DIGITS, SHAPES, Concept

SPRITE = 64
SIZE = 112
# Two sets of 64-pixel images and five of vector art: shaded, flat, black line, and two older flat styles.
RASTER = ("google", "twitter")
VECTOR = ("fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "emojione", "emojione-v1")


def _fonts() -> list[str]:
    names = sorted(glob.glob("/usr/share/fonts/**/*.ttf", recursive=True))
    return [n for n in names if "Symbol" not in n] or [""]


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (SPRITE, SPRITE), (0, 0, 0, 0))
    return image, ImageDraw.Draw(image)


def _text(text: str, font: str, colour: tuple[int, int, int]) -> Image.Image:
    image, draw = _canvas()
    size = 58
    while size > 8:
        face = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=face)
        if right - left <= SPRITE - 6 and bottom - top <= SPRITE - 6:
            break
        size -= 4
    corner = ((SPRITE - right - left) / 2, (SPRITE - bottom - top) / 2)
    draw.text(corner, text, font=face, fill=(*colour, 255))
    return image


def _shape(draw: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    box = (x - r, y - r, x + r, y + r)
    if kind == "circle":
        draw.ellipse(box, fill=fill)
    elif kind == "square":
        draw.rectangle(box, fill=fill)
    elif kind == "ring":
        draw.ellipse(box, outline=fill, width=max(2, int(r / 3)))
    elif kind == "cross":
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
    elif kind == "heart":
        t = np.linspace(0, 2 * math.pi, 40)
        px = 16 * np.sin(t) ** 3
        py = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        draw.polygon([(x + a * r / 17, y - b * r / 17) for a, b in zip(px, py, strict=True)], fill=fill)
    else:
        corners = {"triangle": 3, "diamond": 4, "star": 10}[kind]
        points = []
        for i in range(corners):
            radius = r / 2.3 if kind == "star" and i % 2 else r
            angle = 2 * math.pi * i / corners - math.pi / 2
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
        draw.polygon(points, fill=fill)


def _draw(concept: Concept, rng: random.Random, fonts: list[str]) -> Image.Image:
    colour = rng.choice([(255, 255, 255), (20, 20, 20), tuple(rng.randrange(256) for _ in range(3))])
    if concept.category == "digit":
        text = str(DIGITS.index(concept.name))
    elif concept.category == "letter":
        text = concept.keywords[0].upper() if rng.random() < 0.6 else concept.keywords[0]
    elif concept.category == "word":
        text = rng.choice([str.upper, str.lower, str.title])(concept.keywords[0])
    else:
        image, draw = _canvas()
        if concept.category == "shape":
            tone = tuple(max(0, min(255, c + rng.randint(-25, 25))) for c in COLOURS[concept.keywords[0]])
            _shape(draw, concept.keywords[1], 32, 32, rng.uniform(18, 28), (*tone, 255))
        else:
            count = DIGITS.index(concept.keywords[0])
            cells = rng.sample([(x, y) for x in (12, 32, 52) for y in (12, 32, 52)], count)
            tone = rng.choice(list(COLOURS.values()))
            for x, y in cells:
                _shape(draw, concept.keywords[1], x, y, rng.uniform(7, 9), (*tone, 255))
        return image
    return _text(text, rng.choice(fonts), colour)  # type: ignore[arg-type]


def vector_art(concepts: list[Concept], cache: Path) -> list[tuple[int, np.ndarray]]:
    """(concept index, RGBA uint8 `[64, 64, 4]`) of every vector drawing with the name of a concept."""
    import resvg_py

    drawings = []
    for style in VECTOR:
        icons = json.loads((cache / style / "package/icons.json").read_text())
        for index, concept in enumerate(concepts):
            key = concept.name.replace("'", "").replace(" ", "-")
            key = icons.get("aliases", {}).get(key, {}).get("parent", key)
            if not concept.emoji or key not in icons["icons"]:
                continue
            icon = icons["icons"][key]
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            body = icon["body"].replace("currentColor", "#222")
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE, height=SPRITE))
            picture = lazy_image(io.BytesIO(png)).convert("RGBA").resize((SPRITE, SPRITE))
            drawings.append((index, np.asarray(picture)))
    return drawings


class Sprites:
    """All source images as uint8 RGBA `[S, 4, 64, 64]`, each with the index of its concept.

    Twemoji's drawing of every tenth emoji is held out. Naming it needs generalisation across artists.
    """

    def __init__(self, concepts: list[Concept], cache: Path, seed: int = 0) -> None:
        rng = random.Random(seed)
        fonts = _fonts()
        arrays, labels, held_out = [], [], []
        for index, concept in enumerate(concepts):
            if concept.emoji:
                for vendor in RASTER:
                    path = cache / vendor / f"package/img/{vendor}/64/{concept.emoji}"
                    image = lazy_image(path).convert("RGBA").resize((SPRITE, SPRITE))
                    arrays.append(np.asarray(image))
                    labels.append(index)
                    held_out.append(vendor == "twitter" and index % 10 == 0)
            else:
                repeats = {"digit": 60, "letter": 20, "word": 12}.get(concept.category, 6)
                for _ in range(repeats):
                    arrays.append(np.asarray(_draw(concept, rng, fonts)))
                    labels.append(index)
                    held_out.append(False)
        for index, picture in vector_art(concepts, cache):
            arrays.append(picture)
            labels.append(index)
            held_out.append(False)
        self.pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.tensor(labels)
        self.held_out = torch.tensor(held_out)
        self.upright = torch.tensor([concepts[i].upright for i in labels])
        by_label: dict[int, list[int]] = {}
        for row, label in enumerate(labels):
            if not held_out[row]:
                by_label.setdefault(label, []).append(row)
        self.rows = by_label
        weight = {
            "face": 0.4,
            "symbol": 0.5,
            "clock": 0.3,
            "arrow": 0.4,
            "zodiac sign": 0.3,
            "digit": 4.0,
            "letter": 0.6,
            "shape": 0.4,
            "count": 0.6,
            "word": 0.6,
            "clothing": 2.0,
        }
        self.weights = torch.tensor([weight.get(c.category, 1.0) for c in concepts])

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` training sprites: (rows int64 `[count]`, concept int64 `[count]`)."""
        labels = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        picks = torch.rand(count, generator=generator)
        rows = [
            self.rows[int(c)][int(p * len(self.rows[int(c)]))] for c, p in zip(labels, picks, strict=True)
        ]
        return torch.tensor(rows), labels


@dataclass(frozen=True)
class _Draws:
    """Random numbers for a batch of `count` images; `strength` scales ranges and chances."""

    count: int
    generator: torch.Generator
    strength: float

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(self.count, *shape, generator=self.generator) * (high - low) + low

    def chance(self, p: float) -> Tensor:
        return torch.rand(self.count, generator=self.generator) < p * self.strength

    def around(self, value: float, spread: float, *shape: int) -> Tensor:
        return value + self.uniform(-spread, spread, *shape) * self.strength


def augment(rgba: Tensor, upright: Tensor, g: torch.Generator, strength: float = 1.0) -> Tensor:
    """Sprites uint8 `[B, 4, 64, 64]` -> images float `[B, 3, 112, 112]` in [-1, 1], strongly augmented.

    `strength` in [0, 1] scales ranges and chances. Training starts with light augmentation; with the full
    strength from the start, the tower learns nothing for a long time.
    """
    draws = _Draws(rgba.shape[0], g, strength)
    posed = _posed(rgba, upright, draws)
    image = _on_background(posed[:, :3], posed[:, 3:].clamp(0, 1), draws)
    image = _relit(image, draws)
    image = _degraded(image, draws)
    return (image.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def _posed(rgba: Tensor, upright: Tensor, draws: _Draws) -> Tensor:
    """Sprites in random poses: float `[B, 4, 112, 112]` in [0, 1], colour premultiplied by alpha."""
    b = draws.count
    angle = draws.around(0.0, 0.5) * torch.where(upright, 0.5, 1.0)
    scale, stretch, shear = draws.around(0.88, 0.26), draws.around(1.0, 0.2), draws.around(0.0, 0.15)
    flip = torch.where(draws.chance(0.3) & ~upright, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * cos / (scale * stretch), (sin + shear) / scale
    theta[:, 1, 0], theta[:, 1, 1] = -flip * sin / scale, cos * stretch / scale
    theta[:, :, 2] = draws.around(0.0, 0.18, 2)
    image = rgba.float() / 255
    image = torch.cat([image[:, :3] * image[:, 3:], image[:, 3:]], 1)
    grid = F.affine_grid(theta, [b, 4, SIZE, SIZE], align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def _on_background(colour: Tensor, alpha: Tensor, draws: _Draws) -> Tensor:
    """The sprites, some of them as silhouettes, on white, black, a colour or a blurred texture."""
    b, g = draws.count, draws.generator
    silhouette = draws.chance(0.08)[:, None, None, None]
    colour = torch.where(silhouette, alpha * draws.uniform(0, 1, 1, 1, 1), colour)
    kind = torch.rand(b, generator=g)
    back = draws.uniform(0, 1, 3)[:, :, None, None].expand(b, 3, SIZE, SIZE).clone()
    back[kind < 0.28] = 1.0
    back[(kind >= 0.28) & (kind < 0.58)] = 0.0
    textured = kind > 1 - 0.2 * draws.strength
    if textured.any():
        noise = torch.rand(int(textured.sum()), 3, 5, 5, generator=g)
        back[textured] = F.interpolate(noise, SIZE, mode="bicubic", align_corners=False).clamp(0, 1)
    image = colour + back * (1 - alpha)
    # An invisible object teaches nothing: with too little contrast, invert the background.
    contrast = ((image - back).abs() * alpha).sum((1, 2, 3)) / (alpha.sum((1, 2, 3)) * 3 + 1e-3)
    invisible = (contrast < 0.12)[:, None, None, None]
    return torch.where(invisible, colour + (1 - back.round()) * (1 - alpha), image)


def _relit(image: Tensor, draws: _Draws) -> Tensor:
    """Grey, inverted or edge images now and then; random gain and offset per image and channel."""
    grey = (draws.chance(0.4))[:, None, None, None]
    image = torch.where(grey, image.mean(1, keepdim=True).expand_as(image), image)
    invert = draws.chance(0.12)[:, None, None, None]
    image = torch.where(invert, 1 - image, image)
    edges = draws.chance(0.08)
    if edges.any():
        tone = image[edges].mean(1, keepdim=True)
        dx, dy = torch.zeros_like(tone), torch.zeros_like(tone)
        dx[..., :-1] = (tone[..., 1:] - tone[..., :-1]).abs()
        dy[..., :-1, :] = (tone[..., 1:, :] - tone[..., :-1, :]).abs()
        image[edges] = ((dx + dy) * 3).clamp(0, 1).expand(-1, 3, -1, -1)
    gain, offset = draws.around(0.95, 0.3, 1, 1, 1), draws.around(0.0, 0.12, 1, 1, 1)
    return (image - 0.5) * gain * draws.around(1.0, 0.12, 3, 1, 1) + 0.5 + offset


def _degraded(image: Tensor, draws: _Draws) -> Tensor:
    """Low resolution and noise, each in some of the images."""
    b, g = draws.count, draws.generator
    small = draws.chance(0.4)
    for size in (10, 16, 24, 28, 40):
        rows = small & (torch.randint(0, 5, (b,), generator=g) == (10, 16, 24, 28, 40).index(size))
        if rows.any():
            low = F.interpolate(image[rows], size, mode="area")
            image[rows] = F.interpolate(low, SIZE, mode="bicubic", align_corners=False)
    noise = torch.randn(image.shape, generator=g) * draws.uniform(0, 0.09, 1, 1, 1)
    return image + noise * draws.chance(0.5)[:, None, None, None]


__all__ = ["SHAPES", "SIZE", "Sprites", "augment"]
