"""`craft demo`: adapt with one LLM, and see what the same encoder does for it and for another one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from craft.core.files import user_path, write_json
from craft.core.progress import say
from craft.data import Sample
from craft.data.load import short_name
from craft.evaluation.metrics import bootstrap_interval
from craft.evaluation.report import Report
from craft.formats.encoder import load_artefact
from craft.formats.load import load
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.pages.figure import Example, draw_demo
from craft.recipes.adapt import Config, adapt
from craft.recipes.evaluate import evaluate
from craft.recipes.questions import open_data, take, with_seen
from craft.training.config import AdaptConfig
from craft.training.run_folder import RunFolder

SURROGATE, OTHER = "craft-tiny/qwen2", "craft-tiny/llama"
"""Whose frozen LLM trains the encoder, and who gets it unasked."""

LIMIT = 500
"""Test questions for each of the four evaluations."""

SHOWN = 10
"""Test images in the picture."""

TEXT_ONLY = ("Name a colour.", "What is a coat?", "Which is larger?\nA. an ant\nB. a horse", "Explain: bag")
"""Questions without a picture, asked before and after."""

FROZEN = ("codebook", "projector", "llm")


@dataclass(frozen=True)
class Figure:
    """Strict accuracy over some of the test questions, with its 95 % bootstrap interval."""

    accuracy: float
    interval: tuple[float, float]
    count: int


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table.

    Attributes:
        backbone: its name.
        role: "surrogate", or "other": never trained with.
        encoder: "zero-shot" or "adapted".
        figures: of "all", "seen" and "unseen" (those that have questions).
        chance: the accuracy of picking an option at random.
    """

    backbone: str
    role: str
    encoder: str
    figures: dict[str, Figure]
    chance: float | None


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        out: its folder, with demo.json, demo.png and the run folder `run/`.
        encoder: the adapted encoder.
        picture: demo.png.
        data: the data set's name.
        rows: the table; zero-shot, then adapted, for each backbone.
        frozen: per backbone and frozen part: are its bytes what they were?
        text_unchanged: per backbone: are answers and logits without a picture what they were, bit for bit?
        codes_changed: share of the shown images' patches whose level-1 code changed.
        held_out: the classes that training never saw.
        metrics: of the adaptation.
        seconds: of adaptation, evaluation and all.
        keep_ratio: share of visual tokens that the LLMs saw.
    """

    out: Path
    encoder: Path
    picture: Path
    data: str
    rows: list[DemoRow]
    frozen: dict[str, dict[str, bool]]
    text_unchanged: dict[str, bool]
    codes_changed: float
    held_out: tuple[str, ...]
    metrics: dict[str, Any]
    seconds: dict[str, float]
    keep_ratio: float

    def gain(self, role: str, group: str = "all") -> float | None:
        """Adapted minus zero-shot of the "surrogate" or the "other" backbone; None without such questions."""
        found = {row.encoder: row.figures.get(group) for row in self.rows if row.role == role}
        before, after = found.get("zero-shot"), found.get("adapted")
        return None if before is None or after is None else after.accuracy - before.accuracy

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict of everything."""
        plain = asdict(self) | {name: str(getattr(self, name)) for name in ("out", "encoder", "picture")}
        gains = {
            f"{role} {group}": self.gain(role, group) for role in ("surrogate", "other") for group in GROUPS
        }
        return {**plain, "held_out": list(self.held_out), "gains": gains}


GROUPS = ("all", "seen", "unseen")


def demo(
    out: str | Path | None = None,
    data: str | None = None,
    surrogate: str | Path | LVLM | None = None,
    other: str | Path | LVLM | None = None,
    seed: int | None = None,
    limit: int | None = LIMIT,
    max_steps: int | None = None,
    config: Config = None,
    resume: bool = False,
    keep_ratio: float = 1.0,
    **overrides: Any,
) -> DemoResult:
    """Adapt the surrogate's vision tower; ask it and another LLM the same questions before and after.

    Args:
        out: a folder (default: `runs/demo-` and the data's name). An earlier demo in it is replaced.
        data: as `craft.adapt` takes it (default: "apparel").
        surrogate: the LVLM whose LLM trains the encoder; `SURROGATE` by default.
        other: an LVLM of the same codebook; `OTHER` by default (`SURROGATE` where that one is the surrogate).
        seed, max_steps, config, **overrides: as `craft.adapt` takes them.
        limit: at most this many test questions, evenly from the classes; None asks all.
        resume: go on with an interrupted demo in `out`.
        keep_ratio: share of visual tokens that the LLMs see when they are asked (§3.3).

    Raises:
        CodebookMismatchError: the two backbones do not share a codebook.
        CraftError: as `craft.adapt` and `craft.evaluate`.
    """
    began = time.monotonic()
    settings = demo_settings(out, data, surrogate, seed, max_steps, config, overrides)
    folder = user_path(settings.out or "").parent
    if other is None:
        other = OTHER if settings.surrogate != OTHER else SURROGATE
    lvlms = {
        role: model if isinstance(model, LVLM) else load(model, settings.device, settings.dtype)
        for role, model in (("surrogate", surrogate or settings.surrogate), ("other", other))
    }
    LVLM(lvlms["surrogate"].visual, lvlms["other"].backbone, lvlms["other"].name)  # one codebook, or an error
    for lvlm in lvlms.values():
        lvlm.check_keep_ratio(keep_ratio)

    # 1. What must not change.
    hashes = {role: part_hashes(lvlm) for role, lvlm in lvlms.items()}
    words = {role: _text_only(lvlm) for role, lvlm in lvlms.items()}

    # 2. Adaptation, with the surrogate alone.
    result = adapt(lvlms["surrogate"], config=settings, resume=resume, overwrite=not resume)
    trained = time.monotonic()

    # 3. The same questions before and after, for both.
    artefact = load_artefact(result.out)
    given = open_data(settings.data, settings.seed, lambda: lvlms["surrogate"], result.held_out or None)
    given = with_seen(given, result.held_out) if given.classes else given
    rows: list[DemoRow] = []
    reports: dict[tuple[str, str], Report] = {}
    adapted = {role: lvlm.with_encoder(artefact) for role, lvlm in lvlms.items()}
    for role, lvlm in lvlms.items():
        for encoder, model in (("zero-shot", lvlm), ("adapted", adapted[role])):
            say(f"{lvlm.name}, {encoder}")
            report = evaluate(model, data=given, limit=limit, like=artefact, keep_ratio=keep_ratio)
            report.save_samples(folder / "answers" / f"{role} {encoder}.jsonl")
            reports[role, encoder] = report
            rows.append(DemoRow(lvlm.name, role, encoder, _figures(report), report.chance))
    asked = time.monotonic()

    # 4. What did not change, and what did.
    after = {role: part_hashes(model) for role, model in adapted.items()}
    frozen = {
        lvlm.name: {part: hashes[role][part] == after[role][part] for part in FROZEN}
        for role, lvlm in lvlms.items()
    }
    same = {lvlms[role].name: _same(words[role], _text_only(model)) for role, model in adapted.items()}
    shown = _one_per_class(take(given.samples("test"), limit, given.seed))
    pair = lvlms["surrogate"], adapted["surrogate"]
    examples = _examples(shown, *pair, reports)
    picture = draw_demo(
        folder / "demo.png",
        f"{given.name}: one encoder, adapted with {lvlms['surrogate'].name}, used by both"
        + ("   (* class never trained on)" if any(not example.seen for example in examples) else ""),
        [f"{lvlms[role].name}, {encoder}" for role, encoder in reports],
        examples,
        RunFolder(result.out).metrics(),
    )
    found = DemoResult(
        out=folder,
        encoder=result.encoder,
        picture=picture,
        data=given.name,
        rows=rows,
        frozen=frozen,
        text_unchanged=same,
        codes_changed=float(np.mean([example.changed.mean() for example in examples])),
        held_out=result.held_out,
        metrics=result.metrics,
        seconds={
            "adapt": round(trained - began, 1),
            "evaluate": round(asked - trained, 1),
            "all": round(time.monotonic() - began, 1),
        },
        keep_ratio=keep_ratio,
    )
    write_json(folder / "demo.json", found.to_json())
    return found


def demo_settings(
    out: str | Path | None = None,
    data: str | None = None,
    surrogate: str | Path | LVLM | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Config = None,
    overrides: Mapping[str, Any] | None = None,
) -> AdaptConfig:
    """The adaptation's settings in a demo with these arguments; its run folder is `run` in the demo's.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    named = {
        "surrogate": surrogate.name if isinstance(surrogate, LVLM) else surrogate and str(surrogate),
        "data.name": data,
        "seed": seed,
        "max_steps": max_steps,
        "out": out and str(out),
    }
    if config is None and surrogate is None:
        named["surrogate"] = SURROGATE
    given = {key: value for key, value in named.items() if value is not None}
    settings = AdaptConfig.build(config, {**given, **(overrides or {})})
    folder = settings.out or str(Path("runs") / f"demo-{short_name(settings.data.name)}")
    return settings.model_copy(update={"out": str(Path(folder) / "run")})


@torch.no_grad()
def _text_only(lvlm: LVLM) -> tuple[list[str], torch.Tensor]:
    """Answers without a picture, and the logits behind them."""
    inputs = lvlm.backbone.inputs(None, TEXT_ONLY)
    answers = lvlm.answer(None, TEXT_ONLY, max_new_tokens=8)
    return answers, lvlm.backbone.logits(inputs)[inputs["attention_mask"]].cpu()


def _same(before: tuple[list[str], torch.Tensor], after: tuple[list[str], torch.Tensor]) -> bool:
    return before[0] == after[0] and torch.equal(before[1], after[1])


def _figures(report: Report) -> dict[str, Figure]:
    """Accuracy with interval over all, seen and unseen."""
    wanted = {"all": (True, False), "seen": (True,), "unseen": (False,)}
    found = {}
    for group, kinds in wanted.items():
        marks = [row["strict"] for row in report.samples if row["seen"] in kinds]
        if marks:
            found[group] = Figure(float(np.mean(marks)), bootstrap_interval(marks), len(marks))
    return found


def _one_per_class(samples: Sequence[Sample]) -> list[Sample]:
    """The first test image of each class: not picked by result. Seen classes first; some of both if many."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.concept, sample)
    seen = [sample for sample in first.values() if sample.seen]
    unseen = [sample for sample in first.values() if not sample.seen][: max(1, SHOWN // 4)]
    return [*seen[: SHOWN - len(unseen)], *unseen]


def _examples(
    samples: Sequence[Sample], base: LVLM, adapted: LVLM, reports: Mapping[tuple[str, str], Report]
) -> list[Example]:
    """Images, answers and changed patches of these samples."""
    images = [sample.image for sample in samples]
    pixels = base.visual.preprocess(images)
    changed = base.encode(pixels).codes[..., 0] != adapted.encode(pixels).codes[..., 0]
    views = (
        ((pixels.permute(0, 2, 3, 1) * 0.5 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    )
    rows = [{row["id"]: row for row in report.samples} for report in reports.values()]
    return [
        Example(
            pixels=views[number],
            answer=sample.answer_text,
            seen=sample.seen,
            replies=tuple((row[sample.id]["prediction"], row[sample.id]["strict"]) for row in rows),
            changed=changed[number].reshape(base.visual.grid).cpu().numpy(),
        )
        for number, sample in enumerate(samples)
    ]
