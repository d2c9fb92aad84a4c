"""`craft baseline`."""

from functools import partial

from craft.cli.options import COMMON, TRAINING, Common, Training
from craft.cli.training import show_trained, train


def baseline(
    method: str, model: str | None = None, *, training: Training = TRAINING, common: Common = COMMON
) -> None:
    """Tune a model by one of the methods that CRAFT is compared with, on the same data, steps and settings.

    Methods: vision-ft and ldifs (for a continuous LVLM, such as craft-tiny/continuous-qwen2 or a LLaVA
    checkpoint), projector-ft and llm-lora (for any LVLM), vision-ft-codebook (for a discrete one). Zero-shot
    is `craft eval`. Settings are those of `craft adapt`, with ldifs.weight and ldifs.layers.

    Args:
        method: vision-ft, projector-ft, ldifs, llm-lora or vision-ft-codebook.
        model: a shipped model, a folder, or a hub id.
    """
    from craft.recipes.baseline import find_baseline, rehearse, tune

    kind = find_baseline(method, trains=True).config_class
    config = kind.build(common.config, training.overrides(common))
    result = train(partial(tune, method), partial(rehearse, method), config, model, training, common)
    if result is None:
        return
    facts = {"method": method, "out": str(result.out)}
    show_trained(result, common.json, facts, made={"tuned": result.out}, more={})
