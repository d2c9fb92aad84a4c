"""Images/s into the vision tower: a plain loop against decoding ahead in processes.

A pause takes the place of the tower's time on a batch: like a GPU, it needs no processor core. "Tower waits"
is the share of the run in which the tower has no images.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from craft.core.errors import ConfigError
from craft.data import Sample, image_key, load_data
from craft.models.vision_tower import SiglipTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook
from craft.training.config import AdaptConfig
from craft.training.fit import AHEAD
from craft.training.image_cache import ImageCache, decoders
from paper.bench.measure import where
from paper.bench.shapes import SHAPES

BATCH = AdaptConfig().batch_size
MADE = {"real": (480, 768), "reduced": (96, 768), "tiny": (48, 96)}
"""By size: the number of images that are made, and the pixels of a side."""


@dataclass(frozen=True)
class Source:
    """The images, and how they are loaded.

    Attributes:
        data, root: whose training images, as `craft.load_data` takes them; None makes JPEGs.
        limit: the largest number of images; None is the number that would be made.
        workers: processes that decode ahead; 0 leaves that row out.
        tower: images/s that the tower takes at most.
    """

    data: str | None = None
    root: str | None = None
    limit: int | None = None
    workers: int = 2
    tower: float = 400.0


def measure(size: str, device: torch.device, repeats: int = 3, source: Source = Source()) -> dict[str, Any]:
    """Load the images with each loader in turn. The fastest run counts; all loaders give the same pixels.

    Args:
        size: a key of `SHAPES`: of the tower's input, and of the images that are made.
        device: named in the result; images are decoded on the CPU.
        repeats: runs of each loader.
        source: the images.

    Returns:
        `rows`, `facts` and `machine`.

    Raises:
        ConfigError: a number is out of range.
        DataError: the data is missing or broken.
    """
    if source.workers < 0 or source.tower <= 0 or (source.limit is not None and source.limit < 1):
        raise ConfigError("--workers is 0 or more, --limit and --tower are more than 0.")
    (count, pixels), visual = MADE[size], _without_values(size)
    count = source.limit or count
    with tempfile.TemporaryDirectory() as folder:
        if source.data is None:
            samples = photographs(Path(folder), count, pixels)
        else:
            samples = pictures(source.data, source.root, count)
        batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
        loaders: dict[str, Callable[[], ImageCache]] = {"plain loop": lambda: ImageCache(visual, 0)}
        pool = decoders(source.workers) if source.workers else None
        if pool is not None:
            pool.submit(int).result()  # the processes are up
            loaders[f"{source.workers} processes ahead"] = lambda: ImageCache(visual, 0, pool=pool)
        best = {name: (0.0, 1.0, 0.0) for name in loaders}
        for _ in range(repeats):
            for name, make in loaders.items():
                best[name] = max(best[name], _run(make(), batches, BATCH / source.tower))
        first = [make().get(batches[0]) for make in loaders.values()]
        if pool is not None:
            pool.shutdown()
    assert all(first[0].equal(other) for other in first)
    slowest, _, alone = best["plain loop"]
    rows = [
        {
            "loader": name,
            "images/s": round(speed, 1),
            "speed": f"{speed / slowest:.2f}x",
            "tower waits": f"{waits:.1%}",
        }
        for name, (speed, waits, _) in best.items()
    ]
    facts = {
        "data": source.data or f"JPEGs of {pixels} x {pixels} pixels",
        "images": len(samples),
        "pixels of a side": visual.image_size,
        "tower takes at most, images/s": source.tower,
        "decoding and resizing in one process, images/s": round(alone, 1),
    }
    return {"rows": rows, "facts": facts, "machine": where(device)}


def pictures(data: str, root: str | None, count: int) -> list[Sample]:
    """The first training samples of a data set that have different images.

    Raises:
        DataError: as `craft.load_data`.
    """
    samples = load_data(data, root=root).train
    return list({image_key(sample.image): sample for sample in samples}.values())[:count]


def photographs(folder: Path, count: int, side: int) -> list[Sample]:
    """JPEGs of coarse colour and fine noise: as large and as slow to decode as photographs."""
    draw, samples = np.random.default_rng(0), []
    for n in range(count):
        coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        noise = draw.normal(0, 12, (side, side, 1))
        values = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        path = folder / f"{n}.jpg"
        Image.fromarray(values).save(path, quality=85)
        samples.append(Sample(str(n), str(path), "", ""))
    return samples


def _without_values(size: str) -> VisualTokenizer:
    """A visual tokenizer on the meta device: only the size of its input matters here."""
    shape = SHAPES[size]
    with torch.device("meta"):
        tower = SiglipTower(shape.with_layers(1).tower)
        return VisualTokenizer(tower, ResidualCodebook(torch.zeros(1, 1, shape.width)))


def _run(cache: ImageCache, batches: Sequence[list[Sample]], pause: float) -> tuple[float, float, float]:
    """Images a second, the share of the time that the tower waits, and images per second of waiting."""
    for batch in batches[:AHEAD]:
        cache.expect(batch)
    began, waited = time.perf_counter(), 0.0
    for number, batch in enumerate(batches):
        start = time.perf_counter()
        for later in batches[number + AHEAD : number + AHEAD + 1]:
            cache.expect(later)
        cache.get(batch)
        waited += time.perf_counter() - start
        time.sleep(pause)
    total, count = time.perf_counter() - began, sum(map(len, batches))
    cache.pool = None  # its thread ends, the processes serve the next run
    cache.close()
    return count / total, waited / total, count / waited
