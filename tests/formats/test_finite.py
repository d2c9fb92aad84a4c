"""NaN and infinity: no loader takes them, and no feature that is not finite gets a code."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import tiny_codebook, tiny_images, tiny_lvlm, tiny_visual
from craft.core.errors import CheckpointError, CraftError, TrainingError
from craft.core.tokens import VisionTokens
from craft.formats.load import load, load_artefact
from craft.formats.native import save_native
from craft.formats.prior import load_prior, save_prior
from craft.pruning import PruningSettings, prune_tokens
from craft.quantize import code_counts
from craft.recipes import adapt
from tiny_data import tiny_data

NOT_FINITE = (math.nan, math.inf, -math.inf)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_native(tmp_path_factory.mktemp("family") / "tiny", "llama", tiny_lvlm())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    adapt(tiny_lvlm(), tiny_data(), out, max_steps=2, batch_size=4, device="cpu", checkpoint_every=1)
    return out


def damage(path, value, part=""):
    """Set one number of a file's first tensor that begins with `part`; returns that tensor's name."""
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.startswith(part) and tensors[n].is_floating_point())
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})
    return name


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("../visual/model.safetensors", "vision_tower."),
        ("../visual/model.safetensors", "codebook."),
        ("../visual/model.safetensors", "log_temperature"),
        ("../visual/text_encoder/model.safetensors", ""),
        ("projector/model.safetensors", ""),
        ("llm/model.safetensors", ""),
    ],
)
def test_no_part_of_a_model_is_loaded(model, file, part, value):
    path = model / file
    before = path.read_bytes()
    name = damage(path, value, part)
    try:
        with pytest.raises(
            CheckpointError, match=rf"model\.safetensors: tensor {name} has values.*not finite"
        ):
            load(model, "cpu")
    finally:
        path.write_bytes(before)
    load(model, "cpu")


def test_neither_is_an_encoder_nor_a_checkpoint(run):
    path = run / "encoder" / "model.safetensors"
    before = path.read_bytes()
    name = damage(path, math.nan)
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        load_artefact(run)
    path.write_bytes(before)
    checkpoint = max((run / "checkpoints").glob("step-*")) / "model.safetensors"
    name = damage(checkpoint, math.inf)
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace('"status": "finished"', '"status": "interrupted"'))
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        adapt(
            tiny_lvlm(),
            tiny_data(),
            run,
            max_steps=2,
            batch_size=4,
            device="cpu",
            checkpoint_every=1,
            resume=True,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_tower_in_memory_that_is_damaged_gives_no_codes(value, dtype):
    visual = tiny_visual().to(dtype)
    with torch.no_grad():
        visual.vision_tower.output_projection.weight[0, 0] = value
    with pytest.raises(CraftError, match=r"image 1 are not finite.*output_projection\.weight"):
        visual.encode(tiny_images(3))


def test_an_image_that_is_not_finite_is_named():
    pixels = tiny_images(5)
    pixels[3, 0, 2, 2] = math.nan
    for size in (1, 2, 64):
        with pytest.raises(CraftError, match="image 4 are not finite"):
            tiny_visual().encode(pixels, batch_size=size)
    with pytest.raises(CraftError, match="image 4"):
        tiny_visual().unquantised().encode(pixels)


@pytest.mark.parametrize("value", [*NOT_FINITE, 1e38])
def test_features_that_are_not_finite_have_no_code_and_no_sum(value):
    book, z = tiny_codebook(), torch.randn(4, 6, 16)
    expected = book.quantize(z, partial_sums=True)
    z[2, 1, 5] = value
    result = book.quantize(z, partial_sums=True)
    assert result.codes[2, 1].tolist() == [-1, -1]
    assert result.quantized[2, 1].isnan().all() and result.partial_sums[2, 1].isnan().all()
    others = torch.ones(4, 6, dtype=torch.bool)
    others[2, 1] = False
    for field in ("codes", "quantized", "residual", "partial_sums"):
        assert torch.equal(getattr(result, field)[others], getattr(expected, field)[others])
    with pytest.raises(CraftError, match="not finite"):
        code_counts(result.codes, book.size)


def test_training_stops_though_neither_loss_would_see_the_feature(tmp_path):
    lvlm = tiny_lvlm()
    with torch.no_grad():
        lvlm.visual.vision_tower.output_projection.bias[3] = math.inf
    options = {"max_steps": 2, "batch_size": 4, "device": "cpu", "losses__commitment__weight": 0.0}
    with pytest.raises(TrainingError, match=r"At step 1.*not finite"):
        adapt(lvlm, tiny_data(), tmp_path / "run", losses__retention__weight=0.0, **options)


def test_an_llm_without_a_likeliest_token_does_not_answer():
    lvlm = tiny_lvlm()
    with torch.no_grad():
        lvlm.backbone.llm.lm_head.weight[7] = math.nan
    with pytest.raises(CraftError, match=r"logits of the LLM.*NaN"):
        lvlm.answer(tiny_images(1), ["What is it?"])


def tokens(count=16):
    codes = torch.arange(count).remainder(7)[None, :, None]
    features = torch.randn(1, count, 4)
    return VisionTokens(features, codes, features, torch.rand(1, count), torch.arange(count)[None], (4, 4))


@pytest.mark.parametrize(
    ("prior", "fault"),
    [
        (torch.tensor([3, 1, -2, 0, 5, 1, 1]), "count -2 for code 2"),
        (torch.tensor([3.0, 1, math.nan, 0, 5, 1, 1]), "dtype torch.float32"),
        (torch.full((7,), 1 / 7), "dtype torch.float32"),
        (torch.ones(7, dtype=torch.bool), "dtype torch.bool"),
        (torch.ones(1, 7, dtype=torch.int64), r"shape \[1, 7\]"),
        (torch.ones((), dtype=torch.int64), r"shape \[\]"),
        (torch.ones(0, dtype=torch.int64), r"shape \[0\]"),
        (torch.ones(3, dtype=torch.int64), "counts 3 codes, and these tokens have code 6"),
    ],
)
def test_tokens_are_pruned_by_counts_only(prior, fault):
    with pytest.raises(CraftError, match=fault):
        prune_tokens(tokens(), prior, 0.5)


def test_scores_are_finite():
    scores = torch.rand(1, 16)
    scores[0, 4] = math.nan
    with pytest.raises(CraftError, match="not finite"):
        prune_tokens(tokens(), None, 0.5, strategy="fastv", scores=scores)
    PruningSettings(prior=torch.tensor([0, 2], dtype=torch.int32))  # other whole numbers are counts too


def test_priors_on_disk_and_in_a_model(tmp_path):
    book, counts = tiny_codebook(), torch.arange(32)
    wrong = {
        "negative": counts - 5,
        "float32": counts.float(),
        r"\[31\]": counts[:31],
        r"\[32, 1\]": counts[:, None],
    }
    for fault, value in wrong.items():
        with pytest.raises(CheckpointError, match=fault):
            save_prior(tmp_path / "p.safetensors", value, book)
        save_file({"counts": value.contiguous()}, tmp_path / "p.safetensors")
        with pytest.raises(CheckpointError, match=f"p.safetensors.*{fault}"):
            load_prior(tmp_path / "p.safetensors", book)
        with pytest.raises(CraftError, match=fault):
            lvlm = tiny_lvlm().with_prior(value)
            lvlm.answer(tiny_images(1), ["?"], keep_ratio=0.5)
    save_file({"other": counts}, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        load_prior(tmp_path / "p.safetensors", book)
