"""Choose settings on development images, so that no default depends on a test image.

`python scripts/develop_domains.py apparel --seed 12 --blends 0.7 1` adapts with the hold-out of seed 12. Then
it asks about training images that this adaptation did not use: the validation images of the seen classes and
the training images of the held-out classes. Another seed may hold out the same
classes, but has other test images.
"""

import argparse
import dataclasses
import random
import tempfile

import torch
import yaml

import craft
from craft.data import Sample, load_data
from craft.evaluation.run import evaluate_lvlm


def development_set(domain: str, seed: int, limit: int, unseen: float) -> list[Sample]:
    """`limit` images of seen classes and half as many of unseen ones, none of which are trained on."""
    data = load_data(domain, seed=seed, unseen_fraction=unseen)
    used = {sample.id for sample in data.train}
    everything = load_data(domain, seed=seed, unseen_fraction=0)
    pool = [sample for sample in [*everything.train, *everything.validation] if sample.id not in used]
    pool = [dataclasses.replace(sample, seen=sample.label not in data.held_out) for sample in pool]
    random.Random(5).shuffle(pool)
    seen = [sample for sample in pool if sample.seen][:limit]
    return seen + [sample for sample in pool if not sample.seen][: limit // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domain", choices=["apparel", "digits", "sketch", "scenes"])
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--surrogate", default="craft-tiny/qwen2")
    parser.add_argument("--others", nargs="*", default=["craft-tiny/llama"])
    parser.add_argument("--set", nargs="*", default=[], help="settings as key=value")
    parser.add_argument("--blends", nargs="*", type=float, default=[0.0, 1.0], help="0 is the base tower")
    parser.add_argument("--limit", type=int, default=160)
    parser.add_argument("--unseen", type=float, default=0.2, help="share of the classes to hold out")
    args = parser.parse_args()
    settings = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
    samples = development_set(args.domain, args.seed, args.limit, args.unseen)
    settings["data.unseen_fraction"] = args.unseen
    with tempfile.TemporaryDirectory() as out:
        result = craft.adapt(
            args.surrogate, args.domain, out, seed=args.seed, overwrite=True, **{**settings, "blend": 1.0}
        )
        print(f"held out: {len(result.held_out)}: {', '.join(result.held_out)}; {settings}")
        train = result.metrics["train"]  # at blend 1
        print(f"distance to codewords {train['distance']:.3f}, codes changed {train['codes_changed']:.1%}")
        for name in [args.surrogate, *args.others]:
            base = craft.load(name)
            adapted = base.with_encoder(out)
            first = {k: v.clone() for k, v in base.visual.vision_tower.state_dict().items()}
            last = {k: v.clone() for k, v in adapted.visual.vision_tower.state_dict().items()}
            for blend in args.blends:
                mixed = {key: torch.lerp(first[key], last[key], blend) for key in first}
                adapted.visual.vision_tower.load_state_dict(mixed)
                report = evaluate_lvlm(adapted, samples, progress=False)
                seen, unseen = 100 * (report.seen or 0), 100 * (report.unseen or 0)
                print(f"{name} blend {blend}: seen {seen:.1f} unseen {unseen:.1f}", flush=True)


if __name__ == "__main__":
    main()
