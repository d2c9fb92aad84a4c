"""`craft demo`."""

from pathlib import Path
from typing import Any

from craft.cli.options import COMMON, Common, Flag, Limit, Settings, settings_of
from craft.cli.output import listed, show_json, show_table
from craft.cli.training import show_rehearsals
from craft.core.text import percent, signed


def demo(
    *,
    out: Path | None = None,
    data: str | None = None,
    surrogate: str | None = None,
    other: str | None = None,
    limit: Limit = None,
    max_steps: int | None = None,
    keep_ratio: float = 1.0,
    resume: Flag = False,
    dry_run: Flag = False,
    settings: Settings = None,
    common: Common = COMMON,
) -> None:
    """The main job from end to end: adapt with one LLM, and see what another one gains from the same encoder.

    Args:
        out: a folder for demo.json, demo.png, the run and all answers; by default runs/demo-DATA.
        data: as `craft adapt` takes it; by default apparel.
        surrogate: the model to adapt with.
        other: a model of the same codebook that takes no part in the adaptation.
        limit: test questions per evaluation.
        max_steps: optimiser steps; by default the config's.
        keep_ratio: share of the visual tokens that the LLMs see when asked, as in 0.8; training sees all.
        resume: go on with an interrupted demo.
        dry_run: show who trains and the memory that it takes; write nothing.
        settings: NAME=VALUE, any setting of the adaptation; may be given several times.
    """
    from craft.recipes.demo import LIMIT, demo_settings
    from craft.recipes.demo import demo as run

    overrides = settings_of(settings, common)
    arguments: dict[str, Any] = {
        "out": out,
        "data": data,
        "surrogate": surrogate,
        "seed": common.seed,
        "max_steps": max_steps,
        "config": common.config,
    }
    if dry_run:
        from craft.recipes.adapt import rehearse

        show_rehearsals({"": rehearse(config=demo_settings(**arguments, overrides=overrides))}, common.json)
        return
    chosen = LIMIT if limit is None else limit
    result = run(**arguments, other=other, limit=chosen, resume=resume, keep_ratio=keep_ratio, **overrides)  # pyright: ignore[reportArgumentType]
    if common.json:
        show_json(result.to_json())
    else:
        _show(result)


def _show(result: Any) -> None:
    rows: list[tuple[str, ...]] = []
    sections: list[int] = []
    for row in result.rows:
        cells = []
        for group in ("all", "seen", "unseen"):
            figure = row.figures.get(group)
            cells.append("-" if figure is None else _cell(figure))
        adapted = row.encoder == "adapted"
        gain = signed(result.gain(row.role)) if adapted else ""
        name = "" if adapted else row.backbone
        role = {"surrogate": "the surrogate", "other": "never trained with"}[row.role] if adapted else ""
        rows.append((name or f"  ({role})", row.encoder, *cells, gain))
        sections += [len(rows) - 1] if adapted else []
    count = result.rows[0].figures["all"].count
    chance = result.rows[0].chance
    title = f"{result.data}: {count} test questions, strict accuracy in % [95 % interval]"
    title += f"; chance {percent(chance)}" if chance else ""
    title += f"; keep ratio {result.keep_ratio:g}" if result.keep_ratio != 1 else ""
    print()
    show_table(title, ("backbone", "encoder", "all", "seen", "unseen", "gain"), rows, sections)
    print(f"unseen: classes never trained on ({listed(result.held_out) or 'none'})")
    parts = sorted({part for frozen in result.frozen.values() for part in frozen})
    if all(same for frozen in result.frozen.values() for same in frozen.values()):
        print(f"frozen parts unchanged: {', '.join(parts)} of both backbones, byte for byte")
    else:
        print(f"FROZEN PARTS CHANGED: {result.frozen}")
    if all(result.text_unchanged.values()):
        print("text-only answers unchanged: both backbones, logits bit for bit")
    else:
        print(f"TEXT-ONLY ANSWERS CHANGED: {result.text_unchanged}")
    seconds = result.seconds
    print(
        f"took {seconds['all']:.0f} s: {seconds['adapt']:.0f} s to adapt ({result.metrics['steps']} steps), "
        f"{seconds['evaluate']:.0f} s to ask"
    )
    print(f"picture: {result.picture}   figures: {result.out / 'demo.json'}   encoder: {result.encoder}")


def _cell(figure: Any) -> str:
    low, high = figure.interval
    return f"{percent(figure.accuracy)} [{100 * low:.0f}, {100 * high:.0f}]"
