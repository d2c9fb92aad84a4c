"""Surrogate alignment loss: logits at answer positions only against logits of the full sequence.

    python benchmarks/answer_logits.py [--quick] [--out answer_logits.json]

Forward and backward of head and loss alone (the LLM body is the same either way), at the sizes of Qwen2-0.5B:
V=151936, h=896, B=2, T=316 (256 image tokens and 60 of text), 8 answer tokens a sample, float32.
"""

import torch
from _measure import arguments, counted, fastest, peak_bytes, report
from torch import Tensor, nn

from craft.losses import surrogate_alignment


def full_sequence(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Logits everywhere, upcast, shifted labels, ignored positions: what `labels=` of transformers does."""
    logits = head(hidden).float()
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten(), ignore_index=-100)


def main() -> None:
    """Time both, compare loss and gradient, print the table."""
    options = arguments(__doc__ or "")
    device = torch.device(options.device)
    vocabulary, width, batch, length, answer = (
        (2000, 64, 2, 64, 8) if options.quick else (151936, 896, 2, 316, 8)
    )
    g = torch.Generator().manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False)
    with torch.no_grad():
        head.weight.normal_(std=0.02, generator=g)
    head = head.requires_grad_(False).to(device)  # frozen, as in an adaptation
    hidden = torch.randn(batch, length, width, generator=g).to(device).requires_grad_()
    labels = torch.full((batch, length), -100)
    labels[:, -answer:] = torch.randint(vocabulary, (batch, answer), generator=g)
    labels = labels.to(device)

    losses = {"full sequence": full_sequence, "answer positions": surrogate_alignment}

    def step(name: str) -> tuple[float, Tensor]:
        loss = losses[name](hidden, head, labels)
        return loss.item(), torch.autograd.grad(loss, hidden)[0]

    variants = {name: lambda name=name: step(name) for name in losses}
    repeats = min(options.repeats, 2)  # the full sequence takes seconds
    seconds = fastest(variants, repeats, device)
    peak = {name: peak_bytes(function, device) for name, function in variants.items()}
    flops = {
        name: counted(lambda name=name: losses[name](hidden, head, labels).backward()) for name in losses
    }
    results = {name: function() for name, function in variants.items()}
    first, second = losses
    rows = [
        {
            "logits": name,
            "ms": round(1000 * seconds[name].wall, 1),
            "cpu ms": round(1000 * seconds[name].cpu, 1),
            "speed": f"{seconds[first].wall / seconds[name].wall:.1f}x",
            "peak MiB": round(peak[name] / 2**20, 1),
            "memory": f"1/{peak[first] / peak[name]:.1f}",
            "loss": f"{results[name][0]:.6f}",
            "gradient norm": f"{results[name][1].norm().item():.6f}",
        }
        for name in losses
    ]
    difference = (results[first][1] - results[second][1]).abs().max() / results[first][1].abs().max()
    facts = {
        "speed ratio": round(seconds[first].wall / seconds[second].wall, 2),
        "FLOPs ratio": round(flops[first] / flops[second], 2),
        "memory ratio": round(peak[first] / peak[second], 2),
        "loss difference": abs(results[first][0] - results[second][0]),
        "largest gradient difference, relative": difference.item(),
        "sizes": {"V": vocabulary, "h": width, "B": batch, "T": length, "answer tokens": answer},
    }
    report("Surrogate alignment loss", rows, facts, options)


if __name__ == "__main__":
    main()
