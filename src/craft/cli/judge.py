"""`craft judge`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.cli.flags import config_of, takes
from craft.cli.options import COMMON, Common, Flag
from craft.cli.output import show_json, show_line, show_pairs, show_table
from craft.judging.config import JudgeConfig

if TYPE_CHECKING:
    from craft.judging.judge import CostEstimate
    from craft.judging.report import JudgeReport


@takes(JudgeConfig)
def judge(
    run: str | None = None,
    *,
    flags: Any = None,
    overwrite: Flag = False,
    dry_run: Flag = False,
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
    """
    config: JudgeConfig = config_of(JudgeConfig, flags, common, run=run)
    from craft.recipes.judge import estimate
    from craft.recipes.judge import judge as run_judge

    if dry_run:
        _show_estimate(estimate(config=config), common)
        return
    report = run_judge(config=config, overwrite=overwrite)
    if common.json:
        show_json({**report.to_json(), "folder": str(report.folder)})
    else:
        _show(report)


def _show(report: "JudgeReport") -> None:
    from craft.evaluation.metrics import ONE_SEED
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
            "rubric": report.settings["rubric"],
            "intervals": ONE_SEED,
            "tokens": _tokens(report),
            "without a verdict": ", ".join(f"{count} {name}" for name, count in bad.items()),
            "folder": report.folder,
        }
    )
    if bad:
        show_line(
            "No figure includes cases without a verdict. The same command asks them again, unless refused."
        )
    if report.settings["note"]:
        show_line(f"Note: {report.settings['note']}.")
    for caveat in report.settings["answers"].get("caveats", ()):
        show_line(f"Note: {caveat}.")


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
            "rubric": estimate.rubric,
            "cases": f"{estimate.cases}, of which {estimate.pending} to be judged",
            "to be answered first": estimate.unanswered or None,
            "tokens read": f"about {read:,}, at most {most_read:,}" if most_read else None,
            "tokens written": f"about {written:,}, at most {most_written:,}" if most_written else None,
            "cost": money if most_read else "nothing",
            "folder": estimate.folder,
        }
    )
    show_line()
    show_line("A dry run: no model was asked, and nothing was written.")
