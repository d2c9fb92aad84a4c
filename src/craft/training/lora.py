"""LoRA on an LLM or a vision tower, by peft: added in place, removed or merged after training."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CheckpointError, ConfigError
from craft.training.config import LoraConfig


def need_peft() -> None:
    """Check that LoRA is available, before any work.

    Raises:
        ConfigError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigError('LoRA needs peft: pip install "craft-vlm[lora]", or train without it.')


def lora_targets(llm: nn.Module, config: LoraConfig) -> list[str]:
    """The full names of the linear maps in the layers (of an LLM or a vision tower) that get LoRA.

    Raises:
        ConfigError: no linear map has such a name.
    """
    chosen, ends = [], set[str]()
    for name, module in llm.named_modules():
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if not isinstance(module, nn.Linear) or number is None:
            continue  # the head is outside the layers
        ends.add(end := name.rpartition(".")[2])
        named = {"all-linear", end} & set(config.targets)
        if named and (config.layers is None or number < config.layers):
            chosen.append(name)
    if not chosen:
        raise ConfigError(
            f"No linear map is called {' or '.join(config.targets)} (lora.targets); the layers "
            f"have {', '.join(sorted(ends))}. Use some of these, or all-linear."
        )
    return chosen


def add_lora(llm: nn.Module, config: LoraConfig) -> None:
    """Add LoRA to the linear maps of `llm` (or a vision tower) that the config names; the update starts at 0.

    Raises:
        ConfigError: peft is not installed, or no linear map has such a name.
    """
    need_peft()
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model

    names = lora_targets(llm, config)
    alpha = config.alpha if config.alpha is not None else 2.0 * config.rank
    settings = PeftLora(r=config.rank, lora_alpha=alpha, target_modules=names)  # type: ignore[arg-type]
    inject_adapter_in_model(settings, llm)


def check_factors(llm: nn.Module, config: LoraConfig, factors: Mapping[str, Tensor], path: Path) -> None:
    """Check that LoRA with these settings can continue from the factors of an earlier result.

    Args:
        llm: without LoRA.
        config: the settings of this run.
        factors: as `take_lora` returns them.
        path: their file, for messages.

    Raises:
        CheckpointError: they belong to another LLM or other linear maps, or have a higher rank.
    """
    if set(lora_targets(llm, config)) != {key.rpartition(".")[0] for key in factors}:
        raise CheckpointError(
            f"The LoRA in {path} is on other linear maps than that of this run; set lora.targets."
        )
    for name in {key.rpartition(".")[0] for key in factors}:
        a, b = (factors.get(f"{name}.{half}", torch.zeros(0)) for half in "AB")
        fits = a.ndim == b.ndim == 2 and b.shape[1] == len(a)
        if not fits or (b.shape[0], a.shape[1]) != llm.get_submodule(name).weight.shape:
            raise CheckpointError(f"The LoRA in {path} does not fit this LLM at {name}.")
        if len(a) > config.rank:
            raise CheckpointError(f"The LoRA in {path} has rank {len(a)}; set lora.rank to at least that.")


@torch.no_grad()
def begin_lora(llm: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Set LoRA to factors that `take_lora` returned; the additional ranks of a larger update start at 0."""
    for name in {key.rpartition(".")[0] for key in factors}:
        layer: Any = llm.get_submodule(name)
        a, b = factors[f"{name}.A"], factors[f"{name}.B"]
        layer.lora_A["default"].weight[: len(a)] = a
        layer.lora_B["default"].weight[:, : len(a)] = b.float() / layer.scaling["default"]


@torch.no_grad()
def take_lora(llm: nn.Module, merge: bool) -> dict[str, Tensor]:
    """Remove LoRA from `llm`.

    Args:
        llm: an LLM (or a vision tower) after `add_lora`.
        merge: first add the update to the weights (in float32, rounded once).

    Returns:
        For each linear map NAME: `NAME.A` `[r, in]` and `NAME.B` `[out, r]`, which includes the scale. The
        update is B A.
    """
    factors: dict[str, Tensor] = {}
    for name, module in list(llm.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        layer: Any = module
        a = layer.lora_A["default"].weight.float()
        b = layer.lora_B["default"].weight.float() * layer.scaling["default"]
        base = layer.get_base_layer()
        if merge:
            base.weight.copy_((base.weight.float() + b @ a).to(base.weight.dtype))
        factors |= {f"{name}.A": a.clone(), f"{name}.B": b.clone()}
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, base)
    if hasattr(llm, "peft_config"):  # peft's mark
        del llm.peft_config
    return factors
