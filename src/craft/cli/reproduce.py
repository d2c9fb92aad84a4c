"""`craft reproduce`."""

from pathlib import Path
from typing import Any

from craft.cli.options import COMMON, Common, Flag, Settings, Several, seeds_of, settings_of
from craft.cli.output import show_json, show_pairs, show_table


def reproduce(
    *names: str,
    out: Path | None = None,
    work: Path | None = None,
    scale: str = "tiny",
    quick: Flag = False,
    jobs: int = 1,
    domains: Several = None,
    surrogates: Several = None,
    backbones: Several = None,
    continuous: str | None = None,
    explainer: str | None = None,
    seeds: str | None = None,
    limit: int | None = None,
    root: Path | None = None,
    encoders: Several = None,
    settings: Settings = None,
    redraw: Flag = False,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Measure the paper's tables and figures at the scale of this machine. Without a name: list them.

    Models are trained, images encoded and questions answered once each, and kept: an interrupted run goes on
    where it stopped, and another experiment uses what it can.

    Args:
        names: of experiments; all stands for every one.
        out: a folder for NAME.json, NAME.md and NAME.png; by default docs/results (of the paper's scale
            docs/results/paper), with --quick runs/quick.
        work: a folder for what is kept.
        scale: tiny: the shipped models and embedded domains. paper: configs/paper/reproduce.yaml. Or a file
            like that one.
        quick: one seed, two domains, few questions, a few steps: to see that all works.
        jobs: processes that measure side by side, each on domains and seeds of its own.
        domains: data sets to adapt to and ask about; by default every embedded one.
        surrogates: the models to adapt with; tables with one surrogate take the first.
        backbones: the models to ask; tables with one backbone take the first.
        continuous: a model without a codebook, for the baselines of Table 1.
        explainer: a backbone that can justify its answers, for Table 2 and Figure 2.
        seeds: as in 0,1,2.
        limit: test questions per domain and seed.
        root: the folder that the benchmarks lie in.
        encoders: run folders of adaptations with the first surrogate to use; the others are made.
        settings: NAME=VALUE, a setting of every training; may be given several times.
        redraw: measure nothing; make pages and pictures again from NAME.json.
        dry_run: say what there is to do and how long it will take; do nothing.
    """
    from craft.core.errors import ConfigError, CraftError
    from craft.core.files import check_writable, read_json
    from craft.core.interrupt import Interrupted
    from craft.core.progress import say
    from craft.experiments import EXPERIMENTS, publish
    from craft.experiments.parallel import estimate, fill_all, in_order
    from craft.experiments.plan import QUICK_OUT, plan_for
    from craft.experiments.publish import redraw as draw_again
    from craft.experiments.work import Work

    if not names:
        if common.json:
            show_json(["all", *EXPERIMENTS])
        else:
            print("craft reproduce NAME..., of: all, " + ", ".join(EXPERIMENTS))
        return
    if unknown := [name for name in names if name not in (*EXPERIMENTS, "all")]:
        raise ConfigError(f"There is no experiment {unknown[0]!r}; choose of all, {', '.join(EXPERIMENTS)}.")
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {jobs}.")
    chosen = list(EXPERIMENTS) if "all" in names else list(dict.fromkeys(names))
    given = {
        "work": work,
        "domains": domains,
        "surrogates": surrogates,
        "backbones": backbones,
        "continuous": continuous,
        "explainer": explainer,
        "seeds": seeds_of(seeds, common),
        "limit": limit,
        "root": root,
        "encoders": encoders,
        "adapt": _settings(settings) or None,
        "device": common.device,
        "dtype": common.dtype,
    }
    plan = plan_for(scale, quick, given)
    usual = {"tiny": Path("docs/results"), "paper": Path("docs/results/paper")}[plan.scale]
    place = out or (QUICK_OUT if quick else usual)
    written: list[Path] = []
    left_out: dict[str, str] = {}
    if redraw:
        for name in chosen:
            if len(chosen) == 1 or (place / f"{name}.json").is_file():
                written += draw_again(name, EXPERIMENTS[name], place)
    elif dry_run:
        _rehearse(chosen, plan, jobs, common)
        return
    else:
        check_writable(place / f"{chosen[0]}.json")
        under_way, waiting = Work(plan), []
        under_way.note_unused()
        for name in chosen:
            try:
                cells = EXPERIMENTS[name].cells(plan)
                say(f"{name}: {estimate(under_way, cells).line(jobs)}")
                waiting += in_order(cells)
            except CraftError as error:
                if len(chosen) == 1:
                    raise
                left_out[name] = " ".join(str(error).split())
                say(f"{name} is left out: {left_out[name]}")
        del under_way  # its models would take memory beside those of the processes
        if jobs > 1 and len(chosen) > 1:  # together: no process waits for the slowest of each experiment
            try:
                fill_all(plan, waiting, jobs)
            except Interrupted:
                raise
            except CraftError as error:
                say(" ".join(str(error).split()))  # its experiment stumbles over it again, and is left out
        for name in chosen:
            if name in left_out:
                continue
            try:
                written += publish(name, EXPERIMENTS[name], plan, place, jobs)
            except CraftError as error:
                if len(chosen) == 1 or isinstance(error, Interrupted):
                    raise
                left_out[name] = " ".join(str(error).split())
                say(f"{name} is left out: {left_out[name]}")
    if common.json:
        results = [path for path in written if path.suffix == ".json"]
        found = {path.stem: read_json(path) for path in results}
        show_json(found if len(chosen) > 1 else next(iter(found.values())))
        return
    for path in written:
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
    show_pairs({"written": ", ".join(map(str, written))})
    show_pairs({f"left out: {name}": reason for name, reason in left_out.items()})


def _settings(given: list[str] | None) -> dict[str, Any]:
    """`--set` as overrides by dotted name, their values read as YAML.

    Raises:
        ConfigError: a setting is unknown, or an entry is not NAME=VALUE.
    """
    import yaml

    from craft.core.settings import resolve_name
    from craft.training.config import AdaptConfig

    found = settings_of(given, Common())
    return {resolve_name(name, AdaptConfig): yaml.safe_load(value) for name, value in found.items()}


def _rehearse(names: list[str], plan: Any, jobs: int, common: Common) -> None:
    """What there is to do for each experiment, and for all of them together."""
    from craft.core.errors import CraftError
    from craft.core.progress import say
    from craft.experiments import EXPERIMENTS
    from craft.experiments.parallel import Estimate, estimate
    from craft.experiments.sizes import is_there
    from craft.experiments.work import Work

    if plan.scale == "paper" and not all(map(is_there, (*plan.surrogates, *plan.backbones))):
        _rehearse_sizes(names, plan, common)
        return
    work, rows, together = Work(plan), [], []
    estimates: list[Estimate] = []
    work.note_unused()

    def row(name: str, found: Estimate) -> list[str]:
        estimates.append(found)
        return [name, str(found.trainings_left), str(found.cells_left), _time(found.time(jobs))]

    for name in names:
        cells = EXPERIMENTS[name].cells(plan)
        try:
            rows.append(row(name, estimate(work, cells)))
            together += cells
        except CraftError as error:  # as the run does
            if len(names) == 1:
                raise
            say(f"{name} is left out: {' '.join(str(error).split())}")
            rows.append([name, "-", "-", "left out"])
    if len(names) > 1:
        rows.append(row("together", estimate(work, together)))
    columns = ("experiment", "trainings left", "cells left", "time")
    if common.json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    show_table(f"To do, with {jobs} job{'s' if jobs > 1 else ''}", columns, rows)
    print("A dry run: nothing was done. Experiments share trainings and cells; together counts each once.")
    if not all(one.measured for one in estimates):
        print("Times are partly by guess, for a CPU core a job: nothing like it was measured here yet.")


def _rehearse_sizes(names: list[str], plan: Any, common: Common) -> None:
    """The same where the checkpoints are not there: counts, and what a step takes, from sizes alone."""
    from craft.cli.output import size
    from craft.experiments import EXPERIMENTS
    from craft.experiments.cells import CRAFT, Method
    from craft.experiments.sizes import DEVICES, counted, rehearse, surrogates
    from craft.experiments.work import settings_of_training

    asked = {name: EXPERIMENTS[name].cells(plan) for name in names}
    counts = {name: counted(cells) for name, cells in asked.items()}
    together = [cell for cells in asked.values() for cell in cells]
    counts["together"] = counted(together)
    steps = []
    for model in surrogates(plan, together):
        config = settings_of_training(plan, plan.domains[0], plan.seeds[0], Method(CRAFT, model))
        step = rehearse(model, config)
        steps.append(
            [model]
            + (
                ["size unknown"] * 4
                if step is None
                else [
                    f"{step.parameters / 1e9:.2f} G",
                    f"{step.trained / 1e6:.0f} M",
                    str(step.micro_batch),
                    size(step.memory),
                ]
            )
        )
    rows = [[name, *map(str, found)] for name, found in counts.items()]
    columns = ("experiment", "trainings", "cells")
    heads = ("surrogate", "parameters", "trained", "samples", "memory")
    if common.json:
        listed = [dict(zip(columns, row, strict=True)) for row in rows]
        show_json({"experiments": listed, "steps": [dict(zip(heads, row, strict=True)) for row in steps]})
        return
    show_table("To do, at the paper's scale", columns, rows)
    if steps:
        show_table(f"One step, on each of {DEVICES} devices", heads, steps)
    print(
        "A dry run from sizes alone: the checkpoints are not there. Shapes were followed through a step, "
        "forward and backward, without values."
    )


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
