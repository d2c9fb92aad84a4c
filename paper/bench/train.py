"""Training, Table 4: CRAFT with a small and with the large LLM against tuning the large one; each speed-up.

All steps are measured in one run on one machine, in turn, with random weights. They run the package's own
objective as in training: the tower in float32, under autocast if the LLM is bfloat16. The baselines compute
the loss at answer positions too, so that no ratio compares two losses.
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
from craft.lessons.batches import Batch
from craft.lessons.objective import CraftObjective, paper_terms
from craft.losses import commitment, contrastive, surrogate_alignment
from craft.models.layers import Compiled, Recompute, layers_of, recompute
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory, weight_bytes
from craft.models.prompts import build_dialogue
from craft.training.config import CommitmentConfig, ContrastiveConfig, LossesConfig, SalConfig
from craft.training.lora import add_lora
from paper.bench.flops import LORA, Step, answer, flops_per_image, lengths, question
from paper.bench.measure import Seconds, fastest, matmul_rate, peak_bytes, where
from paper.bench.shapes import SHAPES, Shape, build_lvlm

QUESTIONS = 5
"""Number of questions about each image, if several share it."""


@dataclass(frozen=True)
class Variant:
    """One way to run a training step.

    Attributes:
        step: what the step computes.
        search, fused, checkpointing, llm_bits, compiled: settings that do not change its FLOPs (except that
            checkpointing computes layers again).
    """

    step: Step
    search: str = "exact"
    fused: bool = False
    checkpointing: Recompute = False
    llm_bits: int | None = None
    compiled: bool = False


EVERYTHING = Step(trains="all", all_logits=True, text_tower=True)
NAIVE = Step(all_logits=True, text_tower=True)

METHODS = {
    "LLM LoRA": Variant(Step(large=True, trains="lora", crafted=False)),
    "Vision FT": Variant(Step(large=True, crafted=False)),
    "Projector FT": Variant(Step(large=True, trains="projector", crafted=False)),
    "CRAFT, large LLM": Variant(Step(large=True)),
    "CRAFT, small LLM": Variant(Step()),
}
"""The rows of Table 4."""

LEVERS = {
    "labels= loss, every weight in the graph": Variant(EVERYTHING),
    "labels= loss, text tower each step": Variant(NAIVE),
    "+ logits at answer positions": Variant(Step(text_tower=True)),
    "+ text embeddings cached": Variant(Step()),
    "+ fused AdamW": Variant(Step(), fused=True),
    f"+ {QUESTIONS} questions per image": Variant(Step(questions=QUESTIONS), fused=True),
    "selective checkpointing (of + text embeddings)": Variant(Step(), checkpointing="selective"),
    "checkpointing instead (of + text embeddings)": Variant(Step(), checkpointing=True),
}
"""CRAFT with the small LLM, with one speed-up after the other."""

FEW_BITS = {f"{bits}-bit LLM (of + text embeddings)": Variant(Step(), llm_bits=bits) for bits in (8, 4)}
"""The same, if bitsandbytes is installed."""

FAST = Variant(Step(), search="auto", fused=True, compiled=True)
ON_A_GPU = {
    "search=auto (of + text embeddings)": Variant(Step(), search="auto"),
    "+ torch.compile and fused AdamW": FAST,
    "LLM LoRA, torch.compile": Variant(Step(large=True, trains="lora", crafted=False), compiled=True),
}
"""The same on a GPU, where compiling does not take minutes and `auto` searches with its own kernel; and a
compiled baseline."""


def measure(size: str, device: torch.device, repeats: int = 3, names: Sequence[str] = ()) -> dict[str, Any]:
    """Time, peak memory and FLOPs of every variant at a size of `SHAPES`.

    Args:
        size: a key of `SHAPES`.
        device: to run on.
        repeats: turns of each variant; the fastest counts.
        names: only variants that have one of these words in their name; without words, all of them.

    Returns:
        `rows` (Table 4), `levers`, `ratios` (None if a side of it did not run), `ways` (`names`), `sizes` and
        `machine`. The row of a variant that the GPU has too little memory for says so.

    Raises:
        ConfigError: peft is not installed, or no variant has such a name.
    """
    shape = SHAPES[size]
    more = (FEW_BITS if find_spec("bitsandbytes") else {}) | (ON_A_GPU if device.type == "cuda" else {})
    methods, levers = (
        {name: one for name, one in variants.items() if not names or any(word in name for word in names)}
        for variants in (METHODS, LEVERS | more)
    )
    if not methods and not levers:
        known = ", ".join(repr(name) for name in METHODS | LEVERS | more)
        raise ConfigError(f"No way to train has {' or '.join(map(repr, names))} in its name: {known}.")
    rate = matmul_rate(device, shape.dtype)
    rows = _measured(methods, size, device, repeats, rate)
    more_rows = _measured(levers, size, device, repeats, rate)
    return {
        "rows": rows,
        "levers": more_rows,
        "ratios": _ratios({row["way"]: row for row in rows + more_rows}),
        "ways": list(names),
        "sizes": {"size": size, "images per step": shape.batch, "dtype of the LLMs": str(shape.dtype)},
        "matrix product, GFLOP/s": round(rate / 1e9, 1),
        "machine": where(device),
    }


def _ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Ratios of rows, by what they compare."""

    def times(one: str, other: str, column: str, digits: int = 2) -> float | None:
        over, under = (rows.get(name, {}).get(column) for name in (one, other))
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


def _measured(
    variants: Mapping[str, Variant], size: str, device: torch.device, repeats: int, rate: float
) -> list[dict[str, Any]]:
    """A row per variant; `rate` is the FLOP/s of a matrix product."""
    shape = SHAPES[size]
    needed = {(variant.step.large, variant.llm_bits) for variant in variants.values()}
    models = {which: build_lvlm(shape, which[0], device, which[1]) for which in needed}
    rows: dict[str, dict[str, Any]] = {name: {"way": name} for name in variants}
    times = {name: Seconds() for name in variants}
    for turn in range(repeats):  # each step is built anew, so that only one is in memory
        for name, variant in variants.items():
            if "out of memory" in rows[name]:
                continue
            say(f"{name}, turn {turn + 1} of {repeats}")
            lvlm = models[variant.step.large, variant.llm_bits]
            try:
                seconds = _turn(shape, lvlm, variant, device, rows[name])
            except torch.OutOfMemoryError:
                rows[name] = {"way": name, "out of memory": True}
                continue
            finally:
                _undo(lvlm, device)
            best = times[name]
            best.wall, best.cpu = min(best.wall, seconds.wall), min(best.cpu, seconds.cpu)
    ran = [row for row in rows.values() if "out of memory" not in row]
    flops = {row["way"]: sum(flops_per_image(size, variants[row["way"]].step).values()) for row in ran}
    for row in ran:
        variant, seconds, each = variants[row["way"]], times[row["way"]], flops[row["way"]]
        row |= {
            "s per step": round(seconds.wall, 4),
            "cpu ms": round(1000 * seconds.cpu),
            "images/s": round(shape.batch / seconds.wall, 3),
            "questions/s": round(shape.batch * variant.step.questions / seconds.wall, 3),
            "GFLOP per image": round(each / 1e9, 2),
            "MFU": round(shape.batch * each / seconds.wall / rate, 3),
        }
    typical = statistics.median(row["MFU"] for row in ran) if ran else 0.0
    for row in ran:  # as `bench plan` calculates: one share of the matrix rate for all
        row["s by FLOPs"] = round(shape.batch * flops[row["way"]] / (typical * rate), 4)
    return list(rows.values())


def _turn(shape: Shape, lvlm: LVLM, variant: Variant, device: torch.device, row: dict[str, Any]) -> Seconds:
    """Time of a step; in the first turn its memory is added to the row."""
    run, held = make_step(shape, lvlm, variant, device)
    seconds = fastest({"step": run}, 1, device)["step"]
    if "step MiB" not in row:
        peak = peak_bytes(run, device)
        row["step MiB"] = round(peak / 2**20, 1)
        row["peak MiB"] = round((held() + peak) / 2**20, 1)
        if variant.step.trains != "all":  # no command trains that
            row["estimate MiB"] = round(_estimate(shape, lvlm, variant) / 2**20, 1)
    return seconds


def make_step(
    shape: Shape, lvlm: LVLM, variant: Variant, device: torch.device
) -> tuple[Callable[[], None], Callable[[], int]]:
    """A training step, forward, backward and AdamW; and the number of bytes held between steps."""
    step = variant.step
    learning = _prepare(lvlm, step, device)
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=variant.fused or None)
    batch, text = _batch(shape, lvlm, step, device), _text_tower(shape, device) if step.text_tower else None
    losses = LossesConfig(
        sal=SalConfig(), commitment=CommitmentConfig(), contrastive=ContrastiveConfig(weight=1.0)
    )
    terms = paper_terms(losses, 1.0)
    objective = CraftObjective(lvlm, terms, search=variant.search, compiled=variant.compiled)
    compiled = variant.compiled and not step.crafted
    layers = Compiled(layers_of(lvlm.backbone.llm)) if compiled else nullcontext()

    def loss() -> Tensor:
        if text is not None:
            with torch.no_grad():
                text()
        if not step.crafted:
            with layers:
                return _answers_alone(lvlm, batch, step.trains == "vision")
        if step.all_logits:
            return _with_all_logits(lvlm, losses, batch)
        return objective(batch)[0]

    def run() -> None:
        lvlm.zero_grad(set_to_none=True)
        with autocast(device, shape.dtype), recompute(lvlm, variant.checkpointing):
            value = loss()
        value.backward()
        optimizer.step()
        lvlm.zero_grad(set_to_none=True)

    def held() -> int:
        state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        return weight_bytes(lvlm) + sum(t.numel() * t.element_size() for t in state)

    return run, held


def _prepare(lvlm: LVLM, step: Step, device: torch.device) -> list[nn.Parameter]:
    """Freeze all weights that the step does not train.

    Returns:
        The weights that the optimizer steps.
    """
    lvlm.requires_grad_(False)
    if step.trains == "lora":
        with device:
            add_lora(lvlm.backbone.llm, LORA)
    vision = step.trains in ("vision", "all")
    for name, parameter in lvlm.named_parameters():
        parameter.requires_grad_(
            (vision and name.startswith("visual.vision_tower.layers"))
            or (vision and step.crafted and name.endswith(("cls_token", "log_temperature")))
            or (step.trains == "projector" and ".projector." in name)
            or (step.trains == "lora" and "lora_" in name)
        )
    learning = [parameter for parameter in lvlm.parameters() if parameter.requires_grad]
    if step.trains == "all":
        lvlm.backbone.requires_grad_(True)  # in the graph, and never stepped
    return learning


def _estimate(shape: Shape, lvlm: LVLM, variant: Variant) -> int:
    """The bytes that `--dry-run` would estimate for the step."""
    step = variant.step
    before, after, learned = lengths(shape)
    tokens = before + shape.patches + step.questions * after
    answers = tokens if step.all_logits else step.questions * learned
    arguments = (lvlm, shape.batch, tokens, shape.dtype, answers, variant.checkpointing)
    return estimate_memory(*arguments, search=variant.search)["total"]


def _undo(lvlm: LVLM, device: torch.device) -> None:
    """Take LoRA off again, and free the memory for the next variant."""
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
    """The loss of the baselines: of the answers, without gradients of the tower if it is not trained."""
    with torch.set_grad_enabled(through_tower):
        tokens = lvlm.visual(batch.images, with_cls=False)
    inputs = lvlm.backbone.inputs(tokens, batch.questions, batch.answers)
    hidden = lvlm.backbone.hidden_states(inputs)
    return surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"])


def _with_all_logits(lvlm: LVLM, losses: LossesConfig, batch: Batch) -> Tensor:
    """Eq. 5 with transformers' own loss: logits at all positions, in float32."""
    tokens = lvlm.visual(batch.images)
    inputs = lvlm.backbone.inputs(tokens, batch.questions, batch.answers)
    llm: Any = lvlm.backbone.llm
    sal = llm(**inputs, use_cache=False).loss
    commit = commitment(tokens.features, tokens.quantized, losses.commitment.reduction)
    assert batch.texts is not None and tokens.cls is not None
    named = contrastive(tokens.cls, batch.texts, batch.classes, lvlm.visual.log_temperature)
    return sal + losses.commitment.weight * commit + named


def _text_tower(shape: Shape, device: torch.device) -> Callable[[], Tensor]:
    """A frozen text tower over a text per image."""
    layers, width, inner, tokens = shape.text
    with device:
        layer = nn.TransformerEncoderLayer(width, max(1, width // 64), inner, 0.0, "gelu", batch_first=True)
        tower = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval().requires_grad_(False)
        states = torch.randn(shape.batch, tokens, width)
    return lambda: tower(states)
