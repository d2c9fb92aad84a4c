"""The settings of a run. `craft.core.settings` reads and checks them; the names below are the keys.

The docstrings are the text of docs/reference.md (`python scripts/write_reference.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from craft.core.settings import Section, Settings

PRESETS = Path(__file__).parent / "presets"
"""The presets of `craft adapt` and `craft baseline`."""

Search = Literal["auto", "exact", "fused"]
"""Values of the setting `search`: "auto", or a search of `craft.quantize.search`."""

Overlap = Literal["refuse", "drop", "train"]
"""What happens to training images that stand in the test split too (see `craft.data.check`)."""


class DataConfig(Section):
    """Which data, and how its questions are written (see `craft.data.load_data`).

    Attributes:
        name: an embedded domain, a benchmark, a folder of class folders, a table of questions, or a folder
            of `craft data prepare`.
        root: the folder of a benchmark; otherwise the folder that relative paths start from.
        answer_with: the form of an answer: "option" (its text) or "letter".
        distractors: wrong options: "random", or "hard" (similar texts under the frozen text encoder).
        unseen_fraction: the share of classes held out of training (§4.1: 0.2).
        limit: the largest number of samples in each split; None is all.
        splits: what splits with names that CRAFT does not know are: NAME=SPLIT, with train, validation, test
            or none (not read); the name others is all of them.
        partial: accept a copy of a benchmark with fewer classes than the benchmark has; reports say so.
        overlap: training images that stand in the test split too (the same pixels, near-duplicates, or of one
            group): "refuse" them, "drop" them from training, or "train" on them all the same.
    """

    name: str = "apparel"
    root: str | None = None
    answer_with: Literal["letter", "option"] = "option"
    distractors: Literal["random", "hard"] = "random"
    unseen_fraction: float = Field(default=0.2, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    splits: tuple[str, ...] = Field(default=(), strict=False)
    partial: bool = False
    overlap: Overlap = "refuse"


class OptimizerConfig(Section):
    """AdamW, cosine schedule with warm-up, no weight decay (§4.1); the learning rate is ours.

    Attributes:
        learning_rate: the peak learning rate.
        warmup_ratio: the share of steps with linear warm-up.
        weight_decay, betas: parameters of AdamW.
        max_grad_norm: the norm to which gradients are clipped; None does not clip.
        fused: AdamW's step as one kernel, if the device has it; the same except for rounding.
    """

    learning_rate: float = Field(default=3e-4, gt=0)
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    max_grad_norm: float | None = Field(default=None, gt=0)
    fused: bool = False


class SalConfig(Section):
    """Eq. 2, surrogate alignment.

    Attributes:
        weight: the weight in Eq. 5, 1 in the paper; 0 is its ablation.
        reduction: over the tokens of the answers: "mean" of all in the batch, or "sum" as Eq. 2, averaged
            over samples.
    """

    weight: float = Field(default=1.0, ge=0)
    reduction: Literal["mean", "sum"] = "mean"


class CommitmentConfig(Section):
    """Eq. 3. The paper's λ_commit is 0.1 (§4.1); it does not name the reduction.

    Attributes:
        weight: λ_commit.
        form: "final" is Eq. 3 (distance to z̃); "cumulative" averages over levels, as VILA-U does.
        reduction: over the width d: "sum" is Eq. 3 as printed, "mean" is VILA-U's code, 1/d of it. Distances
            to codewords of unit length are relative to their mean square in "mean" (Tar: that is "sum").
    """

    weight: float = Field(default=0.1, ge=0)
    form: Literal["final", "cumulative"] = "final"
    reduction: Literal["mean", "sum"] = "mean"


class ContrastiveConfig(Section):
    """Eq. 4.

    The default weight leaves the term out: on craft-tiny it costs 11.9 points, and unseen classes do not gain
    (docs/results/table5.md).

    Attributes:
        weight: λ_con; None is the paper's: 1.0 for classification, 0.1 for VQA (§4.1).
        temperature: the initial τ; None is the checkpoint's own, which was trained with a bias that Eq. 4
            does not have.
    """

    weight: float | None = Field(default=0.0, ge=0)
    temperature: float | None = Field(default=10.0, gt=0)


class RetentionConfig(Section):
    """Keeps the features of images that show none of the classes close to the base tower's. Source: ours.

    Attributes:
        weight: the weight in the objective; None depends on the number of classes in training: 3 for fewer
            than 30, otherwise 0, which is the paper's form (`craft.lessons.retention`).
    """

    weight: float | None = Field(default=None, ge=0)


class LossesConfig(Section):
    """The three terms of Eq. 5, one of ours, and the gradient through a token table.

    Attributes:
        sal, commitment, contrastive, retention: the sections above.
        table_gradient: what replaces the gradient of an LLM's token table, which has none (Tar, Chameleon):
            "affine" is that of the affine map from codewords to rows that fits best; "soft" that of the mean
            row of nearby codewords; "identity" passes it unchanged if the widths agree. Source: ours
            (`craft.losses.table_gradient`).
        table_temperature: the temperature of "soft", in units of the median gap between the squared distances
            to the nearest two codewords.
        table_top_k: "soft" weighs only this many nearest codewords of each level, which costs less; null
            weighs all.
    """

    sal: SalConfig = SalConfig()
    commitment: CommitmentConfig = CommitmentConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    retention: RetentionConfig = RetentionConfig()
    table_gradient: Literal["affine", "soft", "identity"] = "affine"
    table_temperature: float = Field(default=3.0, gt=0)
    table_top_k: int | None = Field(default=None, ge=1)


class LoraConfig(Section):
    """LoRA (arXiv 2106.09685) by peft (`pip install "craft-vlm[lora]"`).

    Attributes:
        rank: the rank of the update.
        alpha: the update is scaled by alpha / rank; None is twice the rank.
        layers: only this many layers, counted from the input; None is all.
        targets: the linear maps with LoRA, by the ends of their names; "all-linear" is all of every layer.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    layers: int | None = Field(default=None, ge=1)
    targets: tuple[str, ...] = Field(default=("all-linear",), strict=False)


class LoopConfig(Settings):
    """The settings that all kinds of training have in common.

    Attributes:
        out: the run folder.
        seed: the seed of everything random.
        optimizer: the section above.
        batch_size: samples per optimiser step, over all processes and micro-batches (§4.1: 24).
        micro_batch: the largest number of samples in one forward pass of one process; None is the whole share
            of the batch, "auto" the largest number that fits into memory. The loss is the same except for
            rounding.
        gradient_checkpointing: layers of tower and LLM keep only their inputs and run again in the backward
            pass: less memory, the same result. "selective" also keeps the results of matrix products and
            attention: two thirds of the memory for little time. "auto" takes the first of false, "selective"
            and true that fits into memory, by the estimate of `--dry-run`.
        max_steps: optimiser steps; None means `epochs` passes over the training set.
        epochs: passes over the training set if `max_steps` is None.
        eval_every: steps between measurements on validation samples, with blended weights (`blend`); the best
            weights are kept (the earliest of equals). None trains to the end and keeps the last.
        eval_limit: the largest number of validation samples.
        checkpoint_every: steps between resumable checkpoints; None is only at the end or when interrupted.
        keep_checkpoints: the number of newest checkpoints that remain, in addition to the best weights.
        trackers: where metrics go in addition to metrics.jsonl.
        probe_every: steps between probes (`craft adapt`: codes changed on a fixed batch); None is a twentieth
            of the run.
        device: "auto", or a device of torch, such as "cpu" or "cuda:1".
        dtype: "auto" (bfloat16 if the device has it), "float32" or "bfloat16".
    """

    out: str | None = None
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(default=24, ge=1)
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    gradient_checkpointing: bool | Literal["selective", "auto"] = False
    max_steps: int | None = Field(default=None, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    eval_every: int | None = Field(default=None, ge=1)
    eval_limit: int | None = Field(default=None, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(default=(), strict=False)
    probe_every: int | None = Field(default=None, ge=1)
    device: str = "auto"
    dtype: Literal["auto", "float32", "fp32", "bfloat16", "bf16"] = "auto"

    def steps(self, samples: int) -> int:
        """The number of optimiser steps for a training set of `samples` samples."""
        return self.max_steps or max(1, round(self.epochs * samples / self.batch_size))


A = TypeVar("A", bound="AdaptConfig")


class AdaptConfig(LoopConfig):
    """Everything `craft adapt` needs.

    Attributes:
        preset: settings under a name, which all others override; "paper" is the paper's recipe.
        surrogate: a shipped model, a folder or a hub id whose frozen LLM scores the answers.
        data, losses: the sections above.
        trainable: "all" of the vision tower; its "layers", without what pixels enter first (the convolutional
            stem of the hybrid tower, the patch embedding of SigLIP); or "lora" on the layers, merged when
            training ends, so that the artefact is a plain tower. Source of the last two: ours.
        lora: the section above, for "lora".
        cls_attention: with "read-only", [CLS] attends to the patches and they do not attend to it; with
            "symmetric" they do, the other reading of §3.2. None is what the tower has.
        blend: the share of the trained weights; the rest comes from the base tower (WiSE-FT). 1 is the
            paper's form. None is 1, or 0.3 if training has few classes and the retention loss has no weight
            (`craft.lessons.retention`). Source: ours.
        augment: the strength of random rotation, shift, zoom and light on training images; 0 is none. Source:
            ours.
        cache_mib: MiB of memory for decoded images (without augmentation, for a frozen stem's output).
        workers: processes that decode images before the step that needs them; 0 decodes in the main process.
        search: how codewords are found in training: "exact", "fused" (a kernel for CUDA), or "auto" (see
            `craft.quantize.search`; a resumed run keeps the choice). "fused" may differ from "exact" if
            codewords are equally near.
        questions_per_image: the number of questions about one image that share its tokens in one row; each
            sees the image and itself. The same SAL for less work; `batch_size` then counts images. (With
            `losses.sal.reduction=sum` the sum is over all answers about an image.)
        llm_bits: 4 or 8 holds the frozen LLM's linear maps in 4 or 8 bits, by bitsandbytes: less memory, and
            slightly different losses.
        compile: torch.compile for the layers of tower and LLM; useful for long runs on a GPU if launching
            many small operations takes longer than running them.
    """

    presets: ClassVar[Path | None] = PRESETS

    preset: str | None = None
    surrogate: str = "craft-tiny/qwen2"
    data: DataConfig = DataConfig()
    losses: LossesConfig = LossesConfig()
    max_steps: int | None = Field(default=200, ge=1)
    trainable: Literal["all", "layers", "lora"] = "layers"
    lora: LoraConfig = LoraConfig()
    cls_attention: Literal["read-only", "symmetric"] | None = None
    blend: float | None = Field(default=None, gt=0, le=1)
    augment: float = Field(default=1.0, ge=0, le=2)
    cache_mib: int = Field(default=2048, ge=0)
    workers: int = Field(default=0, ge=0)
    search: Search = "exact"
    questions_per_image: int = Field(default=1, ge=1)
    llm_bits: Literal[4, 8] | None = None
    compile: bool = False

    @classmethod
    def build(
        cls: type[A],
        config: Settings | Mapping[str, Any] | str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> A:
        """As `Settings.build`. If overrides name other data than the config, its `data.root` is not used."""
        built = super().build(config, overrides)
        if built.data.root is None or config is None or not overrides:
            return built
        own = super().build(config)
        if own.data.name in (built.data.name, DataConfig().name):
            return built
        return super().build(config, {"data.root": None, **overrides})  # a root in overrides wins

    def contrastive_weight(self, task: str) -> float:
        """λ_con for "classification" or "vqa" (§4.1), unless the config names one."""
        weight = self.losses.contrastive.weight
        if weight is not None:
            return weight
        return 1.0 if task == "classification" else 0.1


class LdifsConfig(Section):
    """The feature distance of the baseline LDIFS (arXiv 2308.13320).

    Attributes:
        weight: the weight of the distance; 10 is the default of the authors' code.
        layers: the number of layers compared, evenly spaced, including the last.
    """

    weight: float = Field(default=10.0, ge=0)
    layers: int = Field(default=4, ge=1)


class BaselineConfig(AdaptConfig):
    """Everything `craft baseline` needs: the settings of `craft adapt`, so that both can use equal ones.

    Of `losses` only `sal` applies. `trainable`, `augment`, `cls_attention` and `lora` are about the vision
    tower, if that trains; `lora` is also that of llm-lora; `blend` mixes whatever trained with its initial
    weights.

    Attributes:
        surrogate: the model that is tuned.
        method: a key of `craft.recipes.baseline.METHODS`.
        ldifs: the section above.
    """

    surrogate: str = "craft-tiny/continuous-qwen2"
    method: str = ""
    ldifs: LdifsConfig = LdifsConfig()


class AlignLoraConfig(LoraConfig):
    """LoRA instead of training the whole LLM in stage 2. Source: ours.

    Attributes:
        rank: the rank of the update; 0 trains the whole LLM, as §8 does.
        scope: the prompts on which LoRA acts: those with an "image", so that the LLM answers all others as
            before; or "all". None is the scope of `start` if that has LoRA, otherwise "image".
        merge: save the LLM, with LoRA merged in if it acts on all prompts; False saves only the name of an
            LLM that is otherwise unchanged, and LoRA separately.
    """

    rank: int = Field(default=0, ge=0)
    scope: Literal["image", "all"] | None = None
    merge: bool = True


class AlignConfig(LoopConfig):
    """Everything `craft align` needs (§8).

    Attributes:
        llm: a causal LM: a folder, a GGUF file, a hub id, a shipped backbone (its LLM), or a name that
            `craft.formats.llm_source` lists.
        visual: the visual tokenizer: a shipped family, a folder, or a hub id.
        stage: "1" trains the projector, "2" projector and LLM, "both" one after the other.
        data: the training data: files of conversations, or data as for `craft adapt`.
        captions: the training data of stage 1, if different.
        text: conversations without images, mixed into stage 2 so that the LLM keeps its language.
        text_share: the share of `text` in stage 2.
        root: the folder that image paths start from.
        limit: the largest number of conversations from each source.
        splits, partial, overlap: as in `DataConfig`, for data that is not a table of conversations.
        start: an earlier result, whose projector (and LoRA, if saved separately) this run starts with.
        prompt: the prompt format; None is the LLM's chat template, or "plain" if it has none.
        projector: the shape of the projector.
        lora: the section above.
        batch_size: rows per optimiser step.
        max_length: the largest length of a row in tokens (§8: 8192); longer rows are cut off at their end,
            and rows without an answer before it are left out.
        questions_per_row: the number of conversations about one image (or about none) that share one row,
            fewer if they are longer than `max_length` together; each sees the image and itself. The same loss
            for less work.
        codes: the folder where codes are kept between runs; None is `codes` next to the run folder.
    """

    llm: str = ""
    visual: str = "craft-tiny"
    stage: Literal["1", "2", "both"] = "both"
    data: tuple[str, ...] = Field(default=(), strict=False)
    captions: tuple[str, ...] = Field(default=(), strict=False)
    text: tuple[str, ...] = Field(default=(), strict=False)
    text_share: float = Field(default=0.1, ge=0, lt=1)
    root: str | None = None
    limit: int | None = Field(default=None, ge=1)
    splits: tuple[str, ...] = Field(default=(), strict=False)
    partial: bool = False
    overlap: Overlap = "refuse"
    start: str | None = None
    prompt: str | None = None
    projector: str = "mlp2x_gelu"
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    lora: AlignLoraConfig = AlignLoraConfig()
    batch_size: int = Field(default=128, ge=1)
    max_length: int = Field(default=8192, ge=8)
    questions_per_row: int = Field(default=1, ge=1)
    gradient_checkpointing: bool | Literal["selective", "auto"] = True
    codes: str | None = None
