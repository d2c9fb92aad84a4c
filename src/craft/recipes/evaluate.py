"""`craft.evaluate`: how well an LVLM answers on a data set, zero-shot or with an adapted encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.files import check_writable
from craft.data import Data, Sample
from craft.evaluation.config import EvalConfig, EvalSettings
from craft.evaluation.report import Report
from craft.evaluation.run import evaluate_lvlm
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.load import load, load_artefact
from craft.models.llm_bits import bits_of
from craft.models.lvlm import LVLM
from craft.recipes.arguments import ModelSource, data_name, model_name, without_none
from craft.recipes.prior import chosen_prior
from craft.recipes.questions import checked, questions_for, take


def evaluate(
    backbone: str | Path | LVLM | None = None,
    encoder: str | Path | Artefact | None = None,
    data: str | Path | Data | None = None,
    keep_ratio: float | None = None,
    seed: int | None = None,
    limit: int | None = None,
    config: EvalSettings = None,
    **overrides: Any,
) -> Report:
    """Greedy answers to a data set's questions, marked by exact match (§4.1).

    With an encoder that was adapted to this data, questions are asked as in its training unless a setting
    says otherwise, and the classes that its training held out are the unseen ones, whatever the seed.
    Training and test images are divided in the same way for all seeds, so no setting here lets a training
    image into the test.

    Args:
        backbone: a shipped model, a folder, a hub id, or a loaded LVLM.
        encoder: a run folder or artefact; None is zero-shot.
        data: as `craft.adapt` takes it; None is the encoder's own, or "apparel".
        keep_ratio: share of visual tokens that the LLM sees (§3.3); 1, the default, is no pruning.
        seed: of held-out classes (without an encoder), distractors and the order of options; None is the
            encoder's, or 0.
        limit: at most this many samples, drawn evenly from the classes.
        config: a YAML file, dict or `EvalConfig`; the other arguments take precedence.
        **overrides: any other setting of `EvalConfig` by name (`answer_with="letter"`, `prior="general"`).
            `like` may also be a loaded `Artefact`, `cache` a `CodeCache`; `out` is a JSONL file here.

    Raises:
        CodebookMismatchError: encoder and backbone do not share a codebook.
        CheckpointError, DataError, ConfigError: something named is missing, damaged or contradictory, a
            setting is unknown, `out` cannot be written, or the data changed since the encoder was trained on
            it.
    """
    like, cache = (_taken(overrides, *kind) for kind in (("like", Artefact), ("cache", CodeCache)))
    arguments = {
        "backbone": model_name(backbone),
        "encoder": str(encoder.folder) if isinstance(encoder, Artefact) else encoder,
        "data": data_name(data),
        "keep_ratio": keep_ratio,
        "seed": seed,
        "seeds": None if seed is None else (),
        "limit": limit,
    }
    settings = EvalConfig.build(config, {**overrides, **without_none(arguments)})
    if settings.out is not None:
        check_writable(settings.out)
    artefact = _artefact(encoder, settings.encoder, "encoder")
    pattern = artefact if artefact is not None else _artefact(like, settings.like, "like")
    base = load_backbone(backbone, settings)
    lvlm = base if artefact is None else base.with_encoder(artefact)
    if settings.prior is not None:
        lvlm = lvlm.with_prior(chosen_prior(settings.prior, base))
    lvlm.check_keep_ratio(settings.keep_ratio)
    loaded = data if isinstance(data, Data) else None
    questions, samples = questions_asked(lambda: lvlm, pattern, settings, loaded)
    record: dict[str, Any] = {
        "backbone": lvlm.name,
        "encoder": None if artefact is None else str(artefact.folder),
        "tower": None if artefact is None else artefact.manifest.get("tower"),
        "data": questions.name,
        "split": settings.split,
        "seed": questions.seed,
        "held_out": list(questions.held_out),
        "limit": settings.limit,
        "prior": settings.prior,
    }
    if questions.caveats:
        record["caveats"] = list(questions.caveats)
    if artefact is not None and artefact.manifest.get("answer_temperature"):
        record["answer_temperature"] = artefact.manifest["answer_temperature"]
    if (bits := bits_of(lvlm.backbone.llm)) is not None:
        record["llm_bits"] = bits
    codes = cache or CodeCache(settings.cache)
    report = evaluate_lvlm(lvlm, samples, settings, settings=record, cache=codes)
    if settings.out is not None:
        report.save_samples(settings.out)
    return report


def load_backbone(backbone: ModelSource | None, settings: EvalConfig) -> LVLM:
    """The LVLM that answers: `backbone` if it is loaded, otherwise the one that the settings name.

    Raises:
        ConfigError: nothing is named.
        CheckpointError: it is missing or damaged.
    """
    if isinstance(backbone, LVLM):
        return backbone
    if settings.backbone is None:
        raise ConfigError("Name the backbone to ask: a shipped model, a folder, or a hub id.")
    return load(settings.backbone, settings.device, settings.dtype, llm_bits=settings.llm_bits)


def questions_asked(
    lvlm: Callable[[], LVLM], like: Artefact | None, settings: EvalConfig, data: Data | None = None
) -> tuple[Data, list[Sample]]:
    """The data set and the samples that `evaluate` asks.

    Args:
        lvlm: called if hard distractors need its text encoder.
        like: the encoder in use, or to compare with.
        settings: with at most one data set, root and seed.
        data: the data set itself, if it is loaded.

    Raises:
        DataError, ConfigError: as `evaluate`.
    """
    manifest = {} if like is None else like.manifest
    seed = _single(settings.all_seeds(), "seed")
    if data is not None:
        questions = checked(data, manifest)
    else:
        wanted = {
            "name": _single(settings.data.name, "data set"),
            "root": _single(settings.data.root, "root"),
            "answer_with": settings.data.answer_with,
            "distractors": settings.data.distractors,
            "unseen_fraction": settings.data.unseen_fraction,
            **settings.data.reading(),
        }
        questions = questions_for(wanted, seed, manifest, lvlm)
    return questions, take(questions.samples(settings.split), settings.limit, questions.seed)


def _taken(overrides: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """An argument that is an object instead of a setting; it is taken out of `overrides`."""
    return overrides.pop(name) if isinstance(overrides.get(name), kind) else None


def _artefact(loaded: Any, names: Sequence[str], what: str) -> Artefact | None:
    """The loaded encoder, or that of the settings, if there is one."""
    if isinstance(loaded, Artefact):
        return loaded
    name = _single(names, what)
    return None if name is None else load_artefact(name)


def _single(values: Sequence[Any], what: str) -> Any:
    """The only value, or None.

    Raises:
        ConfigError: there are several.
    """
    if len(values) > 1:
        raise ConfigError(
            f"One evaluation takes one {what}, not {len(values)}: {', '.join(map(str, values))}. "
            "`craft eval` takes several."
        )
    return values[0] if values else None
