"""`craft judge`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from craft.cli.options import COMMON, Common, Flag, Limit, Settings, settings_of
from craft.cli.output import show_json, show_pairs, show_table

if TYPE_CHECKING:
    from craft.judging.judge import CostEstimate
    from craft.judging.report import JudgeReport

Price = Annotated[tuple[float, float] | None, Parameter(negative="")]


@Parameter(name="*", group="Answers")
@dataclass(frozen=True)
class AnswerFlags:
    """Which answers are judged, and where they are stored.

    Attributes:
        backbone: the LVLM that answers with the run's encoder; by default the surrogate.
        zero_shot: ask the run's questions with the base tower instead.
        data: as `craft adapt` takes it; by default the run's own.
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from.
        limit: at most this many answers, drawn evenly from the classes by --seed; by default 350.
        max_new_tokens: cap on the length of an answer; by default 1024.
        keep_ratio: share of the visual tokens that the LLM sees; by default 1.
        batch_size: questions per forward pass; by default 32.
        out: the folder; by default judge/ in the run folder.
    """

    backbone: str | None = None
    zero_shot: Flag = False
    data: str | None = None
    root: str | None = None
    limit: Limit = None
    max_new_tokens: Limit = None
    keep_ratio: float | None = None
    batch_size: Limit = None
    out: str | None = None


@Parameter(name="*", group="Judge")
@dataclass(frozen=True)
class JudgeFlags:
    """Who judges.

    Attributes:
        judge: offline (the default): fixed rules, Correctness and Presence only. anthropic: by default the
            paper's judge. openai: any server of that protocol; for vLLM, llama.cpp or Ollama on this machine
            add --base-url http://localhost:8000/v1.
        model: the judge's model.
        base_url: the judge's server.
        temperature: of the judge, by default 0.6; none sends none, as newer models require.
        max_tokens: cap on the length of a verdict; by default 1024.
        timeout: seconds for one attempt to reach the judge; by default 120.
        retries: further attempts after rate limits, timeouts and server errors; by default 5.
        concurrency: simultaneous calls; by default 4.
        price: dollars per million tokens read and written, for the cost.
        prompt: a file with another rubric, of the form of craft/judging/prompt_v1.md.
    """

    judge: str | None = None
    model: str | None = None
    base_url: str | None = None
    temperature: float | Literal["none"] | None = None
    max_tokens: Limit = None
    timeout: float | None = None
    retries: int | None = None
    concurrency: Limit = None
    price: Price = None
    prompt: str | None = None


ANSWERS, JUDGE = AnswerFlags(), JudgeFlags()
"""As if no flag is given."""


def judge(
    run: str | None = None,
    *,
    answers: AnswerFlags = ANSWERS,
    judge: JudgeFlags = JUDGE,
    overwrite: Flag = False,
    dry_run: Flag = False,
    settings: Settings = None,
    common: Common = COMMON,
) -> None:
    """Ask an LVLM to justify its answers, and have them judged along the paper's five dimensions.

    Answers, images and verdicts are stored in a folder. The same command continues after an interruption, and
    asks the judge again only if a call failed. Keys are read from ANTHROPIC_API_KEY and OPENAI_API_KEY.

    Args:
        run: a run of `craft adapt`; an LVLM (zero-shot, with --data); or answers that exist already: a .jsonl
            (`craft eval --out` writes one), or the folder of an earlier judging.
        overwrite: start over in that folder.
        dry_run: count, and estimate tokens and cost; ask no model and write nothing.
        settings: NAME=VALUE, any of these flags as a setting; may be given several times.
    """
    from craft.judging.config import JudgeConfig
    from craft.recipes.judge import estimate
    from craft.recipes.judge import judge as run_judge

    flags = {"run": run, "seed": common.seed, **vars(answers), **vars(judge)}
    named = {name: value for name, value in flags.items() if value is not None and value is not False}
    config = JudgeConfig.build(common.config, {**settings_of(settings, common), **named})
    if dry_run:
        _show_estimate(estimate(config=config), common)
        return
    report = run_judge(config=config, overwrite=overwrite)
    if common.json:
        show_json({**report.to_json(), "folder": str(report.folder)})
    else:
        _show(report)


def _show(report: "JudgeReport") -> None:
    from craft.judging.cases import BINARY, DIMENSIONS

    def cells(figures: Mapping[str, dict[str, Any] | None]) -> tuple[str, ...]:
        return tuple(_figure(name in BINARY, figures[name]) for name in (*DIMENSIONS, "overall"))

    rows = [(f"all ({report.statuses['ok']})", *cells(report.figures))]
    if any(not row["seen"] for row in report.samples):
        rows += [("seen", *cells(report.seen)), ("unseen", *cells(report.unseen))]
    columns = ("cases", "corr. %", "pres. %", "relevance", "faithful.", "verbosity", "overall")
    title = f"{_who_answered(report)}, judged by {report.judge} [95 % interval]"
    show_table(title, columns, rows)
    bad = {name: count for name, count in report.statuses.items() if name != "ok" and count}
    show_pairs(
        {
            "judge's model": ", ".join(report.models),
            "tokens": _tokens(report),
            "without a verdict": ", ".join(f"{count} {name}" for name, count in bad.items()),
            "folder": report.folder,
        }
    )
    if bad:
        print("No figure includes cases without a verdict. The same command asks them again, unless refused.")
    if report.settings["note"]:
        print(f"Note: {report.settings['note']}.")


def _who_answered(report: "JudgeReport") -> str:
    answers = report.settings["answers"]
    if not answers.get("backbone"):
        return Path(answers["answers"]).name
    return f"{answers['backbone']} {'zero-shot' if answers['zero_shot'] else 'adapted'}"


def _figure(is_share: bool, figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    scale, digits = (100, 1) if is_share else (1, 2)
    mean, (low, high) = figure["mean"] * scale, (edge * scale for edge in figure["interval"])
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _tokens(report: "JudgeReport") -> str | None:
    from craft.judging.judge import cost

    read, written = report.tokens
    if not read:
        return None
    price = report.settings["price"]
    dollars = "" if price is None else f", {cost(report.tokens, price):.2f} dollars"
    return f"{read:,} read, {written:,} written{dollars}"


def _show_estimate(estimate: "CostEstimate", common: Common) -> None:
    if common.json:
        show_json(estimate.to_json())
        return
    (read, written), (most_read, most_written) = estimate.likely, estimate.most
    money = "unknown: give --price READ WRITTEN, in dollars per million tokens"
    if estimate.dollars is not None:
        money = f"about {estimate.dollars[0]:.2f} dollars, at most {estimate.dollars[1]:.2f}"
    show_pairs(
        {
            "judge": estimate.judge,
            "cases": f"{estimate.cases}, of which {estimate.pending} to be judged",
            "to be answered first": estimate.unanswered or None,
            "tokens read": f"about {read:,}, at most {most_read:,}" if most_read else None,
            "tokens written": f"about {written:,}, at most {most_written:,}" if most_written else None,
            "cost": money if most_read else "nothing",
            "folder": estimate.folder,
        }
    )
    print("\nA dry run: no model was asked, and nothing was written.")
