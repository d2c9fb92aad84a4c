"""Who trains, who must not, and the proof: tables, gradients after step 1, hashes before and after (§3.2)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from craft.core.errors import TrainingError
from craft.core.processes import agree
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.training.config import AdaptConfig
from craft.training.lora import add_lora

# What pixels enter first: it stays as it was when only the layers train.
_ENTRANCE = ("stem", "embeddings")


def choose_trainable(lvlm: LVLM, config: AdaptConfig, contrastive_weight: float) -> dict[str, nn.Parameter]:
    """Freeze all but the vision tower (its layers, LoRA on them), [CLS] and τ; return what trains, by name.

    Without a contrastive loss τ gets no gradient, nor does [CLS] unless patches attend to it; what gets none
    does not train.
    """
    tower: Any = lvlm.visual.vision_tower
    children = dict.fromkeys(name.partition(".")[0] for name, _ in tower.named_parameters())
    names = [f"vision_tower.{name}" for name in children]
    if config.trainable == "layers":
        names = [name for name in names if name.rpartition(".")[2] not in _ENTRANCE]
    if contrastive_weight:
        names.append("log_temperature")
    elif "cls_token" in children and (config.cls_attention or tower.cls_attention) == "read-only":
        names.remove("vision_tower.cls_token")
    if config.trainable == "lora":
        wanted = {"log_temperature", "vision_tower.cls_token"} & set(names)
        freeze_all_but(lvlm, sorted(wanted))
        add_lora(tower, config.lora)  # peft freezes the tower's own weights, [CLS] too
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_("lora_" in name or f"vision_tower.{name}" in wanted)
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
    """After the first backward pass: gradient reached all of what trains, and nothing else.

    [CLS] aside, some gradient must differ from zero (a LoRA half that starts at zero is one of many).

    Raises:
        TrainingError: a parameter that should have gradient has none, or the other way round; named.
    """
    trained, alive = set(), False
    for name, parameter in lvlm.named_parameters():
        if not parameter.requires_grad:
            if parameter.grad is not None:
                raise TrainingError(f"Gradient reached {name}, which is frozen; it must not train.")
            continue
        if parameter.grad is None:
            raise TrainingError(f"No gradient reached {name}, which is to train; is every loss weight 0?")
        if not name.endswith(("cls_token", "log_temperature")):
            trained.add(name.split(".")[1])
            gradient: Any = parameter.grad
            here = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # this process's shard
            alive = alive or bool(here.count_nonzero())
    if not agree(alive or not trained):
        whole = " and ".join(sorted(trained)).replace("_", " ")
        raise TrainingError(f"The gradient of the whole {whole} is zero in step 1; it would learn nothing.")


def check_finite(trained: Mapping[str, nn.Parameter], step: int) -> None:
    """Before trained weights are scored or written: a loss is checked in each step, its gradient is not.

    Raises:
        TrainingError: one is NaN or infinite; it is named.
    """
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in trained.values()]).tolist()
    bad = [name for name, good in zip(trained, finite, strict=True) if not good]
    if bad:
        raise TrainingError(
            f"In step {step} the loss was finite and its gradient was not: {len(bad)} of {len(trained)} "
            f"trained tensors are NaN or infinite now, as {bad[0]}. A lower optimizer.learning_rate or "
            "dtype=float32 helps; the last checkpoint is intact."
        )


def check_frozen(
    before: Mapping[str, str], after: Mapping[str, str], trained: Collection[str] = ("vision_tower",)
) -> None:
    """Every part but those that trained has the bytes it had before training.

    Raises:
        TrainingError: one has not; named.
    """
    changed = [part for part, old in before.items() if part not in trained and after.get(part) != old]
    if changed:
        raise TrainingError(
            f"Frozen weights changed during training: {', '.join(changed)}. The run is invalid: report it."
        )
