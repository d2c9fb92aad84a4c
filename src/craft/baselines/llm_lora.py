"""LLM LoRA: low-rank updates of the LLM learn, the vision side stays."""

from collections.abc import Sequence
from typing import Any

from craft.baselines.method import Method, frozen_tower_lesson
from craft.data import Sample
from craft.models.freezing import freeze_all_but
from craft.models.lvlm import LVLM
from craft.training.config import BaselineConfig
from craft.training.lesson import Lesson
from craft.training.lora import add_lora


def llm_lora(lvlm: LVLM, samples: Sequence[Sample], config: BaselineConfig) -> Lesson:
    """LoRA on the LLM (`config.lora`) learns by the autoregressive loss; works on discrete LVLMs too.

    Raises:
        ConfigError: peft is not installed, or no linear map has a name of `lora.targets`.

    Source: §12.2, "VILA-LLM-LoRA that modifies the weights of the language model"; rank and targets are ours.
    """
    freeze_all_but(lvlm, [])
    llm: Any = lvlm.backbone.llm
    add_lora(llm, config.lora)
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_("lora_" in name)
    trained = {name: parameter for name, parameter in lvlm.named_parameters() if parameter.requires_grad}
    return frozen_tower_lesson(lvlm, samples, config, trained, "llm")


LLM_LORA = Method("llm-lora", ("llm",), llm_lora)
