"""The settings of `craft eval` and `craft transfer`; the names are the keys (see `craft.core.settings`).

The descriptions are also the help of the flags with these names, and the text of docs/reference.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from craft.core.errors import ConfigError
from craft.core.settings import Section, Settings
from craft.training.config import AdaptConfig, Search

Protocol = Literal["generate", "options", "both"]
"""How an answer is obtained: written by the LLM (the paper's), the likeliest option, or both."""


def _seed_list(value: Any) -> Any:
    """`0,1,2` as [0, 1, 2], and a single number as a list of one.

    Raises:
        ConfigError: something in it is no whole number, or a seed is named twice.
    """
    try:
        parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        seeds = [int(part) for part in ([parts] if isinstance(parts, int) else parts or ())]
    except (TypeError, ValueError):
        raise ConfigError(
            f"--seeds takes whole numbers with commas, as in --seeds 0,1,2; not {value!r}."
        ) from None
    if len(set(seeds)) < len(seeds):  # it would narrow every interval
        raise ConfigError(f"The seeds {', '.join(map(str, seeds))} name a seed twice; each counts once.")
    return tuple(seeds)


Seeds = Annotated[tuple[int, ...], BeforeValidator(_seed_list)]


class SeededSettings(Settings):
    """Settings with `seed` or `seeds`."""

    seed: int | None = None
    seeds: Seeds = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> "SeededSettings":
        if self.seed is not None and self.seeds:
            raise ConfigError("Give --seed or --seeds, not both.")
        return self

    def all_seeds(self) -> list[int]:
        """The seeds that `seed` or `seeds` name; none if neither is set."""
        return list(self.seeds) if self.seed is None else [self.seed]


class EvalDataConfig(Section):
    """The data. None means the setting of the encoder's training, without one the default of `DataConfig`.

    Attributes:
        name: as `craft adapt` takes it; by default the encoder's data, or apparel. Several make a row of the
            paper's Table 1.
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from. For
            several data sets, name one folder for each, or one that has them under their names.
        answer_with: ask for the option's letter, or for its text.
        distractors: random wrong options, or hard ones (similar texts under the frozen text encoder).
        unseen_fraction: share of the classes that count as unseen (without an encoder).
        splits: what splits with names that CRAFT does not know are: NAME=SPLIT, with train, validation, test
            or none (not read); the name others is all of them.
        partial: accept a copy of a benchmark with fewer classes than the benchmark has; the report says so.
    """

    name: tuple[str, ...] = Field(default=(), strict=False)
    root: tuple[str, ...] = Field(default=(), strict=False)
    answer_with: Literal["letter", "option"] | None = None
    distractors: Literal["random", "hard"] | None = None
    unseen_fraction: float | None = Field(default=None, ge=0, lt=1)
    splits: tuple[str, ...] = Field(default=(), strict=False)
    partial: bool = False

    def reading(self) -> dict[str, Any]:
        """`splits` and `partial` if they are set; otherwise those of an encoder's training count."""
        return {name: value for name in ("splits", "partial") if (value := getattr(self, name))}


class EvalConfig(SeededSettings):
    """Everything `craft eval` and `craft.evaluate` need.

    Attributes:
        backbone: a shipped model, a folder, or a hub id.
        encoder: a run folder of `craft adapt` or `craft baseline`; without one the evaluation is zero-shot.
            Each of several is asked about its own data, or about one of --data each.
        like: an encoder whose questions and unseen classes are used, but not the encoder: the zero-shot
            numbers to compare it with.
        data: the section above.
        seed: the seed of held-out classes (without an encoder), wrong options and the order of options; by
            default the encoder's, or 0.
        seeds: several seeds, as in 0,1,2: each is evaluated, and the mean reported.
        limit: at most this many questions, drawn evenly from the classes.
        split: the part of the data.
        keep_ratio: share of the visual tokens that the LLM sees, as in 0.8 (§3.3); frequent codes are dropped
            first.
        prior: the code counts that define which codes are frequent: by default the encoder's (zero-shot: the
            model's); "general" is the model's; otherwise a file of `craft prior`, or a folder with one.
        keep_positions: kept tokens keep their positions in the full grid; by default they are packed.
        batch_size: questions, and images, per forward pass; no answer depends on it.
        max_new_tokens: cap on the length of an answer (§4.1: 5).
        protocol: with generate, as in the paper, the LLM writes an answer. options takes the option that the
            LLM finds likeliest, in one pass, several times faster. both also reports how far they agree.
        search: how codewords are found; auto is the fastest on this machine. All but exact may differ if two
            codewords are equally near.
        cache: a folder that keeps the codes of images for the next evaluation with the same encoder.
        engine: the address of a vLLM server of the same LLM, started with --enable-prompt-embeds, which
            writes the answers.
        llm_bits: hold the LLM in 4 or 8 bits (bitsandbytes): less memory, somewhat different answers.
        out: a folder for report.json, every answer (samples-SEED.jsonl), config.resolved.yaml and, if options
            are scored, reliability-SEED.png; `craft compare` reads it. In `craft.evaluate` it is the file for
            the answers.
        device, dtype: as for `craft.load`.
    """

    flags: ClassVar[tuple[str, ...]] = (*Settings.flags, "classes", "card")

    backbone: str | None = None
    encoder: tuple[str, ...] = Field(default=(), strict=False)
    like: tuple[str, ...] = Field(default=(), strict=False)
    data: EvalDataConfig = EvalDataConfig()
    limit: int | None = Field(default=None, ge=1)
    split: Literal["train", "validation", "test"] = "test"
    keep_ratio: float = 1.0
    prior: str | None = None
    keep_positions: bool = False
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=5, ge=1)
    protocol: Protocol = "generate"
    search: Search = "exact"
    cache: str | None = None
    engine: str | None = None
    llm_bits: Literal[4, 8] | None = None
    out: str | None = None
    device: str | None = None
    dtype: str | None = None


class CellConfig(Section):
    """How every cell of a matrix is asked; as in `EvalConfig`.

    Attributes:
        keep_ratio: share of the visual tokens that the LLM sees.
        limit: at most this many questions per cell, drawn evenly from the classes.
        batch_size: questions per forward pass; no answer depends on it.
        max_new_tokens: cap on the length of an answer.
    """

    keep_ratio: float = 1.0
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=5, ge=1)


class AskConfig(Settings):
    """Everything `craft ask` and `craft.ask` need.

    Attributes:
        model: a shipped model, a folder, or a hub id.
        pictures: image files, folders, patterns such as 'photos/*.jpg', a table with columns `image`,
            `question` and `options`, or - for paths on standard input.
        encoder: a run folder of `craft adapt`; without one the base tower reads the images.
        question: what to ask of each image; by default the question of the encoder's training.
        options: the answers to choose from, separated by commas, or several; by default the classes of the
            encoder's training, seen and held out. Each gets a probability.
        text: write an answer, although the encoder has classes to choose from.
        together: ask about all images in one prompt, if the LLM's prompt format has that.
        out: a .jsonl or .csv file for the answers, which grows row by row.
        min_probability: answer "unsure" if the likeliest option has a lower probability.
        max_new_tokens: cap on the length of a written answer.
        temperature: 0 writes the likeliest token; above, tokens are drawn at this temperature.
        top_p: draw from the likeliest tokens that have this probability together.
        seed: the seed of drawn tokens.
        keep_ratio: share of the visual tokens that the LLM sees.
        batch_size: images per forward pass; no answer depends on it.
        engine: the address of a vLLM server of the same LLM, started with --enable-prompt-embeds, which
            writes the answers.
        llm_bits: hold the LLM in 4 or 8 bits (bitsandbytes).
        device, dtype: as for `craft.load`.
    """

    model: str | None = None
    pictures: tuple[str, ...] = Field(default=(), strict=False)
    encoder: str | None = None
    question: str | None = None
    options: tuple[str, ...] = Field(default=(), strict=False)
    text: bool = False
    together: bool = False
    out: str | None = None
    min_probability: float = Field(default=0.0, ge=0, le=1)
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    keep_ratio: float = Field(default=1.0, gt=0, le=1)
    batch_size: int = Field(default=32, ge=1)
    engine: str | None = None
    llm_bits: Literal[4, 8] | None = None
    device: str | None = None
    dtype: str | None = None


class TransferConfig(SeededSettings):
    """Everything `craft transfer` and `craft.transfer` need.

    Attributes:
        preset: settings under a name, which all others override; "paper" is the paper's recipe, with a keep
            ratio of 0.8.
        encoders: run folders; those that differ only in their seed are averaged.
        surrogates: instead of encoders: LVLMs to adapt one with, for every data set and seed.
        backbones: shipped models, folders or hub ids of the same codebook; by default the surrogates.
        data: as for `craft eval`, by default each encoder's own; with surrogates one or several data sets, by
            default every embedded domain.
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from.
        splits, partial: as for `craft eval`.
        seed: one seed, instead of `seeds`.
        seeds: the seeds of the questions, as in 0,1,2; by default each encoder's own. With surrogates also
            those of the adaptations, by default 0,1,2.
        ask: the section above.
        out: a folder for transfer.json, transfer.md, a heat map transfer.png and config.resolved.yaml.
        work: a folder for adapted encoders (`runs/`), codes (`codes/`) and answers (`cells/`), with which the
            same command continues; by default runs/transfer with surrogates, otherwise nothing is kept.
        adapt: settings of the adaptations; surrogate, data, seed and out follow from the settings above.
        device, dtype: as for `craft.load`.
    """

    presets: ClassVar[Path | None] = Path(__file__).parent / "presets"

    preset: str | None = None
    encoders: tuple[str, ...] = Field(default=(), strict=False)
    surrogates: tuple[str, ...] = Field(default=(), strict=False)
    backbones: tuple[str, ...] = Field(default=(), strict=False)
    data: tuple[str, ...] = Field(default=(), strict=False)
    root: str | None = None
    splits: tuple[str, ...] = Field(default=(), strict=False)
    partial: bool = False
    ask: CellConfig = CellConfig()
    out: str | None = None
    work: str | None = None
    adapt: AdaptConfig = AdaptConfig()
    device: str | None = None
    dtype: str | None = None


EvalSettings = EvalConfig | Mapping[str, Any] | str | Path | None
"""What the arguments `config` of `craft.evaluate` and its parts take."""
