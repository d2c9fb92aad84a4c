"""What settings a run has. `craft.core.settings` reads and checks them; the names below are the keys."""

from typing import Annotated, Literal

from pydantic import Field

from craft.core.settings import Section, Settings
from craft.quantize.search import Search


class DataConfig(Section):
    """Which data, and how its questions are written (see `craft.data.load_data`).

    Attributes:
        name: an embedded domain, a benchmark, a folder of class folders, a table of questions, or a folder
            of `craft data prepare`.
        root: where a benchmark lies; else the folder that relative paths start from.
        answer_with: "option" (its text) or "letter".
        distractors: "random", or "hard": similar texts under the frozen text encoder.
        unseen_fraction: share of the classes held out of training (§4.1: 0.2).
        limit: at most this many samples in each split.
    """

    name: str = "apparel"
    root: str | None = None
    answer_with: Literal["letter", "option"] = "option"
    distractors: Literal["random", "hard"] = "random"
    unseen_fraction: float = Field(default=0.2, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)


class OptimizerConfig(Section):
    """AdamW, cosine schedule with warm-up, no weight decay (§4.1); the learning rate is ours.

    Attributes:
        learning_rate: at its peak.
        warmup_ratio: share of the steps that warm up linearly.
        weight_decay, betas: of AdamW.
        max_grad_norm: clip the gradient's norm; None does not clip.
        fused: AdamW's step as one kernel, where the device has it; the same but for rounding.
    """

    learning_rate: float = Field(default=3e-4, gt=0)
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    max_grad_norm: float | None = Field(default=None, gt=0)
    fused: bool = False


class SalConfig(Section):
    """Eq. 2. `weight` is 1 in the paper (0 is its ablation); `reduction` over the answer's tokens."""

    weight: float = Field(default=1.0, ge=0)
    reduction: Literal["mean", "sum"] = "mean"


class CommitmentConfig(Section):
    """Eq. 3. The paper's λ_commit is 0.1 (§4.1), of a reduction that it does not name.

    Attributes:
        weight: λ_commit.
        form: "final" is Eq. 3 (distance to z̃); "cumulative" averages over levels, as VILA-U.
        reduction: over the width d: "sum" is Eq. 3 as printed, "mean" is VILA-U's code, 1/d of it.
    """

    weight: float = Field(default=0.1, ge=0)
    form: Literal["final", "cumulative"] = "final"
    reduction: Literal["mean", "sum"] = "mean"


class ContrastiveConfig(Section):
    """Eq. 4. `weight` None is the paper's λ_con: 1.0 for classification, 0.1 for VQA (§4.1).

    The default 0 leaves the term out: on craft-tiny it costs 11.9 points, and keeps no more of the unseen
    classes (docs/results/table5.md). `temperature` is where τ starts; None is the
    checkpoint's own, which was trained with a bias that Eq. 4 does not have.
    """

    weight: float | None = Field(default=0.0, ge=0)
    temperature: float | None = Field(default=10.0, gt=0)


class RetentionConfig(Section):
    """How far the base tower's features are kept where a picture shows none of the classes. Source: ours.

    `weight` None goes by the number of classes in training: 3 of few, 0 of 30 and more, which is the paper's
    (`craft.lessons.retention`).
    """

    weight: float | None = Field(default=None, ge=0)


class LossesConfig(Section):
    """The three terms of Eq. 5, and one of ours beside them."""

    sal: SalConfig = SalConfig()
    commitment: CommitmentConfig = CommitmentConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    retention: RetentionConfig = RetentionConfig()


class LoraConfig(Section):
    """LoRA (arXiv 2106.09685) by peft (`pip install "craft-vlm[lora]"`).

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank; None is twice the rank.
        layers: only this many layers, counted from the input; None is all.
        targets: the linear maps that get it, by the ends of their names; "all-linear" is all of every layer.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    layers: int | None = Field(default=None, ge=1)
    targets: tuple[str, ...] = Field(default=("all-linear",), strict=False)


class LoopConfig(Settings):
    """What the training loop is told, whatever it trains.

    Attributes:
        out: the run folder.
        seed: of everything that is drawn by lot.
        optimizer: the section above.
        batch_size: samples per optimiser step, over all processes and micro-batches (§4.1: 24).
        micro_batch: most samples in one forward pass of one process; None is its whole share of the batch,
            "auto" the largest that fits into memory. The loss is the same but for rounding, except for Eq. 4,
            which sees the pairs within one micro-batch of all processes.
        gradient_checkpointing: layers of tower and LLM keep their inputs only and run again in the backward
            pass: less memory, the same result. "selective" keeps the results of matrix products and attention
            too: two thirds of the memory for little time. "auto" takes the first of false, "selective" and
            true for which, by the estimate of `--dry-run`, memory suffices.
        max_steps: optimiser steps; None means `epochs` passes over the training set.
        epochs: passes, where `max_steps` is None.
        eval_every: measure on validation samples every so many steps, as the result would be (with `blend`),
            and keep the best weights (the earliest of equals); None trains to the end and keeps the last.
        eval_limit: at most this many validation samples.
        checkpoint_every: steps between resumable checkpoints; None only at the end or when interrupted.
        keep_checkpoints: so many of the newest stay, besides the best weights.
        trackers: where metrics go besides metrics.jsonl.
        probe_every: steps between probes (adapt: changed codes on a fixed batch); None is a twentieth of the
            run.
        device, dtype: "auto", or as `craft.core.device` names them; float16 is not offered for training.
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
        """Optimiser steps for a training set of so many samples."""
        return self.max_steps or max(1, round(self.epochs * samples / self.batch_size))


class AdaptConfig(LoopConfig):
    """Everything `craft adapt` needs.

    Attributes:
        surrogate: a shipped model, a folder or a hub id whose frozen LLM scores the answers.
        data, losses: the sections above.
        trainable: "all" of the vision tower, or its "layers" (what pixels enter first stays as it was: the
            convolutional stem of the hybrid tower, the patch embedding of SigLIP), or LoRA on the layers
            ("lora"), merged when training ends: the artefact is a plain tower. Source of the last two: ours.
        lora: the section above, for "lora".
        cls_attention: "read-only" leaves patches as they are without [CLS], which attends to them; with
            "symmetric" they attend to it too, the other reading of §3.2. None is what the tower has.
        blend: 1 keeps the trained tower, as the paper does; less mixes `blend` of it with `1 - blend` of the
            base tower's weights (WiSE-FT); None is 1, but 0.3 where there are few classes in training and
            the retention loss has no weight (`craft.lessons.retention`). Source: ours.
        augment: strength of random turns, shifts, zoom and light on training images; 0 is none. Source: ours.
        cache_mib: memory for decoded images (without augmentation, of a frozen stem's output).
        workers: processes that decode images ahead of the step that needs them; 0 decodes in this one.
        search: how codewords are found in training: "exact", "fused" (a kernel for CUDA), or "auto" (see
            `craft.quantize.search`; a resumed run keeps what it chose). "fused" may differ from "exact" where
            codewords are equally near.
        questions_per_image: so many questions about one image share its tokens in one row; each of them sees
            the image and itself. The same SAL for less work; `batch_size` then counts images. (With
            `losses.sal.reduction=sum` the sum is over all answers about an image, not over one.)
        llm_bits: 4 or 8 holds the frozen LLM's linear maps in so many bits, by bitsandbytes: less memory, and
            somewhat other losses.
        compile: torch.compile for the layers of tower and LLM; worth it for long runs on a GPU, where
            launching many small operations takes longer than they do.
    """

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

    def contrastive_weight(self, task: str) -> float:
        """λ_con for "classification" or "vqa" (§4.1), unless the config names one."""
        given = self.losses.contrastive.weight
        return given if given is not None else (1.0 if task == "classification" else 0.1)


class LdifsConfig(Section):
    """The feature distance of the baseline LDIFS (arXiv 2308.13320).

    Attributes:
        weight: of the distance; 10 is the default of the authors' code.
        layers: at so many layers, evenly spaced, the last among them.
    """

    weight: float = Field(default=10.0, ge=0)
    layers: int = Field(default=4, ge=1)


class BaselineConfig(AdaptConfig):
    """Everything `craft baseline` needs: what `craft adapt` needs, so that both are given the same.

    Of `losses` only `sal` counts. `trainable`, `augment`, `cls_attention` and `lora` are of the vision tower,
    where that trains; `lora` is also that of llm-lora; `blend` mixes whatever trained with what it was.

    Attributes:
        surrogate: the model that is tuned.
        method: a key of `craft.recipes.baseline.METHODS`.
        ldifs: the section above.
    """

    surrogate: str = "craft-tiny/continuous-qwen2"
    method: str = ""
    ldifs: LdifsConfig = LdifsConfig()


class AlignLoraConfig(LoraConfig):
    """LoRA in place of training the whole LLM in stage 2. Source: ours.

    Attributes:
        rank: 0 trains the LLM in full, as §8.
        merge: save the LLM, with LoRA merged in; False saves LoRA apart, and of an LLM that is otherwise as
            it was its name only.
    """

    rank: int = Field(default=0, ge=0)
    merge: bool = True


class AlignConfig(LoopConfig):
    """Everything `craft align` needs (§8).

    Attributes:
        llm: a causal LM: a folder, a GGUF file, a hub id, a shipped backbone (its LLM), or a name that
            `craft.formats.llm_source` lists.
        visual: the visual tokenizer: a shipped family, a folder, or a hub id.
        stage: "1" trains the projector, "2" projector and LLM, "both" one after the other.
        data: what is trained on: files of conversations, or data as for `adapt`.
        captions: what stage 1 is trained on instead.
        text: conversations without images, mixed into stage 2 so that the LLM keeps its language.
        text_share: their share of stage 2, where there are any.
        root: folder that image paths start from.
        limit: at most this many conversations from each source.
        start: an earlier result, whose projector (and LoRA, if kept apart) this run begins with.
        prompt: the prompt format; None is the LLM's chat template, or "plain" where it has none.
        projector: its shape.
        lora: the section above.
        batch_size: rows per optimiser step.
        max_length: longer rows are cut off at their end (§8: 8192 tokens); what has no answer before that is
            left out.
        questions_per_row: so many conversations about one image (or about none) share one row, fewer where
            they are longer than `max_length` together; each of them sees the image and itself, not the
            others. The same loss for less work.
        codes: folder where codes are kept between runs; None is `codes` beside the run folder.
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
