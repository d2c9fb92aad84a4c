"""`craft judge`: ask an LVLM to justify its answers, and have the answers judged (§4.3, §7)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import check_writable, user_path
from craft.core.lock import locked
from craft.core.text import json_digest, slug
from craft.data import Sample, stratified
from craft.formats.artefact import FORMAT, Artefact
from craft.formats.checks import format_of
from craft.formats.code_cache import image_names
from craft.formats.load import load_artefact
from craft.judging.answers import (
    Answers,
    adopt,
    case_of,
    explain,
    image_of,
    preview_of,
    read_cases,
    read_rows,
    row_of,
)
from craft.judging.cases import DIRECTIVE, Case, Judge
from craft.judging.config import JudgeConfig
from craft.judging.judge import CostEstimate, estimate_cost, judge_answers, make_judge
from craft.judging.report import JudgeReport
from craft.models.freezing import answer_hashes
from craft.models.lvlm import LVLM
from craft.recipes.arguments import ModelSource, data_name, loaded, model_name, surrogate_of, without_none
from craft.recipes.questions import questions_for, take

Config = JudgeConfig | Mapping[str, Any] | str | Path | None


def judge(
    run: str | Path | LVLM | None = None,
    judge: str | Judge | None = None,
    *,
    backbone: str | Path | LVLM | None = None,
    data: str | Path | None = None,
    config: Config = None,
    overwrite: bool = False,
    **overrides: Any,
) -> JudgeReport:
    """Ask an LVLM to justify its answers ("Justify your answer." instead of "Answer in one letter only."),
    and have them judged. The same call continues after an interruption.

    Args:
        run: a run folder or artefact of `craft.adapt`, whose encoder is used; an LVLM (zero-shot, with
            `data`); or answers that exist already: a .jsonl (see `craft.judging.answers.read_rows`), or the
            folder of an earlier judging.
        judge: "offline" (fixed rules, Correctness and Presence only), "anthropic", "openai", or a judge of
            your own.
        backbone: the LVLM that answers with the run's encoder; None is the run's surrogate, if that is a
            shipped model or a folder.
        data: as `craft.evaluate` takes it; None is the run's own. For a .jsonl it supplies the images of rows
            that name none, by `id`.
        config: a YAML file, dict or `JudgeConfig`; the other arguments take precedence.
        overwrite: discard the verdicts in the folder, and answers that can be made again, and start over.
        **overrides: any other setting of `JudgeConfig` by name (`limit=100`, `out="judged"`).

    Raises:
        ConfigError: a setting is unknown or impossible, the judge cannot work, or the folder holds other
            answers.
        CheckpointError: a model or encoder is missing or damaged, or a folder of answers lacks
            `answers.json`.
        DataError: the data, an answer or an image is missing or cannot be read.
        Interrupted: the user stopped it; answers and verdicts so far are on disk.

    Source: §4.3, §7.
    """
    settings = judge_settings(run, judge, backbone, data, config, overrides)
    chosen = judge if isinstance(judge, Judge) else make_judge(settings)
    answers = answers_of(settings, run, backbone)
    with locked(answers.folder):
        return judge_answers(answers, chosen, overwrite)


def estimate(
    run: str | Path | LVLM | None = None,
    judge: str | Judge | None = None,
    *,
    backbone: str | Path | LVLM | None = None,
    data: str | Path | None = None,
    config: Config = None,
    **overrides: Any,
) -> CostEstimate:
    """The dry run of `judge`, which takes the same arguments: counts and costs. Asks no model and writes
    nothing.

    Raises:
        CraftError: what `judge` would raise before it asks a model.
    """
    settings = judge_settings(run, judge, backbone, data, config, overrides)
    chosen = judge if isinstance(judge, Judge) else make_judge(settings)
    return estimate_cost(answers_of(settings, run, backbone), chosen, settings.max_new_tokens)


def judge_settings(
    run: ModelSource | None,
    judge: str | Judge | None,
    backbone: ModelSource | None,
    data: str | Path | None,
    config: Config,
    overrides: Mapping[str, Any],
) -> JudgeConfig:
    """The config, with the arguments of `judge` on top of it.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    arguments = {
        "run": model_name(run),
        "judge": judge if isinstance(judge, str) else None,
        "backbone": model_name(backbone),
        "data": data_name(data),
    }
    return JudgeConfig.build(config, {**overrides, **without_none(arguments)})


def answers_of(
    settings: JudgeConfig, run: ModelSource | None = None, backbone: ModelSource | None = None
) -> Answers:
    """The answers that the settings name: read from a file or folder, or asked of an LVLM.

    Args:
        settings: of `craft judge`.
        run, backbone: loaded LVLMs; anything else goes by the settings.

    Raises:
        ConfigError: nothing is named, or the settings contradict each other.
        CheckpointError, DataError: something named is missing or damaged.
    """
    if isinstance(run, LVLM):
        return _answers_of_lvlm(settings, run, None)
    if settings.run is None:
        raise ConfigError(
            "Name what to judge: a run folder of `craft adapt`, an LVLM (with --data), a .jsonl of answers, "
            "or the folder of an earlier judging."
        )
    path = user_path(settings.run)
    if path.suffix == ".jsonl":
        return _answers_in_file(settings, path)
    if _holds_answers(path):
        return Answers(
            path,
            collect=lambda: read_cases(path),
            preview=lambda: preview_of(read_cases(path)),
            disposable=False,
            written=True,
        )
    if not _is_encoder(path):
        return _answers_of_lvlm(settings, settings.run, None)
    artefact = load_artefact(settings.run)
    answering = backbone if isinstance(backbone, LVLM) else settings.backbone
    answering = surrogate_of(artefact, "--backbone", folders=True) if answering is None else answering
    return _answers_of_lvlm(settings, answering, artefact)


def _answers_of_lvlm(settings: JudgeConfig, backbone: str | LVLM, artefact: Artefact | None) -> Answers:
    """The answers of an LVLM, zero-shot or with an encoder. The questions are those of the encoder's training
    even if `zero_shot` leaves the encoder out."""
    zero_shot = settings.zero_shot or artefact is None
    manifest = {} if artefact is None else artefact.manifest

    @functools.cache
    def model() -> LVLM:
        lvlm = loaded(backbone, settings.device, settings.dtype)
        return lvlm if zero_shot or artefact is None else lvlm.with_encoder(artefact)

    name = str(model_name(backbone))
    parent = Path("runs" if artefact is None or settings.run is None else settings.run) / "judge"
    folder = user_path(settings.out or parent / (slug(name, "judge") + ("-zero-shot" if zero_shot else "")))
    check_writable(folder / "answers.json")
    questions = questions_for({"name": settings.data, "root": settings.root}, settings.seed, manifest, model)
    samples = take(questions.samples("test"), settings.limit, questions.seed)

    def collect() -> list[Case]:
        lvlm = model()
        hashes, images = answer_hashes(lvlm), image_names([sample.image for sample in samples])
        prompts = [
            [sample.id, sample.prompt(DIRECTIVE), image]
            for sample, image in zip(samples, images, strict=True)
        ]
        identity = {
            "backbone": name,
            "zero_shot": zero_shot,
            "tower": hashes["vision_tower"],
            **{part: hashes[part] for part in ("projector", "llm", "words") if part in hashes},
            "data": questions.name,
            "seed": questions.seed,
            "held_out": list(questions.held_out),
            **({"caveats": list(questions.caveats)} if questions.caveats else {}),
            "samples": json_digest(prompts, compact=True),
        }
        options = settings.model_dump(include={"max_new_tokens", "keep_ratio", "batch_size"})
        return explain(lvlm, samples, folder, identity, **options)

    return Answers(
        folder,
        collect,
        preview=lambda: [(case_of(row_of(sample, "")), sample.image) for sample in samples],
    )


def _answers_in_file(settings: JudgeConfig, path: Path) -> Answers:
    """The answers in a .jsonl, at most `limit` of them, drawn evenly from the labels."""
    folder = user_path(settings.out or path.with_name(f"{path.stem}-judged"))
    check_writable(folder / "answers.json")
    samples: dict[str, Sample] = {}
    if settings.data is not None:
        data = questions_for({"name": settings.data, "root": settings.root}, settings.seed, {}, _no_lvlm)
        samples = {sample.id: sample for sample in data.all_samples()}
    rows = read_rows(path)
    if settings.limit < len(rows):
        rows = stratified(
            rows,
            settings.limit,
            identity=lambda row: str(row["id"]),
            group=lambda row: str(row.get("label") or ""),
            seed=settings.seed or 0,
            purpose="limit",
        )[1]
    return Answers(
        folder,
        collect=lambda: adopt(path, rows, samples, folder),
        preview=lambda: [(case_of(row), image_of(row, path, samples)) for row in rows],
        disposable=folder.resolve() != path.resolve().parent,
        written=True,
    )


def _no_lvlm() -> LVLM:
    raise ConfigError("The images of answers go by id, whatever the options are; do not set distractors.")


def _holds_answers(path: Path) -> bool:
    """Whether a folder is that of an earlier judging, even if its `answers.json` is lost."""
    return (path / "answers.json").is_file() or ((path / "answers.jsonl").is_file() and not _is_encoder(path))


def _is_encoder(path: Path) -> bool:
    """Whether a folder is a run or an adapted encoder, rather than an LVLM."""
    if (path / "run.json").is_file() or (path / "encoder").is_dir():
        return True
    return format_of(path / "craft.json") == FORMAT
