"""`craft eval`."""

import shlex
from pathlib import Path
from typing import Any, Literal

from craft.cli.options import COMMON, Common, Flag, seeds_of
from craft.cli.show import between, percent, show_json, show_table, spread

REHEARSED = 8
"""Samples that a dry run asks."""


def evaluate(
    backbone: str,
    *,
    encoder: Path | None = None,
    data: str | None = None,
    keep_ratio: float = 1.0,
    prior: str | None = None,
    keep_positions: Flag = False,
    limit: int | None = None,
    seeds: str | None = None,
    out: Path | None = None,
    like: Path | None = None,
    split: Literal["train", "validation", "test"] = "test",
    root: str | None = None,
    answer_with: Literal["letter", "option"] | None = None,
    distractors: Literal["random", "hard"] | None = None,
    unseen_fraction: float | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 5,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Ask an LVLM the questions of a data set, zero-shot or with an adapted encoder, and mark the answers.

    Args:
        backbone: a shipped model, a folder, or a hub id.
        encoder: a run folder of `craft adapt`, or its encoder/; none is zero-shot.
        data: as `craft adapt` takes it; by default the encoder's own.
        keep_ratio: share of the visual tokens that the LLM sees, as in 0.8; frequent codes give way first.
        prior: whose code counts say what is frequent: by default the encoder's; "general" is the model's;
            or a file of `craft prior`.
        keep_positions: kept tokens keep their positions; by default they are packed together.
        limit: at most this many questions, evenly from the classes.
        seeds: several seeds, as in 0,1,2: each is evaluated, and the mean shown.
        out: a folder for report.json and every answer (samples-SEED.jsonl).
        like: an encoder whose questions and unseen classes the base tower is asked, to compare with it.
        split: which part of the data.
        root: where a benchmark lies; else what relative paths in the data start from.
        answer_with: ask for the option's letter, or its text.
        distractors: wrong options by lot, or hard ones.
        unseen_fraction: share of the classes that count as unseen (without an encoder).
        batch_size: questions per forward pass.
        max_new_tokens: cap on the length of an answer.
        dry_run: load everything and ask a few questions only; write nothing.
    """
    from craft.core.errors import ConfigError
    from craft.evaluation import merge
    from craft.models.artefact import load_artefact
    from craft.models.load import load
    from craft.recipes.evaluate import evaluate as run

    if encoder is not None and like is not None:
        raise ConfigError("Give --encoder to use an adapted encoder, or --like to compare with it; not both.")
    chosen = seeds_of(seeds, common) or [None]
    artefact = None if encoder is None else load_artefact(encoder)
    pattern = None if like is None else load_artefact(like)
    lvlm = load(backbone, common.device, common.dtype)
    reports = [
        run(
            lvlm,
            artefact,
            data,
            keep_ratio,
            seed,
            min(limit or REHEARSED, REHEARSED) if dry_run else limit,
            split,
            prior=prior,
            keep_positions=keep_positions,
            like=pattern,
            root=root,
            answer_with=answer_with,
            distractors=distractors,
            unseen_fraction=unseen_fraction,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        for seed in chosen
    ]
    found = merge(reports)
    summary = _summary(reports, found)
    if out is not None and not dry_run:
        _write(out, reports, summary)
    if common.json:
        show_json(summary)
    else:
        _show(reports, found, dry_run)
        if artefact is None and pattern is None and not dry_run:
            adapt = (
                f"craft adapt {shlex.quote(backbone)} --data {shlex.quote(str(data or 'apparel'))} --out DIR"
            )
            print(f"Zero-shot. To adapt: {adapt}")


def _summary(reports: list[Any], found: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds on top, then each report; the interval is of one seed's samples."""
    means = {name: None if value is None else value["mean"] for name, value in found.items()}
    single = reports[0].to_json() if len(reports) == 1 else {}
    return {
        **means,
        "interval": single.get("interval"),
        "chance": reports[0].chance,
        "count": sum(len(report.samples) for report in reports),
        "spread": found,
        "reports": [report.to_json() for report in reports],
    }


def _write(out: Path, reports: list[Any], summary: dict[str, Any]) -> None:
    from craft.core.files import write_json

    write_json(out / "report.json", summary)
    for report in reports:
        report.save_samples(out / f"samples-{report.settings['seed']}.jsonl")


def _show(reports: list[Any], found: dict[str, Any], dry_run: bool) -> None:
    told = reports[0].settings
    who = told["backbone"] + (f" with {told['encoder']}" if told["encoder"] else ", zero-shot")
    columns = ("seed", "questions", "strict", "95 % interval", "seen", "unseen", "lenient", "unparseable")
    rows: list[tuple[str, ...]] = [
        (
            str(report.settings["seed"]),
            str(len(report.samples)),
            percent(report.accuracy),
            between(report.interval),
            percent(report.seen),
            percent(report.unseen),
            percent(report.lenient),
            percent(report.unparseable),
        )
        for report in reports
    ]
    if len(reports) > 1:
        figures = {
            name: spread(found[name]) for name in ("accuracy", "seen", "unseen", "lenient", "unparseable")
        }
        total = str(sum(len(report.samples) for report in reports))
        last = list(figures.values())
        rows.append(("mean", total, last[0], "", *last[1:]))
    chance = reports[0].chance
    title = f"{who}, on {told['data']} ({told['split']})" + (
        f"; chance {percent(chance)} %" if chance else ""
    )
    title += f"; keep ratio {told['keep_ratio']:g}" if told["keep_ratio"] != 1 else ""
    show_table(title, columns, rows, sections=[len(reports) - 1])
    print(f"unseen classes: {', '.join(told['held_out']) or 'none'}")
    if dry_run:
        print("A dry run: everything loads and answers; these few figures mean nothing.")
