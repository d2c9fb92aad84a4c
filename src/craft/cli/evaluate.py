"""`craft eval`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from craft.cli.flags import config_of, takes
from craft.cli.options import COMMON, Common, Flag
from craft.cli.output import between, listed, show_json, show_line, show_table, spread
from craft.core.errors import ConfigError
from craft.core.text import percent, table_row
from craft.evaluation.config import EvalConfig

REHEARSED = 8
"""Samples that a dry run asks."""

_WORST = 12
"""Pairs of confused classes that are shown."""


@takes(EvalConfig)
def evaluate(
    backbone: str | None = None,
    *,
    flags: Any = None,
    classes: Flag = False,
    card: Flag = False,
    resume: Flag = False,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Ask an LVLM the questions of a data set, zero-shot or with an adapted encoder, and mark the answers.

    Several data sets, or encoders that were adapted to several, make a row of the paper's Table 1.

    Args:
        backbone: a shipped model, a folder, or a hub id.
        classes: show the numbers of each class, and which classes are mistaken for which.
        card: write the numbers into the encoder's model card (Hugging Face's model-index).
        resume: skip data sets whose results with the same settings are in --out.
        dry_run: load everything and ask a few questions only; write nothing.
    """
    config: EvalConfig = config_of(EvalConfig, flags, common, backbone=backbone)
    if config.encoder and config.like:
        raise ConfigError("Give --encoder to use an adapted encoder, or --like to compare with it; not both.")
    if card and not config.encoder:
        raise ConfigError("--card writes into an encoder's model card; name the --encoder.")
    if resume and config.out is None:
        raise ConfigError("--resume needs --out: the folder that has the results of the stopped command.")
    from craft.recipes.benchmarks import evaluate_all

    if dry_run:
        limit = min(config.limit or REHEARSED, REHEARSED)
        config = config.model_copy(update={"limit": limit, "out": None})
    row = evaluate_all(config=config, resume=resume, card=card and not dry_run)
    if common.json:
        _show_json(row, classes)
        return
    if len(row.reports) > 1:
        _show_row(row)
    else:
        _show(next(iter(row.reports.values())), config.out)
    if classes:
        for name, reports in row.reports.items():
            about = f": {name}" if len(row.reports) > 1 else ""
            _show_classes([sample for report in reports for sample in report.samples], about)
    if dry_run:
        show_line("A dry run: everything loads and answers; these few figures mean nothing.")
    elif not config.encoder and not config.like:
        name = shlex.quote((config.data.name or ("apparel",))[0])
        show_line(
            f"Zero-shot. To adapt: craft adapt {shlex.quote(str(config.backbone))} --data {name} --out DIR"
        )


def _show_json(row: Any, classes: bool) -> None:
    """One data set's figures, or those of each with the line of Table 1."""
    from craft.recipes.benchmarks import summary

    figures = {name: summary(reports, classes) for name, reports in row.reports.items()}
    if len(figures) == 1:
        show_json(next(iter(figures.values())))
        return
    table = dict(zip(row.heads(), row.cells(), strict=True))
    show_json({"benchmarks": figures, "average": row.average(), "table_1": table})


def _show(reports: list[Any], out: str | Path | None) -> None:
    from craft.evaluation.metrics import ONE_SEED, SEVERAL_SEEDS
    from craft.evaluation.report import chance_of, interval_of, merge

    settings, means = reports[0].settings, merge(reports)
    used = [name for name in dict.fromkeys(report.settings["encoder"] for report in reports) if name]
    who = settings["backbone"] + (f" with {' and '.join(used)}" if used else ", zero-shot")
    scored = reports[0].scored is not None and settings["protocol"] == "both"
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
        cells = [spread(means[name]) for name in names]
        ends = interval_of(reports)
        rows.append(["mean", total, cells[0], "-" if ends is None else between(ends), *cells[1:]])
    chance = chance_of(reports)
    title = f"{who}, on {settings['data']} ({settings['split']})"
    title += f"; chance {percent(chance)} %" if chance else ""
    title += f"; keep ratio {settings['keep_ratio']:g}" if settings["keep_ratio"] != 1 else ""
    title += "; likeliest options" if settings["protocol"] == "options" else ""
    show_table(title, columns, rows, sections=[len(reports) - 1])
    seeds = {report.settings["seed"] for report in reports}
    of_mean = f"; of the mean, {SEVERAL_SEEDS}" if len(seeds) > 1 else ""
    covers = f"{'of a row, ' if of_mean else ''}{ONE_SEED}{of_mean}"
    for report in reports:
        _show_calibration(report, out, several=len(reports) > 1)
    both = f"; harmonic mean with seen ones: {spread(means['harmonic'])}" if means["harmonic"] else ""
    show_line(f"unseen classes: {listed(settings['held_out']) or 'none'}{both}; intervals: {covers}")
    _show_caveats({settings["data"]: reports})


def _show_caveats(reports: Mapping[str, list[Any]]) -> None:
    """What must be said of the data ("partial: 6 of 10 classes")."""
    from craft.evaluation.report import caveats_of

    for name, of_data in reports.items():
        for caveat in caveats_of(of_data):
            show_line(f"note: {name}: {caveat}")


def _show_calibration(report: Any, out: str | Path | None, several: bool) -> None:
    """How far the probabilities of options are from their accuracy, if options were scored."""
    from craft.recipes.benchmarks import diagram_file

    calibration = report.calibration(report.settings.get("answer_temperature"))
    if calibration is None:
        return
    seed = f", seed {report.settings['seed']}" if several else ""
    for group in ("seen", "unseen"):
        if group in calibration:
            before, after = calibration[group]["before"], calibration[group].get("after")
            line = f"expected calibration error, {group} classes{seed}: {percent(before['error'])} points"
            line += f", {percent(after['error'])} with the encoder's temperature" if after else ""
            line += f"; negative log-likelihood: {before['nll']:.3f}" + (
                f", {after['nll']:.3f}" if after else ""
            )
            show_line(line)
    if out is not None:
        show_line(f"reliability diagram{seed}: {diagram_file(Path(out), report.settings['seed'])}")


def _show_row(row: Any) -> None:
    """A benchmark per line, and the whole as the line of Table 1 that it is."""
    from craft.evaluation.metrics import ONE_SEED, SEVERAL_SEEDS
    from craft.evaluation.report import interval_of, merge

    names = ["accuracy", "seen", "unseen", "lenient", "unparseable"]
    both = all(reports[0].settings["protocol"] == "both" for reports in row.reports.values())
    names += ["scored", "agreement"] if both else []  # of open questions there are none
    rows, columns = [], ["benchmark", "questions", "strict", *names[1:]]
    for (name, reports), head in zip(row.reports.items(), row.heads()[3:], strict=False):
        means = merge(reports)
        shares = [spread(means[key]) for key in names]
        label = head if head == name else f"{head} ({name})"
        count = str(sum(len(report.samples) for report in reports))
        rows.append([label, count, *shares])
    averages = [spread(row.average_over_seeds(key)) for key in names]
    rows.append(["average", "", *averages])
    if not both:  # otherwise the table is too wide; --json has the intervals
        ends = [interval_of(reports) for reports in row.reports.values()]
        columns.insert(3, "95 % interval")
        for cells, interval in zip(rows, [*ends, None], strict=True):
            cells.insert(3, "" if interval is None else between(interval))
    title = (
        f"{row.backbone}, {'zero-shot' if row.surrogate == '-' else 'encoders adapted with ' + row.surrogate}"
    )
    show_table(title, columns, rows, sections=[len(rows) - 2])
    if not both:
        several = any(len({r.settings["seed"] for r in reports}) > 1 for reports in row.reports.values())
        show_line(f"intervals: {SEVERAL_SEEDS if several else ONE_SEED}")
    _show_caveats(row.reports)
    show_line("As in Table 1:")
    for line in (row.heads(), row.cells()):
        show_line(table_row(line))


def _show_classes(samples: list[dict[str, Any]], about: str) -> None:
    from craft.evaluation.report import class_table, confusion

    table = [
        [row["label"], {True: "seen", False: "unseen", None: "both"}[row["seen"]], str(row["count"])]
        + [percent(row[name]) for name in ("strict", "lenient", "unparseable")]
        for row in class_table(samples)
    ]
    if table:
        show_table(
            f"By class{about}", ("class", "group", "questions", "strict", "lenient", "unparseable"), table
        )
    pairs = [
        [row["correct"], row["named"] or "(no option)", str(row["count"]), str(row["offered"])]
        for row in confusion(samples)[:_WORST]
    ]
    if pairs:
        show_table(f"Taken for another{about}", ("correct", "named", "times", "of offered"), pairs)
