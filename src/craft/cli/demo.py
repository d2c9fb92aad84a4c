"""`craft demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from craft.cli.adapt import show_rehearsals
from craft.cli.options import COMMON, Common, Flag, Limit, settings_of
from craft.cli.output import listed, show_json, show_line, show_table
from craft.core.progress import say
from craft.core.text import percent, signed

if TYPE_CHECKING:
    from craft.recipes.demo import DemoResult, DemoRow


@Parameter(name="*")
@dataclass(frozen=True)
class DemoFlags:
    """The adaptation and the evaluations of the demo.

    Attributes:
        out: the folder for demo.json, demo.png, the run and all answers; by default runs/demo-DATA.
        data: as for `craft adapt`; by default apparel.
        surrogate: the model to adapt with.
        other: a model of the same codebook that takes no part in the adaptation.
        limit: test questions per evaluation.
        max_steps: optimiser steps; by default those of the config.
        keep_ratio: share of visual tokens that the LLMs see in the evaluations, as in 0.8; training uses
            all.
    """

    out: Path | None = None
    data: str | None = None
    surrogate: str | None = None
    other: str | None = None
    limit: Limit = None
    max_steps: int | None = None
    keep_ratio: float = 1.0


def demo(
    *,
    flags: DemoFlags = DemoFlags(),
    resume: Flag = False,
    dry_run: Flag = False,
    ui: Flag = False,
    common: Common = COMMON,
) -> None:
    """Do the main job end to end: adapt with one LLM, and measure what another LLM gains from the encoder.

    Args:
        resume: continue an interrupted demo.
        dry_run: show what trains and how much memory it takes; write nothing.
        ui: then serve the surrogate with its new encoder, and print the address of a page to ask them. A
            finished demo with the same settings is not repeated.
    """
    from craft.data.load import short_name
    from craft.recipes.demo import LIMIT, demo_settings, finished_encoder
    from craft.recipes.demo import demo as run
    from craft.recipes.serve import need_server, serve_encoder

    overrides = settings_of(common)
    arguments: dict[str, Any] = {
        **{name: getattr(flags, name) for name in ("out", "data", "surrogate", "max_steps")},
        "seed": common.seed,
        "config": common.config,
        **overrides,
    }
    if dry_run:
        from craft.recipes.adapt import rehearse

        show_rehearsals({"": rehearse(config=demo_settings(**arguments))}, common.json)
        return
    settings = demo_settings(**arguments)
    if ui:
        need_server()
        if not resume and (encoder := finished_encoder(settings)) is not None:
            say(f"the demo in {encoder.parent.parent} is finished; --ui serves its encoder")
            serve_encoder(settings.surrogate, encoder, short_name(settings.data.name), settings.device)
            return
    result = run(
        **arguments,
        other=flags.other,
        limit=flags.limit or LIMIT,
        keep_ratio=flags.keep_ratio,
        resume=resume,
    )
    if common.json:
        show_json(result.to_json())
    else:
        _show(result)
    if ui:
        serve_encoder(settings.surrogate, result.encoder, short_name(settings.data.name), settings.device)


def _show(result: "DemoResult") -> None:
    from craft.evaluation.metrics import ONE_SEED

    count, chance = result.rows[0].figures["all"].count, result.rows[0].chance
    title = f"{result.data}: {count} test questions, strict accuracy in % [95 % interval]"
    title += f"; chance {percent(chance)}" if chance else ""
    title += f"; keep ratio {result.keep_ratio:g}" if result.keep_ratio != 1 else ""
    ends = [number for number, row in enumerate(result.rows) if row.encoder == "adapted"]
    show_line()
    columns = ("backbone", "encoder", "all", "seen", "unseen", "gain")
    show_table(title, columns, [_cells(result, row) for row in result.rows], ends)
    held_out = listed(result.held_out) or "none"
    show_line(f"unseen: classes held out of training ({held_out}); intervals: {ONE_SEED}")
    parts = sorted({part for same in result.frozen.values() for part in same})
    if all(unchanged for same in result.frozen.values() for unchanged in same.values()):
        show_line(f"frozen parts unchanged: {', '.join(parts)} of both backbones, byte for byte")
    else:
        show_line(f"FROZEN PARTS CHANGED: {result.frozen}")
    if all(result.text_unchanged.values()):
        show_line("text-only answers unchanged: both backbones, logits bit for bit")
    else:
        show_line(f"TEXT-ONLY ANSWERS CHANGED: {result.text_unchanged}")
    seconds = result.seconds
    show_line(
        f"took {seconds['all']:.0f} s: {seconds['adapt']:.0f} s for adaptation "
        f"({result.metrics['steps']} steps), {seconds['evaluate']:.0f} s for evaluation"
    )
    show_line(f"picture: {result.picture}   results: {result.out / 'demo.json'}   encoder: {result.encoder}")


def _cells(result: "DemoResult", row: "DemoRow") -> list[str]:
    """One row of the table. The second row of a backbone has its role instead of its name, and the gain."""
    accuracies = []
    for group in ("all", "seen", "unseen"):
        figure = row.figures.get(group)
        if figure is None:
            accuracies.append("-")
            continue
        low, high = figure.interval
        accuracies.append(f"{percent(figure.accuracy)} [{100 * low:.0f}, {100 * high:.0f}]")
    if row.encoder != "adapted":
        return [row.backbone, row.encoder, *accuracies, ""]
    role = {"surrogate": "the surrogate", "other": "never trained with"}[row.role]
    return [f"  ({role})", row.encoder, *accuracies, signed(result.gain(row.role))]
