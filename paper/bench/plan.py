"""Time and memory per GPU of a run, before a GPU is rented (`python -m paper bench plan`).

A simple model: bytes and FLOPs from the sizes of the models, an assumed share of the GPU's matrix rate, the
time that a processor takes to launch the operations of each layer, and gradients (or sharded weights) sent
during the backward pass. Everything is calculated, not measured, except for the launches.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from craft.core.errors import ConfigError
from craft.models.layers import Recompute
from craft.models.lvlm import LVLM
from craft.models.memory import kept_per_token, weight_bytes
from craft.models.paper_sizes import LLMS, paper_lvlm
from paper.bench.flops import LORA, Step, flops_per_image, lengths
from paper.bench.shapes import SHAPES

GIB, MIB = 2**30, 2**20
_BLOCK = 64  # weights that share one float32 scale in 4 bits


@dataclass(frozen=True)
class Gpu:
    """Data sheet: dense bfloat16 FLOP/s, bytes/s between GPUs (both directions together), bytes of memory."""

    flops: float
    link: float
    memory: int


GPUS = {
    "A100-40": Gpu(312e12, 600e9, 40 * GIB),
    "A100-80": Gpu(312e12, 600e9, 80 * GIB),
    "H100-80": Gpu(989e12, 900e9, 80 * GIB),
    "H200-141": Gpu(989e12, 900e9, 141 * GIB),
    "L40S-48": Gpu(362e12, 64e9, 48 * GIB),
    "RTX4090-24": Gpu(165e12, 32e9, 24 * GIB),
}
Parallel = Literal["ddp", "fsdp2"]
_CONTEXT = 500 * MIB  # CUDA's own, and its libraries'
_LAUNCH = {False: 3.1e-3, "selective": 8e-3, True: 5.1e-3}
"""Seconds to launch a layer forward and backward, by its checkpointing. Measured with an H200, in a step of
47 layers whose launches took longer than their operations (docs/results/bench_train_gpu.json)."""


@dataclass(frozen=True)
class Run:
    """What is trained, and on which GPUs.

    Attributes:
        gpus: how many and which, as in 8xA100-40.
        surrogate: an LLM of `craft.models.paper_sizes.LLMS`, without "paper/".
        batch: images per step, over all GPUs.
        trains: as `Step.trains`.
        parallel: how several GPUs share the work.
        checkpointing: of the LLM's layers, and of the tower's.
        tower_checkpointing: checkpoint the tower's layers as well, if the LLM's are.
        all_logits: transformers' `labels=` loss.
        mfu: the assumed share of the data sheet's FLOP/s that a step reaches.
        images: per epoch.
        llm_bits: 4 or 8 bits for the linear maps of the frozen LLM. The time to unpack them is not counted.
    """

    gpus: str = "8xA100-40"
    surrogate: str = "qwen2-0.5b"
    batch: int = 24
    trains: Literal["vision", "projector", "lora"] = "vision"
    parallel: Parallel = "ddp"
    checkpointing: Recompute = False
    tower_checkpointing: bool = True
    all_logits: bool = False
    mfu: float = 0.4
    images: int = 10_000
    llm_bits: Literal[4, 8] | None = None


def plan(run: Run) -> dict[str, Any]:
    """Memory in MiB per GPU by part, seconds per step, images/s, minutes per epoch, and whether it fits.

    Raises:
        ConfigError: the GPU or LLM is unknown, the batch is not a multiple of the number of GPUs, or packed
            weights would have to be trained or sharded.
    """
    count, gpu = parse_gpus(run.gpus)
    name = _name(run)
    if name not in LLMS:
        raise ConfigError(
            f"There are no sizes for {run.surrogate!r}; there are "
            f"{', '.join(known.removeprefix('paper/') for known in LLMS)}."
        )
    if run.batch < 1 or run.batch % count:
        raise ConfigError(f"A batch of {run.batch} does not divide among {count} GPUs; give a multiple.")
    if not 0 < run.mfu <= 1:
        raise ConfigError(f"--mfu is a share in (0, 1], not {run.mfu}.")
    if run.llm_bits and (run.trains == "lora" or run.parallel != "ddp"):
        raise ConfigError(
            f"--llm-bits {run.llm_bits} is for a frozen LLM that each GPU holds whole: with --tune vision or "
            "projector, and --parallel ddp."
        )
    memory, trained, whole = _memory(run)
    step = Step(trains=run.trains, all_logits=run.all_logits)
    parts = dict(flops_per_image("real", step, name))
    if run.checkpointing is True:  # forward, forward again, and backward: to the inputs; to the weights too
        parts["LLM"] = round(parts["LLM"] * 3 / 2)
        if run.tower_checkpointing and run.trains == "vision":
            parts["tower"] = round(parts["tower"] * 4 / 3)
    each = sum(parts.values()) * run.batch / count
    compute = each / (gpu.flops * run.mfu)
    share = (count - 1) / count
    sent = 2 * trained * 4 if run.parallel == "ddp" else 2 * whole + trained * 4
    talk = share * sent / (gpu.link / 2) if count > 1 else 0.0
    towers, readers = _layers(run)
    again = run.checkpointing if run.tower_checkpointing else False
    launch = towers * _LAUNCH[again] * (run.trains == "vision") + readers * _LAUNCH[run.checkpointing]
    bounds = {"computing": compute, "launching operations": launch, "sending between GPUs": talk}
    bound = max(bounds, key=lambda name: bounds[name])
    seconds = bounds[bound]
    total = sum(memory.values())
    return {
        "memory MiB per GPU": {part: round(value / MIB) for part, value in memory.items()},
        "total MiB per GPU": round(total / MIB),
        "fits": total < 0.95 * gpu.memory,
        "GFLOP per image": {part: round(value / 1e9, 1) for part, value in parts.items()},
        "s per step": round(seconds, 4),
        "bound by": bound,
        "images/s": round(run.batch / seconds, 1),
        "minutes per epoch": round(run.images / run.batch * seconds / 60, 2),
    }


def parse_gpus(text: str) -> tuple[int, Gpu]:
    """`8xA100-40` -> 8 and its data sheet.

    Raises:
        ConfigError: it does not have that form, or the GPU is unknown.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([\w-]+)", text)
    known = {name.lower(): gpu for name, gpu in GPUS.items()}
    if not match or match[2].lower() not in known or (match[1] and not int(match[1])):
        raise ConfigError(f"--gpus takes NUMBERxGPU, as in 8xA100-40, not {text!r}; GPUs: {', '.join(GPUS)}.")
    return int(match[1] or 1), known[match[2].lower()]


def _layers(run: Run) -> tuple[int, int]:
    """The number of layers of the tower and of the LLM."""
    lvlm = _model(_name(run), torch.float32 if run.trains == "vision" else torch.bfloat16)
    text: Any = lvlm.backbone.llm.config
    return len(lvlm.visual.vision_tower.layers), text.num_hidden_layers  # type: ignore[arg-type]


def _name(run: Run) -> str:
    return f"paper/{run.surrogate.removeprefix('paper/')}"


@cache
def _model(name: str, tower: torch.dtype) -> LVLM:
    """An LVLM of the paper on the meta device, with the tower in a dtype."""
    lvlm = paper_lvlm(name)
    lvlm.visual.vision_tower.to(tower)
    return lvlm


def packed_saving(llm: PreTrainedModel, bits: int) -> int:
    """Bytes that packing saves, for all linear maps but the output embedding; works on the meta device."""
    head = llm.get_output_embeddings()
    saving = 0
    for module in llm.modules():
        if isinstance(module, nn.Linear) and module is not head:
            count = module.weight.numel()
            packed = count + 4 * module.out_features if bits == 8 else count // 2 + 4 * -(-count // _BLOCK)
            saving += count * module.weight.element_size() - packed
    return saving


def _memory(run: Run) -> tuple[dict[str, float], int, int]:
    """Bytes per GPU by part; the number of trained weights; bytes of all weights."""
    lvlm = _model(_name(run), torch.float32 if run.trains == "vision" else torch.bfloat16)
    count, _ = parse_gpus(run.gpus)
    images, shape = run.batch // count, SHAPES["real"]
    text: Any = lvlm.backbone.llm.config
    before, after, learned = lengths(shape)
    tokens = images * (before + shape.patches + after)
    weights = weight_bytes(lvlm)
    if run.llm_bits:
        weights -= packed_saving(lvlm.backbone.llm, run.llm_bits)
    trained = {
        "vision": sum(p.numel() for p in lvlm.visual.vision_tower.parameters()),
        "projector": sum(p.numel() for p in lvlm.backbone.reader.parameters()),
        "lora": _lora_weights(text),
    }[run.trains]
    if run.trains != "vision":
        weights += trained * 4
    split = count if run.parallel == "fsdp2" else 1
    vision: Any = lvlm.visual.vision_tower.siglip_config
    (layers, _), patches = _layers(run), images * shape.patches
    tower = kept_per_token(vision, layers, run.checkpointing if run.tower_checkpointing else False)
    llm = kept_per_token(text, text.num_hidden_layers, run.checkpointing, run.trains == "lora")
    positions, each = (tokens, 16) if run.all_logits else (images * learned, 8)
    memory = {
        "weights": weights / split,
        "gradients": trained * 4 / split,
        "DDP's buckets": trained * 4.0 if run.parallel == "ddp" and count > 1 else 0.0,
        "AdamW": trained * 8 / split,
        "tower's activations": patches * tower * 2.0 if run.trains == "vision" else 0.0,
        "LLM's activations": tokens * llm * 2.0,
        "logits": float(positions * text.vocab_size * each),
        "CUDA": float(_CONTEXT),
    }
    return memory, trained, weights


def _lora_weights(text: Any) -> int:
    """The number of LoRA weights on all linear maps of all layers."""
    wide, inner = text.hidden_size, text.intermediate_size
    keys = text.num_key_value_heads * (wide // text.num_attention_heads)
    sides = 2 * (wide + wide) + 2 * (wide + keys) + 3 * (wide + inner)
    return text.num_hidden_layers * LORA.rank * sides


PAPER = {
    "Qwen2-0.5B, ours": (Run(batch=32), 10_678),
    "VILA-U-7B, ours": (Run(batch=32, surrogate="llama2-7b"), 20_754),
    "VILA-7B, LoRA FT": (Run(batch=32, surrogate="llama2-7b", trains="lora"), 27_725),
    "VILA-7B, Vision FT": (Run(batch=32, surrogate="llama2-7b"), 27_671),
    "VILA-7B, Projector FT": (Run(batch=32, surrogate="llama2-7b", trains="projector"), 27_383),
}
"""Table 4's rows on 8xA100-40 with 32 images per step, and the MiB that the paper reports."""


def against_paper() -> list[dict[str, Any]]:
    """Table 4's memory: as reported, as calculated for VILA-U's code (logits at all positions, the LLM's
    layers checkpointed), and as calculated with logits at answer positions.

    The three rows on VILA-7B are of another model, with a continuous tower whose size the paper does not
    state; they are calculated as if it were VILA-U-7B, without checkpointing.
    """

    def total(run: Run) -> int:
        return round(sum(_memory(run)[0].values()) / MIB)

    rows = []
    for name, (run, reported) in PAPER.items():
        ours = "ours" in name
        theirs = replace(run, all_logits=True, checkpointing=ours, tower_checkpointing=False)
        calculated = total(theirs)
        rows.append(
            {
                "row": name,
                "paper MiB": reported,
                "calculated MiB": calculated,
                "off": f"{calculated / reported - 1:+.0%}",
                "with answer positions only, MiB": total(replace(theirs, all_logits=False)),
            }
        )
    return rows
