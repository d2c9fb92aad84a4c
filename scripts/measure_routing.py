"""Choose what is unusual for `craft serve`'s routing on development images, and measure it on others.

    python -m train_tiny.fetch --cache CACHE
    python scripts/measure_routing.py --cache CACHE --choose     # development images, for several shares
    python scripts/measure_routing.py --cache CACHE              # test images, at TYPICAL

Routing compares codes under the base tower, so no encoder is trained: what an artefact carries for it comes
from its training images' codes under that tower. Development images are the validation slices of the four
domains, and test images their test splits, with the held-out classes. General images are the art that
craft-tiny learned from, in fresh poses on fresh backgrounds; those of the test are Twemoji's drawings that
its training left out, each in several poses. There are no photographs among them. Every domain's images are
also routed without its own encoder: then they belong nowhere.

The share is the smallest of `SHARES` at which 95 % of the development images of the five kinds, each kind
weighted equally, go to the right tower or to the base tower.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import craft
from craft.core.files import read_json, write_json
from craft.core.provenance import machine
from craft.data import Sample, load_data
from craft.models.lvlm import LVLM
from craft.quantize import code_counts
from craft.serving.routing import TYPICAL, Domain, log_prior, route, typical_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from train_tiny.names import concepts  # noqa: E402
from train_tiny.pictures import Sprites, augment  # noqa: E402

MODEL = "craft-tiny/qwen2"
DOMAINS = ("apparel", "digits", "sketch", "scenes")
GENERAL, LIMIT = 500, 500
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
ASKED = 95.0
OUT = ROOT / "docs/results/routing.json"


def codes_of(lvlm: LVLM, samples: list[Sample]) -> Tensor:
    """Codes int64 `[n, N, L]` under the base tower."""
    return lvlm.encode([sample.image for sample in samples]).codes


def general(lvlm: LVLM, sprites: Sprites, held_out: bool, seed: int) -> tuple[Tensor, int]:
    """Codes of general images, of drawings of training or of those that it left out; how many drawings."""
    generator = torch.Generator().manual_seed(seed)
    if held_out:
        rows = sprites.held_out.nonzero().flatten()
        rows = rows[torch.randint(len(rows), (GENERAL,), generator=generator)]
    else:
        rows = sprites.sample(GENERAL, generator)[0]
    codes = []
    for part in rows.split(50):
        pixels = augment(sprites.pixels[part], sprites.upright[part], generator)
        codes.append(lvlm.encode(pixels).codes)
    return torch.cat(codes), len(rows.unique())


def routed(images: dict[str, Tensor], domains: dict[str, Domain]) -> dict[str, dict[str, int]]:
    """How many images of each kind each tower gets."""
    return {
        kind: dict(Counter(route(image, domains) or "base" for image in codes))
        for kind, codes in images.items()
    }


def percent(towers: dict[str, int], kind: str) -> dict[str, float]:
    """The percentages that go to the right tower, to the base tower and to a wrong one."""
    count, base, right = sum(towers.values()), towers.get("base", 0), towers.get(kind, 0)
    parts = {"right": right, "base": base, "wrong": count - right - base}
    return {name: round(100 * part / count, 1) for name, part in parts.items()}


def measured(images: dict[str, Tensor], domains: dict[str, Domain]) -> dict[str, Any]:
    """Percentages of each kind, and of each domain without its own encoder."""
    rows = {kind: percent(towers, kind) for kind, towers in routed(images, domains).items()}
    for name in DOMAINS:
        others = {other: domain for other, domain in domains.items() if other != name}
        alone = routed({name: images[name]}, others)[name]
        rows[f"{name}, without its encoder"] = percent(alone, name)
    good = [rows[kind]["right"] + rows[kind]["base"] for kind in images]
    return {"kinds": rows, "right or base, mean of the five kinds": round(sum(good) / len(good), 1)}


def main() -> None:
    """Choose, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--choose", action="store_true")
    arguments = parser.parse_args()
    lvlm = craft.load(MODEL, device="cpu", dtype="float32")
    size, levels = lvlm.visual.codebook.size, lvlm.visual.codebook.num_levels
    sprites = Sprites(concepts(arguments.cache), arguments.cache)
    trained, counts, images = {}, {}, {}
    for name in DOMAINS:
        data = load_data(name)
        trained[name] = codes_of(lvlm, data.train)
        counts[name] = torch.stack([code_counts(trained[name][..., n:], size) for n in range(levels)])
        asked = data.validation if arguments.choose else data.test
        images[name] = codes_of(lvlm, asked[:LIMIT])
    images["general"], drawings = general(
        lvlm, sprites, held_out=not arguments.choose, seed=int(arguments.choose)
    )

    def domains(share: float) -> dict[str, Domain]:
        return {
            name: Domain(log_prior(counts[name]), typical_score(trained[name], counts[name], share))
            for name in DOMAINS
        }

    record: dict[str, Any] = read_json(OUT) if OUT.exists() else {}
    record |= {"model": MODEL, "encoders": list(DOMAINS)}
    if arguments.choose:
        rows = {share: measured(images, domains(share)) for share in SHARES}
        mean = "right or base, mean of the five kinds"
        chosen = next((share for share in SHARES if rows[share][mean] >= ASKED), None)
        record["development"] = {"chosen": chosen, "shares": rows, "machine": machine()}
    else:
        result = measured(images, domains(TYPICAL))
        counted = {kind: len(codes) for kind, codes in images.items()}
        counted["drawings of the general images"] = drawings
        record["test"] = {"share": TYPICAL, "images": counted, **result, "machine": machine()}
    print(json.dumps(record["development" if arguments.choose else "test"], indent=1))
    write_json(OUT, record)


if __name__ == "__main__":
    main()
