"""The settings of `craft judge`; the names below are the keys (see `craft.core.settings`).

The descriptions are also the help of the flags with these names, and the text of docs/reference.md.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from craft.core.errors import ConfigError
from craft.core.settings import Settings


def _check_local(name: Any) -> Any:
    if name == "local":
        raise ConfigError(
            "The judge 'local' was removed. For a model on this machine, start a server (vLLM, llama.cpp, "
            "Ollama) and give --judge openai --model NAME --base-url http://localhost:8000/v1."
        )
    return name


def _no_temperature(value: Any) -> Any:
    return None if value == "none" else value


JudgeName = Annotated[Literal["offline", "anthropic", "openai"], BeforeValidator(_check_local)]


class JudgeConfig(Settings):
    """Everything `craft judge` needs: the answers, and the judge.

    Attributes:
        run: a run of `craft adapt`; an LVLM (zero-shot, with `data`); or existing answers, as a .jsonl or the
            folder of an earlier judging.
        backbone: the LVLM that answers with the run's encoder; by default the run's surrogate.
        zero_shot: ask the run's questions with the base tower instead.
        data: the data set, as `craft eval` takes it; by default the run's own.
        root: the folder of a benchmark; otherwise the folder that relative paths start from.
        seed: the seed of the questions, and of the samples that `limit` draws; by default the run's.
        limit: at most this many samples, drawn evenly from the classes (§4.3: 350).
        max_new_tokens: cap on an answer (§4.1: 1024).
        keep_ratio: share of the visual tokens that the LLM sees.
        batch_size: questions per forward pass.
        out: the folder of answers and verdicts; by default `judge/` in the run folder or in `runs/`, and
            for a .jsonl a folder next to it.
        judge: "offline" (fixed rules, Correctness and Presence only), "anthropic" (by default the paper's
            judge) or "openai" (any server of that protocol; for vLLM, llama.cpp or
            Ollama on this machine with `base_url`).
        model: the judge's model, as its service calls it; by default the paper's, which only Anthropic has.
        base_url: another server of the protocol, such as http://localhost:8000/v1.
        temperature: the judge's temperature (§7: 0.6); with null, or none, CRAFT sends none, since newer
            models accept none.
        max_tokens: cap on a reply of the judge.
        timeout: seconds for one attempt to reach the judge.
        retries: further attempts after a rate limit, a timeout or a server error.
        concurrency: simultaneous calls.
        price: US dollars per million tokens read and written, for the estimate.
        prompt: the rubric: "craft" (the default: §7 of the paper in our words), "paper" (§7 word for word),
            or a file in the form of craft/judging/prompt_v1.md.
        device, dtype: where and in which type the LVLM answers: "auto", or a name of `craft.core.device`.
    """

    run: str | None = None
    backbone: str | None = None
    zero_shot: bool = False
    data: str | None = None
    root: str | None = None
    seed: int | None = None
    limit: int = Field(default=350, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1)
    keep_ratio: float = 1.0
    batch_size: int = Field(default=32, ge=1)
    out: str | None = None
    judge: JudgeName = "offline"
    model: str | None = None
    base_url: str | None = None
    temperature: Annotated[float | None, BeforeValidator(_no_temperature)] = 0.6
    max_tokens: int = Field(default=1024, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    retries: int = Field(default=5, ge=0)
    concurrency: int = Field(default=4, ge=1)
    price: Annotated[tuple[float, float], Field(strict=False)] | None = None
    prompt: str | None = None
    device: str = "auto"
    dtype: str = "auto"
