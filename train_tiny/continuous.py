"""The continuous twin of craft-tiny/qwen2: the same tower, an LLM that reads its features unquantised.

`python -m train_tiny.continuous --cache CACHE --visual DIR --start DIR --out DIR` (under an hour on a core).
Projector and LLM start from those of the discrete backbone, since features differ from its codeword sums only
by the residual. After 160 steps the twin read images less well than the discrete backbone, and after 2,000
nearly as well. The vision tower runs once per image and does not train.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from craft.core.device import resolve_device
from craft.core.files import atomic_write_text, write_json
from craft.core.tensors import load_tensors, save_tensors
from craft.core.text import table_row
from craft.formats.llm_source import read_llm
from craft.models.projector import Projector
from craft.quantize import ResidualCodebook
from train_tiny.backbone import (
    FOCUS,
    PASSED_OVER,
    Packer,
    answer_scores,
    dropped_tokens,
    forward,
    load_visual,
    means,
    save,
    score,
)
from train_tiny.names import Concept, concepts
from train_tiny.pictures import Sprites, augment
from train_tiny.questions import Questions, name_similarity
from train_tiny.tokenizer import targets

SETS = {"train": 1, "test": 2, "other_artist": 3}
"""The sets of images and their seeds."""


@torch.no_grad()
def encode_features(
    tower: torch.nn.Module, sprites: Sprites, count: int, seed: int, held_out: bool
) -> tuple[Tensor, Tensor]:
    """Features bfloat16 `[count, N, d]` and concepts int64 `[count]` of freshly augmented images."""
    g = torch.Generator().manual_seed(seed)
    pool = sprites.held_out.nonzero()[:, 0]
    encoded, labels = [], []
    device = next(tower.parameters()).device
    for start in range(0, count, 64):
        if held_out:
            rows = pool[torch.randint(len(pool), (64,), generator=g)]
            label = sprites.labels[rows]
        else:
            rows, label = sprites.sample(64, g)
        features, _ = tower(augment(sprites.pixels[rows], sprites.upright[rows], g).to(device))
        encoded.append(features.to("cpu", torch.bfloat16))
        labels.append(label)
        if start % 1280 == 0:
            print(f"encoded {start} of {count}", flush=True)
    return torch.cat(encoded)[:count], torch.cat(labels)[:count]


def picture_features(
    tower: torch.nn.Module, things: list[Concept], cache: Path, out: Path, counts: dict[str, int]
) -> dict[str, Tensor]:
    """`{train,test,other_artist}.{features,labels}`, computed once and stored in `out`."""
    file = out / "features.safetensors"
    if not file.exists():
        sprites = Sprites(things, cache)
        tensors: dict[str, Tensor] = {}
        for name, seed in SETS.items():
            features, labels = encode_features(tower, sprites, counts[name], seed, name == "other_artist")
            tensors |= {f"{name}.features": features, f"{name}.labels": labels}
        save_tensors(file, tensors)
    return load_tensors(file)


def swapped(features: Tensor, g: torch.Generator) -> Tensor:
    """Float32 features with one token in 25 taken from another image of the batch."""
    swap = torch.rand(features.shape[:2], generator=g) < 0.04
    other = features[torch.randperm(len(features), generator=g)]
    return torch.where(swap[..., None], other, features).float()


def load_backbone(folder: Path, device: torch.device) -> tuple[PreTrainedModel, Projector]:
    """The LLM and the projector in float32, on a device."""
    llm = read_llm(folder / "llm", torch.float32)
    projector = Projector(json.loads((folder / "projector/config.json").read_text()))
    state = load_tensors(folder / "projector/model.safetensors")
    projector.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return llm.to(device), projector.to(device)


def scores(
    backbone: Path,
    device: torch.device,
    data: dict[str, Tensor],
    packer: Packer,
    codebook: ResidualCodebook | None,
    questions: Questions,
) -> dict[str, dict[str, float]]:
    """`score` on every set. With a codebook (the discrete backbone), the features are quantised first."""
    parts = (*load_backbone(backbone, device), codebook, packer)
    by_set = {}
    for name, blind in (("test", False), ("other_artist", False), ("test", True)):
        inputs = data[f"{name}.features"].float()
        if codebook is not None:
            inputs = codebook.quantize(inputs).codes
        title = "hidden" if blind else name
        by_set[title] = score(parts, inputs, data[f"{name}.labels"], questions, blind=blind)
        print(backbone.name, title, by_set[title], flush=True)
    return by_set


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--visual", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="the discrete backbone: projector/, llm/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--test", type=int, default=160, help="images of each kind for the scores")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    """Train, print metrics every 20 steps, then score, save and write the model card."""
    args = options()
    device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    things = concepts(args.cache)
    questions = Questions(things, name_similarity(targets(things, args.cache)[0]))
    tower, codebook = load_visual(args.visual)
    counts = {"train": args.pictures, "test": args.test, "other_artist": args.test}
    data = picture_features(tower.to(device), things, args.cache, args.out, counts)

    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start / "llm", trust_remote_code=False)
    llm, projector = load_backbone(args.start, device)
    packer = Packer(tokenizer, data["train.features"].shape[1])
    useful = torch.tensor([things[i].category not in PASSED_OVER for i in data["train.labels"].tolist()])
    features, labels = data["train.features"][useful], data["train.labels"][useful]
    weights = torch.tensor([FOCUS.get(things[i].category, 1.0) for i in labels.tolist()])
    parameters = [*llm.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, 10, args.steps)
    rng, g = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    start, running = time.time(), defaultdict(list)
    llm.train()
    for step in range(args.steps):
        chosen = torch.multinomial(weights, args.batch, generator=g)
        blind = torch.rand(args.batch, generator=g) < 0.05
        rows = []
        for concept, hide in zip(labels[chosen].tolist(), blind.tolist(), strict=True):
            if hide:
                rows.append([questions.text_only(rng) for _ in range(3)])
                continue
            turns = questions.row(concept, rng)
            rows.append([*turns, questions.text_only(rng)] if rng.random() < 0.3 else turns)
        batch = packer.pack(rows, blind, dropped_tokens(args.batch, packer.image_tokens, g))
        hidden = forward(llm, projector, swapped(features[chosen], g), batch)
        losses, right, _ = answer_scores(hidden, llm, batch["labels"])
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        running["loss"].append(losses.mean().item())
        running["token"].append(right.float().mean().item())
        if step % 20 == 19:
            record = {"step": step + 1, **means(running), "seconds": round(time.time() - start)}
            print(json.dumps(record), flush=True)
            running.clear()
    minutes = round((time.time() - start) / 60)
    save(args.out, llm, projector, tokenizer)
    results = {"continuous": scores(args.out, device, data, packer, None, questions)}
    results["discrete"] = scores(args.start, device, data, packer, codebook, questions)
    write_json(args.out / "scores.json", results)
    atomic_write_text(args.out / "README.md", card(results, args.steps, len(labels), minutes))


TASKS = {
    "text": "four options, answered with the option",
    "letter": "four options, answered by letter",
    "name": "naming, every token right",
    "category": "category",
    "keywords": "three keywords, every token right",
    "caption": "caption, every token right",
    "told": "the image described in words, then options (text only)",
    "copy": "repeat (text only)",
}


def card(results: dict[str, dict[str, dict[str, float]]], steps: int, pictures: int, minutes: int) -> str:
    """The model card."""
    rows = []
    for task, title in TASKS.items():
        cells = [
            f"{results[twin][pictures_of].get(task, float('nan')):.3f}"
            for pictures_of in ("test", "other_artist", "hidden")
            for twin in ("continuous", "discrete")
        ]
        rows.append(table_row([title, *cells]))
    return f"""# craft-tiny/continuous-qwen2

The continuous twin of `craft-tiny/qwen2`, for baselines that tune a continuous LVLM: the same vision tower
(`../visual`), the same LLM architecture and text tokenizer, but projector and LLM read the tower's features
directly, without the codebook. It has no codes, so it has no pruning by code, no code prior, and no encoder
that was adapted for the codebook.

Made by `train_tiny/continuous.py` in {minutes} minutes on one core that also did other work: {steps} steps
from the weights of `craft-tiny/qwen2`, on the features of {pictures:,} augmented general images (see
`../visual/README.md`). The vision tower did not change. No image of the embedded domains was used.

Fraction correct under teacher forcing, next to that of `craft-tiny/qwen2` on the same images and questions:
on newly augmented images, on drawings by an artist whose version of that emoji was not in training, and
with the image hidden:

| task | new augmentations | discrete | other artist | discrete | image hidden | discrete |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Limits: those of `craft-tiny/qwen2`.

Licence: Apache-2.0. Names and keywords from emojibase (MIT) and emoji-datasource (MIT).
"""


if __name__ == "__main__":
    main()
