"""A data set in memory: one coloured blob per class, told apart easily."""

import numpy as np

from craft.core.seeding import rng
from craft.data import Data, Sample, class_text, multiple_choice

CLASSES = ("bag", "boots", "coat", "dress", "shirt")
COLOURS = {"bag": (220, 30, 30), "boots": (30, 220, 30), "coat": (30, 30, 220), "dress": (220, 220, 30)}


def tiny_sample(number: int, label: str, held_out: tuple[str, ...] = (), training: bool = True) -> Sample:
    """A 32 x 32 picture of its class's colour with noise."""
    noise = np.random.default_rng(number).integers(-25, 25, (32, 32, 3))
    image = np.clip(np.array(COLOURS.get(label, (128, 128, 128))) + noise, 0, 255).astype(np.uint8)
    bare = Sample(
        f"{label}-{number}",
        image,
        "",
        "",
        label=label,
        text=class_text("thing", label),
        captions=(f"a {label}",),
    )
    asked = multiple_choice(bare, CLASSES, exclude=held_out if training else ())
    return Sample(**{**asked.__dict__, "seen": label not in held_out})


def tiny_data(train: int = 8, test: int = 5, held_out: tuple[str, ...] = ("shirt",)) -> Data:
    """`train` samples of the seen classes, one validation sample each, `test` samples of all classes."""
    seen = [name for name in CLASSES if name not in held_out]
    draw = rng("tiny data")
    return Data(
        name="blobs",
        task="classification",
        domain="thing",
        train=[tiny_sample(i, seen[i % len(seen)], held_out) for i in range(train)],
        validation=[tiny_sample(100 + i, name, held_out) for i, name in enumerate(seen)],
        test=[
            tiny_sample(draw.randrange(10**6), CLASSES[i % len(CLASSES)], held_out, False)
            for i in range(test)
        ],
        classes=CLASSES,
        held_out=held_out,
    )
