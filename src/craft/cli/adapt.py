"""`craft adapt`."""

import shlex

from craft.cli.options import COMMON, TRAINING, Common, Training
from craft.cli.training import show_rehearsals, show_trained
from craft.training.config import AdaptConfig


def adapt(surrogate: str | None = None, *, training: Training = TRAINING, common: Common = COMMON) -> None:
    """Adapt the vision tower of a surrogate LVLM to your pictures; LLM, projector and codebook stay frozen.

    You can change any setting, as in --set learning_rate=1e-4, or with its full name, as in
    --losses.commitment.weight 0.2. The run folder's config.resolved.yaml lists all settings.

    Args:
        surrogate: a shipped model (craft-tiny/llama), a folder, or a hub id; its LLM scores the answers.
    """
    config = AdaptConfig.build(common.config, training.overrides(common))

    # Late, for these import torch: a mistake in the settings is reported at once.
    from craft.core.processes import leave
    from craft.recipes.adapt import adapt as run
    from craft.recipes.adapt import rehearse

    if training.dry_run:
        rehearsal = rehearse(
            surrogate, training.data, seed=common.seed, max_steps=training.max_steps, config=config
        )
        show_rehearsals({"": rehearsal}, common.json)
        return
    result = run(
        surrogate,
        training.data,
        training.out,
        seed=common.seed,
        max_steps=training.max_steps,
        config=config,
        resume=training.resume,
        overwrite=training.overwrite,
    )
    if leave() != 0:
        return  # in a distributed run, only the main process prints
    used, before = result.metrics["codes_used"], result.metrics.get("codes_used_before")
    codes = f"{used} of {len(result.prior)}" + ("" if before is None else f" ({before} before)")
    show_trained(
        result,
        common.json,
        facts={"out": str(result.out), "encoder": str(result.encoder)},
        paths={"adapted encoder": result.encoder},
        more={"level-1 codes in use": codes},
    )
    if not common.json:
        folder = shlex.quote(str(result.out))
        print(f"      (any backbone of this codebook; `craft inspect {folder}` names those at hand)")
