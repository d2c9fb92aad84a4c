"""A random subset of the codebook: nearest codewords within it, and everything else as with the whole."""

import pytest
import torch

from builders import tiny_codebook, tiny_continuous, tiny_images, tiny_lvlm
from craft.core.errors import CodebookMismatchError, ConfigError, CraftError
from craft.models.freezing import part_hashes
from craft.quantize import ResidualCodebook
from craft.recipes import adapt, evaluate
from paper.subsample import subsample, subsampled_codebook
from tiny_data import tiny_data


def rows_of(part, whole):
    """Where each codeword of a level of the subset stands in the whole codebook."""
    return [
        [(table == word).all(1).nonzero().item() for word in some]
        for some, table in zip(part, whole, strict=True)
    ]


def test_the_whole_is_the_model_itself():
    lvlm = tiny_lvlm()
    assert subsampled_codebook(lvlm, 1.0, 3) is lvlm
    assert subsample(lvlm.visual.codebook, 1.0).fingerprint == lvlm.visual.codebook.fingerprint


def test_a_subset_is_drawn_by_seed_per_level_and_nested():
    whole = tiny_codebook(levels=3)
    quarter, half = subsample(whole, 0.25, 1), subsample(whole, 0.5, 1)
    assert (quarter.size, half.size, half.num_levels) == (8, 16, 3)
    few, many = rows_of(quarter.levels, whole.levels), rows_of(half.levels, whole.levels)
    assert all(set(a) < set(b) and b == sorted(b) for a, b in zip(few, many, strict=True))
    assert many[0] != many[1]
    assert half.fingerprint == subsample(whole, 0.5, 1).fingerprint
    assert len({whole.fingerprint, half.fingerprint, subsample(whole, 0.5, 2).fingerprint}) == 3


def test_a_shared_table_stays_shared():
    table = tiny_codebook().levels[0]
    part = subsample(ResidualCodebook([table, table]), 0.5)
    assert part.shared and part.num_levels == 2 and torch.equal(part.levels[0], part.levels[1])


def test_codes_are_the_nearest_within_the_subset():
    small = subsampled_codebook(tiny_lvlm(), 0.25, 0)
    tokens = small.encode(tiny_images(4))
    remainder = tokens.features.clone()
    for level, table in enumerate(small.visual.codebook.levels):
        distance = (remainder[..., None, :] - table).square().sum(-1)
        assert torch.equal(tokens.codes[..., level], distance.argmin(-1))
        remainder -= table[tokens.codes[..., level]]
    whole = tiny_lvlm().visual.codebook
    rows = rows_of(small.visual.codebook.levels, whole.levels)
    as_whole = torch.stack([torch.tensor(r)[tokens.codes[..., n]] for n, r in enumerate(rows)], -1)
    assert torch.equal(whole.lookup(as_whole), tokens.quantized)  # sums that the backbone knows


def test_the_backbone_is_shared_and_encoders_are_kept_apart(tmp_path):
    lvlm = tiny_lvlm()
    small = subsampled_codebook(lvlm, 0.5, 0)
    assert small.backbone.llm is lvlm.backbone.llm and small.visual.prior is None
    result = adapt(small, tiny_data(), tmp_path / "run", max_steps=2, batch_size=2, device="cpu")
    assert result.prior.shape == (16,)
    before, after = part_hashes(small), part_hashes(result.lvlm)
    assert {part for part in before if before[part] != after[part]} == {"vision_tower"}
    report = evaluate(small, result.out, tiny_data(), keep_ratio=0.5)
    assert report.settings["backbone"] == "tiny/llama (50 % of the codewords)"
    with pytest.raises(CodebookMismatchError):
        lvlm.with_encoder(result.out)
    again = subsampled_codebook(tiny_lvlm(), 0.5, 0).with_encoder(result.out)  # drawn again: the same
    assert torch.equal(again.visual.codebook.levels, small.visual.codebook.levels)


def test_what_cannot_be_drawn():
    for fraction in (0.0, 1.5, -1.0):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            subsampled_codebook(tiny_lvlm(), fraction, 0)
    with pytest.raises(ConfigError, match="is none"):
        subsampled_codebook(tiny_lvlm(), 0.01, 0)
    with pytest.raises(CraftError, match="needs codes"):
        subsampled_codebook(tiny_continuous(), 0.5, 0)
