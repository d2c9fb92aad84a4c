"""At what scale experiments are run: the shipped models on this machine, or the paper's settings."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from craft.core.errors import ConfigError
from craft.core.settings import Settings
from craft.data import EMBEDDED

Scale = Literal["tiny", "paper"]

PAPER = "configs/paper/reproduce.yaml"
"""The plan of `--scale paper`, in the checkout."""


class Plan(Settings):
    """What experiments are made of. The first surrogate and backbone are those of tables that have one.

    Attributes:
        scale: "tiny" or "paper"; told on the pages.
        file: the file of one's own that the plan is from; None is that of the scale.
        quick: the figures are to show that all works, no more.
        work: a folder for trained models, codes and measured cells; what is there is not made again.
        domains: data sets that models are adapted to and asked about.
        general: data sets of the forgetting check: each model is asked those that are not its own.
        root: where benchmarks lie, each in a folder of its name.
        surrogates: models to adapt with.
        backbones: models that are asked.
        continuous: a model without a codebook, for the baselines.
        explainer: a backbone that can justify its answers.
        seeds: of adaptation (held-out classes too) and questions.
        limit: at most so many test questions per domain and seed, evenly from the classes; a third of them
            in the forgetting check.
        explained, explain_tokens: so many questions are to be justified, in so many tokens at most.
        lora: settings of LLM LoRA in Table 2: the LLM that can explain is the largest of a plan, and the
            paper's LoRA is kept whole.
        keep_ratio: share of the visual tokens that an LLM behind an adapted encoder is shown (§4.1: 0.8).
            Zero-shot and baselines see all of them.
        adapt: settings of every training, by dotted name.
        encoders: run folders of adaptations that are there already; the others are made.
        benches: where `craft bench` leaves what Table 4 is made of.
        device, dtype: where and in what to run.
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
    encoders: tuple[str, ...] = Field(default=(), strict=False)
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
"""Where `--quick` writes, so that its figures are not taken for results."""


def plan_for(scale: str, quick: bool, given: dict[str, Any]) -> Plan:
    """The plan of a scale, with what was given on top.

    Args:
        scale: "tiny" is the plan's own defaults, "paper" the file `PAPER`; or a YAML file of your own.
        quick: on top of it `QUICK`.
        given: fields by name; those that are None count as not given.

    Raises:
        ConfigError: a field is unknown or impossible, or the file is not there.
    """
    over = {**(QUICK if quick else {}), **{key: value for key, value in given.items() if value is not None}}
    if quick and given.get("adapt"):
        over["adapt"] = {**QUICK["adapt"], **given["adapt"]}
    if scale in get_args(Scale):
        return Plan.build(paper_file() if scale == "paper" else None, over)
    return Plan.build(scale, {**over, "file": scale})


def paper_file() -> Path:
    """`PAPER` in this checkout or below the working directory.

    Raises:
        ConfigError: CRAFT was installed without its checkout.
    """
    for base in (Path(__file__).resolve().parents[3], Path()):
        if (base / PAPER).is_file():
            return base / PAPER
    raise ConfigError(
        f"{PAPER} belongs to the checkout, not the package; clone it, or give a file: --scale FILE"
    )
