"""At what scale experiments are run: the shipped models on this machine, or the paper's settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from craft.core.settings import Settings
from craft.data import EMBEDDED

Scale = Literal["tiny", "paper"]

PAPER = Path(__file__).parents[1] / "configs" / "paper" / "reproduce.yaml"
"""The plan of `--scale paper`."""


class Plan(Settings):
    """What experiments are made of. Tables with one surrogate or backbone take the first.

    Attributes:
        scale: "tiny" or "paper"; the pages state it.
        file: the user's file that the plan was read from; None is the file of the scale.
        quick: the run only shows that everything works; its figures are not results.
        work: a folder for trained models, codes and measured cells. CRAFT does not make again what is in it.
        domains: data sets to adapt to and to ask about.
        general: data sets of the forgetting check. Each model is asked those that it was not adapted to.
        root: the folder that holds the benchmarks, each in a folder with its name.
        surrogates: models to adapt with.
        backbones: models that answer.
        continuous: a model without a codebook, for the baselines.
        explainer: a backbone that can justify its answers.
        seeds: of adaptation (held-out classes too) and questions.
        limit: the largest number of test questions per domain and seed, drawn evenly from the classes; a
            third of them in the forgetting check.
        explained, explain_tokens: number of questions to justify, and the most tokens of such an answer.
        lora: settings of LLM LoRA in Table 2: the LLM that can explain is the largest of a plan, and all of
            what the paper's LoRA learned counts (`blend` 1).
        keep_ratio: share of the visual tokens that an LLM sees after an adapted encoder (§4.1: 0.8).
            Zero-shot and baselines see all of them.
        adapt: settings of every training, by dotted name.
        benches: where `python -m paper bench` writes what Table 4 is made of.
        device, dtype: as for `craft.load`.
    """

    scale: Scale = "tiny"
    file: str | None = None
    quick: bool = False
    work: Path = Field(default=Path("runs/reproduce"), strict=False)
    domains: tuple[str, ...] = Field(default=tuple(EMBEDDED), strict=False)
    general: tuple[str, ...] = Field(default=tuple(EMBEDDED), strict=False)
    root: Path | None = Field(default=None, strict=False)
    surrogates: tuple[str, ...] = Field(default=("craft-tiny/qwen2", "craft-tiny/llama"), strict=False)
    backbones: tuple[str, ...] = Field(default=("craft-tiny/qwen2", "craft-tiny/llama"), strict=False)
    continuous: str = "craft-tiny/continuous-qwen2"
    explainer: str = "craft-tiny/smollm2"
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), strict=False)
    limit: int | None = Field(default=300, ge=1)
    explained: int = Field(default=40, ge=1)
    explain_tokens: int = Field(default=64, ge=1)
    lora: dict[str, Any] = Field(default_factory=lambda: {"max_steps": 60, "batch_size": 4, "blend": 1.0})
    keep_ratio: float = Field(default=1.0, gt=0, le=1)
    adapt: dict[str, Any] = Field(default_factory=dict)
    benches: Path = Field(default=Path("docs/results"), strict=False)
    device: str | None = None
    dtype: str | None = None

    @property
    def general_limit(self) -> int | None:
        """Questions per data set in the forgetting check."""
        return None if self.limit is None else max(1, self.limit // 3)


QUICK: dict[str, Any] = {
    "quick": True,
    "work": "runs/quick/work",
    "domains": ["apparel", "digits"],
    "general": ["apparel", "digits"],
    "seeds": [0],
    "limit": 24,
    "explained": 6,
    "explain_tokens": 16,
    "lora": {"max_steps": 2, "batch_size": 4, "blend": 1.0},
    "adapt": {"max_steps": 4, "data.limit": 120},
}
"""What `--quick` changes: one seed, two domains, few questions, a few steps of training."""

QUICK_OUT = Path("runs/quick")
"""Where `--quick` writes, so that nobody takes its figures for results."""


def plan_for(scale: str, quick: bool, changes: Mapping[str, Any]) -> Plan:
    """The plan of a scale with changes on top.

    Args:
        scale: "tiny" is the plan's own defaults, "paper" the file `PAPER`; or a YAML file.
        quick: apply `QUICK` before the changes.
        changes: fields by name; None leaves a field as it is.

    Raises:
        ConfigError: a field is unknown or impossible, or the file is missing.
    """
    fields = {key: value for key, value in changes.items() if value is not None}
    if quick:
        fields = {**QUICK, **fields, "adapt": {**QUICK["adapt"], **fields.get("adapt", {})}}
    if scale in get_args(Scale):
        return Plan.build(PAPER if scale == "paper" else None, fields)
    return Plan.build(scale, {**fields, "file": scale})
