"""Which pictures keep the base tower's features, and how much that weighs."""

import dataclasses

import pytest
import torch

from builders import tiny_images, tiny_lvlm
from craft import adapt
from craft.core.files import read_json
from craft.lessons.batches import ImageBatches
from craft.lessons.retention import FEW, MIXED, RETENTION_OF_FEW, mix, partners, retention_weight
from craft.training.config import AdaptConfig
from craft.training.image_cache import ImageCache
from craft.training.run_folder import RunFolder
from tiny_data import tiny_data

FAST = {"device": "cpu", "max_steps": 6, "batch_size": 4, "eval_limit": 2}


def labelled(classes, each=2):
    """Training samples of so many classes."""
    one = tiny_data().train[0]
    names = [f"class {number}" for number in range(classes) for _ in range(each)]
    return [dataclasses.replace(one, id=f"{row}", label=name) for row, name in enumerate(names)]


@pytest.mark.parametrize(
    ("classes", "weight"), [(2, RETENTION_OF_FEW), (FEW - 1, RETENTION_OF_FEW), (FEW, 0.0), (90, 0.0)]
)
def test_few_classes_are_held(classes, weight):
    assert AdaptConfig().losses.retention.weight is None
    assert retention_weight(None, labelled(classes)) == weight
    assert retention_weight(0.5, labelled(classes)) == 0.5 and retention_weight(0.0, labelled(classes)) == 0


def test_a_third_gets_a_partner_of_another_class():
    samples = labelled(8, 150)
    result = partners(samples, 0)
    assert len(result) / len(samples) == pytest.approx(MIXED, abs=0.05)
    assert all(samples[one].label != samples[other].label for one, other in result.items())
    assert len({samples[other].label for other in result.values()}) == 8
    assert result == partners(samples, 0) != partners(samples, 1)
    assert partners(labelled(1, 30), 0) == {}  # there is no other class


def test_mixing_is_a_function_of_seed_step_and_id():
    images, others = tiny_images(3), tiny_images(3, seed=1)
    result = mix(images, others, ["a", "b", "c"], 0, 0)
    share = ((result - others) / (images - others)).flatten(1).median(1).values
    assert ((share > 0.34) & (share < 0.66)).all() and len(set(share.tolist())) == 3
    torch.testing.assert_close(mix(images[1:2], others[1:2], ["b"], 0, 0), result[1:2])
    assert not torch.equal(mix(images, others, ["a", "b", "c"], 0, 1), result)
    assert not torch.equal(mix(images, others, ["a", "b", "c"], 1, 0), result)


def test_mixed_pictures_do_not_depend_on_their_batch():
    lvlm, config = tiny_lvlm(), AdaptConfig()
    cache = ImageCache(lvlm.visual, 2**20)
    batches = ImageBatches(lvlm, tiny_data().train, config, cache, with_mixed=True)
    indices = list(range(len(batches.groups)))
    whole = batches.make(indices, 3)
    parts = [batches.make([index], 3) for index in indices]
    assert [part.mixed is not None for part in parts] == [index in batches.partners for index in indices]
    apart = torch.cat([part.mixed for part in parts if part.mixed is not None])
    torch.testing.assert_close(whole.mixed, apart)
    assert ImageBatches(lvlm, tiny_data().train, config, cache).make(indices, 3).mixed is None


def test_what_images_are_mixed_with_is_prepared_too(monkeypatch):
    lvlm, config = tiny_lvlm(), AdaptConfig()
    batches = ImageBatches(lvlm, tiny_data().train, config, ImageCache(lvlm.visual, 2**20), with_mixed=True)
    expected, requested = [], []
    monkeypatch.setattr(batches.images, "expect", lambda samples: expected.append(tuple(samples)))
    get = batches.images.get
    monkeypatch.setattr(
        batches.images, "get", lambda samples: requested.append(tuple(samples)) or get(samples)
    )
    batches.expect(range(8))
    batches.make(range(8), 0)
    assert len(expected) == 2 and expected == requested
    index = next(iter(batches.partners))
    alone = ImageBatches(lvlm, tiny_data().train, config, batches.images)
    assert batches.length(index) > alone.length(index)


def test_run_and_card_tell_the_weight_and_the_tower_stays_nearer(tmp_path):
    lvlm, data, moved = tiny_lvlm(), tiny_data(), []
    for weight in (None, 0, 1000):
        losses = {"losses": {"retention": {"weight": weight}}}
        made = adapt(lvlm, data, tmp_path / str(weight), **FAST, blend=1.0, config=losses)
        record = read_json(tmp_path / str(weight) / "run.json")
        assert (
            record["retention"]
            == made.metrics["retention"]
            == (RETENTION_OF_FEW if weight is None else weight)
        )
        assert f"- retention: {made.metrics['retention']:g}\n" in (made.encoder / "README.md").read_text()
        lines = RunFolder(tmp_path / str(weight)).metrics()
        assert all(("retention" in line) == (weight != 0) for line in lines)
        assert record["hashes_before"]["llm"] == record["hashes_after"]["llm"]
        moved.append(sum(line.get("retention", 0) for line in lines))
    assert 0 < moved[2] < moved[0]
