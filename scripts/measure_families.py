"""Sizes, memory and costs of Tar at its published size, without its weights: docs/results/families.json.

python scripts/measure_families.py

Everything is built on the meta device, so shapes are checked and nothing is downloaded. Floating-point
operations are counted by PyTorch, or by their formula where one is given.
"""

import subprocess
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from craft.core.files import write_json
from craft.losses.table_gradient import affine
from craft.models.backbone import Backbone
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.models.ta_tok import TaTokTower
from craft.models.token_table import TokenTable
from craft.models.visual_tokenizer import VisualTokenizer
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


def costs(tokens: int, width: int, k: int = 32) -> dict[str, float]:
    """TFLOP per image of search and gradient rules, by formula; multiply and add count as two.

    `soft` needs the scores, g · T and the weighted sum of codewords over all codes (or over the k nearest,
    once the search has found them).
    """
    return {
        "search over all codes": 2 * tokens * K * DIM / 1e12,
        "affine": 2 * tokens * DIM * width / 1e12,
        "soft, all codes": 2 * tokens * K * (2 * DIM + width) / 1e12,
        f"soft, the {k} nearest codes": 2 * tokens * k * (2 * DIM + width) / 1e12,
    }


def main() -> None:
    """Measure, print and write."""
    record: dict[str, Any] = {"text tokens": TEXT, "models": {}}
    for name in QWEN:
        for scale in (1, 2, 3):
            lvlm = tar(name, scale)
            count = lvlm.visual.grid[0] ** 2
            logits = step(lvlm, 2)
            rows = {row[0]: {"parameters": row[1], "trained": row[2]} for row in parameter_table(lvlm)}
            memory = {
                f"batch {batch}{', recomputed' if again else ''}": round(
                    estimate_memory(lvlm, batch, TEXT + count, torch.bfloat16, gradient_checkpointing=again)[
                        "total"
                    ]
                    / 2**30,
                    1,
                )
                for batch in (1, 4)
                for again in (False, True)
            }
            width = lvlm.backbone.embeddings.weight.shape[1]
            record["models"][f"{name}, scale {scale}"] = {
                "image tokens": count,
                "parts": rows,
                "GiB of a training step": memory,
                "shape of two answers' logits": list(logits),
                "TFLOP per image": {
                    "tower, forward": round(tower_flops(lvlm) / 1e12, 3),
                    **{key: round(value, 4) for key, value in costs(count, width).items()},
                },
            }
    record["codebook, MiB in float32"] = K * DIM * 4 / 2**20
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    record |= {"commit": commit, "command": "python scripts/measure_families.py"}
    record["versions"] = {"torch": torch.__version__}
    write_json(OUT, record)
    for name, row in record["models"].items():
        print(name, row["image tokens"], row["GiB of a training step"], row["TFLOP per image"])


if __name__ == "__main__":
    main()
