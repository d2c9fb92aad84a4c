"""Images/s into the vision tower: a plain loop against decoding ahead in processes and a mapped store.

    python benchmarks/loader.py [--quick] [--workers 2] [--out loader.json]

Photograph-like JPEGs are written, then read in batches of 24 at 256 px in one run, each way in turn. A pause
stands for the tower's time on a batch: like a GPU it needs no processor core meanwhile. The tower "waits" for
the share of the run in which it has no images.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from _measure import arguments, report
from PIL import Image

from craft.data import Sample
from craft.training.image_cache import ImageCache
from craft.training.pixel_store import PixelStore, decoders

BATCH, SIZE, AHEAD = 24, 256, 2
TOWER = 0.060
"""Seconds of the tower for a batch: 24 images at 400 a second, about what one GPU trains at this size."""


def photographs(folder: Path, count: int, side: int) -> list[Sample]:
    """JPEGs of coarse colour and fine noise: as large and as slow to decode as photographs."""
    draw, samples = np.random.default_rng(0), []
    for n in range(count):
        coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        noise = draw.normal(0, 12, (side, side, 1))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        path = folder / f"{n}.jpg"
        Image.fromarray(pixels).save(path, quality=85)
        samples.append(Sample(str(n), str(path), "", ""))
    return samples


def run(cache: ImageCache, batches: list[list[Sample]], tower: float) -> tuple[float, float]:
    """(images a second, share of the time that the tower waits)."""
    for batch in batches[:AHEAD]:
        cache.expect(batch)
    began, waited = time.perf_counter(), 0.0
    for number, batch in enumerate(batches):
        asked = time.perf_counter()
        for later in batches[number + AHEAD : number + AHEAD + 1]:
            cache.expect(later)
        cache.get(batch)
        waited += time.perf_counter() - asked
        time.sleep(tower)
    total = time.perf_counter() - began
    cache.pool = None  # its thread ends, the processes serve the next run
    cache.close()
    return sum(map(len, batches)) / total, waited / total


def main() -> None:
    """Time each way, print the table."""
    workers = 2
    if "--workers" in sys.argv:
        at = sys.argv.index("--workers")
        workers = int(sys.argv[at + 1])
        del sys.argv[at : at + 2]
    options = arguments(__doc__ or "")
    count, side, tower = (48, 128, 0.005) if options.quick else (480, 768, TOWER)
    visual = cast(Any, SimpleNamespace(image_size=SIZE, aspect="resize", device="cpu"))
    with tempfile.TemporaryDirectory() as place:
        samples = photographs(Path(place), count, side)
        batches = [samples[start : start + BATCH] for start in range(0, count, BATCH)]
        store = PixelStore(Path(place) / "store", SIZE)
        began = time.perf_counter()
        store.fill([sample.image for sample in samples], workers, progress=False)
        filled = time.perf_counter() - began
        stored = ImageCache(visual, 0, store=store).get(samples[:BATCH])
        assert stored.equal(ImageCache(visual, 0).get(samples[:BATCH]))
        pool = decoders(workers)
        pool.submit(int).result()  # the processes are up
        ways: dict[str, Callable[[], ImageCache]] = {
            "plain loop": lambda: ImageCache(visual, 0),
            f"{workers} processes ahead": lambda: ImageCache(visual, 0, pool=pool),
            "mapped store": lambda: ImageCache(visual, 0, store=store),
        }
        best: dict[str, tuple[float, float]] = {}
        for _ in range(options.repeats):
            for name, make in ways.items():
                best[name] = max(best.get(name, (0.0, 1.0)), run(make(), batches, tower))
        pool.shutdown()
    slowest = best["plain loop"][0]
    rows = [
        {
            "loader": name,
            "images/s": round(speed, 1),
            "speed": f"{speed / slowest:.2f}x",
            "tower waits": f"{waits:.1%}",
        }
        for name, (speed, waits) in best.items()
    ]
    facts = {
        "images": count,
        "pixels of a side": side,
        "tower, ms a batch": round(1000 * tower),
        "most that the tower takes, images/s": round(BATCH / tower, 1),
        "filling the store, images/s": round(count / filled, 1),
        "waits": {name: round(waits, 4) for name, (_, waits) in best.items()},
        "images/s": {name: round(speed, 1) for name, (speed, _) in best.items()},
    }
    report("Loading images", rows, facts, options)


if __name__ == "__main__":
    main()
