"""Measure what Chameleon 7B and 30B take at real size, without their weights.

    python scripts/families_chameleon.py --out docs/results/families-chameleon.json

Parameters, memory and operations are counted on the meta device. The tower, the search and the affine fit
also run on this machine, with random weights of the real shapes. Source of the shapes: transformers' defaults
and convert_chameleon_weights_to_hf.py.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEVectorQuantizer

from craft.core.files import write_json
from craft.core.provenance import machine
from craft.losses.table_gradient import affine_fit
from craft.models.backbone import Backbone
from craft.models.chameleon import ChameleonTower, TextHead
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory
from craft.models.token_table import TokenTable
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

SIZES: dict[str, dict[str, Any]] = {
    "chameleon-7b": {},
    "chameleon-30b": {
        "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48, "num_attention_heads": 64,
        "num_key_value_heads": 8, "swin_norm": True, "model_parallel_size": 4,
    },
}  # fmt: skip
TOWER = {"factor": 0.0078, "mean": [1.0] * 3, "std": [1.0] * 3}
CODES, FIRST, TEXT, ANSWER = 8192, 4, 64, 8
GIB = 2**30


def real_size(name: str) -> LVLM:
    """A Chameleon without values."""
    config = ChameleonConfig(**SIZES[name], vq_config={}, vocabulary_map={"<image>": 8711})
    vq = ChameleonVQVAEConfig()
    with torch.device("meta"):
        tower = ChameleonTower({**TOWER, "model": {"resolution": vq.resolution}}).to(torch.bfloat16)
        visual = VisualTokenizer(tower, ResidualCodebook(torch.zeros(1, CODES, vq.embed_dim)))
        llm = ChameleonForConditionalGeneration(config).to(torch.bfloat16)
    del llm.model.vqmodel
    table = TokenTable.consecutive(FIRST, 1, CODES)
    llm.lm_head = TextHead(llm.lm_head, table.ids[0])
    return LVLM(visual, Backbone(table, llm, None, "chameleon", "0" * 64), name)


def counted(run: Callable[[], object]) -> float:
    """Operations of a forward pass, in GFLOP (a product and a sum are two)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return round(counter.get_total_flops() / 1e9, 1)


def seconds(run: Callable[[], object], times: int = 3) -> float:
    """The shortest of some runs."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return round(min(spent), 2)


def step(lvlm: LVLM, batch: int, recompute: bool) -> dict[str, Any]:
    """Memory of a training step in GiB."""
    length = lvlm.visual.grid[0] * lvlm.visual.grid[1] + TEXT
    parts = estimate_memory(
        lvlm, batch, length, torch.bfloat16, ANSWER, gradient_checkpointing=recompute, search="exact"
    )
    return {
        "images": batch,
        "gradient_checkpointing": recompute,
        "gib": {key: round(value / GIB, 2) for key, value in parts.items()},
    }


def shapes(name: str) -> dict[str, Any]:
    """Parameters, memory and operations of one size."""
    lvlm = real_size(name)
    freeze_all_but(lvlm, ["vision_tower"])
    tower, llm = lvlm.visual.vision_tower, lvlm.backbone.llm
    tokens = lvlm.visual.grid[0] * lvlm.visual.grid[1]
    width = int(llm.config.hidden_size)
    pixels = torch.zeros(1, 3, 512, 512, device="meta")
    length = tokens + TEXT
    embeds = torch.zeros(1, length, width, device="meta", dtype=torch.bfloat16)
    mask = torch.zeros(1, 1, length, length, device="meta", dtype=torch.bfloat16)
    return {
        "parameters": {part: count for part, count, _ in parameter_table(lvlm)},
        "trains": sum(trained for _, _, trained in parameter_table(lvlm)),
        "visual_tokens": tokens,
        "table_rows": [CODES, width],
        "gflop_forward": {
            "tower": counted(lambda: tower(pixels)),
            "search": round(2 * tokens * CODES * tower.dim / 1e9, 1),
            "llm": counted(lambda: llm.model(None, None, mask, inputs_embeds=embeds, use_cache=False)),
        },
        "tower_values_per_image": {
            "stored": tower.stored_per_image(False),
            "stored with gradient checkpointing": tower.stored_per_image(True),
        },
        "steps": [step(lvlm, batch, recompute) for batch in (1, 4) for recompute in (False, True)],
    }


def measured() -> dict[str, Any]:
    """The tower, the search and the fit at real size on this machine, in float32 and random weights."""
    torch.manual_seed(0)
    tower = ChameleonTower({**TOWER, "model": {}})
    pixels = torch.rand(1, 3, 512, 512) * 2 - 1
    quantizer = ChameleonVQVAEVectorQuantizer(ChameleonVQVAEConfig())
    torch.nn.init.normal_(quantizer.embedding.weight)
    book = ResidualCodebook([quantizer.embedding.weight])
    features = torch.randn(16, 1024, 256)
    with torch.no_grad():
        maps = features.transpose(1, 2).unflatten(2, (32, 32))
        theirs = quantizer(maps)[2].view(16, 1024)
        ours = book.quantize(features).codes[..., 0]
        rows = torch.randn(CODES, 4096)
        return {
            "threads": torch.get_num_threads(),
            "seconds_tower_one_image": seconds(lambda: tower(pixels)),
            "seconds_search_one_image": seconds(lambda: book.quantize(features[:1])),
            "seconds_affine_fit_7b": seconds(lambda: affine_fit(book.levels[0], rows), 1),
            "codes_compared_with_transformers": ours.numel(),
            "codes_that_differ": int((ours != theirs).sum()),
        }


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    write_json(
        out,
        {
            "what": "Chameleon at real size: counted on the meta device; timed with random weights",
            "command": f"python scripts/families_chameleon.py --out {out}",
            "provenance": machine(),
            "memory": f"bfloat16, AdamW, {TEXT} text tokens, {ANSWER} of them answer; estimate_memory",
            "sizes": {name: shapes(name) for name in SIZES},
            "measured": measured(),
        },
    )


if __name__ == "__main__":
    main()
