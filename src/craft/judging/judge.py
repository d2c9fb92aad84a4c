"""Answers before a judge: which judge, the verdicts and their report, and what they will cost (§4.3, §7)."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import read_json, write_json
from craft.core.text import slug
from craft.data import open_image
from craft.data.images import image_bytes_hash
from craft.judging.answers import Answers, Preview, preview_of, read_cases
from craft.judging.cases import Judge, shown_size, user_text
from craft.judging.config import JudgeConfig
from craft.judging.report import JudgeReport
from craft.judging.rules import offline_judge
from craft.judging.run import VerdictCache, judge_cases, no_verdict
from craft.judging.services import anthropic_judge, openai_judge

USUAL_ANSWER, USUAL_VERDICT = 150, 120
"""Tokens, as long as nothing is written. Source: ours."""


def make_judge(config: JudgeConfig) -> Judge:
    """The judge that the settings name.

    Raises:
        ConfigError: it needs a model and none is named, or the rubric cannot be used.
    """
    if config.judge == "anthropic":
        return anthropic_judge(config)
    if config.judge == "openai":
        return openai_judge(config)
    if config.prompt is not None:
        raise ConfigError("The judge that follows rules reads no prompt; choose another judge for it.")
    return offline_judge()


def judge_answers(answers: Answers, judge: Judge, overwrite: bool = False) -> JudgeReport:
    """Have answers judged, and write `report-JUDGE.json` to their folder. The same call continues after an
    interruption.

    Args:
        answers: the answers.
        judge: who judges them.
        overwrite: discard the verdicts in the folder, and answers that can be made again, and start over.

    Raises:
        ConfigError: the judge cannot work or gives no verdict at all, or the folder holds other answers.
        CheckpointError: a folder of answers lacks `answers.json`.
        DataError: an answer or an image cannot be read.
        Interrupted: the user stopped it; answers and verdicts so far are on disk.
    """
    if overwrite or not (answers.folder / "answers.jsonl").is_file():
        judge.ready()  # before anything is discarded, or an LVLM answers for hours
    if overwrite:
        _clear(answers)
    cases = answers.collect()
    answer_settings = read_json(answers.folder / "answers.json")
    if judge.sees and any(case.image is None for case in cases):
        raise ConfigError(
            f"{judge.name} has to see the images, and the answers do not say where they are. Name the data "
            "(--data), or give each row an `image`, a path relative to the file."
        )
    cache = VerdictCache(answers.folder / "verdicts.jsonl")
    replies = judge_cases(judge, cases, cache)
    if all(reply.status != "ok" for reply in replies):
        raise ConfigError(no_verdict(judge, replies))
    settings = {
        "answers": answer_settings,
        "judge": dict(judge.identity),
        "scores": list(judge.dimensions),
        "note": judge.note,
        "rubric": None if judge.rubric is None else judge.rubric.title,
        "price": judge.price,
    }
    report = JudgeReport.of(cases, replies, settings)
    report.judge, report.folder = judge.name, answers.folder
    report.tokens = cache.tokens(judge.key(case) for case in cases)
    write_json(answers.folder / f"report-{slug(judge.name, 'judge')}.json", report.to_json())
    return report


def _clear(answers: Answers) -> None:
    """Remove what `craft judge` wrote to the folder, and nothing else."""
    folder = answers.folder
    if not (folder / "answers.json").is_file():
        return
    for path in (folder / "verdicts.jsonl", *folder.glob("report-*.json")):
        path.unlink(missing_ok=True)
    if answers.disposable:
        (folder / "answers.json").unlink(missing_ok=True)
        (folder / "answers.jsonl").unlink(missing_ok=True)
        shutil.rmtree(folder / "images", ignore_errors=True)


@dataclass(frozen=True)
class CostEstimate:
    """What judging will take. A token counts as 4 characters of text, or 750 pixels.

    Attributes:
        cases: in all.
        pending: those without a final verdict; equal ones are judged once.
        unanswered: those that an LVLM has to answer first; the length of their answers is a guess.
        likely, most: tokens read and written by the judge.
        dollars: likely and at most; None if no price is known, or the judge reads no tokens.
        judge: the judge's name.
        folder: of answers and verdicts.
        rubric: the title of the judge's rubric; None for rules.
    """

    cases: int
    pending: int
    unanswered: int
    likely: tuple[int, int]
    most: tuple[int, int]
    dollars: tuple[float, float] | None
    judge: str
    folder: Path
    rubric: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        amounts = {name: getattr(self, name) for name in ("unanswered", "likely", "most", "dollars")}
        names = {"rubric": self.rubric, "folder": str(self.folder)}
        return {"cases": self.cases, "asked": self.pending, **amounts, **names}


def estimate_cost(answers: Answers, judge: Judge, max_new_tokens: int = 1024) -> CostEstimate:
    """The dry run of `judge_answers`: counts and costs. Asks no model and writes nothing. An answer that is
    not written yet has at most `max_new_tokens`.

    Raises:
        DataError: an answer or an image cannot be read.
    """
    cases = answers.preview()
    count = len(cases)
    on_disk = read_cases(answers.folder) if (answers.folder / "answers.jsonl").is_file() else []
    unanswered = 0 if answers.written else max(0, count - len(on_disk))
    if len(on_disk) == count or (unanswered and on_disk):  # answers before an interruption are in order
        cases = [*preview_of(on_disk), *cases[len(on_disk) :]]
    cache = VerdictCache(answers.folder / "verdicts.jsonl")
    cases = _distinct([(case, image) for case, image in cases if cache.pending(judge.key(case))])
    likely, most, dollars = (0, 0), (0, 0), None
    cap = int(judge.identity.get("max_tokens", 0))
    if cap and judge.rubric is not None:  # rules read no tokens
        rubric = judge.rubric
        text = sum(len(rubric.system) + len(user_text(rubric, case)) for case, _ in cases) // 4
        sizes = [shown_size(open_image(image).size) for _, image in cases if image is not None]
        read = text + sum(width * height // 750 for width, height in sizes)
        guessed = min(unanswered, sum(not case.response for case, _ in cases))
        likely = (read + guessed * USUAL_ANSWER, len(cases) * min(USUAL_VERDICT, cap))
        most = (read + guessed * max_new_tokens, len(cases) * cap)
        dollars = judge.price and (cost(likely, judge.price), cost(most, judge.price))
    return CostEstimate(
        cases=count,
        pending=len(cases),
        unanswered=unanswered,
        likely=likely,
        most=most,
        dollars=dollars,
        judge=judge.name,
        folder=answers.folder,
        rubric=None if judge.rubric is None else judge.rubric.title,
    )


def cost(tokens: Sequence[int], price: Sequence[float]) -> float:
    """US dollars for tokens read and written, at a price per million of each."""
    return (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6


def _distinct(cases: Preview) -> Preview:
    """One of each group of cases that a judge cannot distinguish."""
    distinct = {}
    for case, image in cases:
        picture = None if image is None else image_bytes_hash(image)
        distinct[case.task, case.options, case.truth, case.response, picture] = (case, image)
    return list(distinct.values())
