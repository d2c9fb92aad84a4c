"""`craft.evaluate`: how well an LVLM answers on a data set, zero-shot or with an adapted encoder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from craft.core.errors import ConfigError
from craft.data import Data
from craft.evaluation import Report, evaluate_lvlm
from craft.models.artefact import Artefact, load_artefact
from craft.models.load import load
from craft.models.lvlm import LVLM
from craft.recipes.questions import is_training_data, open_data, take, training_data_of, with_seen
from craft.training.config import AdaptConfig, DataConfig

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
    like: str | Path | Artefact | None = None,
    root: str | Path | None = None,
    answer_with: Literal["letter", "option"] | None = None,
    distractors: Literal["random", "hard"] | None = None,
    unseen_fraction: float | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 5,
    device: str | None = None,
    dtype: str | None = None,
    out: str | Path | None = None,
) -> Report:
    """Greedy answers to a data set's questions, marked by exact match (§4.1).

    With an encoder that was adapted to this data, questions are asked as in its training unless said
    otherwise, and the classes that its training held out are the unseen ones, whatever the seed. Training and
    test images are divided in one way for all seeds, so no setting here lets a training image into the test.

    Args:
        backbone: a shipped model, a folder, a hub id, or a loaded LVLM.
        encoder: a run folder or artefact; None is zero-shot.
        data: as `craft.adapt` takes it; None is the encoder's own, or "apparel".
        keep_ratio: share of visual tokens that the LLM sees; 1 is no pruning.
        seed: of held-out classes (without an encoder), distractors and the order of options; None is the
            encoder's, or 0.
        limit: at most this many samples, evenly from the classes.
        split: "test", or "validation" or "train".
        like: an encoder whose questions and held-out classes are used, but not the encoder: the zero-shot
            figures to compare it with.
        root, answer_with, distractors, unseen_fraction: as in the config's `data` section.
        batch_size: questions per forward pass.
        max_new_tokens: the cap on an answer.
        device, dtype: where and in what to run.
        out: a JSONL file for the per-sample results.

    Raises:
        CodebookMismatchError: encoder and backbone do not share a codebook.
        CheckpointError, DataError, ConfigError: something named is missing, damaged or contradictory, or the
            data changed since the encoder was trained on it.
    """
    artefact = None if encoder is None else _artefact(encoder)
    pattern = artefact if artefact is not None or like is None else _artefact(like)
    lvlm = backbone if isinstance(backbone, LVLM) else load(backbone, device, dtype)
    if artefact is not None:
        lvlm = lvlm.with_encoder(artefact)
    wanted = {
        "name": None if data is None or isinstance(data, Data) else str(data),
        "root": None if root is None else str(root),
        "answer_with": answer_with,
        "distractors": distractors,
        "unseen_fraction": unseen_fraction,
    }
    manifest = {} if pattern is None else pattern.manifest
    questions = data if isinstance(data, Data) else _questions(wanted, seed, manifest, lambda: lvlm)
    if isinstance(data, Data):
        questions = _checked(data, manifest)
    samples = take(questions.samples(split), limit, questions.seed)
    settings: dict[str, Any] = {
        "backbone": lvlm.name,
        "encoder": None if artefact is None else str(artefact.folder),
        "tower": None if artefact is None else artefact.manifest.get("tower"),
        "data": questions.name,
        "split": split,
        "seed": questions.seed,
        "held_out": list(questions.held_out),
        "limit": limit,
    }
    report = evaluate_lvlm(lvlm, samples, batch_size, max_new_tokens, keep_ratio, settings)
    if out is not None:
        report.save_samples(out)
    return report


def _artefact(encoder: str | Path | Artefact) -> Artefact:
    return encoder if isinstance(encoder, Artefact) else load_artefact(encoder)


def _questions(
    wanted: Mapping[str, Any], seed: int | None, manifest: Mapping[str, Any], lvlm: Callable[[], LVLM]
) -> Data:
    """The data set; with the manifest's settings and held-out classes where the encoder learned from it."""
    given = {key: value for key, value in wanted.items() if value is not None}
    told, held_out = training_data_of(manifest), manifest.get("held_out") or ()
    if told is not None and is_training_data(given, told, held_out, lvlm):
        learned = told["settings"]["unseen_fraction"]
        if given.get("unseen_fraction", learned) != learned:
            raise ConfigError(
                "unseen_fraction cannot be chosen for an encoder that was adapted to this data: its training "
                f"held out {', '.join(held_out) or 'nothing'}. Leave it out."
            )
        settings = _data_config({**told["settings"], "limit": None, **given})
        own = held_out if told["task"] == "classification" else None
        return open_data(settings, told["seed"] if seed is None else seed, lvlm, own)
    return _checked(open_data(_data_config(given), seed or 0, lvlm), manifest)


def _data_config(given: Mapping[str, Any]) -> DataConfig:
    return AdaptConfig.build({"data": dict(given)}).data


def _checked(data: Data, manifest: Mapping[str, Any]) -> Data:
    """Data that did not come by the manifest's settings: if it is what the encoder learned all the same, its
    unseen classes are the manifest's; if not, the encoder has seen no class of it."""
    told = training_data_of(manifest)
    if told is None or told["name"] != data.name or told["task"] != "classification":
        return data
    if told["fingerprint"] == data.fingerprint or set(manifest.get("held_out") or ()) <= set(data.classes):
        return with_seen(data, manifest.get("held_out") or ())
    return data
