"""Data for a recipe, loaded with the settings of a config or with those of an encoder's training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.progress import say
from craft.core.settings import without_idle
from craft.data import EMBEDDED, Data, Sample, load_data, stratified
from craft.data.check import settle_overlap
from craft.data.choices import QUESTION
from craft.models.lvlm import LVLM
from craft.recipes.arguments import without_none
from craft.training.config import AdaptConfig, DataConfig


def open_data(
    settings: DataConfig, seed: int, lvlm: Callable[[], LVLM], held_out: Sequence[str] | None = None
) -> Data:
    """`load_data` with the settings of a config, without dropped images that stand in the test split too. Its
    notes are printed. It calls `lvlm` if hard distractors need its text encoder.

    Raises:
        DataError: as for `load_data`.
        ConfigError: hard distractors need a text encoder, and the LVLM has none.
    """
    data = load_data(
        settings.name,
        root=settings.root,
        seed=seed,
        answer_with=settings.answer_with,
        distractors=settings.distractors,
        unseen_fraction=settings.unseen_fraction,
        limit=settings.limit,
        held_out=held_out,
        similarity=(lambda names: text_similarity(lvlm(), names)) if settings.distractors == "hard" else None,
        splits=settings.splits,
        partial=settings.partial,
    )
    data = settle_overlap(data, "drop") if settings.overlap == "drop" else data
    for note in data.notes:
        say(f"note: {note}")
    return data


def text_similarity(lvlm: LVLM, names: Sequence[str]) -> np.ndarray:
    """Cosines `[C, C]` between the class names under the frozen text encoder.

    Raises:
        ConfigError: the visual tokenizer came without a text encoder.
    """
    encoder: Any = lvlm.visual.text_encoder
    if encoder is None:
        raise ConfigError(f"Hard distractors need a text encoder, and {lvlm.name} has none; use random ones.")
    vectors = encoder.encode(list(names)).float().cpu().numpy()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def describe(data: Data, settings: DataConfig) -> dict[str, Any]:
    """The record of the training data for a manifest, from which the same questions can be asked again."""
    return {
        "name": data.name,
        "task": data.task,
        "domain": data.domain,
        "classes": list(data.classes),
        "question": QUESTION if data.classes and data.task == "classification" else None,
        "licence": data.licence,
        "source": data.source,
        "fingerprint": data.fingerprint,
        "caveats": list(data.caveats),
        "train": len(data.train),
        "test": len(data.test),
        "settings": settings.model_dump(mode="json"),
        "seed": data.seed,
    }


def training_data_of(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record that `describe` made in a manifest; None if `adapt` did not make the artefact.

    Raises:
        CheckpointError: its settings are not those of data.
    """
    record = manifest.get("data")
    if not isinstance(record, Mapping) or record.get("settings") is None:
        return None
    try:
        settings = DataConfig.model_validate(without_idle(record["settings"]))
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise CheckpointError(
            f"The craft.json of the encoder is damaged: data.settings.{name} cannot be {fault['input']!r} "
            f"({fault['msg'].lower()}). Copy the whole folder again."
        ) from None
    return {**record, "settings": settings.model_dump(mode="json")}


def is_training_data(
    settings: Mapping[str, Any], record: Mapping[str, Any], held_out: Sequence[str], lvlm: Callable[[], LVLM]
) -> bool:
    """Whether the data that `settings` names is the data that an encoder was trained on.

    CRAFT compares contents, so the data may have moved.

    Args:
        settings: `name` and `root`; if they are absent, those of the record.
        record: the `describe` record of the encoder's manifest.
        held_out: the classes that the encoder's training held out.
        lvlm: called if hard distractors need its text encoder.

    Raises:
        DataError: the data has the recorded name, but files were added, removed or changed since. Its test
            images may then be among those that the encoder was trained on.
    """
    trained_on = record["settings"]["name"]
    name = settings.get("name", trained_on)
    if name in EMBEDDED or trained_on in EMBEDDED:
        return name == trained_on
    source = {"name": name, "root": settings.get("root", record["settings"]["root"])}
    source |= {key: settings[key] for key in ("splits", "partial") if settings.get(key)}
    config = DataConfig.model_validate({**record["settings"], **source})
    try:
        data = open_data(config, record["seed"], lvlm, held_out)
    except DataError:
        if name == trained_on:
            raise
        return False  # other classes, for instance
    if data.fingerprint == record["fingerprint"]:
        return True
    if data.name == record["name"]:
        raise DataError(
            f"{data.name} has changed since this encoder was adapted to it, so its test images may be among "
            "those it was trained on. Restore the data, adapt again, or pass the test images as data with "
            "another name."
        )
    return False


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves nothing to measure.

    Raises:
        ConfigError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}.")


def take(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` samples, evenly from the classes, in their original order.

    Raises:
        ConfigError: `limit` is below 1.
    """
    check_limit(limit)
    if limit is None or limit >= len(samples):
        return list(samples)
    return stratified(
        samples, limit, identity=lambda s: s.id, group=lambda s: s.concept, seed=seed, purpose="limit"
    )[1]


def with_seen(data: Data, held_out: Sequence[str]) -> Data:
    """The same data with `held_out` as the unseen classes of the test set. The questions stay the same.

    Raises:
        ConfigError: one of them is not a class of the data.
    """
    if unknown := sorted(set(held_out) - set(data.classes)):
        raise ConfigError(f"{data.name} has no class {', '.join(unknown)}, which was held out of training.")
    test = [replace(sample, seen=sample.label not in held_out) for sample in data.test]
    return replace(data, test=test, held_out=tuple(sorted(held_out)))


def questions_for(
    settings: Mapping[str, Any], seed: int | None, manifest: Mapping[str, Any], lvlm: Callable[[], LVLM]
) -> Data:
    """The data set to ask. Data that an encoder was trained on is asked as in its training.

    Args:
        settings: settings of the config's `data` section; those that are None have no effect.
        seed: for the questions; None means the encoder's, or 0.
        manifest: the manifest of the encoder to use or to compare with; empty if there is none.
        lvlm: called if hard distractors need its text encoder.

    Raises:
        ConfigError: a setting is unknown, or contradicts the encoder's training.
        DataError: the data is missing, or changed since the encoder was trained on it.
    """
    settings = without_none(settings)
    record, held_out = training_data_of(manifest), manifest.get("held_out") or ()
    if record is not None and is_training_data(settings, record, held_out, lvlm):
        trained_with = record["settings"]["unseen_fraction"]
        if settings.get("unseen_fraction", trained_with) != trained_with:
            raise ConfigError(
                "unseen_fraction cannot be chosen for an encoder that was adapted to this data: its training "
                f"held out {', '.join(held_out) or 'nothing'}. Leave it out."
            )
        config = _data_config({**record["settings"], "limit": None, **settings})
        return open_data(config, record["seed"] if seed is None else seed, lvlm, held_out)
    return checked(open_data(_data_config(settings), seed or 0, lvlm), manifest)


def _data_config(settings: Mapping[str, Any]) -> DataConfig:
    return AdaptConfig.build({"data": dict(settings)}).data


def checked(data: Data, manifest: Mapping[str, Any]) -> Data:
    """The data with the unseen classes of an encoder's training, if the encoder was trained on it.

    This is for data that was not loaded with the manifest's settings. If it is other data, the encoder has
    seen none of its classes, and it stays as it is.
    """
    record = training_data_of(manifest)
    if record is None or record["name"] != data.name or not data.classes:
        return data
    if record["fingerprint"] == data.fingerprint or set(manifest.get("held_out") or ()) <= set(data.classes):
        return with_seen(data, manifest.get("held_out") or ())
    return data
