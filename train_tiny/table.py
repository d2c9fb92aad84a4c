"""Token tables for craft-tiny: the same LLMs, which read codes as rows of their own embedding.

`python -m train_tiny.table --base qwen2 --out FAMILY/qwen2-table` (about ten minutes on a core). The LLM does
not change. Its input embedding gets one row for each code of each level, and an image token is the sum of the
rows of its codes, where the projector's output was.

1. Fit: the rows whose sums are nearest to the projector's output, an affine map of the codewords plus a ridge
   on single codes.
2. Noise: every row moves by a random vector, so that the table is not an affine map of the codebook.
3. Training: only the rows learn, to make the LLM's answers those that it gives behind the projector
   (Kullback-Leibler divergence at the tokens of a random option). No label is used.

The images are the training images of the embedded domains, without their labels.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import craft
from craft.core.files import atomic_write_text, write_json
from craft.core.provenance import machine
from craft.core.text import table_row
from craft.data import Sample, load_data
from craft.formats.native import save_native
from craft.formats.table_folder import append_rows
from craft.losses.table_gradient import affine_fit
from craft.models.backbone import Backbone, Borrowed
from craft.models.lvlm import LVLM
from craft.models.token_table import TokenTable

DOMAINS = ("apparel", "digits", "sketch", "scenes")
RESULT = Path(__file__).resolve().parent.parent / "docs/results/token-tables.json"
RIDGE = 3.0
BATCH = 24
STEPS = 300
RATE = 3e-3
NOISE = 1.0  # in units of the spread of a level's rows


def training_images(lvlm: LVLM) -> tuple[list[Sample], Tensor]:
    """Training samples of all domains, and codes int64 `[n, N, L]` of their images."""
    samples = [sample for name in DOMAINS for sample in load_data(name, unseen_fraction=0).train]
    return samples, lvlm.visual.encode([sample.image for sample in samples], with_cls=False).codes


def fit(lvlm: LVLM, codes: Tensor) -> Tensor:
    """Rows float32 `[L, K, h]` whose sums are nearest to the projector's output.

    Args:
        lvlm: with a projector.
        codes: int64 `[n, N, L]`.
    """
    codebook, projector = lvlm.visual.codebook.levels, lvlm.backbone.projector
    assert projector is not None
    flat = codes.flatten(0, 1)
    count, size = codebook.shape[:2]
    quantized = lvlm.visual.need_codes("A token table").lookup(flat)
    wanted = torch.cat([projector(part) for part in quantized.split(4096)]).detach().double()
    mean = quantized.mean(0)
    slope, _ = affine_fit(quantized, wanted)
    base = (quantized - mean).double() @ slope.double() + wanted.mean(0)
    ids = flat + size * torch.arange(count)
    gram = torch.zeros(count * size, count * size, dtype=torch.float64)
    for a in range(count):
        for b in range(count):
            pairs = ids[:, a] * count * size + ids[:, b]
            gram.view(-1).index_add_(0, pairs, torch.ones(len(pairs), dtype=torch.float64))
    left = torch.zeros(count * size, wanted.shape[1], dtype=torch.float64)
    for level in range(count):
        left.index_add_(0, ids[:, level], wanted - base)
    gram.diagonal().add_(RIDGE)
    rest = torch.linalg.solve(gram, left).view(count, size, -1)
    rows = codebook.double() @ slope.double() + rest
    rows[0] += wanted.mean(0) - mean.double() @ slope.double()
    return rows.float()


def roughened(rows: Tensor, seed: int) -> Tensor:
    """Rows `[L, K, h]` plus noise with `NOISE` times the standard deviation of their level."""
    generator = torch.Generator().manual_seed(seed)
    spread = (rows - rows.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2), keepdim=True).sqrt()
    return rows + NOISE * spread * torch.randn(rows.shape, generator=generator)


class Answers:
    """Log-probabilities of the LLM at the tokens of answers, for image tokens from anywhere."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __call__(self, images: Tensor, questions: list[str], answers: list[str]) -> Tensor:
        """Image tokens `[B, N, h]`, questions and answers -> float32 `[tokens of the answers, V]`."""
        backbone = self.backbone
        prompts = [backbone.tokenized(q, a) for q, a in zip(questions, answers, strict=True)]
        rows = [
            [torch.tensor(p.before), image, torch.tensor(p.after + p.answer)]
            for p, image in zip(prompts, images, strict=True)
        ]
        inputs = backbone.splice(rows)
        hidden = backbone.hidden_states(inputs)
        ends = inputs["attention_mask"].sum(dim=1).tolist()
        parts = [
            hidden[i, end - len(p.answer) - 1 : end - 1]
            for i, (p, end) in enumerate(zip(prompts, ends, strict=True))
        ]
        return backbone.lm_head(torch.cat(parts)).float().log_softmax(-1)


def train(lvlm: LVLM, rows: Tensor, samples: list[Sample], codes: Tensor, steps: int, seed: int) -> Tensor:
    """Rows `[L, K, h]` that make the LLM answer as behind the projector."""
    lvlm.requires_grad_(False)
    codebook, projector = lvlm.visual.need_codes("A token table"), lvlm.backbone.projector
    assert projector is not None
    answers, draw = Answers(lvlm.backbone), random.Random(seed)
    learned = rows.flatten(0, 1).clone().requires_grad_()
    offsets = codebook.size * torch.arange(codebook.num_levels)
    spread = float(rows.std())
    optimizer = torch.optim.AdamW([learned], lr=RATE * spread * 10, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began, recent = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        chosen = draw.sample(range(len(samples)), BATCH)
        questions = [samples[i].prompt() for i in chosen]
        options = [draw.choice(samples[i].choices) for i in chosen]  # any option: no label is used
        picked = codes[chosen]
        with torch.no_grad():
            wanted = answers(projector(codebook.lookup(picked)), questions, options)
        images = F.embedding(picked + offsets, learned).sum(dim=-2)
        loss = F.kl_div(answers(images, questions, options), wanted, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent += float(loss.detach())
        if step % 50 == 0:
            share = affine_fit(codebook.levels[0], learned.detach().view_as(rows)[0])[1]
            print(
                f"{step:5} loss {recent / 50:.4f} R2 {share:.3f} {time.monotonic() - began:.0f} s", flush=True
            )
            recent = 0.0
    return learned.detach().view_as(rows)


def with_table(lvlm: LVLM, rows: Tensor, base: str) -> LVLM:
    """The LVLM with a token table instead of its projector; `base` names its LLM, which changes in place."""
    old = lvlm.backbone
    first = old.embeddings.weight.shape[0]
    append_rows(old.llm, rows.flatten(0, 1))
    table = TokenTable.consecutive(first, *rows.shape[:2])
    borrowed = Borrowed(base, {})
    backbone = Backbone(table, old.llm, old.tokenizer, old.prompt, old.codebook_fingerprint, borrowed)
    return LVLM(lvlm.visual, backbone, f"{lvlm.name}-table", lvlm.origin)


def validation(name: str, lvlm: LVLM) -> dict[str, float]:
    """Accuracy in percent on the validation slices of the domains, by the likeliest option."""
    from craft.evaluation.run import evaluate_lvlm

    scores = {}
    for domain in DOMAINS:
        asked = load_data(domain, unseen_fraction=0).validation
        scores[domain] = 100 * evaluate_lvlm(lvlm, asked, protocol="options", progress=False).accuracy
    print(name, {domain: round(score, 1) for domain, score in scores.items()}, flush=True)
    return scores


def main() -> None:
    """Make one table, and write it beside a record of how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", required=True, help="a backbone of craft-tiny with a projector")
    parser.add_argument("--out", type=Path, required=True, help="FAMILY/NAME; FAMILY/visual must be there")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    base = f"craft-tiny/{arguments.base}"
    lvlm = craft.load(base, device="cpu", dtype="float32")
    samples, codes = training_images(lvlm)
    scores = {"projector": validation("projector", lvlm)}
    fitted = fit(lvlm, codes)
    first = lvlm.visual.need_codes("A token table").levels[0]
    shares = {"fit": affine_fit(first, fitted[0])[1]}
    rough = roughened(fitted, arguments.seed)
    shares["noise"] = affine_fit(first, rough[0])[1]
    rows = train(lvlm, rough, samples, codes, arguments.steps, arguments.seed).bfloat16().float()
    shares["trained"] = affine_fit(first, rows[0])[1]
    made = with_table(lvlm, rows, base)
    scores["table"] = validation("table", made)
    folder = save_native(arguments.out.parent, arguments.out.name, made, "bfloat16")
    record = {
        "base": base,
        "steps": arguments.steps,
        "batch": BATCH,
        "noise": NOISE,
        "seed": arguments.seed,
        "images": len(samples),
        "R2 of an affine map of level-1 codewords": {k: round(v, 3) for k, v in shares.items()},
        "validation accuracy": {k: {d: round(v, 1) for d, v in row.items()} for k, row in scores.items()},
        "machine": machine(),
    }
    records = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    write_json(RESULT, {**records, f"craft-tiny/{folder.name}": record})
    atomic_write_text(folder / "README.md", card(folder, record))
    print(record)


def card(folder: Path, record: dict) -> str:
    """The model card."""
    scores = record["validation accuracy"]
    share = record["R2 of an affine map of level-1 codewords"]["trained"]
    lines = [
        f"# craft-tiny/{folder.name}",
        "",
        f"The LLM of `{record['base']}`, unchanged, which reads codes as rows of its own input embedding "
        "(a token table) instead of through a projector. Source: ours, to run the path of families such as "
        "Tar for real. Made by `python -m train_tiny.table`; no label was used, and the images were the "
        "training images of the embedded domains.",
        "",
        f"An affine map of the level-1 codewords explains {share} of the variance of the level-1 rows "
        "(`docs/results/token-tables.json`).",
        "",
        "Validation accuracy in percent, zero-shot, likeliest option (`docs/results/token-tables.json`):",
        "",
        table_row(["", *DOMAINS]),
        table_row(["---", *["---:"] * len(DOMAINS)]),
        *(table_row([name, *[str(row[d]) for d in DOMAINS]]) for name, row in scores.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
