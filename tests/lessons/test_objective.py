"""Eq. 2 to 5 for one batch, against the losses called by hand; texts and images kept in memory."""

import pytest
import torch

from builders import tiny_lvlm
from craft.core.errors import ConfigError
from craft.lessons import objective
from craft.lessons import retention as retaining
from craft.lessons.batches import ImageBatches, TextTable, class_numbers, class_of
from craft.lessons.objective import CraftObjective, Term, paper_terms, retention_loss
from craft.losses import commitment, commitment_cumulative, contrastive
from craft.training.config import AdaptConfig
from craft.training.image_cache import ImageCache
from tiny_data import tiny_data


def batch_of(lvlm, config, through_stem=False, con=1.0, mixed=False):
    data = tiny_data()
    cache = ImageCache(lvlm.visual, 2**20, through_stem=through_stem)
    batches = ImageBatches(lvlm, data.train, config, cache, with_texts=con > 0, with_mixed=mixed)
    return batches, batches.make([0, 1, 2, 5], 0)


def test_equation_5():
    lvlm = tiny_lvlm()
    config = AdaptConfig.build({"losses": {"sal": {"weight": 0.7}, "commitment": {"weight": 0.3}}})
    _, batch = batch_of(lvlm, config)
    loss, parts = CraftObjective(lvlm, paper_terms(config.losses, 0.2))(batch)
    tokens = lvlm.visual(batch.images)
    inputs = lvlm.backbone.inputs(tokens, batch.questions, batch.answers)
    logits = lvlm.backbone.logits(inputs)
    sal = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    commit = commitment(tokens.features, tokens.quantized, "mean")
    con = contrastive(tokens.cls, batch.texts, batch.classes, lvlm.visual.log_temperature)
    torch.testing.assert_close(parts["sal"], sal.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, 0.7 * sal + 0.3 * commit + 0.2 * con, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["distance"], commit.detach())
    assert parts["loss"].requires_grad is False


@pytest.mark.parametrize("through_stem, frozen", [(False, False), (False, True), (True, True)])
def test_retention_beside_equation_5(monkeypatch, through_stem, frozen):
    monkeypatch.setattr(retaining, "MIXED", 1 / 2)
    monkeypatch.setattr(objective, "MIXED", 1 / 2)
    lvlm = tiny_lvlm()
    tower, base = lvlm.visual.vision_tower, tiny_lvlm(seed=1).visual.vision_tower
    base.stem.load_state_dict(tower.stem.state_dict())
    config = AdaptConfig(augment=0)
    batches, _ = batch_of(lvlm, config, through_stem, mixed=True)
    batch = batches.make(range(8), 0)
    assert batch.mixed is not None and 0 < len(batch.mixed) < len(batch.ids)
    plain, _ = CraftObjective(lvlm, paper_terms(config.losses, 1.0), cached_stem=through_stem)(batch)
    whole = CraftObjective(
        lvlm,
        [*paper_terms(config.losses, 1.0), Term("retention", 0.7, retention_loss)],
        cached_stem=through_stem,
        base=retaining.base_features(base, frozen),
        stem_frozen=frozen,
    )
    loss, parts = whole(batch)
    run, ran = (tower.after_stem, base.after_stem) if through_stem else (tower, base)
    each = (run(batch.mixed)[0] - ran(batch.mixed)[0]).square().mean((1, 2))
    expected = each.sum() / (len(batch.ids) / 2)  # as many as are expected, however many there are
    torch.testing.assert_close(parts["retention"], expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, plain + 0.7 * expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert all(p.grad is None for p in base.parameters())
    without = [index for index in range(8) if index not in batches.partners][:2]
    bare = batches.make(without, 0)
    assert bare.mixed is None and whole(bare)[1]["retention"] == 0


def test_cumulative_commitment_and_no_contrastive():
    lvlm = tiny_lvlm()
    config = AdaptConfig.build({"losses": {"commitment": {"form": "cumulative", "reduction": "sum"}}})
    _, batch = batch_of(lvlm, config, con=0.0)
    assert batch.texts is None
    _, parts = CraftObjective(lvlm, paper_terms(config.losses, 0.0))(batch)
    tokens = lvlm.visual(batch.images, partial_sums=True)
    expected = commitment_cumulative(tokens.features, tokens.partial_sums, "sum")
    torch.testing.assert_close(parts["commitment"], expected.detach())
    assert parts["contrastive"] == 0


def test_sal_can_be_ablated():
    lvlm = tiny_lvlm()
    config = AdaptConfig.build({"losses": {"sal": {"weight": 0.0}}})
    _, batch = batch_of(lvlm, config)
    loss, parts = CraftObjective(lvlm, paper_terms(config.losses, 1.0))(batch)
    assert parts["sal"] == 0
    loss.backward()
    assert lvlm.visual.vision_tower.cls_token.grad is not None


def test_a_batch_without_any_loss_has_gradients_of_zero():
    """With the retention loss alone, a micro-batch may have no mixed image."""
    lvlm = tiny_lvlm()
    config = AdaptConfig.build({"losses": {"sal": {"weight": 0.0}, "commitment": {"weight": 0.0}}})
    _, batch = batch_of(lvlm, config, con=0.0)
    terms = [*paper_terms(config.losses, 0.0), Term("retention", 3.0, retention_loss)]
    loss, parts = CraftObjective(lvlm, terms)(batch)
    assert batch.mixed is None and float(loss.detach()) == 0 == float(parts["retention"])
    loss.backward()
    gradients = [p.grad for p in lvlm.visual.vision_tower.parameters() if p.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_frozen_stem_gives_the_same_loss():
    lvlm = tiny_lvlm()
    config = AdaptConfig(augment=0)
    _, pixels = batch_of(lvlm, config)
    _, maps = batch_of(lvlm, config, through_stem=True)
    assert maps.images.shape[1] == lvlm.visual.vision_tower.stem.channels
    whole, _ = CraftObjective(lvlm, paper_terms(config.losses, 1.0))(pixels)
    rest, _ = CraftObjective(lvlm, paper_terms(config.losses, 1.0), cached_stem=True)(maps)
    torch.testing.assert_close(whole, rest, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_cls_runs_only_for_the_contrastive_loss(weight, monkeypatch):
    lvlm, requests = tiny_lvlm(), []
    run = lvlm.visual.vision_tower._run
    monkeypatch.setattr(lvlm.visual.vision_tower, "_run", lambda x, cls: requests.append(cls) or run(x, cls))
    config = AdaptConfig(augment=0)
    _, batch = batch_of(lvlm, config)
    CraftObjective(lvlm, paper_terms(config.losses, weight))(batch)
    lvlm.answer(batch.images, batch.questions)
    assert requests == [bool(weight), False]


def test_image_cache_changes_no_bit_and_keeps_its_limit():
    lvlm = tiny_lvlm()
    samples = tiny_data().train
    exact = lvlm.visual.preprocess([s.image for s in samples])
    cache = ImageCache(lvlm.visual, 3 * 3 * 32 * 32)
    for _ in range(2):
        assert torch.equal(cache.get(samples), exact)
    assert cache.bytes == 3 * 3 * 32 * 32
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    image = every_byte.permute(1, 2, 0).contiguous().numpy()
    lvlm.visual.vision_tower.image_size = 16
    sample = samples[0].__class__("all", image, "q", "a")
    assert torch.equal(ImageCache(lvlm.visual, 10**6).get([sample]), lvlm.visual.preprocess([image]))


def test_texts_are_embedded_once_and_drawn_by_seed():
    lvlm, samples = tiny_lvlm(), tiny_data().train
    table = TextTable(lvlm.visual, samples, seed=0)
    assert len(table.rows) == 8  # two texts for each of four classes
    drawn = [table.sample(samples, step) for step in range(8)]
    assert torch.equal(drawn[3], table.sample(samples, 3))
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    texts = {text for text in samples[0].texts()}
    rows = {tuple(row[0].tolist()) for row in drawn}
    allowed = {tuple(e.tolist()) for e in lvlm.visual.text_encoder.encode(sorted(texts))}
    assert len(rows) == 2 and all(
        any(torch.allclose(torch.tensor(r), torch.tensor(a), atol=1e-6) for a in allowed) for r in rows
    )


def test_no_text_encoder_is_said_so():
    lvlm = tiny_lvlm()
    lvlm.visual.text_encoder = None
    with pytest.raises(ConfigError, match=r"losses\.contrastive\.weight"):
        TextTable(lvlm.visual, tiny_data().train, 0)


def test_classes_are_labels_or_else_texts():
    samples = tiny_data().train
    assert class_numbers(samples) == {"bag": 0, "boots": 1, "coat": 2, "dress": 3}
    bare = samples[0].__class__("x", samples[0].image, "Is it red?", "yes")
    assert class_of(bare) == bare.texts()[0]
