"""`python -m paper`: the paper's tables, figures and speed benchmarks, in a checkout of CRAFT."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter

from craft import __version__
from craft.cli.main import run
from craft.cli.options import COMMON, Common, Flag, Several, named_values
from craft.cli.output import show_json, show_line, show_pairs, show_table, show_text, size
from craft.core.text import one_line
from paper.bench.cli import bench

STOPPED = "stopped. All measurements so far are stored: the same command continues from there."


@Parameter(name="*", group="Plan")
@dataclass(frozen=True)
class PlanFlags:
    """What is run, and at what scale.

    Attributes:
        scale: tiny: the shipped models and embedded domains. paper: configs/paper/reproduce.yaml. Or a file
            like that one.
        quick: one seed, two domains, few questions, a few steps: to see that everything works.
        work: a folder for models, codes and measurements, which later runs use again.
        domains: data sets to adapt to and ask about; by default every embedded one.
        surrogates: the models to adapt with; tables with one surrogate take the first.
        backbones: the models to ask; tables with one backbone take the first.
        continuous: a model without a codebook, for the baselines of Table 1.
        explainer: a backbone that can justify its answers, for Table 2 and Figure 2.
        seeds: as in 0,1,2.
        limit: test questions per domain and seed.
        root: the folder that holds the benchmarks.
    """

    scale: str = "tiny"
    quick: Flag = False
    work: Path | None = None
    domains: Several = None
    surrogates: Several = None
    backbones: Several = None
    continuous: str | None = None
    explainer: str | None = None
    seeds: str | None = None
    limit: int | None = None
    root: Path | None = None

    def plan(self, common: Common) -> Any:
        """The plan of these flags; `--config` is a file of its fields, `--set` is for the trainings.

        Raises:
            ConfigError: a flag or setting is unknown or impossible.
        """
        import yaml

        from craft.core.settings import read_yaml, resolve_name
        from craft.training.config import AdaptConfig
        from paper.plan import plan_for

        names = ("work", "domains", "surrogates", "backbones", "continuous", "explainer", "limit", "root")
        adapt = {
            resolve_name(name, AdaptConfig): yaml.safe_load(value)
            for name, value in named_values(common.settings).items()
        }
        changes = {
            **{name: getattr(self, name) for name in names},
            "seeds": seeds_of(self.seeds, common),
            "adapt": adapt or None,
            "device": common.device,
            "dtype": common.dtype,
        }
        named = {name: value for name, value in changes.items() if value is not None}
        fields = {} if common.config is None else read_yaml(common.config)
        return plan_for(self.scale, self.quick, {**fields, **named})


PLAN = PlanFlags()
"""The flags if none is given."""


def seeds_of(seeds: str | None, common: Common) -> list[int] | None:
    """The seeds that `--seeds` ("0,1,2") or `--seed` name, or None.

    Raises:
        ConfigError: both are set, a seed occurs twice, or something is not a whole number.
    """
    from craft.core.errors import ConfigError

    try:
        listed = [int(part) for part in (seeds or "").replace(" ", ",").split(",") if part]
    except ValueError:
        raise ConfigError(
            f"--seeds takes whole numbers with commas, as in --seeds 0,1,2; not {seeds!r}."
        ) from None
    if listed and common.seed is not None:
        raise ConfigError("Use --seed or --seeds, not both.")
    if len(set(listed)) < len(listed):  # it would narrow every interval
        raise ConfigError(f"--seeds {seeds} names a seed twice; each counts once.")
    return listed or (None if common.seed is None else [common.seed])


@dataclass(frozen=True)
class Paper:
    """The command line of a set of experiments.

    Attributes:
        load: imports the experiments, by name; `--help` does without.
        program: how it is started.
    """

    load: Callable[[], Mapping[str, Any]]
    program: str

    @cached_property
    def experiments(self) -> Mapping[str, Any]:
        """The experiments by name."""
        return self.load()

    def reproduce(
        self,
        *names: str,
        flags: PlanFlags = PLAN,
        out: Path | None = None,
        redraw: Flag = False,
        dry_run: Flag = False,
        common: Common = COMMON,
    ) -> None:
        """Measure experiments by name and write their pages. `list` shows the names.

        Models are trained, images encoded and questions answered once each, and stored: an interrupted run
        continues where it stopped, and other experiments use the results again.

        Args:
            names: the experiments; "all" means every one.
            out: a folder for NAME.json, NAME.md and NAME.png; by default docs/results (at the paper's scale
                docs/results/paper), with --quick runs/quick.
            redraw: measure nothing; make pages and figures again from NAME.json.
            dry_run: show what there is to do and how long it will take; do nothing.
        """
        from craft.core.errors import ConfigError
        from paper.plan import QUICK_OUT

        if not names:
            self.list(common=common)
            return
        known = (*self.experiments, "all")
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"There is no experiment {unknown[0]!r}; choose from {', '.join(known)}.")
        chosen = list(self.experiments) if "all" in names else list(dict.fromkeys(names))
        plan = flags.plan(common)
        if dry_run:
            self._rehearse(chosen, plan, common)
            return
        usual = {"tiny": Path("docs/results"), "paper": Path("docs/results/paper")}[plan.scale]
        folder = out or (QUICK_OUT if flags.quick else usual)
        if redraw:
            written, left_out = self._redraw(chosen, folder), {}
        else:
            written, left_out = self._measure(chosen, plan, folder)
        _show(written, left_out, chosen, common)

    def list(self, common: Common = COMMON) -> None:
        """Print the names of the experiments."""
        if common.json:
            show_json(["all", *self.experiments])
        else:
            show_line(f"{self.program} NAME..., with NAME from: all, {', '.join(self.experiments)}")

    def _redraw(self, names: Sequence[str], folder: Path) -> Sequence[Path]:
        from paper.publish import redraw

        present = [name for name in names if len(names) == 1 or (folder / f"{name}.json").is_file()]
        return [path for name in present for path in redraw(name, self.experiments[name], folder)]

    def _measure(
        self, names: Sequence[str], plan: Any, folder: Path
    ) -> tuple[Sequence[Path], dict[str, str]]:
        """Measure experiments one after the other.

        Returns:
            The files that were written, and the experiments that cannot be made here, with the reason.

        Raises:
            CraftError: only one experiment was named, and it cannot be made.
        """
        from craft.core.errors import CraftError
        from craft.core.files import check_writable
        from craft.core.interrupt import Interrupted
        from craft.core.progress import say
        from paper.estimate import estimate
        from paper.publish import publish
        from paper.work import Work

        check_writable(folder / f"{names[0]}.json")
        written: list[Path] = []
        left_out: dict[str, str] = {}

        def leave_out(name: str, error: CraftError) -> None:
            if len(names) == 1 or isinstance(error, Interrupted):
                raise error
            left_out[name] = one_line(error)
            say(f"{name} is left out: {left_out[name]}")

        work = Work(plan)
        for name in names:  # what is missing shows before the first training
            try:
                say(f"{name}: {estimate(work, self.experiments[name].cells(plan)).line}")
            except CraftError as error:
                leave_out(name, error)
        for name in [name for name in names if name not in left_out]:
            try:
                written += publish(name, self.experiments[name], plan, folder)
            except CraftError as error:
                leave_out(name, error)
        return written, left_out

    def _rehearse(self, names: Sequence[str], plan: Any, common: Common) -> None:
        """Show what there is to do for each experiment, and for all of them together."""
        from craft.core.errors import CraftError
        from craft.core.progress import say
        from paper.estimate import estimate
        from paper.sizes import is_there
        from paper.work import Work

        if plan.scale == "paper" and not all(map(is_there, (*plan.surrogates, *plan.backbones))):
            _rehearse_sizes({name: self.experiments[name].cells(plan) for name in names}, plan, common)
            return
        work, rows, together = Work(plan), [], []

        def row(name: str, cells: Sequence[Any]) -> list[str]:
            left = estimate(work, cells)
            return [name, str(left.trainings_left), str(left.cells_left), left.time]

        for name in names:
            cells = self.experiments[name].cells(plan)
            try:
                rows.append(row(name, cells))
                together += cells
            except CraftError as error:  # as the run does
                if len(names) == 1:
                    raise
                say(f"{name} is left out: {one_line(error)}")
                rows.append([name, "-", "-", "left out"])
        if len(names) > 1:
            rows.append(row("together", together))
        columns = ("experiment", "trainings left", "cells left", "time")
        if common.json:
            show_json([dict(zip(columns, row, strict=True)) for row in rows])
            return
        show_table("To do", columns, rows)
        show_line(
            "A dry run: nothing was done. Experiments share trainings and cells; together counts each once."
        )


def _show(written: Sequence[Path], left_out: Mapping[str, str], names: Sequence[str], common: Common) -> None:
    """Print the results that were written."""
    from craft.core.files import read_json

    if common.json:
        results = {path.stem: read_json(path) for path in written if path.suffix == ".json"}
        show_json(results if len(names) > 1 else next(iter(results.values())))
        return
    for path in written:
        if path.suffix == ".md":
            show_text(path.read_text(encoding="utf-8"))
    show_pairs({"written": ", ".join(map(str, written))})
    show_pairs({f"left out: {name}": reason for name, reason in left_out.items()})


def _rehearse_sizes(cells: Mapping[str, Sequence[Any]], plan: Any, common: Common) -> None:
    """The dry run without checkpoints: counts, and what a step takes, from sizes alone."""
    from paper.cells import CRAFT, Method
    from paper.sizes import DEVICES, counted, rehearse, surrogates
    from paper.work import Work

    together = [cell for needed in cells.values() for cell in needed]
    counts = {name: counted(needed) for name, needed in {**cells, "together": together}.items()}
    steps, work = [], Work(plan)
    for model in surrogates(plan, together):
        step = rehearse(model, work.settings(plan.domains[0], plan.seeds[0], Method(CRAFT, model)))
        if step is None:
            steps.append([model, *["size unknown"] * 4])
            continue
        parameters, trained = f"{step.parameters / 1e9:.2f} G", f"{step.trained / 1e6:.0f} M"
        steps.append([model, parameters, trained, str(step.micro_batch), size(step.memory)])
    rows = [[name, *map(str, count)] for name, count in counts.items()]
    columns = ("experiment", "trainings", "cells")
    heads = ("surrogate", "parameters", "trained", "samples", "memory")
    if common.json:
        experiments = [dict(zip(columns, row, strict=True)) for row in rows]
        listed = [dict(zip(heads, step, strict=True)) for step in steps]
        show_json({"experiments": experiments, "steps": listed})
        return
    show_table("To do, at the paper's scale", columns, rows)
    if steps:
        show_table(f"One step, on each of {DEVICES} devices", heads, steps)
    show_line(
        "A dry run from sizes alone, without the checkpoints: the shapes of one step, forward and backward, "
        "were checked without values."
    )


def run_experiments(
    load: Callable[[], Mapping[str, Any]], program: str, arguments: Sequence[str] | None, *more: App
) -> int:
    """Run the command line of a set of experiments.

    Args:
        load: imports the experiments, by name.
        program: how it is started.
        arguments: the words after it; None takes those of this process.
        more: further commands.

    Returns:
        The exit status, as of `craft`.
    """
    commands = Paper(load, program)
    app = App(
        name=program,
        version=__version__,
        help="The paper's tables, figures and speed benchmarks, measured in a checkout of CRAFT.",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        exit_on_error=False,
        print_error=False,
        verbose=False,
    )
    app.default(commands.reproduce)
    app.command(commands.list, name="list")
    for one in more:
        app.command(one)
    return run(app, list(sys.argv[1:] if arguments is None else arguments), program, STOPPED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m paper`.

    Args:
        arguments: the words after it; None takes those of this process.

    Returns:
        The exit status, as of `craft`.
    """
    return run_experiments(_experiments, "python -m paper", arguments, bench)


def _experiments() -> Mapping[str, Any]:
    from paper.experiments import EXPERIMENTS

    return EXPERIMENTS
