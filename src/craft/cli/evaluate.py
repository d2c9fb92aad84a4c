"""`craft eval`."""

import shlex
from pathlib import Path
from typing import Any, Literal

from craft.cli.options import COMMON, Common, Count, Flag, Limit, Several, seeds_of
from craft.cli.output import between, listed, show_json, show_table, spread
from craft.core.text import percent

REHEARSED = 8
"""Samples that a dry run asks."""

_WORST = 12
"""Pairs of confused classes that are shown."""


def evaluate(
    backbone: str,
    *,
    encoder: Several = None,
    data: Several = None,
    keep_ratio: float = 1.0,
    prior: str | None = None,
    keep_positions: Flag = False,
    limit: Limit = None,
    seeds: str | None = None,
    out: Path | None = None,
    like: Several = None,
    split: Literal["train", "validation", "test"] = "test",
    root: Several = None,
    answer_with: Literal["letter", "option"] | None = None,
    distractors: Literal["random", "hard"] | None = None,
    unseen_fraction: float | None = None,
    batch_size: Count = 64,
    max_new_tokens: Count = 5,
    llm_bits: Literal[4, 8] | None = None,
    protocol: Literal["generate", "options", "both"] = "generate",
    classes: Flag = False,
    cache: Path | None = None,
    search: Literal["auto", "exact", "fused"] = "exact",
    card: Flag = False,
    resume: Flag = False,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Ask an LVLM the questions of a data set, zero-shot or with an adapted encoder, and mark the answers.

    Several data sets, or encoders that were adapted to several, make a row of the paper's Table 1.

    Args:
        backbone: a shipped model, a folder, or a hub id.
        encoder: a run folder of `craft adapt` or `craft baseline`; none is zero-shot. Several go each with
            its own data, or with one of --data each.
        data: as `craft adapt` takes it; by default the encoder's own.
        keep_ratio: share of the visual tokens that the LLM sees, as in 0.8; frequent codes give way first.
        prior: whose code counts say what is frequent: by default the encoder's; "general" is the model's;
            or a file of `craft prior`.
        keep_positions: kept tokens keep their positions; by default they are packed together.
        limit: at most this many questions, evenly from the classes.
        seeds: several seeds, as in 0,1,2: each is evaluated, and the mean shown.
        out: a folder for report.json and every answer (samples-SEED.jsonl), for `craft compare`.
        like: an encoder whose questions and unseen classes the base tower is asked, to compare with it.
        split: which part of the data.
        root: where a benchmark lies; else what relative paths in the data start from. For several data sets
            one each, or one folder that has them under their names.
        answer_with: ask for the option's letter, or its text.
        distractors: wrong options by lot, or hard ones.
        unseen_fraction: share of the classes that count as unseen (without an encoder).
        batch_size: questions per forward pass; no answer depends on it.
        max_new_tokens: cap on the length of an answer.
        llm_bits: hold the LLM in 4 or 8 bits (bitsandbytes): less memory, somewhat other answers.
        protocol: generate is the paper's, the LLM writes; options takes the likeliest option in one pass,
            several times faster; both says how far they agree.
        classes: show figures per class, and which is taken for which.
        cache: a folder that keeps the codes of images for the next evaluation with the same encoder.
        search: how codewords are found; auto is the fastest here. All but exact may differ where two
            codewords are equally near.
        card: write the figures into the encoder's model card (Hugging Face's model-index).
        resume: skip data sets whose results with the same settings lie in --out.
        dry_run: load everything and ask a few questions only; write nothing.
    """
    from craft.core.errors import ConfigError
    from craft.formats.code_cache import CodeCache
    from craft.formats.encoder import load_artefact
    from craft.formats.load import load
    from craft.recipes.benchmarks import evaluate_all, summary

    if encoder and like:
        raise ConfigError("Give --encoder to use an adapted encoder, or --like to compare with it; not both.")
    if card and not encoder:
        raise ConfigError("--card writes into an encoder's model card; name the --encoder.")
    if resume and out is None:
        raise ConfigError("--resume needs --out: the folder where the results of the stopped command lie.")
    chosen = seeds_of(seeds, common)
    artefacts = [
        load_artefact(folder) for folder in encoder or like or ()
    ]  # cheaper to get wrong than an LLM
    row = evaluate_all(
        load(backbone, common.device, common.dtype, llm_bits=llm_bits),
        artefacts if encoder else (),
        data or (),
        chosen,
        like=artefacts if like else (),
        roots=root or (),
        cache=CodeCache(cache),
        search=search,
        out=None if dry_run else out,
        resume=resume,
        card=card and not dry_run,
        limit=min(limit or REHEARSED, REHEARSED) if dry_run else limit,
        split=split,
        keep_ratio=keep_ratio,
        prior=prior,
        keep_positions=keep_positions,
        answer_with=answer_with,
        distractors=distractors,
        unseen_fraction=unseen_fraction,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        protocol=protocol,
    )
    reports = next(iter(row.reports.values()))
    if common.json:
        several = {"benchmarks": {name: summary(found, classes) for name, found in row.reports.items()}}
        more = {
            **several,
            "average": row.average(),
            "table_1": dict(zip(row.heads(), row.cells(), strict=True)),
        }
        show_json(more if len(row.reports) > 1 else summary(reports, classes))
        return
    if len(row.reports) > 1:
        _show_row(row)
    else:
        _show(reports)
    if classes:
        for name, found in row.reports.items():
            about = f": {name}" if len(row.reports) > 1 else ""
            _show_classes([sample for report in found for sample in report.samples], about)
    if dry_run:
        print("A dry run: everything loads and answers; these few figures mean nothing.")
    elif not encoder and not like:
        name = shlex.quote((data or ["apparel"])[0])
        print(f"Zero-shot. To adapt: craft adapt {shlex.quote(backbone)} --data {name} --out DIR")


def _show(reports: list[Any]) -> None:
    from craft.evaluation import merge

    told, found = reports[0].settings, merge(reports)
    used = [name for name in dict.fromkeys(report.settings["encoder"] for report in reports) if name]
    who = told["backbone"] + (f" with {' and '.join(used)}" if used else ", zero-shot")
    scored = reports[0].scored is not None and told["protocol"] == "both"
    names = ["accuracy", "seen", "unseen", "lenient", "unparseable"] + (
        ["scored", "agreement"] if scored else []
    )
    columns = ["seed", "questions", "strict", "95 % interval", *names[1:]]
    rows = []
    for report in reports:
        shares = [percent(getattr(report, name)) for name in names]
        start = [str(report.settings["seed"]), str(len(report.samples))]
        rows.append([*start, shares[0], between(report.interval), *shares[1:]])
    if len(reports) > 1:
        total = str(sum(len(report.samples) for report in reports))
        means = [spread(found[name]) for name in names]
        rows.append(["mean", total, means[0], "", *means[1:]])
    chance = reports[0].chance
    title = f"{who}, on {told['data']} ({told['split']})"
    title += f"; chance {percent(chance)} %" if chance else ""
    title += f"; keep ratio {told['keep_ratio']:g}" if told["keep_ratio"] != 1 else ""
    title += "; likeliest options" if told["protocol"] == "options" else ""
    show_table(title, columns, rows, sections=[len(reports) - 1])
    print(f"unseen classes: {listed(told['held_out']) or 'none'}")


def _show_row(row: Any) -> None:
    """A benchmark per line, and the whole as the line of Table 1 that it is."""
    from craft.core.text import table_row
    from craft.evaluation import merge

    names = ["accuracy", "seen", "unseen", "lenient", "unparseable"]
    if all(reports[0].settings["protocol"] == "both" for reports in row.reports.values()):
        names += ["scored", "agreement"]  # of open questions there are none
    rows = []
    for (name, reports), head in zip(row.reports.items(), row.heads()[3:], strict=False):
        found = merge(reports)
        shares = [spread(found[key]) for key in names]
        rows.append(
            [head if head == name else f"{head} ({name})", str(sum(len(r.samples) for r in reports)), *shares]
        )
    rows.append(["average", "", *(percent(row.average(key)) for key in names)])
    title = (
        f"{row.backbone}, {'zero-shot' if row.surrogate == '-' else 'encoders adapted with ' + row.surrogate}"
    )
    show_table(title, ("benchmark", "questions", "strict", *names[1:]), rows, sections=[len(rows) - 2])
    print("As in Table 1:")
    for line in (row.heads(), row.cells()):
        print(table_row(line))


def _show_classes(samples: list[dict[str, Any]], about: str) -> None:
    from craft.evaluation import class_table, confusion

    table = [
        [row["label"], "seen" if row["seen"] else "unseen", str(row["count"])]
        + [percent(row[name]) for name in ("strict", "lenient", "unparseable")]
        for row in class_table(samples)
    ]
    if table:
        show_table(f"By class{about}", ("class", "", "questions", "strict", "lenient", "unparseable"), table)
    pairs = [
        [row["correct"], row["named"] or "(no option)", str(row["count"]), str(row["offered"])]
        for row in confusion(samples)[:_WORST]
    ]
    if pairs:
        show_table(f"Taken for another{about}", ("correct", "named", "times", "of offered"), pairs)
