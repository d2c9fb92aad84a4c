"""`craft.evaluate`: how well an LVLM answers on a data set, zero-shot or with an adapted encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from craft.core.files import check_writable
from craft.data import Data, Sample
from craft.data.load import as_setting
from craft.evaluation import Protocol, Report, evaluate_lvlm
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.encoder import load_artefact
from craft.formats.load import load
from craft.models.llm_bits import bits_of
from craft.models.lvlm import LVLM
from craft.quantize.search import Search
from craft.recipes.prior import chosen_prior
from craft.recipes.questions import checked, questions_for, take

Split = Literal["train", "validation", "test"]


def evaluate(
    backbone: str | Path | LVLM,
    encoder: str | Path | Artefact | None = None,
    data: str | Path | Data | None = None,
    keep_ratio: float = 1.0,
    seed: int | None = None,
    limit: int | None = None,
    split: Split = "test",
    *,
    prior: str | Path | None = None,
    keep_positions: bool = False,
    like: str | Path | Artefact | None = None,
    root: str | Path | None = None,
    answer_with: Literal["letter", "option"] | None = None,
    distractors: Literal["random", "hard"] | None = None,
    unseen_fraction: float | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 5,
    device: str | None = None,
    dtype: str | None = None,
    llm_bits: int | None = None,
    out: str | Path | None = None,
    protocol: Protocol = "generate",
    cache: str | Path | CodeCache | None = None,
    search: Search = "exact",
) -> Report:
    """Greedy answers to a data set's questions, marked by exact match (§4.1).

    With an encoder that was adapted to this data, questions are asked as in its training unless said
    otherwise, and the classes that its training held out are the unseen ones, whatever the seed. Training and
    test images are divided in one way for all seeds, so no setting here lets a training image into the test.

    Args:
        backbone: a shipped model, a folder, a hub id, or a loaded LVLM.
        encoder: a run folder or artefact; None is zero-shot.
        data: as `craft.adapt` takes it; None is the encoder's own, or "apparel".
        keep_ratio: share of visual tokens that the LLM sees (§3.3); 1 is no pruning.
        seed: of held-out classes (without an encoder), distractors and the order of options; None is the
            encoder's, or 0.
        limit: at most this many samples, evenly from the classes.
        split: "test", or "validation" or "train".
        prior: which code counts to prune by. None: those that came with the encoder (zero-shot: with the
            model). "general": those that came with the model, whatever the encoder. Else a file of
            `craft prior`, or a folder with one.
        keep_positions: kept tokens keep their positions in the full grid; by default they are packed.
        like: an encoder whose questions and held-out classes are used, but not the encoder: the zero-shot
            figures to compare it with.
        root, answer_with, distractors, unseen_fraction: as in the config's `data` section.
        batch_size: questions per forward pass.
        max_new_tokens: the cap on an answer.
        device, dtype, llm_bits: where and in what to run, as for `craft.load`.
        out: a JSONL file for the per-sample results.
        protocol: "generate" is the paper's: the LLM writes an answer. "options" takes the option that it
            finds likeliest, in one pass. "both" also says how far the two agree.
        cache: a folder (or a `CodeCache`) that keeps the codes of images for the next evaluation with the
            same encoder.
        search: how codewords are found: "exact", "fused" or "auto", as in training.

    Raises:
        CodebookMismatchError: encoder and backbone do not share a codebook.
        CheckpointError, DataError, ConfigError: something named is missing, damaged or contradictory, `out`
            cannot be written, or the data changed since the encoder was trained on it.
    """
    if out is not None:
        check_writable(out)
    artefact = None if encoder is None else _artefact(encoder)
    pattern = artefact if artefact is not None or like is None else _artefact(like)
    lvlm = backbone if isinstance(backbone, LVLM) else load(backbone, device, dtype, llm_bits=llm_bits)
    base = lvlm
    if artefact is not None:
        lvlm = lvlm.with_encoder(artefact)
    if prior is not None:
        lvlm = lvlm.with_prior(chosen_prior(prior, base))
    lvlm.check_keep_ratio(keep_ratio)
    questions, samples = questions_asked(
        lambda: lvlm,
        pattern,
        data,
        seed,
        limit,
        split,
        root=root,
        answer_with=answer_with,
        distractors=distractors,
        unseen_fraction=unseen_fraction,
    )
    settings: dict[str, Any] = {
        "backbone": lvlm.name,
        "encoder": None if artefact is None else str(artefact.folder),
        "tower": None if artefact is None else artefact.manifest.get("tower"),
        "data": questions.name,
        "split": split,
        "seed": questions.seed,
        "held_out": list(questions.held_out),
        "limit": limit,
        "prior": None if prior is None else str(prior),
    }
    if (held := bits_of(lvlm.backbone.llm)) is not None:
        settings["llm_bits"] = held
    report = evaluate_lvlm(
        lvlm,
        samples,
        batch_size,
        max_new_tokens,
        keep_ratio,
        settings,
        keep_positions=keep_positions,
        protocol=protocol,
        cache=cache if isinstance(cache, CodeCache) else CodeCache(cache),
        search=search,
    )
    if out is not None:
        report.save_samples(out)
    return report


def questions_asked(
    lvlm: Callable[[], LVLM],
    like: Artefact | None,
    data: str | Path | Data | None = None,
    seed: int | None = None,
    limit: int | None = None,
    split: Split = "test",
    *,
    root: str | Path | None = None,
    answer_with: Literal["letter", "option"] | None = None,
    distractors: Literal["random", "hard"] | None = None,
    unseen_fraction: float | None = None,
) -> tuple[Data, list[Sample]]:
    """The data set and the samples that `evaluate` asks.

    Args:
        lvlm: called where hard distractors need its text encoder.
        like: the encoder in use, or to compare with.
        data, seed, limit, split, root, answer_with, distractors, unseen_fraction: as `evaluate` takes them.

    Raises:
        DataError, ConfigError: as `evaluate`.
    """
    manifest = {} if like is None else like.manifest
    if isinstance(data, Data):
        questions = checked(data, manifest)
    else:
        wanted = {
            "name": None if data is None else as_setting(data),
            "root": None if root is None else str(root),
            "answer_with": answer_with,
            "distractors": distractors,
            "unseen_fraction": unseen_fraction,
        }
        questions = questions_for(wanted, seed, manifest, lvlm)
    return questions, take(questions.samples(split), limit, questions.seed)


def _artefact(encoder: str | Path | Artefact) -> Artefact:
    return encoder if isinstance(encoder, Artefact) else load_artefact(encoder)
