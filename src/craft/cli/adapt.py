"""`craft adapt`."""

import shlex

from craft.cli.options import COMMON, TRAINING, Common, Training
from craft.cli.training import show_trained, train
from craft.training.config import AdaptConfig


def adapt(surrogate: str | None = None, *, training: Training = TRAINING, common: Common = COMMON) -> None:
    """Adapt the vision tower of a surrogate LVLM to your pictures; LLM, projector and codebook stay frozen.

    Any setting can be given as --set learning_rate=1e-4 or in full as --losses.commitment.weight 0.2; the
    run folder's config.resolved.yaml shows them all.

    Args:
        surrogate: a shipped model (craft-tiny/llama), a folder, or a hub id; its LLM scores the answers.
    """
    config = AdaptConfig.build(common.config, training.overrides(common))
    from craft.recipes.adapt import adapt as run
    from craft.recipes.adapt import rehearse

    result = train(run, rehearse, config, surrogate, training, common)
    if result is None:
        return
    used, before = result.metrics["codes_used"], result.metrics.get("codes_used_before")
    codes = f"{used} of {len(result.prior)}" + ("" if before is None else f" ({before} before)")
    show_trained(
        result,
        common.json,
        facts={"out": str(result.out), "encoder": str(result.encoder)},
        made={"adapted encoder": result.encoder},
        more={"level-1 codes in use": codes},
    )
    if not common.json:
        place = shlex.quote(str(result.out))
        print(f"      (any backbone of this codebook; `craft inspect {place}` names those at hand)")
