"""Data for a recipe: loaded with the settings of a config, or with those an encoder was trained under."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from craft.core.errors import ConfigError, DataError
from craft.data import EMBEDDED, Data, Sample, load_data, stratified
from craft.models.lvlm import LVLM
from craft.training.config import AdaptConfig, DataConfig


def open_data(
    settings: DataConfig, seed: int, lvlm: Callable[[], LVLM], held_out: Sequence[str] | None = None
) -> Data:
    """`load_data` with a config's settings; `lvlm` is called where hard distractors need its text encoder.

    Raises:
        DataError: as `load_data`.
        ConfigError: hard distractors are wanted and there is no text encoder.
    """
    return load_data(
        settings.name,
        root=settings.root,
        seed=seed,
        answer_with=settings.answer_with,
        distractors=settings.distractors,
        unseen_fraction=settings.unseen_fraction,
        limit=settings.limit,
        held_out=held_out,
        similarity=(lambda names: text_similarity(lvlm(), names)) if settings.distractors == "hard" else None,
    )


def text_similarity(lvlm: LVLM, names: Sequence[str]) -> np.ndarray:
    """Cosines `[C, C]` of the names under the frozen text encoder: which classes are hard to tell apart.

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
    """What an artefact's manifest says about its training data: enough to ask the same questions again."""
    return {
        "name": data.name,
        "task": data.task,
        "domain": data.domain,
        "licence": data.licence,
        "source": data.source,
        "fingerprint": data.fingerprint,
        "train": len(data.train),
        "test": len(data.test),
        "settings": settings.model_dump(mode="json"),
        "seed": data.seed,
    }


def training_data_of(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `describe` part of a manifest, or None where it was not made by `adapt`."""
    told = manifest.get("data")
    return dict(told) if isinstance(told, Mapping) and "settings" in told else None


def is_training_data(
    given: Mapping[str, Any], told: Mapping[str, Any], held_out: Sequence[str], lvlm: Callable[[], LVLM]
) -> bool:
    """Whether the data that `given` names (`name`, `root`) is what an encoder learned from: by content,
    wherever it lies now.

    Raises:
        DataError: it is called the same, but files were added, removed or changed since. Then its test images
            may be among those that the encoder was trained on.
    """
    learned = told["settings"]["name"]
    name = given.get("name", learned)
    if name in EMBEDDED or learned in EMBEDDED:
        return name == learned
    place = {"name": name, "root": given.get("root", told["settings"]["root"])}
    settings = DataConfig.model_validate({**told["settings"], **place})
    try:
        again = open_data(settings, told["seed"], lvlm, held_out)
    except DataError:
        if name == learned:
            raise
        return False  # other classes, for instance
    if again.fingerprint == told["fingerprint"]:
        return True
    if again.name == told["name"]:
        raise DataError(
            f"{again.name} has changed since this encoder was adapted to it, so its test images may be among "
            "those it was trained on. Restore the data, adapt again, or give the test images as data of "
            "another name."
        )
    return False


def check_limit(limit: int | None) -> None:
    """
    Raises:
        ConfigError: nothing would be left to measure.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}.")


def take(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` samples, evenly from the classes, in the given order.

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
    """The same data with `held_out` as the unseen classes (a division of the test set; questions stay).

    Raises:
        ConfigError: one of them is not a class of the data.
    """
    if strangers := sorted(set(held_out) - set(data.classes)):
        raise ConfigError(f"{data.name} has no class {', '.join(strangers)}, which was held out of training.")
    test = [replace(sample, seen=sample.label not in held_out) for sample in data.test]
    return replace(data, test=test, held_out=tuple(sorted(held_out)))


def questions_for(
    wanted: Mapping[str, Any], seed: int | None, manifest: Mapping[str, Any], lvlm: Callable[[], LVLM]
) -> Data:
    """The data set to ask; with a manifest's settings and held-out classes where its encoder learned from it.

    Args:
        wanted: settings of the config's `data` section; those that are None are not given.
        seed: of the questions; None is the encoder's, or 0.
        manifest: of the encoder in use or to compare with; empty without one.
        lvlm: called where hard distractors need its text encoder.

    Raises:
        ConfigError: a setting is unknown, or contradicts the encoder's training.
        DataError: the data is missing, or changed since the encoder was trained on it.
    """
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
        return open_data(settings, told["seed"] if seed is None else seed, lvlm, held_out)
    return checked(open_data(_data_config(given), seed or 0, lvlm), manifest)


def _data_config(given: Mapping[str, Any]) -> DataConfig:
    return AdaptConfig.build({"data": dict(given)}).data


def checked(data: Data, manifest: Mapping[str, Any]) -> Data:
    """The data, with its unseen classes set right.

    Data that did not come by the manifest's settings: if it is what the encoder learned all the same, its
    unseen classes are the manifest's; if not, the encoder has seen no class of it.
    """
    told = training_data_of(manifest)
    if told is None or told["name"] != data.name or not data.classes:
        return data
    if told["fingerprint"] == data.fingerprint or set(manifest.get("held_out") or ()) <= set(data.classes):
        return with_seen(data, manifest.get("held_out") or ())
    return data
