"""Freezing: which parameters train, and hashes that prove which parts did not change (§3.2)."""

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from craft.core.errors import ConfigError
from craft.core.tensors import hash_tensors
from craft.models.llm_bits import values
from craft.models.lvlm import LVLM


def parts(lvlm: LVLM) -> dict[str, nn.Module]:
    """The LVLM's parts by the names that are used in tables, configs and hashes."""
    modules: dict[str, nn.Module] = {
        "vision_tower": lvlm.visual.vision_tower,
        "codebook": lvlm.visual.codebook,
    }
    if lvlm.backbone.projector is not None:  # a token table is part of the LLM
        modules["projector"] = lvlm.backbone.projector
    modules["llm"] = lvlm.backbone.llm
    if lvlm.visual.text_encoder is not None:
        modules["text_encoder"] = lvlm.visual.text_encoder
    return modules


def freeze_all_but(lvlm: LVLM, names: Collection[str]) -> list[nn.Parameter]:
    """Freeze everything, then let the named parts train.

    Args:
        names: `vision_tower`, `projector`, `llm`, `text_encoder`, `log_temperature`, or dotted names below
            them, such as `vision_tower.layers`.

    Returns:
        The parameters that train, in a fixed order.

    Raises:
        ConfigError: a name is unknown, or it is the codebook, which never trains.
    """
    lvlm.requires_grad_(False).eval()
    modules = parts(lvlm)
    for name in names:
        head, _, below = name.partition(".")
        if head == "log_temperature" and not below:
            lvlm.visual.log_temperature.requires_grad_(True)
            continue
        if head not in modules or head == "codebook":
            listed = ", ".join([part for part in modules if part != "codebook"] + ["log_temperature"])
            raise ConfigError(
                f"{name!r} cannot be trained; use {listed}, or a dotted name below one of these."
            )
        chosen = [
            parameter
            for key, parameter in modules[head].named_parameters()
            if not below or key == below or key.startswith(below + ".")
        ]
        if not chosen:
            raise ConfigError(f"{name!r} names no parameter; {head} has {_children(modules[head])}.")
        for parameter in chosen:
            parameter.requires_grad_(True)
    return [parameter for parameter in lvlm.parameters() if parameter.requires_grad]


def _children(module: nn.Module) -> str:
    return ", ".join(dict.fromkeys(key.partition(".")[0] for key, _ in module.named_parameters()))


def parameter_table(
    lvlm: LVLM, trainable: Iterable[nn.Parameter] | None = None
) -> list[tuple[str, int, int]]:
    """Rows (part, number of parameters, number of trained parameters).

    The codebook's codewords are a buffer; they count as parameters that never train.

    Args:
        trainable: the parameters that train; None: those that require gradient.
    """
    if trainable is None:
        training = {id(parameter) for parameter in lvlm.parameters() if parameter.requires_grad}
    else:
        training = {id(parameter) for parameter in trainable}

    def row(name: str, tensors: Iterable[nn.Parameter]) -> tuple[str, int, int]:
        unique = {id(tensor): tensor for tensor in tensors}
        trained = sum(tensor.numel() for key, tensor in unique.items() if key in training)
        return name, sum(values(tensor) for tensor in unique.values()), trained

    rows = []
    for name, module in parts(lvlm).items():
        if name == "codebook":
            rows.append((name, lvlm.visual.codebook.codewords.numel(), 0))
        else:
            rows.append(row(name, module.parameters()))
    rows.append(row("log_temperature", [lvlm.visual.log_temperature]))
    return rows


def part_hashes(lvlm: LVLM) -> dict[str, str]:
    """SHA-256 (hex) of the weights of each part: vision_tower, codebook, projector, llm and text_encoder."""
    return {name: hash_tensors(module.state_dict()) for name, module in parts(lvlm).items()}


def answer_hashes(lvlm: LVLM) -> dict[str, str]:
    """`part_hashes`, and `words`: a hash of everything else that answers depend on.

    Models of one name and with the same weights may differ in their text tokenizer, chat template, prompt
    format, token table, in how images become square, and in settings of the tower (`VisionTower.settings`).
    """
    backbone = lvlm.backbone
    template = getattr(backbone.tokenizer, "chat_template", None)
    settings = [backbone.prompt, lvlm.visual.aspect, template, _vocabulary(backbone.tokenizer)]
    if backbone.table is not None:
        settings.append(hash_tensors({"ids": backbone.table.ids}))
    if lvlm.visual.vision_tower.settings:
        settings.append(lvlm.visual.vision_tower.settings)
    return {**part_hashes(lvlm), "words": hashlib.sha256(json.dumps(settings).encode()).hexdigest()}


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | list[tuple[str, int]]:
    """How a text tokenizer splits text, JSON-able."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return sorted(tokenizer.get_vocab().items())
    settings = json.loads(fast.to_str())
    return {
        key: value for key, value in settings.items() if key not in ("truncation", "padding")
    }  # set by calls
