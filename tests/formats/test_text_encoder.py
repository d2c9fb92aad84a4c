"""The text encoder: what SigLIP's text tower computes, frozen, and its tokenizer."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import SiglipTextConfig, SiglipTextModel

from builders import TEXT, tiny_text_encoder
from craft.core.errors import CheckpointError
from craft.formats.visual_folder import (
    load_text_encoder,
    read_tokenizer,
    save_text_encoder,
    siglip_text_encoder,
)
from craft.models.text_encoder import TextEncoder

TEXTS = ["a red shirt", "", "bag", "a photo of a striped jumper and a pair of boots on a dark background"]


def test_equals_siglips_text_model_on_full_length_ids():
    encoder = tiny_text_encoder()
    model = SiglipTextModel(SiglipTextConfig(**TEXT)).eval()
    model.load_state_dict(encoder.model.state_dict())
    assert encoder.tokenizer is not None
    plain = Tokenizer.from_str(encoder.tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    for text in TEXTS[:3]:
        ids = plain.encode(text).ids
        row = torch.tensor([ids + [0] * (12 - len(ids))])
        with torch.no_grad():
            expected = model(input_ids=row).pooler_output
        assert torch.equal(encoder.tokenize([text]), row)
        torch.testing.assert_close(encoder.encode([text]), expected, atol=1e-6, rtol=0)


def test_long_texts_keep_their_start_and_the_end_token():
    ids = tiny_text_encoder().tokenize([TEXTS[3], TEXTS[3] + " and more"])
    assert ids.shape == (2, 12) and ids[0, -1] == 2
    assert torch.equal(ids[0], ids[1])


def test_output_is_float32_without_gradient_and_independent_of_batching():
    encoder = tiny_text_encoder()
    whole = encoder.encode(TEXTS)
    assert whole.shape == (4, 16) and whole.dtype == torch.float32 and not whole.requires_grad
    torch.testing.assert_close(encoder.encode(TEXTS, batch_size=1), whole, atol=1e-6, rtol=0)
    assert not torch.allclose(whole.norm(dim=1), torch.ones(4))  # not normalised
    assert encoder.encode([]).shape == (0, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(TEXTS), whole)


def test_frozen_and_always_in_evaluation_mode():
    encoder = tiny_text_encoder()
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_recipe_can_train_it_through_forward():
    encoder = tiny_text_encoder().requires_grad_(True)
    encoder(encoder.tokenize(TEXTS)).square().sum().backward()
    weights = {name: p.grad for name, p in encoder.named_parameters() if p.ndim > 1}
    assert [name for name, gradient in weights.items() if not gradient.any()] == []


def test_round_trip(tmp_path):
    encoder = tiny_text_encoder()
    save_text_encoder(tmp_path / "bf16", encoder)
    loaded = load_text_encoder(tmp_path / "bf16")
    assert loaded.config == encoder.config
    torch.testing.assert_close(loaded.encode(TEXTS), encoder.encode(TEXTS), atol=0.05, rtol=0.05)
    save_text_encoder(tmp_path / "again", loaded)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "bf16" / file).read_bytes()
    save_text_encoder(tmp_path / "fp32", encoder, "float32")
    assert torch.equal(load_text_encoder(tmp_path / "fp32").encode(TEXTS), encoder.encode(TEXTS))


def vila_u_state(encoder):
    prefix = "rqvaesiglip.siglip_model.text_model."
    state = {prefix + name: tensor for name, tensor in encoder.weights().items()}
    return {**state, "rqvaesiglip.siglip_model.vision_model.head.probe": torch.zeros(1)}


def test_from_a_vila_u_checkpoint_with_a_tokenizer_folder(tmp_path):
    encoder = tiny_text_encoder()
    assert encoder.tokenizer is not None
    encoder.tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {key: value for key, value in TEXT.items() if key != "projection_size"}  # told by head.weight
    found = siglip_text_encoder(vila_u_state(encoder), config, tmp_path / "tokenizer.json")
    assert found.dim == 16
    assert torch.equal(found.encode(TEXTS), encoder.encode(TEXTS))


def test_without_a_tokenizer_it_loads_and_saves_and_says_what_is_missing(tmp_path):
    found = siglip_text_encoder(vila_u_state(tiny_text_encoder()), TEXT)
    save_text_encoder(tmp_path, found)
    for encoder in (found, load_text_encoder(tmp_path)):
        with pytest.raises(
            CheckpointError, match=r"needs the text encoder's tokenizer.*contrastive\.weight=0"
        ):
            encoder.encode(["a"])


def test_what_does_not_fit_is_refused(tmp_path):
    encoder = tiny_text_encoder()
    with pytest.raises(CheckpointError, match="no text tower"):
        siglip_text_encoder({"x": torch.zeros(1)}, TEXT)
    with pytest.raises(CheckpointError, match="does not fit"):
        siglip_text_encoder(vila_u_state(encoder), {**TEXT, "num_hidden_layers": 3})
    with pytest.raises(CheckpointError, match="lacks vocab_size"):
        TextEncoder({}, None)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        read_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_builds_on_the_meta_device_at_real_size():
    config = {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 64,
    }
    with torch.device("meta"):
        encoder = TextEncoder(config, None)
    assert encoder.dim == 1024
    assert 3.3e8 < sum(parameter.numel() for parameter in encoder.parameters()) < 3.4e8
