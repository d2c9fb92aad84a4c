"""What trains, and the proof that nothing else does: gradients after step 1, hashes at the end (§3.2)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from craft.core.errors import TrainingError
from craft.core.processes import agree
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.models.vision_tower import ClsTower
from craft.training.config import AdaptConfig
from craft.training.lora import add_lora

# The modules that read pixels; they do not train if only the layers do.
_ENTRANCE = ("stem", "embeddings")


def choose_trainable(lvlm: LVLM, config: AdaptConfig, contrastive_weight: float) -> dict[str, nn.Parameter]:
    """Freeze everything except the vision tower (or its layers, or LoRA on them), [CLS] and τ.

    Without a contrastive loss τ has no gradient, and neither has [CLS] unless patches attend to it; a
    parameter without gradient does not train.

    Returns:
        The parameters that train, by their names in the model.
    """
    tower = lvlm.visual.vision_tower
    children = dict.fromkeys(name.partition(".")[0] for name, _ in tower.named_parameters())
    names = [f"vision_tower.{name}" for name in children]
    if config.trainable == "layers":
        names = [name for name in names if name.rpartition(".")[2] not in _ENTRANCE]
    if contrastive_weight:
        names.append("log_temperature")
    elif isinstance(tower, ClsTower) and (config.cls_attention or tower.cls_attention) == "read-only":
        names.remove("vision_tower.cls_token")
    if config.trainable == "lora":
        others = {"log_temperature", "vision_tower.cls_token"} & set(names)
        freeze_all_but(lvlm, sorted(others))
        add_lora(tower, config.lora)  # peft freezes the tower's weights, including [CLS]
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_("lora_" in name or f"vision_tower.{name}" in others)
    else:
        freeze_all_but(lvlm, names)
    return {name: parameter for name, parameter in lvlm.named_parameters() if parameter.requires_grad}


def freeze_report(lvlm: LVLM) -> str:
    """The table of trainable and frozen parameters, as text."""
    lines = [f"{'part':<16}{'parameters':>14}{'trainable':>14}"]
    for part, count, trained in parameter_table(lvlm):
        lines.append(f"{part:<16}{count:>14,}{trained if trained else 'frozen':>14{',' if trained else ''}}")
    return "\n".join(lines)


def check_gradients(lvlm: LVLM) -> None:
    """Check after the first backward pass that gradient reached all parameters that train, and no others.

    Except for [CLS] and τ, the gradient must not be zero everywhere. (That of LoRA's A is zero at the start,
    because B is.)

    Raises:
        TrainingError: a parameter that trains has no gradient, or a frozen one has; the message names it.
    """
    trained, alive = set(), False
    for name, parameter in lvlm.named_parameters():
        if not parameter.requires_grad:
            if parameter.grad is not None:
                raise TrainingError(f"Gradient reached {name}, which is frozen; it must not train.")
            continue
        if parameter.grad is None:
            raise TrainingError(f"No gradient reached {name}, which trains; is every loss weight 0?")
        if not name.endswith(("cls_token", "log_temperature")):
            trained.add(name.split(".")[1])
            gradient: Any = parameter.grad
            shard = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # of this process
            alive = alive or bool(shard.count_nonzero())
    if not agree(alive or not trained):
        parts = " and ".join(sorted(trained)).replace("_", " ")
        raise TrainingError(f"The gradient of the whole {parts} is zero in step 1; it would learn nothing.")


def check_finite(trained: Mapping[str, nn.Parameter], step: int) -> None:
    """Check trained weights before they are scored or written. (Each step checks its loss, not its gradient.)

    Raises:
        TrainingError: a tensor has NaN or infinite values; the message names it.
    """
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in trained.values()]).tolist()
    bad = [name for name, good in zip(trained, finite, strict=True) if not good]
    if bad:
        raise TrainingError(
            f"In step {step} the loss was finite and its gradient was not: {len(bad)} of {len(trained)} "
            f"trained tensors are NaN or infinite now, such as {bad[0]}. Use a lower optimizer.learning_rate "
            "or dtype=float32; the last checkpoint is intact."
        )


def check_frozen(
    before: Mapping[str, str], after: Mapping[str, str], trained: Collection[str] = ("vision_tower",)
) -> None:
    """Check that training changed no byte of the frozen parts.

    Args:
        before, after: hashes of all parts (`craft.models.freezing.part_hashes`).
        trained: the parts that may differ.

    Raises:
        TrainingError: a frozen part changed; the message names it.
    """
    changed = [part for part, hash_ in before.items() if part not in trained and after.get(part) != hash_]
    if changed:
        raise TrainingError(
            f"Frozen weights changed during training: {', '.join(changed)}. The run is invalid: report it."
        )
