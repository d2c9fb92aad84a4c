"""`craft reproduce`."""

from pathlib import Path

from craft.cli.options import COMMON, Common, Flag, Several, numbers
from craft.cli.show import show_json, show_pairs


def reproduce(
    name: str | None = None,
    *,
    out: Path = Path("docs/results"),
    work: Path = Path("runs/reproduce"),
    domains: Several = None,
    surrogate: str | None = None,
    backbones: Several = None,
    seeds: str | None = None,
    limit: int | None = None,
    encoders: Several = None,
    redraw: Flag = False,
    common: Common = COMMON,
) -> None:
    """Measure one of the paper's tables or figures at the scale of this machine. Without a name: list them.

    Encoders are adapted, images encoded and answers measured once each, and kept: an interrupted run goes on
    where it stopped, and another experiment uses what it can.

    Args:
        name: of the experiment.
        out: a folder for NAME.json, NAME.md and NAME.png.
        work: a folder for what is kept.
        domains: data sets to adapt to; by default every embedded one.
        surrogate: the model to adapt with.
        backbones: the models to ask.
        seeds: as in 0,1,2.
        limit: test questions per domain and seed.
        encoders: run folders of adaptations to use; the others are made.
        redraw: measure nothing; make page and picture again from NAME.json.
    """
    from craft.core.errors import ConfigError
    from craft.core.files import read_json
    from craft.experiments import EXPERIMENTS, Plan, publish
    from craft.experiments.publish import write_result

    if name is None:
        print("craft reproduce NAME, one of: " + ", ".join(EXPERIMENTS))
        return
    if name not in EXPERIMENTS:
        raise ConfigError(f"There is no experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}.")
    usual = Plan()
    plan = Plan(
        work=work,
        domains=tuple(domains or usual.domains),
        surrogate=surrogate or usual.surrogate,
        backbones=tuple(backbones or usual.backbones),
        seeds=tuple(numbers(seeds, "--seeds") or ([common.seed] if common.seed is not None else usual.seeds)),
        limit=limit or usual.limit,
        encoders=tuple(encoders or ()),
        device=common.device,
        dtype=common.dtype,
    )
    experiment = EXPERIMENTS[name]
    if redraw:
        written = write_result(name, experiment, read_json(out / f"{name}.json"), out)
    else:
        written = publish(name, experiment, plan, out)
    if common.json:
        show_json(read_json(written[0]))
        return
    print(written[1].read_text(encoding="utf-8"))
    show_pairs({"written": ", ".join(map(str, written))})
