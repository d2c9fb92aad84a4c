"""`craft demo`: adapt with one LLM, and measure what the same encoder does for it and for another LLM."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from craft.core.errors import ConfigError
from craft.core.files import user_path, write_json
from craft.core.lock import locked
from craft.core.progress import say
from craft.data import Data, Sample
from craft.data.load import short_name
from craft.evaluation.report import Report, interval_of
from craft.formats.load import load_artefact
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.pages.figure import Example, draw_demo
from craft.recipes.adapt import adapt
from craft.recipes.arguments import ModelSource, loaded, model_name, without_none
from craft.recipes.evaluate import evaluate
from craft.recipes.opening import OPTIONAL, Config
from craft.recipes.questions import open_data, take, with_seen
from craft.recipes.show import views_of
from craft.training.config import AdaptConfig
from craft.training.run_folder import RunFolder

SURROGATE, OTHER = "craft-tiny/qwen2", "craft-tiny/llama"
"""The model whose frozen LLM trains the encoder, and the model that uses the encoder untrained."""

LIMIT = 500
"""Test questions for each of the four evaluations."""

SHOWN = 10
"""Test images in the figure."""

GROUPS = {"all": None, "seen": True, "unseen": False}
"""Groups of test questions: the value of `Sample.seen` in each; None is both."""

TEXT_ONLY = ("Name a colour.", "What is a coat?", "Which is larger?\nA. an ant\nB. a horse", "Explain: bag")
"""Questions without an image, asked before and after."""

FROZEN = ("codebook", "projector", "llm")

TextAnswers = tuple[list[str], torch.Tensor]  # answers, and the logits that they come from


@dataclass(frozen=True)
class GroupAccuracy:
    """Strict accuracy on one group of the test questions, with its 95 % interval (`metrics.interval`)."""

    accuracy: float
    interval: tuple[float, float]
    count: int


@dataclass(frozen=True)
class DemoRow:
    """One row of the demo's table.

    Attributes:
        backbone: the name of the backbone.
        role: "surrogate", or "other" for the backbone that takes no part in the adaptation.
        encoder: "zero-shot" or "adapted".
        figures: the accuracy on "all", "seen" and "unseen" questions; groups without questions are absent.
        chance: the accuracy of choosing an option at random.
    """

    backbone: str
    role: str
    encoder: str
    figures: dict[str, GroupAccuracy]
    chance: float | None


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        out: the demo's folder, with demo.json, demo.png and the run folder `run/`.
        encoder: the adapted encoder.
        picture: demo.png.
        data: the name of the data set.
        rows: the table; zero-shot, then adapted, for each backbone.
        frozen: for each backbone and frozen part, whether its bytes are the same as before.
        text_unchanged: for each backbone, whether answers and logits without a picture are bit-identical.
        codes_changed: share of the shown images' patches whose level-1 code changed.
        held_out: the classes that were held out of training.
        metrics: the metrics of the adaptation.
        seconds: the duration of adaptation, evaluation and the whole demo.
        keep_ratio: share of visual tokens that the LLMs see.
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
        """Adapted minus zero-shot accuracy of a role's backbone; None if the group has no questions."""
        accuracies = {row.encoder: row.figures.get(group) for row in self.rows if row.role == role}
        before, after = accuracies.get("zero-shot"), accuracies.get("adapted")
        return None if before is None or after is None else after.accuracy - before.accuracy

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON."""
        plain = asdict(self) | {name: str(getattr(self, name)) for name in ("out", "encoder", "picture")}
        gains = {
            f"{role} {group}": self.gain(role, group) for role in ("surrogate", "other") for group in GROUPS
        }
        return {**plain, "held_out": list(self.held_out), "gains": gains}


def demo(
    out: str | Path | None = None,
    data: str | None = None,
    surrogate: str | Path | LVLM | None = None,
    other: str | Path | LVLM | None = None,
    *,
    limit: int | None = LIMIT,
    keep_ratio: float = 1.0,
    config: Config = None,
    resume: bool = False,
    **overrides: Any,
) -> DemoResult:
    """Adapt the surrogate's vision tower, and ask it and another LLM the same questions before and after.

    Args:
        out: the folder (default: `runs/demo-` and the data's name). It replaces an earlier demo there.
        data: as for `craft.adapt` (default: "apparel").
        surrogate: the LVLM whose LLM trains the encoder; `SURROGATE` by default.
        other: an LVLM of the same codebook; `OTHER` by default, or `SURROGATE` if `OTHER` is the surrogate.
        limit: at most this many test questions, evenly from the classes; None asks all.
        keep_ratio: share of visual tokens that the LLMs see when they are asked (§3.3).
        config: as for `craft.adapt`.
        resume: continue the interrupted demo in `out`.
        **overrides: settings of the adaptation, as for `craft.adapt`, such as seed and max_steps.

    Raises:
        CodebookMismatchError: the two backbones do not share a codebook.
        CraftError: as for `craft.adapt` and `craft.evaluate`.
    """
    start = time.monotonic()
    settings = demo_settings(out, data, surrogate, config, **overrides)
    folder = user_path(settings.out or "").parent
    with locked(folder):
        lvlms = _load_both(settings, surrogate, other)
        for lvlm in lvlms.values():
            lvlm.check_keep_ratio(keep_ratio)

        # 1. What must not change.
        hashes = {role: part_hashes(lvlm) for role, lvlm in lvlms.items()}
        texts = {role: _text_only(lvlm) for role, lvlm in lvlms.items()}

        # 2. Adaptation, with the surrogate alone.
        result = adapt(lvlms["surrogate"], config=settings, resume=resume, overwrite=not resume)
        trained = time.monotonic()

        # 3. The same questions before and after, for both.
        artefact = load_artefact(result.out)
        adapted = {role: lvlm.with_encoder(artefact) for role, lvlm in lvlms.items()}
        test_data = _test_data(settings, lvlms["surrogate"], result.held_out)
        reports: dict[tuple[str, str], Report] = {}
        for role, encoder in product(lvlms, ("zero-shot", "adapted")):
            model = lvlms[role] if encoder == "zero-shot" else adapted[role]
            say(f"{model.name}, {encoder}")
            report = evaluate(model, data=test_data, limit=limit, like=artefact, keep_ratio=keep_ratio)
            report.save_samples(folder / "answers" / f"{role} {encoder}.jsonl")
            reports[role, encoder] = report
        evaluated = time.monotonic()

        # 4. What did not change, and what did.
        frozen = {lvlms[role].name: _same_parts(hashes[role], model) for role, model in adapted.items()}
        text_unchanged = {
            lvlms[role].name: _same_texts(texts[role], model) for role, model in adapted.items()
        }
        shown = _one_per_class(take(test_data.samples("test"), limit, test_data.seed))
        examples = _examples(shown, lvlms["surrogate"], adapted["surrogate"], reports)
        demo_result = DemoResult(
            out=folder,
            encoder=result.encoder,
            picture=_draw(folder / "demo.png", test_data.name, lvlms, reports, examples),
            data=test_data.name,
            rows=[
                DemoRow(lvlms[role].name, role, encoder, _accuracies(report), report.chance)
                for (role, encoder), report in reports.items()
            ],
            frozen=frozen,
            text_unchanged=text_unchanged,
            codes_changed=float(np.mean([example.changed.mean() for example in examples])),
            held_out=result.held_out,
            metrics=result.metrics,
            seconds={
                "adapt": round(trained - start, 1),
                "evaluate": round(evaluated - trained, 1),
                "all": round(time.monotonic() - start, 1),
            },
            keep_ratio=keep_ratio,
        )
        write_json(folder / "demo.json", demo_result.to_json())
        return demo_result


def demo_settings(
    out: str | Path | None = None,
    data: str | None = None,
    surrogate: str | Path | LVLM | None = None,
    config: Config = None,
    **overrides: Any,
) -> AdaptConfig:
    """The settings of the adaptation in a demo with these arguments.

    The adaptation's run folder is `run` in the demo's folder.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    named = {"surrogate": model_name(surrogate), "data.name": data, "out": out and str(out)}
    if config is None and surrogate is None:
        named["surrogate"] = SURROGATE
    settings = AdaptConfig.build(config, {**without_none(named), **without_none(overrides, OPTIONAL)})
    folder = settings.out or str(Path("runs") / f"demo-{short_name(settings.data.name)}")
    return settings.model_copy(update={"out": str(Path(folder) / "run")})


def finished_encoder(settings: AdaptConfig) -> Path | None:
    """The encoder of an earlier demo with the same settings; None if there is none, or it was interrupted.

    Args:
        settings: as `demo_settings` returns them.
    """
    run = RunFolder(settings.out or "")
    name = "/".join(Path(settings.surrogate).parts[-2:])  # a loaded model's name, which runs record
    try:
        same = run.check(settings.model_copy(update={"surrogate": name}), resume=True) and run.finished
    except ConfigError:  # other settings: the demo replaces that run
        return None
    return run.encoder if same and (run.path.parent / "demo.json").is_file() else None


def _load_both(
    settings: AdaptConfig, surrogate: ModelSource | None, other: ModelSource | None
) -> dict[str, LVLM]:
    """The two LVLMs, by role.

    Raises:
        CodebookMismatchError: they do not share a codebook.
    """
    if other is None:
        other = OTHER if settings.surrogate != OTHER else SURROGATE
    lvlms = {
        role: loaded(model, settings.device, settings.dtype)
        for role, model in (("surrogate", surrogate or settings.surrogate), ("other", other))
    }
    LVLM(lvlms["surrogate"].visual, lvlms["other"].backbone, lvlms["other"].name)  # raises if they differ
    return lvlms


def _test_data(settings: AdaptConfig, surrogate: LVLM, held_out: tuple[str, ...]) -> Data:
    """The data of the adaptation, with the classes that it held out marked as unseen."""
    data = open_data(settings.data, settings.seed, lambda: surrogate, held_out or None)
    return with_seen(data, held_out) if data.classes else data


@torch.no_grad()
def _text_only(lvlm: LVLM) -> TextAnswers:
    inputs = lvlm.backbone.inputs(None, TEXT_ONLY)
    answers = lvlm.answer(None, TEXT_ONLY, max_new_tokens=8)
    return answers, lvlm.backbone.logits(inputs)[inputs["attention_mask"]].cpu()


def _same_texts(before: TextAnswers, lvlm: LVLM) -> bool:
    answers, logits = _text_only(lvlm)
    return answers == before[0] and torch.equal(logits, before[1])


def _same_parts(before: Mapping[str, str], lvlm: LVLM) -> dict[str, bool]:
    after = part_hashes(lvlm)
    return {part: before[part] == after[part] for part in FROZEN if part in before}


def _accuracies(report: Report) -> dict[str, GroupAccuracy]:
    """Accuracy with interval for each group that has questions."""
    accuracies = {}
    for group, seen in GROUPS.items():
        marks = [row["strict"] for row in report.samples if seen in (None, row["seen"])]
        if (ends := interval_of([report], seen)) is not None:
            accuracies[group] = GroupAccuracy(float(np.mean(marks)), ends, len(marks))
    return accuracies


def _draw(
    path: Path,
    data: str,
    lvlms: Mapping[str, LVLM],
    reports: Mapping[tuple[str, str], Report],
    examples: Sequence[Example],
) -> Path:
    title = f"{data}: one encoder, adapted with {lvlms['surrogate'].name}, used by both"
    if not all(example.seen for example in examples):
        title += "   (* class never trained on)"
    lines = [f"{lvlms[role].name}, {encoder}" for role, encoder in reports]
    return draw_demo(path, title, lines, examples, RunFolder(path.parent / "run").metrics())


def _one_per_class(samples: Sequence[Sample]) -> list[Sample]:
    """The first test image of each class, seen classes before a few unseen ones."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.concept, sample)
    seen = [sample for sample in first.values() if sample.seen]
    unseen = [sample for sample in first.values() if not sample.seen][: max(1, SHOWN // 4)]
    return [*seen[: SHOWN - len(unseen)], *unseen]


def _examples(
    samples: Sequence[Sample], base: LVLM, adapted: LVLM, reports: Mapping[tuple[str, str], Report]
) -> list[Example]:
    """The images, answers and changed patches of these samples."""
    images = [sample.image for sample in samples]
    pixels = base.visual.preprocess(images)
    changed = base.encode(pixels).codes[..., 0] != adapted.encode(pixels).codes[..., 0]
    views = views_of(pixels)
    rows_by_id = [{row["id"]: row for row in report.samples} for report in reports.values()]
    return [
        Example(
            pixels=views[number],
            answer=sample.answer_text,
            seen=sample.seen,
            replies=tuple((row[sample.id]["prediction"], row[sample.id]["strict"]) for row in rows_by_id),
            changed=changed[number].reshape(base.visual.grid).cpu().numpy(),
        )
        for number, sample in enumerate(samples)
    ]
