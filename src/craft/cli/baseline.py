"""`craft baseline`."""

import shlex
from pathlib import Path

from craft.cli.adapt import show_rehearsal
from craft.cli.options import COMMON, Common, Flag, Settings, settings_of
from craft.cli.show import listed, percent, show_json, show_pairs


def baseline(
    method: str,
    model: str | None = None,
    *,
    data: str | None = None,
    root: str | None = None,
    out: Path | None = None,
    max_steps: int | None = None,
    micro_batch: str | None = None,
    resume: Flag = False,
    overwrite: Flag = False,
    dry_run: Flag = False,
    settings: Settings = None,
    common: Common = COMMON,
) -> None:
    """Tune a model by one of the methods that CRAFT is compared with, on the same data, steps and settings.

    Methods: vision-ft, ldifs (of a continuous LVLM, as craft-tiny/continuous-qwen2 or a LLaVA checkpoint);
    projector-ft, llm-lora (of any LVLM); vision-ft-codebook (of a discrete one). Zero-shot is `craft eval`.

    Args:
        method: vision-ft, projector-ft, ldifs, llm-lora or vision-ft-codebook.
        model: a shipped model, a folder, or a hub id.
        data, root, max_steps, micro_batch: as for `craft adapt`.
        out: the run folder; by default runs/ and the names of data and method.
        resume: go on with the interrupted run in the run folder; the result is that of an unbroken run.
        overwrite: replace the run in the run folder.
        dry_run: build, show who trains, take one batch forward and backward, estimate memory; write nothing.
        settings: NAME=VALUE, any setting of `craft adapt`, ldifs.weight, lora.rank; may be given several
            times.
    """
    from craft.baselines import METHODS, rehearse
    from craft.core.errors import ConfigError
    from craft.core.processes import leave
    from craft.training.config import AdaptConfig, BaselineConfig

    known = [name for name in METHODS if name != "zero-shot"]
    if method not in known:
        raise ConfigError(
            f"There is no method {method!r} to tune by; use one of {', '.join(known)}. Zero-shot is "
            "`craft eval MODEL`."
        )
    given = {"data.root": root, "micro_batch": micro_batch}
    given = {name: value for name, value in given.items() if value is not None}
    kind = AdaptConfig if method == "vision-ft-codebook" else BaselineConfig
    config = kind.build(common.config, {**settings_of(settings, common), **given})
    if dry_run:
        show_rehearsal(rehearse(method, model, data, common.seed, max_steps, config), common.json)
        return
    run = METHODS[method]
    result = run(model, data, out, common.seed, max_steps, config, resume=resume, overwrite=overwrite)
    if leave() != 0:
        return  # one process of a distributed run speaks for all
    if common.json:
        told = {"method": method, "out": str(result.out), "held_out": list(result.held_out)}
        show_json({**told, "metrics": result.metrics, "config": result.config.model_dump(mode="json")})
        return
    metrics, best = result.metrics, result.metrics.get("best_step")
    kept = (
        ""
        if best is None
        else f", that of step {best} kept (validation {percent(metrics['best_validation'])} %)"
    )
    show_pairs(
        {
            "tuned": result.out,
            "steps": f"{metrics['steps']}{kept}",
            "minutes": f"{metrics['minutes']:.1f}",
            "never trained on": listed(result.held_out),
        }
    )
    name, place = shlex.quote(result.config.surrogate), shlex.quote(str(result.out))
    told = result.config.data
    data = shlex.quote(told.name) + (f" --root {shlex.quote(told.root)}" if told.root else "")
    print(f"\nNext: craft eval {name} --encoder {place} --data {data}")
