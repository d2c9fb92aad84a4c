"""`craft judge`: ask an LVLM to justify its answers, and have the answers judged (§4.3, §7)."""

import functools
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from craft.core.errors import ConfigError
from craft.core.files import read_json, user_path, write_json
from craft.data import ImageSource, Sample, stratified
from craft.data.load import as_setting
from craft.evaluation.judge import DIRECTIVE, Case, Judge, JudgeReport, digest
from craft.evaluation.judge_answers import (
    adopt,
    case_of,
    explain,
    picture_of,
    read_cases,
    read_rows,
    row_of,
)
from craft.evaluation.judge_local import local_judge
from craft.evaluation.judge_offline import offline_judge
from craft.evaluation.judge_run import VerdictCache, judge_cases
from craft.evaluation.judge_services import ServiceSettings, anthropic_judge, openai_judge
from craft.formats.artefact import FORMAT
from craft.formats.code_cache import image_names
from craft.formats.encoder import load_artefact
from craft.formats.load import load
from craft.models.freezing import answer_hashes
from craft.models.lvlm import LVLM
from craft.recipes.questions import check_limit, questions_for, take

JudgeName = Literal["offline", "anthropic", "openai", "local"]

LIMIT = 350
"""Samples per data set. Source: §4.3."""

MAX_NEW_TOKENS = 1024
"""Cap on an answer. Source: §4.1."""

Preview = list[tuple[Case, ImageSource | None]]


def make_judge(
    name: JudgeName = "offline",
    settings: ServiceSettings | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Judge:
    """A judge by name.

    Args:
        name: "offline" (fixed rules), "anthropic" (by default the paper's), "openai" (any server of that
            protocol) or "local" (a model that transformers loads).
        settings: model, server, sampling, rubric; "offline" has none.
        device, dtype: of a local model.

    Raises:
        ConfigError: there is no such judge, it needs a model and none is named, or the rubric cannot be used.
    """
    given = settings or ServiceSettings()
    if name == "local":
        if given.model is None:
            raise ConfigError("A local judge needs --model: a folder or hub id with an image-and-text model.")
        return local_judge(given.model, given.temperature, given.max_tokens, device, dtype, given.prompt)
    makers: dict[str, Callable[[], Judge]] = {
        "offline": offline_judge,
        "anthropic": lambda: anthropic_judge(given),
        "openai": lambda: openai_judge(given),
    }
    if name not in makers:
        raise ConfigError(f"There is no judge {name!r}; there are {', '.join(makers)} and local.")
    if name == "offline" and given.prompt is not None:
        raise ConfigError("The judge by rules reads no prompt; name another judge with it.")
    return makers[name]()


@dataclass(frozen=True)
class Answers:
    """Where answers come from; nothing is asked for yet.

    Attributes:
        folder: where they are, or will be.
        collect: gets them, asking an LVLM for what is missing.
        preview: what will be judged, as far as it is known: cases, with an empty response where nobody was
            asked, and their pictures.
        disposable: whether `collect` can make them again.
        given: whether they are written already, so that one without a word is an answer too.
    """

    folder: Path
    collect: Callable[[], list[Case]]
    preview: Callable[[], Preview]
    disposable: bool = True
    given: bool = False


def judge(answers: Answers, judge: Judge | JudgeName = "offline", *, overwrite: bool = False) -> JudgeReport:
    """Have answers judged, and write `report-JUDGE.json` beside them. The same call again goes on from where
    it stopped.

    Args:
        answers: from `answers_of`, `answers_in`.
        judge: who judges; the default are rules that score Correctness and Presence only.
        overwrite: throw away the verdicts in the folder, and answers that can be made again; begin anew.

    Raises:
        ConfigError: the judge cannot work, or the folder holds other answers.
        CheckpointError: a folder of answers lacks `answers.json`.
        DataError: an answer or a picture cannot be read.
        Interrupted: stopped by the user; what there is is kept.

    Source: §4.3, §7.
    """
    chosen = make_judge(judge) if isinstance(judge, str) else judge
    if overwrite or not (answers.folder / "answers.jsonl").is_file():
        chosen.ready()  # before anything is thrown away, or an LVLM asked for hours
    if overwrite:
        _clear(answers)
    cases = answers.collect()
    told = read_json(answers.folder / "answers.json")
    if chosen.sees and any(case.image is None for case in cases):
        raise ConfigError(
            f"{chosen.name} has to see the pictures, and the answers do not say where they are. Name the "
            "data (--data), or give each row an `image`, a path beside the file."
        )
    replies = judge_cases(chosen, cases, VerdictCache(answers.folder / "verdicts.jsonl"))
    settings = {
        "answers": told,
        "judge": dict(chosen.identity),
        "scores": list(chosen.dimensions),
        "note": chosen.note,
        "price": chosen.price,
    }
    report = JudgeReport.of(cases, replies, settings)
    write_json(answers.folder / f"report-{_slug(chosen.name)}.json", report.to_json())
    return report


def answers_of(
    backbone: str | Path | LVLM | None = None,
    encoder: str | Path | None = None,
    data: str | Path | None = None,
    *,
    like: str | Path | None = None,
    root: str | Path | None = None,
    seed: int | None = None,
    limit: int = LIMIT,
    max_new_tokens: int = MAX_NEW_TOKENS,
    keep_ratio: float = 1.0,
    batch_size: int = 32,
    out: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Answers:
    """What an LVLM says when it is told "Justify your answer." in place of "Answer in one letter only.".

    Args:
        backbone: who answers; None is the surrogate of `encoder` or `like`.
        encoder: a run folder or artefact; None is zero-shot.
        data, like, root, seed: as `craft.evaluate` takes them.
        limit: at most this many samples, evenly from the classes, drawn by seed (§4.3: 350).
        max_new_tokens: the cap on an answer (§4.1: 1024).
        keep_ratio: share of visual tokens that the LLM sees.
        batch_size: questions per forward pass.
        out: the folder; None is `judge/` in the run folder, or in `runs/`.
        device, dtype: where and in what to run.

    Raises:
        ConfigError, DataError, CheckpointError: something named is missing, damaged or contradictory.
    """
    named = encoder if encoder is not None else like
    artefact = None if named is None else load_artefact(named)
    manifest = {} if artefact is None else artefact.manifest
    who = backbone if backbone is not None else manifest.get("config", {}).get("surrogate")
    if who is None:
        raise ConfigError("Name the LVLM that is to answer.")

    @functools.cache
    def model() -> LVLM:
        base = who if isinstance(who, LVLM) else load(who, device, dtype)
        return base.with_encoder(artefact) if artefact is not None and encoder is not None else base

    wanted = {"name": None if data is None else as_setting(data), "root": None if root is None else str(root)}
    questions = questions_for(wanted, seed, manifest, model)
    samples = take(questions.samples("test"), limit, questions.seed)
    name = who.name if isinstance(who, LVLM) else str(who)
    place = _slug(name) + ("" if encoder is not None else "-zero-shot")
    folder = user_path(out or Path(named if named is not None else "runs") / "judge" / place)

    def collect() -> list[Case]:
        lvlm = model()
        hashes, names = answer_hashes(lvlm), image_names([sample.image for sample in samples])
        asked = [[one.id, one.prompt(DIRECTIVE), name] for one, name in zip(samples, names, strict=True)]
        settings = {
            "backbone": name,
            "zero_shot": encoder is None,
            "tower": hashes["vision_tower"],
            "projector": hashes["projector"],
            "llm": hashes["llm"],
            "words": hashes["words"],
            "data": questions.name,
            "seed": questions.seed,
            "held_out": list(questions.held_out),
            "samples": digest(asked),
        }
        return explain(lvlm, samples, folder, settings, max_new_tokens, keep_ratio, batch_size)

    return Answers(
        folder, collect, lambda: [(case_of(row_of(sample, "")), sample.image) for sample in samples]
    )


def answers_in(
    path: str | Path,
    data: str | Path | None = None,
    *,
    root: str | Path | None = None,
    seed: int | None = None,
    limit: int = LIMIT,
    out: str | Path | None = None,
) -> Answers:
    """Answers that are written already.

    Args:
        path: a .jsonl (see `craft.evaluation.judge_answers.read_rows`), or a folder that `judge` made.
        data, root, seed: the data set with the pictures of rows that name none, found by `id`.
        limit: at most this many rows, evenly from the labels, drawn by seed.
        out: the folder for a .jsonl's pictures and verdicts; None is beside it, its name with "-judged".

    Raises:
        DataError: the answers or the data are missing or not of their form.
        ConfigError: `limit` is below 1.
    """
    check_limit(limit)
    path = user_path(path)
    if path.is_dir():
        return Answers(path, lambda: read_cases(path), lambda: pictured(read_cases(path)), False, given=True)
    samples: dict[str, Sample] = {}
    if data is not None:
        wanted = {"name": as_setting(data), "root": None if root is None else str(root)}
        samples = {sample.id: sample for sample in questions_for(wanted, seed, {}, _nobody).all_samples()}
    rows = read_rows(path)
    if limit < len(rows):
        rows = stratified(
            rows,
            limit,
            identity=lambda row: str(row["id"]),
            group=lambda row: str(row.get("label") or ""),
            seed=seed or 0,
            purpose="limit",
        )[1]
    folder = user_path(out or path.with_name(f"{path.stem}-judged"))
    return Answers(
        folder,
        lambda: adopt(path, rows, samples, folder),
        lambda: [(case_of(row), picture_of(row, path, samples)) for row in rows],
        disposable=folder.resolve() != path.resolve().parent,
        given=True,
    )


def pictured(cases: Sequence[Case]) -> Preview:
    """Cases with their own pictures."""
    return [(case, None if case.image is None else str(case.image)) for case in cases]


def _nobody() -> LVLM:
    raise ConfigError("Pictures are found by id, whatever the options are; leave the distractors alone.")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "judge"


def _clear(answers: Answers) -> None:
    """Take away what judging left in the folder, and nothing else."""
    folder = answers.folder
    if not (folder / "answers.json").is_file():
        return
    for place in (folder / "verdicts.jsonl", *folder.glob("report-*.json")):
        place.unlink(missing_ok=True)
    if answers.disposable:
        (folder / "answers.json").unlink(missing_ok=True)
        (folder / "answers.jsonl").unlink(missing_ok=True)
        shutil.rmtree(folder / "images", ignore_errors=True)


def is_encoder(path: Path) -> bool:
    """Whether a folder is a run or an adapted encoder, rather than an LVLM."""
    if (path / "run.json").is_file() or (path / "encoder").is_dir():
        return True
    return (path / "craft.json").is_file() and read_json(path / "craft.json").get("format") == FORMAT
