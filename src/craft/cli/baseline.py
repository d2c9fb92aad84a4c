"""`craft baseline`."""

from functools import partial

from craft.cli.options import COMMON, TRAINING, Common, Training
from craft.cli.training import show_trained, train


def baseline(
    method: str, model: str | None = None, *, training: Training = TRAINING, common: Common = COMMON
) -> None:
    """Tune a model by one of the methods that CRAFT is compared with, on the same data, steps and settings.

    Methods: vision-ft, ldifs (of a continuous LVLM, as craft-tiny/continuous-qwen2 or a LLaVA checkpoint);
    projector-ft, llm-lora (of any LVLM); vision-ft-codebook (of a discrete one). Zero-shot is `craft eval`.
    Settings are those of `craft adapt`, and ldifs.weight, lora.rank.

    Args:
        method: vision-ft, projector-ft, ldifs, llm-lora or vision-ft-codebook.
        model: a shipped model, a folder, or a hub id.
    """
    from craft.baselines import METHODS, rehearse
    from craft.core.errors import ConfigError
    from craft.training.config import AdaptConfig, BaselineConfig

    known = [name for name in METHODS if name != "zero-shot"]
    if method not in known:
        raise ConfigError(
            f"There is no method {method!r} to tune by; use one of {', '.join(known)}. Zero-shot is "
            "`craft eval MODEL`."
        )
    kind = AdaptConfig if method == "vision-ft-codebook" else BaselineConfig
    result = train(METHODS[method], partial(rehearse, method), kind, model, training, common)
    if result is None:
        return
    facts = {"method": method, "out": str(result.out)}
    show_trained(result, common.json, facts, made={"tuned": result.out}, more={})
