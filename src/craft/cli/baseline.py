"""`craft baseline`."""

from craft.cli.options import COMMON, TRAINING, Common, Training
from craft.cli.training import show_rehearsals, show_trained


def baseline(
    method: str, model: str | None = None, *, training: Training = TRAINING, common: Common = COMMON
) -> None:
    """Tune a model by one of the methods that CRAFT is compared with, on the same data, steps and settings.

    Methods: vision-ft and ldifs (for a continuous LVLM, such as craft-tiny/continuous-qwen2 or a LLaVA
    checkpoint), projector-ft and llm-lora (for any LVLM), vision-ft-codebook (for a discrete one). Zero-shot
    is `craft eval`. The settings are those of `craft adapt`, plus ldifs.weight and ldifs.layers.

    Args:
        method: vision-ft, projector-ft, ldifs, llm-lora or vision-ft-codebook.
        model: a shipped model, a folder, or a hub id.
    """
    from craft.core.processes import leave
    from craft.recipes import baseline as recipe

    config_class = recipe.find_baseline(method, trains=True).config_class
    config = config_class.build(common.config, training.overrides(common))
    budget = {"seed": common.seed, "max_steps": training.max_steps}
    if training.dry_run:
        rehearsal = recipe.rehearse(method, model, training.data, config=config, **budget)
        show_rehearsals({"": rehearsal}, common.json)
        return
    result = recipe.tune(
        method,
        model,
        training.data,
        training.out,
        config=config,
        resume=training.resume,
        overwrite=training.overwrite,
        **budget,
    )
    if leave() != 0:
        return  # in a distributed run, only the main process prints
    facts = {"method": method, "out": str(result.out)}
    show_trained(result, common.json, facts, paths={"tuned": result.out}, more={})
