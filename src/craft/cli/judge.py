"""`craft judge`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from craft.cli.options import COMMON, Common, Count, Flag
from craft.cli.output import show_json, show_pairs, show_table

Price = Annotated[tuple[float, float] | None, Parameter(negative="")]


def judge(
    run: str,
    *,
    judge: Literal["offline", "anthropic", "openai", "local"] = "offline",
    model: str | None = None,
    base_url: str | None = None,
    backbone: str | None = None,
    zero_shot: Flag = False,
    data: str | None = None,
    root: Path | None = None,
    limit: Count = 350,
    max_new_tokens: Count = 1024,
    keep_ratio: float = 1.0,
    batch_size: Count = 32,
    temperature: float | Literal["none"] = 0.6,
    max_tokens: Count = 1024,
    timeout: float = 120.0,
    retries: int = 5,
    concurrency: Count = 4,
    price: Price = None,
    prompt: Path | None = None,
    out: Path | None = None,
    overwrite: Flag = False,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Ask an LVLM to justify its answers, and have them judged along the paper's five dimensions.

    Answers, pictures and verdicts are kept in a folder. The same command again goes on where it stopped, and
    asks the judge again only where a call failed. Keys are read from ANTHROPIC_API_KEY and OPENAI_API_KEY.

    Args:
        run: a run of `craft adapt`; or an LVLM (zero-shot, with --data); or answers that are written already:
            a .jsonl (`craft eval --out` writes one), or the folder of an earlier judging.
        judge: offline: fixed rules, Correctness and Presence only. anthropic: by default the paper's judge.
            openai: a server of that protocol (--base-url for vLLM, llama.cpp, Ollama). local: transformers.
        model: the judge's model.
        base_url: the judge's server.
        backbone: the LVLM that answers with the run's encoder; by default the surrogate.
        zero_shot: ask the run's questions with the base tower instead.
        data: as `craft adapt` takes it; by default the run's own.
        root: where a benchmark lies; else what relative paths in the data start from.
        limit: at most this many answers, evenly from the classes, drawn by --seed.
        max_new_tokens: cap on the length of an answer.
        keep_ratio: share of the visual tokens that the LLM sees.
        batch_size: questions per forward pass.
        temperature: the judge's; none sends none, which newer models want.
        max_tokens: cap on the length of a verdict.
        timeout: seconds for one attempt to reach the judge.
        retries: further attempts after rate limits, timeouts and faults of the server.
        concurrency: calls at once.
        price: dollars per million tokens read and written, for the cost.
        prompt: a file with another rubric, of the form of craft/evaluation/judge_prompt_v1.md.
        out: the folder; by default judge/ in the run folder.
        overwrite: begin anew in that folder.
        dry_run: count, and estimate tokens and cost; ask nobody, write nothing.
    """
    from craft.core.files import user_path
    from craft.evaluation.judge_services import ServiceSettings
    from craft.recipes import judge as recipe
    from craft.recipes.judge_estimate import estimate

    warmth = None if temperature == "none" else float(temperature)
    settings = ServiceSettings(
        model, base_url, warmth, max_tokens, timeout, retries, concurrency, price, prompt
    )
    chosen = recipe.make_judge(judge, settings, common.device, common.dtype)
    place = user_path(run)
    if place.suffix == ".jsonl" or (place / "answers.json").is_file():
        answers = recipe.answers_in(place, data, root=root, seed=common.seed, limit=limit, out=out)
    else:
        adapted = recipe.is_encoder(place)
        answers = recipe.answers_of(
            backbone if adapted else run,
            run if adapted and not zero_shot else None,
            data,
            like=run if adapted and zero_shot else None,
            root=root,
            seed=common.seed,
            limit=limit,
            max_new_tokens=max_new_tokens,
            keep_ratio=keep_ratio,
            batch_size=batch_size,
            out=out,
            device=common.device,
            dtype=common.dtype,
        )
    if dry_run:
        _show_estimate(estimate(answers, chosen, max_new_tokens), chosen, answers.folder, common)
        return
    report = recipe.judge(answers, chosen, overwrite=overwrite)
    if common.json:
        show_json({**report.to_json(), "folder": str(answers.folder)})
    else:
        _show(report, chosen, answers.folder)


def _show(report: Any, judge: Any, folder: Path) -> None:
    from craft.evaluation.judge import BINARY, DIMENSIONS

    def cells(figures: dict[str, Any]) -> tuple[str, ...]:
        return tuple(_figure(name in BINARY, figures[name]) for name in (*DIMENSIONS, "overall"))

    answers = report.settings["answers"]
    who = answers.get("backbone") or Path(answers["answers"]).name
    if answers.get("backbone"):
        who += " zero-shot" if answers["zero_shot"] else " adapted"
    count = report.statuses["ok"]
    rows = [(f"all ({count})", *cells(report.figures))]
    if any(not row["seen"] for row in report.samples):
        rows += [("seen", *cells(report.seen)), ("unseen", *cells(report.unseen))]
    columns = ("cases", "corr. %", "pres. %", "relevance", "faithful.", "verbosity", "overall")
    show_table(f"{who}, judged by {judge.name} [95 % interval]", columns, rows)
    bad = {name: count for name, count in report.statuses.items() if name != "ok" and count}
    dollars = _dollars(report.tokens, judge.price)
    read, written = report.tokens
    show_pairs(
        {
            "answered by": ", ".join(report.models),
            "tokens": f"{read:,} read, {written:,} written{dollars}" if read else None,
            "without a verdict": ", ".join(f"{count} {name}" for name, count in bad.items()),
            "kept in": folder,
        }
    )
    if bad:
        print(
            "Cases without a verdict count in no figure. The same command asks again, but for those refused."
        )
    if judge.note:
        print(f"Note: {judge.note}.")


def _figure(share: bool, found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    by, digits = (100, 1) if share else (1, 2)
    mean, (low, high) = found["mean"] * by, (edge * by for edge in found["interval"])
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _dollars(tokens: tuple[int, int], price: tuple[float, float] | None) -> str:
    from craft.recipes.judge_estimate import cost

    return "" if price is None else f", {cost(tokens, price):.2f} dollars"


def _show_estimate(found: Any, judge: Any, folder: Path, common: Common) -> None:
    if common.json:
        names = ("cases", "asked", "unanswered", "likely", "most", "dollars")
        show_json({name: getattr(found, name) for name in names} | {"folder": str(folder)})
        return
    (read, written), (read_most, written_most) = found.likely, found.most
    money = "unknown: give --price READ WRITTEN, in dollars per million tokens"
    if found.dollars is not None:
        money = f"about {found.dollars[0]:.2f} dollars, at most {found.dollars[1]:.2f}"
    show_pairs(
        {
            "judge": judge.name,
            "cases": f"{found.cases}, of which {found.asked} to be judged",
            "to be answered first": found.unanswered or None,
            "tokens read": f"about {read:,}, at most {read_most:,}" if read_most else None,
            "tokens written": f"about {written:,}, at most {written_most:,}" if written_most else None,
            "cost": money if read_most and "url" in judge.identity else "nothing",
            "folder": folder,
        }
    )
    print("\nA dry run: nobody was asked, and nothing was written.")
