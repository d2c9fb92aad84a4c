"""Training, Table 4: CRAFT with a small and with the large LLM against tuning the large one; each lever.

All in one run on one machine, the ways in turn, with random weights. The package's own objective runs, as in
training: the tower in float32, autocast where the LLM is bfloat16. The rivals have the loss at answer
positions too, so that no ratio is that of two losses.
"""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.device import autocast
from craft.core.errors import ConfigError
from craft.core.progress import say
from craft.experiments.bench.activations import activation_bytes
from craft.experiments.bench.flops import LORA, Step, answer, flops_per_image, lengths, question
from craft.experiments.bench.measure import Seconds, fastest, matmul_rate, peak_bytes, where
from craft.experiments.bench.shapes import SHAPES, Shape, build_lvlm
from craft.lessons.batches import Batch
from craft.lessons.objective import CraftObjective, paper_terms
from craft.losses import surrogate_alignment
from craft.models.compiled import Compiled, layers_of
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory, weight_bytes
from craft.models.prompts import build_dialogue
from craft.models.recompute import Recompute, recompute
from craft.training.config import CommitmentConfig, ContrastiveConfig, LossesConfig, SalConfig
from craft.training.lora import add_lora

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
    compiled: bool = False


EVERYTHING = Step(trains="all", all_logits=True, text_tower=True)
NAIVE = Step(all_logits=True, text_tower=True)

METHODS = {
    "LLM LoRA": Way(Step(large=True, trains="lora", crafted=False)),
    "Vision FT": Way(Step(large=True, crafted=False)),
    "Projector FT": Way(Step(large=True, trains="projector", crafted=False)),
    "CRAFT, large LLM": Way(Step(large=True)),
    "CRAFT, small LLM": Way(Step()),
}
"""The rows of Table 4."""

LEVERS = {
    "labels= loss, every weight in the graph": Way(EVERYTHING),
    "labels= loss, text tower each step": Way(NAIVE),
    "+ logits at answer positions": Way(Step(text_tower=True)),
    "+ text embeddings cached": Way(Step()),
    "+ fused AdamW": Way(Step(), fused=True),
    f"+ {QUESTIONS} questions per image": Way(Step(questions=QUESTIONS), fused=True),
    "selective checkpointing (of + text embeddings)": Way(Step(), checkpointing="selective"),
    "checkpointing instead (of + text embeddings)": Way(Step(), checkpointing=True),
}
"""CRAFT with the small LLM, one lever after the other."""

FEW_BITS = {f"{bits}-bit LLM (of + text embeddings)": Way(Step(), llm_bits=bits) for bits in (8, 4)}
"""The same where bitsandbytes is installed."""

FAST = Way(Step(), search="auto", fused=True, compiled=True)
ON_A_GPU = {
    "search=auto (of + text embeddings)": Way(Step(), search="auto"),
    "+ torch.compile and fused AdamW": FAST,
    "LLM LoRA, torch.compile": Way(Step(large=True, trains="lora", crafted=False), compiled=True),
}
"""The same on a GPU, where compiling takes no minutes and `auto` finds codewords by a kernel of its own; and
what compiling does for the rival."""


def measure(size: str, device: torch.device, repeats: int = 3, ways: Sequence[str] = ()) -> dict[str, Any]:
    """Time, peak memory and FLOPs of every way at a size of `SHAPES`.

    Args:
        size: a key of `SHAPES`.
        device: where.
        repeats: turns of each way; the fastest counts.
        ways: only those that have one of these words in their name; all of them, if there is none.

    Returns:
        `rows` (Table 4), `levers`, `ratios` (None where a side of it did not run), `ways`, `sizes`,
        `machine`; and, apart from what was measured, `calculated`: FLOPs and activations at real size (for
        "reduced").
        A way that the GPU has too little memory for says so in its row.

    Raises:
        ConfigError: peft is not installed, or no way has such a name.
    """
    shape = SHAPES[size]
    more = (FEW_BITS if find_spec("bitsandbytes") else {}) | (ON_A_GPU if device.type == "cuda" else {})
    chosen, pulled = (
        {name: way for name, way in all_.items() if not ways or any(word in name for word in ways)}
        for all_ in (METHODS, LEVERS | more)
    )
    if not chosen and not pulled:
        known = ", ".join(repr(name) for name in METHODS | LEVERS | more)
        raise ConfigError(f"No way to train has {' or '.join(map(repr, ways))} in its name: {known}.")
    rate = matmul_rate(device, shape.dtype)
    rows = _measured(chosen, size, device, repeats, rate)
    levers = _measured(pulled, size, device, repeats, rate)
    return {
        "rows": rows,
        "levers": levers,
        "ratios": _ratios({row["way"]: row for row in rows + levers}),
        "ways": list(ways),
        "calculated": calculated() if size == "reduced" and not ways else None,
        "sizes": {"size": size, "images per step": shape.batch, "dtype of the LLMs": str(shape.dtype)},
        "matrix product, GFLOP/s": round(rate / 1e9, 1),
        "machine": where(device),
    }


def _ratios(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """What the rows come to, by their names."""

    def times(one: str, other: str, column: str, digits: int = 2) -> float | None:
        over, under = (found.get(name, {}).get(column) for name in (one, other))
        return None if over is None or under is None else round(over / under, digits)

    lora, small = "LLM LoRA", "CRAFT, small LLM"
    everything, naive, _, last, *_ = LEVERS
    selective = next(name for name in LEVERS if name.startswith("selective"))
    _, fast, quick_lora = ON_A_GPU
    return {
        "small CRAFT against LoRA, per image, on the clock": times(small, lora, "images/s"),
        "the same by processor time": times(lora, small, "cpu ms"),
        "its share of LoRA's peak memory": times(small, lora, "peak MiB", 3),
        "that with selective checkpointing, LoRA without": times(selective, lora, "peak MiB", 3),
        "small CRAFT, search=auto and compiled, against LoRA, per image": times(fast, lora, "images/s"),
        "the same against LoRA, compiled too": times(fast, quick_lora, "images/s"),
        "its share of LoRA's peak memory, search=auto and compiled": times(fast, lora, "peak MiB", 3),
        "the same of LoRA's, compiled too": times(fast, quick_lora, "peak MiB", 3),
        "levers: speed": times(last, naive, "images/s"),
        "levers: FLOPs": times(naive, last, "GFLOP per image"),
        "levers: peak memory of a step": times(naive, last, "step MiB"),
        "the same with selective checkpointing": times(naive, selective, "step MiB"),
        "levers against every weight in the graph: speed": times(last, everything, "images/s"),
        "against every weight: FLOPs": times(everything, last, "GFLOP per image"),
        "against every weight: peak memory of a step": times(everything, last, "step MiB"),
        "against every weight: the same with selective checkpointing": times(
            everything, selective, "step MiB"
        ),
    }


def calculated() -> dict[str, Any]:
    """At real size, B = 24 and V = 151936: FLOPs by the meta device, activations from one layer each."""
    shape = SHAPES["real"]
    # FLOPs with whole layers run twice would be those of the step and a forward pass more: left out
    ways = {name: way for name, way in LEVERS.items() if not way.fused and way.checkpointing is not True}
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
    first, frozen, last, selective = rows[0], rows[1], rows[3], rows[4]
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
    rows: dict[str, dict[str, Any]] = {name: {"way": name} for name in ways}
    times = {name: Seconds() for name in ways}
    for turn in range(repeats):  # the ways take turns; each is built anew, so that only one is in memory
        for name, way in ways.items():
            if "out of memory" in rows[name]:
                continue
            say(f"{name}, turn {turn + 1} of {repeats}")
            lvlm = models[way.step.large, way.llm_bits]
            try:
                found = _turn(shape, lvlm, way, device, rows[name])
            except torch.OutOfMemoryError:
                rows[name] = {"way": name, "out of memory": True}
                continue
            finally:
                _undo(lvlm, device)
            best = times[name]
            best.wall, best.cpu = min(best.wall, found.wall), min(best.cpu, found.cpu)
    ran = [row for row in rows.values() if "out of memory" not in row]
    for row in ran:
        way, found = ways[row["way"]], times[row["way"]]
        each = sum(flops_per_image(size, way.step).values())
        row |= {
            "s per step": round(found.wall, 4),
            "cpu ms": round(1000 * found.cpu),
            "images/s": round(shape.batch / found.wall, 3),
            "questions/s": round(shape.batch * way.step.questions / found.wall, 3),
            "GFLOP per image": round(each / 1e9, 2),
            "MFU": round(shape.batch * each / found.wall / rate, 3),
        }
    typical = statistics.median(row["MFU"] for row in ran) if ran else 0.0
    for row in ran:  # as `craft bench plan` reckons: one share of the matrix rate for all
        each = sum(flops_per_image(size, ways[row["way"]].step).values())
        row["s by FLOPs"] = round(shape.batch * each / (typical * rate), 4)
    return list(rows.values())


def _turn(shape: Shape, lvlm: LVLM, way: Way, device: torch.device, row: dict[str, Any]) -> Seconds:
    """Time of a step; in the first turn its memory is put into the row."""
    run, held = make_step(shape, lvlm, way, device)
    found = fastest({"step": run}, 1, device)["step"]
    if "step MiB" not in row:
        peak = peak_bytes(run, device)
        row["step MiB"] = round(peak / 2**20, 1)
        row["peak MiB"] = round((held() + peak) / 2**20, 1)
        if way.step.trains != "all":  # no command trains that way
            row["estimate MiB"] = round(_estimate(shape, lvlm, way) / 2**20, 1)
    return found


def make_step(
    shape: Shape, lvlm: LVLM, way: Way, device: torch.device
) -> tuple[Callable[[], None], Callable[[], int]]:
    """A training step of a way, forward, backward and AdamW; and how many bytes are held between steps."""
    step = way.step
    lvlm.requires_grad_(False)
    if step.trains == "lora":
        with device:
            add_lora(lvlm.backbone.llm, LORA)
    crafted = step.crafted and step.trains in ("vision", "all")
    for name, parameter in lvlm.named_parameters():
        parameter.requires_grad_(
            (step.trains in ("vision", "all") and name.startswith("visual.vision_tower.layers"))
            or (crafted and name.endswith(("cls_token", "log_temperature")))
            or (step.trains == "projector" and ".projector." in name)
            or (step.trains == "lora" and "lora_" in name)
        )
    learning = [parameter for parameter in lvlm.parameters() if parameter.requires_grad]
    if step.trains == "all":
        lvlm.backbone.requires_grad_(True)  # in the graph, and never stepped
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=way.fused or None)
    batch, text = _batch(shape, lvlm, step, device), _text_tower(shape, device) if step.text_tower else None
    losses = LossesConfig(
        sal=SalConfig(), commitment=CommitmentConfig(), contrastive=ContrastiveConfig(weight=1.0)
    )
    terms = paper_terms(losses, 1.0)
    objective = CraftObjective(lvlm, terms, search=way.search, compiled=way.compiled)
    layers = Compiled(layers_of(lvlm.backbone.llm)) if way.compiled and not step.crafted else nullcontext()

    def loss() -> Tensor:
        if text is not None:
            with torch.no_grad():
                text()
        if not step.crafted:
            with layers:
                return _answers_alone(lvlm, batch, step.trains == "vision")
        if step.all_logits:
            return _with_all_logits(objective, losses, batch)
        return objective(batch)[0]

    def run() -> None:
        lvlm.zero_grad(set_to_none=True)
        with autocast(device, shape.dtype), recompute(lvlm, way.checkpointing):
            value = loss()
        value.backward()
        optimizer.step()
        lvlm.zero_grad(set_to_none=True)

    def held() -> int:
        state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        return weight_bytes(lvlm) + sum(t.numel() * t.element_size() for t in state)

    return run, held


def _estimate(shape: Shape, lvlm: LVLM, way: Way) -> int:
    """What `--dry-run` would say of the step's memory."""
    step = way.step
    before, behind, learned = lengths(shape)
    tokens = shape.patches + step.questions * behind + before
    answers = tokens if step.all_logits else step.questions * learned
    args = (lvlm, shape.batch, tokens, shape.dtype, answers, way.checkpointing)
    found = estimate_memory(*args, search=way.search)
    return found["total"]


def _undo(lvlm: LVLM, device: torch.device) -> None:
    """Take LoRA off again, and leave the whole memory to the next way."""
    from craft.training.lora import take_lora

    take_lora(lvlm.backbone.llm, merge=False)
    lvlm.zero_grad(set_to_none=True)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


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
        tokens = lvlm.visual(batch.images, with_cls=False)
    inputs = lvlm.backbone.inputs(tokens, batch.questions, batch.answers)
    hidden = lvlm.backbone.hidden_states(inputs)
    return surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"])


def _with_all_logits(objective: CraftObjective, losses: LossesConfig, batch: Batch) -> Tensor:
    """Eq. 5 with transformers' own loss: logits at every position, in float32."""
    lvlm = objective.lvlm
    tokens = lvlm.visual(batch.images)
    inputs = lvlm.backbone.inputs(tokens, batch.questions, batch.answers)
    llm: Any = lvlm.backbone.llm
    sal = llm(**inputs, use_cache=False).loss
    rest = losses.model_copy(update={"sal": SalConfig(weight=0.0)})
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
