"""Sizes, memory and costs of Tar and UniTok at real size, without weights: docs/results/families.json.

python scripts/measure_families.py

Models are built on the meta device, so shapes are checked and nothing is downloaded. Floating-point
operations are counted by PyTorch, or by their formula where one is given. The rule `soft` also runs on this
machine, with random codewords and rows.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from craft.core.files import write_json
from craft.core.provenance import machine
from craft.losses.table_gradient import Soft, affine
from craft.models.backbone import Backbone
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.models.sequence_projector import SequenceProjector
from craft.models.ta_tok import TaTokTower
from craft.models.token_table import TokenTable
from craft.models.visual_tokenizer import VisualTokenizer
from craft.models.vitamin import VitaminTower
from craft.quantize import ResidualCodebook

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs/results/families.json"
TEXT = 120
"""Tokens of a question with its options and answer."""

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
K, DIM, FIRST = 65536, 1536, 151670
ROWS = FIRST + K
QWEN = {
    "Tar-1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "Tar-7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
}
"""Sizes of Qwen2.5-Instruct, from its config files on the hub; Tar's vocabulary ends with its codes."""
TOP_K = 32

VITAMIN = {
    "image_size": 256,
    "stem_width": 160,
    "stage_dims": [160, 320],
    "stage_depths": [2, 4],
    "hidden_size": 1024,
    "num_hidden_layers": 31,
    "num_attention_heads": 16,
    "intermediate_size": 2048,
    "dim": 64,
    "codebooks": 8,
    "projection_inner": 128,
}
"""UniTok's tower, ViTamin-L, from its code; each of its codebooks has 4,096 codes."""
CODES = 4096
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}


def tar(name: str, scale: int) -> LVLM:
    """A Tar LVLM on the meta device, in bfloat16, with the affine rule."""
    config = AutoConfig.for_model("qwen2", vocab_size=ROWS, **QWEN[name])
    with torch.device("meta"):
        tower = TaTokTower({**SO400M, "type": "ta-tok", "dim": DIM, "scale": scale})
        visual = VisualTokenizer(tower, ResidualCodebook(torch.zeros(1, K, DIM)))
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        slope = torch.zeros(DIM, config.hidden_size)
    table = TokenTable.consecutive(FIRST, 1, K).to("meta")
    table.gradient = affine(slope)
    return LVLM(visual, Backbone(table, llm, None, "tar", "0" * 64), name)


def unitok() -> LVLM:
    """UniTok with Llama-2-7B on the meta device, in bfloat16."""
    with torch.device("meta"):
        levels, width = torch.zeros(VITAMIN["codebooks"], CODES, VITAMIN["dim"]), VITAMIN["hidden_size"]
        visual = VisualTokenizer(VitaminTower(VITAMIN), ResidualCodebook(levels), aspect="pad-clip-bilinear")
        config = AutoConfig.for_model("llama", vocab_size=32000, **LLAMA)
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        sizes = {"in": VITAMIN["dim"], "width": width, "inner": 2 * width, "out": config.hidden_size}
        projector = SequenceProjector({"type": "unitok", **sizes}).to(torch.bfloat16)
    return LVLM(visual, Backbone(projector, llm, None, "vila-u", "0" * 64), "UniTok")


def step(lvlm: LVLM, batch: int) -> tuple[int, ...]:
    """One step of Eq. 2 forward and backward, which raises if a shape does not fit; the answers' logits."""
    freeze_all_but(lvlm, ["vision_tower"])
    size = lvlm.visual.image_size
    with torch.device("meta"):
        tokens = lvlm.visual(torch.empty(batch, 3, size, size), with_cls=False)
        images = lvlm.backbone.read(tokens)
        text = torch.empty(TEXT, dtype=torch.long)
        spliced = lvlm.backbone.splice([[row, text] for row in images])
        length = spliced["inputs_embeds"].shape[1]
        spliced["attention_mask"] = torch.empty(batch, 1, length, length, dtype=torch.bool)
        logits = lvlm.backbone.lm_head(lvlm.backbone.hidden_states(spliced)[:, -3:])
        logits.float().sum().backward()
    return tuple(logits.shape)


def tower_flops(lvlm: LVLM) -> int:
    """Of the tower's forward pass on one image."""
    size = lvlm.visual.image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        lvlm.visual.vision_tower(torch.empty(1, 3, size, size), with_cls=False)
    return counter.get_total_flops()


def search_flops(lvlm: LVLM) -> float:
    """TFLOP per image of the search over all codes, by formula; multiply and add count as two."""
    book = lvlm.visual.need_codes("The search")
    return 2 * lvlm.visual.grid[0] ** 2 * book.num_levels * book.size * book.dim / 1e12


def rule_flops(tokens: int, width: int) -> dict[str, float]:
    """TFLOP per image of Tar's gradient rules, by formula.

    `soft` needs the distances to all codes, and g · T and the weighted sum of codewords over all of them or
    over the nearest.
    """
    return {
        "affine": 2 * tokens * DIM * width / 1e12,
        "soft, all codes": 2 * tokens * K * (2 * DIM + width) / 1e12,
        f"soft, the {TOP_K} nearest codes": 2 * tokens * (K * DIM + TOP_K * (DIM + width)) / 1e12,
    }


def soft_gib(width: int, tokens: int, top_k: int | None) -> float:
    """GiB that `soft` holds in a step."""
    with torch.device("meta"):
        levels, rows = torch.zeros(1, K, DIM), torch.zeros(1, K, width)
    return round(Soft(levels, rows, [1.0], None, top_k).held_bytes(tokens) / 2**30, 2)


def soft_seconds(tokens: int = 128) -> dict[str, Any]:
    """The shortest of three runs of `soft` on random features of Tar-1.5B's sizes, on one core."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    width = QWEN["Tar-1.5B"]["hidden_size"]
    codewords = torch.nn.functional.normalize(torch.randn(1, K, DIM, generator=generator), dim=-1)
    rows, g = torch.randn(1, K, width, generator=generator), torch.randn(tokens, width, generator=generator)
    z, codes = codewords[0, :tokens], torch.arange(tokens)[:, None]
    seconds = {}
    for top_k in (None, TOP_K):
        spent = []
        for _ in range(3):
            start = time.perf_counter()
            Soft(codewords, rows, [0.1], None, top_k)(z, codes, g)
            spent.append(time.perf_counter() - start)
        seconds["all codes" if top_k is None else f"the {top_k} nearest codes"] = round(min(spent), 2)
    return {"tokens": tokens, "threads": 1, "seconds": seconds}


def described(lvlm: LVLM) -> dict[str, Any]:
    """Sizes, memory and operations of a model."""
    count = lvlm.visual.grid[0] ** 2
    logits = step(lvlm, 2)
    rows = {row[0]: {"parameters": row[1], "trained": row[2]} for row in parameter_table(lvlm)}
    memory = {}
    for batch in (1, 4):
        for again in (False, True):
            parts = estimate_memory(lvlm, batch, TEXT + count, torch.bfloat16, gradient_checkpointing=again)
            memory[f"batch {batch}{', recomputed' if again else ''}"] = round(parts["total"] / 2**30, 1)
    return {
        "image tokens": count,
        "parts": rows,
        "GiB of a training step": memory,
        "shape of two answers' logits": list(logits),
        "TFLOP per image": {
            "tower, forward": round(tower_flops(lvlm) / 1e12, 3),
            "search over all codes": round(search_flops(lvlm), 4),
        },
    }


def main() -> None:
    """Measure, print and write."""
    record: dict[str, Any] = {"text tokens": TEXT, "models": {}}
    for name in QWEN:
        for scale in (1, 2, 3):
            lvlm = tar(name, scale)
            row = described(lvlm)
            tokens, width = row["image tokens"], lvlm.backbone.embeddings.weight.shape[1]
            row["TFLOP per image"] |= {rule: round(n, 4) for rule, n in rule_flops(tokens, width).items()}
            row["GiB that soft adds, batch 4"] = {
                "all codes": soft_gib(width, 4 * tokens, None),
                f"the {TOP_K} nearest codes": soft_gib(width, 4 * tokens, TOP_K),
            }
            record["models"][f"{name}, scale {scale}"] = row
    record["models"]["UniTok"] = described(unitok())
    record["soft on a CPU, Tar-1.5B's sizes"] = soft_seconds()
    record["codebook, MiB in float32"] = K * DIM * 4 / 2**20
    record |= {"command": "python scripts/measure_families.py", "machine": machine()}
    write_json(OUT, record)
    for name, row in record["models"].items():
        print(name, row["image tokens"], row["GiB of a training step"], row["TFLOP per image"])


if __name__ == "__main__":
    main()
