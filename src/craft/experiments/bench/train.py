"""Training, Table 4: CRAFT with a small and with the large LLM against tuning the large one; each lever.

All in one run on one machine, the ways in turn, with random weights. The package's own objective runs.
The rivals have the loss at answer positions too, so that no ratio is that of two losses.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.progress import say
from craft.experiments.bench.activations import activation_bytes
from craft.experiments.bench.flops import LORA, Step, answer, flops_per_image, lengths, question
from craft.experiments.bench.measure import fastest, matmul_rate, peak_bytes, where
from craft.experiments.bench.shapes import SHAPES, Shape, build_lvlm
from craft.losses import surrogate_alignment
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory, weight_bytes
from craft.models.prompts import build_dialogue
from craft.models.recompute import Recompute, recompute
from craft.training.config import CommitmentConfig, ContrastiveConfig, LossesConfig, SalConfig
from craft.training.lora import add_lora
from craft.training.objective import Batch, CraftObjective

QUESTIONS = 5
"""About each image, where several share it."""


@dataclass(frozen=True)
class Way:
    """One way to train: what its step does, and what does not change its FLOPs."""

    step: Step
    search: str = "exact"
    fused: bool = False
    checkpointing: Recompute = False
    llm_bits: int | None = None


NAIVE = Step(all_logits=True, text_tower=True, prefix=False)

METHODS = {
    "LLM LoRA": Way(Step(large=True, trains="lora", prefix=False, crafted=False)),
    "Vision FT": Way(Step(large=True, prefix=False, crafted=False)),
    "Projector FT": Way(Step(large=True, trains="projector", prefix=False, crafted=False)),
    "CRAFT, large LLM": Way(Step(large=True)),
    "CRAFT, small LLM": Way(Step()),
}
"""The rows of Table 4."""

LEVERS = {
    "labels= loss, text tower each step": Way(NAIVE),
    "+ logits at answer positions": Way(Step(text_tower=True, prefix=False)),
    "+ text embeddings cached": Way(Step(prefix=False)),
    "+ prefix read once": Way(Step()),
    "+ fused AdamW": Way(Step(), fused=True),
    f"+ {QUESTIONS} questions per image": Way(Step(questions=QUESTIONS), fused=True),
    "selective checkpointing (of + prefix)": Way(Step(), checkpointing="selective"),
    "checkpointing instead (of + prefix)": Way(Step(), checkpointing=True),
}
"""CRAFT with the small LLM, one lever after the other."""

FEW_BITS = {f"{bits}-bit LLM (of + prefix)": Way(Step(), llm_bits=bits) for bits in (8, 4)}
"""The same where bitsandbytes is installed."""


def measure(size: str, device: torch.device, repeats: int = 3) -> dict[str, Any]:
    """Time, peak memory and FLOPs of every way at a size of `SHAPES`.

    Returns:
        `rows` (Table 4), `levers`, `ratios`, `sizes`, `machine`; and, apart from what was measured,
        `calculated`: FLOPs and activations at real size (not for "tiny").

    Raises:
        ConfigError: peft is not installed.
    """
    shape = SHAPES[size]
    rate = matmul_rate(device, shape.dtype)
    rows = _measured(METHODS, size, device, repeats, rate)
    packed = FEW_BITS if find_spec("bitsandbytes") else {}
    levers = _measured(LEVERS | packed, size, device, repeats, rate)
    lora, small = (
        next(row for row in rows if row["way"] == name) for name in ("LLM LoRA", "CRAFT, small LLM")
    )
    first, last = levers[0], levers[3]
    selective = next(row for row in levers if row["way"].startswith("selective"))
    return {
        "rows": rows,
        "levers": levers,
        "ratios": {
            "small CRAFT against LoRA, per image, on the clock": _times(small, lora, "images/s"),
            "the same by processor time": round(lora["cpu ms"] / small["cpu ms"], 2),
            "its share of LoRA's peak memory": round(small["peak MiB"] / lora["peak MiB"], 3),
            "levers: speed": _times(last, first, "images/s"),
            "levers: FLOPs": round(first["GFLOP per image"] / last["GFLOP per image"], 2),
            "levers: peak memory of a step": round(first["step MiB"] / last["step MiB"], 2),
            "the same with selective checkpointing": round(first["step MiB"] / selective["step MiB"], 2),
        },
        "calculated": calculated() if size != "tiny" else None,
        "sizes": {"size": size, "images per step": shape.batch, "dtype of the LLMs": str(shape.dtype)},
        "matrix product, GFLOP/s": round(rate / 1e9, 1),
        "machine": where(device),
    }


def calculated() -> dict[str, Any]:
    """At real size, B = 24 and V = 151936: FLOPs by the meta device, activations from one layer each."""
    shape = SHAPES["real"]
    everything = Step(trains="all", all_logits=True, text_tower=True, prefix=False)
    ways = {"labels= loss, every weight in the graph": Way(everything)}
    # FLOPs with whole layers run twice would be those of the step and a forward pass more: left out
    ways |= {name: way for name, way in LEVERS.items() if not way.fused and way.checkpointing is not True}
    ways[f"+ {QUESTIONS} questions per image"] = Way(Step(questions=QUESTIONS))
    rows = []
    for name, way in ways.items():
        step, kept = way.step, activation_bytes("real", way.step, way.checkpointing)
        parts = flops_per_image("real", step)
        each = sum(parts.values()) / step.questions
        rows.append(
            {
                "step": name,
                "TFLOP per 24 questions": round(24 * each / 1e12, 2),
                **{
                    f"{part} TFLOP": round(24 * value / step.questions / 1e12, 2)
                    for part, value in parts.items()
                },
                "activations GiB at 24 images": round(24 * sum(kept.values()) / 2**30, 2),
            }
        )
    table_4 = {
        name: round(24 * sum(flops_per_image("real", way.step).values()) / 1e12, 1)
        for name, way in METHODS.items()
    }
    first, frozen, last, selective = rows[0], rows[1], rows[4], rows[5]
    flops, memory = "TFLOP per 24 questions", "activations GiB at 24 images"
    return {
        "levers": rows,
        "Table 4, TFLOP per 24 images": table_4,
        "FLOPs against every weight in the graph": _times(first, last, flops),
        "FLOPs against the frozen LLM": _times(frozen, last, flops),
        "activations against every weight in the graph": _times(first, last, memory),
        "activations against the frozen LLM": _times(frozen, last, memory),
        "activations, selective, against every weight in the graph": _times(first, selective, memory),
        "activations, selective, against the frozen LLM": _times(frozen, selective, memory),
        "sizes": {
            "B": 24,
            "V": shape.small[1]["vocab_size"],
            "LLM": "Qwen2-0.5B",
            "unit": "2 FLOP per multiply-add",
        },
    }


def _times(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> float:
    return round(one[name] / other[name], 2)


def _measured(
    ways: Mapping[str, Way], size: str, device: torch.device, repeats: int, rate: float
) -> list[dict[str, Any]]:
    shape = SHAPES[size]
    needed = {(way.step.large, way.llm_bits) for way in ways.values()}
    models = {which: build_lvlm(shape, which[0], device, which[1]) for which in needed}
    rows = []
    times: dict[str, Any] = {}
    for turn in range(repeats):  # the ways take turns; each is built anew, so that only one is in memory
        for name, way in ways.items():
            say(f"{name}, turn {turn + 1} of {repeats}")
            lvlm = models[way.step.large, way.llm_bits]
            run, held = make_step(shape, lvlm, way, device)
            found = fastest({name: run}, 1, device)[name]
            best = times.setdefault(name, found)
            best.wall, best.cpu = min(best.wall, found.wall), min(best.cpu, found.cpu)
            if turn == 0:
                guess = _estimate(shape, lvlm, way)
                peak = peak_bytes(run, device)
                rows.append({"way": name, "step MiB": round(peak / 2**20, 1)})
                rows[-1]["peak MiB"] = round((held() + peak) / 2**20, 1)
                rows[-1]["estimate MiB"] = round(guess / 2**20, 1)
            _undo(lvlm)
    for row in rows:
        way, found = ways[row["way"]], times[row["way"]]
        each = sum(flops_per_image(size, way.step).values())
        row |= {
            "s per step": round(found.wall, 3),
            "cpu ms": round(1000 * found.cpu),
            "images/s": round(shape.batch / found.wall, 3),
            "questions/s": round(shape.batch * way.step.questions / found.wall, 3),
            "GFLOP per image": round(each / 1e9, 2),
            "MFU": round(shape.batch * each / found.wall / rate, 3),
        }
    typical = statistics.median(row["MFU"] for row in rows)
    for row in rows:  # as `craft bench plan` reckons: one share of the matrix rate for all
        each = sum(flops_per_image(size, ways[row["way"]].step).values())
        row["s by FLOPs"] = round(shape.batch * each / (typical * rate), 3)
    return rows


def make_step(
    shape: Shape, lvlm: LVLM, way: Way, device: torch.device
) -> tuple[Callable[[], None], Callable[[], int]]:
    """A training step of a way, forward, backward and AdamW; and how many bytes are held between steps."""
    step = way.step
    lvlm.requires_grad_(False)
    if step.trains == "lora":
        add_lora(lvlm.backbone.llm, LORA)
        lvlm.to(device)
    for name, parameter in lvlm.named_parameters():
        parameter.requires_grad_(
            (step.trains == "vision" and name.startswith("visual.vision_tower.layers"))
            or (step.trains == "vision" and step.crafted and name.endswith(("cls_token", "log_temperature")))
            or (step.trains == "projector" and ".projector." in name)
            or (step.trains == "lora" and "lora_" in name)
        )
    learning = [parameter for parameter in lvlm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=way.fused or None)
    batch, text = _batch(shape, lvlm, step, device), _text_tower(shape, device) if step.text_tower else None
    losses = LossesConfig(
        sal=SalConfig(), commitment=CommitmentConfig(), contrastive=ContrastiveConfig(weight=1.0)
    )
    objective = CraftObjective(lvlm, losses, 1.0, search=way.search, prefix_cache=step.prefix)

    def loss() -> Tensor:
        if text is not None:
            with torch.no_grad():
                text()
        if not step.crafted:
            return _answers_alone(lvlm, batch, step.trains == "vision")
        if step.all_logits:
            return _with_all_logits(objective, batch)
        return objective(batch)[0]

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with recompute(lvlm, way.checkpointing):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def held() -> int:
        state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        return weight_bytes(lvlm) + sum(t.numel() * t.element_size() for t in state)

    return run, held


def _estimate(shape: Shape, lvlm: LVLM, way: Way) -> int:
    """What `--dry-run` would say of the step's memory."""
    step = way.step
    before, behind, learned = lengths(shape)
    tokens = shape.patches + step.questions * behind + (0 if step.prefix else before)
    answers = tokens if step.all_logits else step.questions * learned
    args = (lvlm, shape.batch, tokens, shape.dtype, answers, way.checkpointing)
    found = estimate_memory(*args, search=way.search)
    return found["total"]


def _undo(lvlm: LVLM) -> None:
    """Take LoRA off again."""
    from craft.training.lora import take_lora

    take_lora(lvlm.backbone.llm, merge=False)


def _batch(shape: Shape, lvlm: LVLM, step: Step, device: torch.device) -> Batch:
    g, count = torch.Generator().manual_seed(0), shape.batch
    side = shape.tower["image_size"]
    turn = (question(shape), answer(shape))
    backbone = lvlm.backbone
    dialogues = None
    if step.questions > 1:
        one = build_dialogue(backbone.prompt, backbone.tokenizer, [turn])
        dialogues = ((one,) * step.questions,) * count
    return Batch(
        ids=tuple(map(str, range(count))),
        images=torch.randn(count, 3, side, side, generator=g).to(device),
        questions=(turn[0],) * count,
        answers=(turn[1],) * count,
        texts=torch.randn(count, shape.width, generator=g).to(device),
        classes=torch.arange(count, device=device),
        dialogues=dialogues,
    )


def _answers_alone(lvlm: LVLM, batch: Batch, through_tower: bool) -> Tensor:
    """What the rivals train on: the answers' loss, and no gradient to the tower where it does not train."""
    with torch.set_grad_enabled(through_tower):
        tokens = lvlm.visual(batch.images)
    inputs = lvlm.backbone.inputs(tokens, batch.questions, batch.answers)
    hidden = lvlm.backbone.hidden_states(inputs)
    return surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"])


def _with_all_logits(objective: CraftObjective, batch: Batch) -> Tensor:
    """Eq. 5 with transformers' own loss: logits at every position, in float32."""
    lvlm = objective.lvlm
    tokens = lvlm.visual(batch.images)
    inputs = lvlm.backbone.inputs(tokens, batch.questions, batch.answers)
    llm: Any = lvlm.backbone.llm
    sal = llm(**inputs, use_cache=False).loss
    rest = objective.losses.model_copy(update={"sal": SalConfig(weight=0.0)})
    return sal + _rest(lvlm, rest, tokens, batch)


def _rest(lvlm: LVLM, losses: LossesConfig, tokens: Any, batch: Batch) -> Tensor:
    from craft.losses import commitment, contrastive

    commit = commitment(tokens.features, tokens.quantized, losses.commitment.reduction)
    assert batch.texts is not None
    con = contrastive(tokens.cls, batch.texts, batch.classes, lvlm.visual.log_temperature)
    return losses.commitment.weight * commit + con


def _text_tower(shape: Shape, device: torch.device) -> Callable[[], Tensor]:
    """A frozen text tower over a text per image."""
    layers, width, inner, tokens = shape.text
    with device:
        layer = nn.TransformerEncoderLayer(width, max(1, width // 64), inner, 0.0, "gelu", batch_first=True)
        tower = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval().requires_grad_(False)
        states = torch.randn(shape.batch, tokens, width)
    return lambda: tower(states)
