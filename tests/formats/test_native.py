"""The native layout: what is saved comes back, bit for bit, and what does not fit is refused."""

import json
import shutil

import pytest
import torch
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from builders import tiny_backbone, tiny_codebook, tiny_images, tiny_lvlm, tiny_tower, tiny_visual
from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.tensors import load_tensors, save_tensors
from craft.formats.native import load_native, load_visual, save_native, save_visual
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

QUESTIONS = ["What is shown in the picture?\nA. a red shirt\nB. a blue bag", "How many?", "Name it."]


def files(folder):
    """Relative path -> bytes, for every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit(path, **changes):
    """Change entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A family of two backbones on disk; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for kind in ("llama", "qwen2"):
        save_native(folder, kind, tiny_lvlm(kind))
    return folder


@pytest.fixture
def copy(family, tmp_path):
    return shutil.copytree(family, tmp_path / "copy")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_saved_loaded_saved_is_byte_identical(family, tmp_path, kind):
    lvlm = load_native(family / kind, "cpu")
    assert lvlm.name == f"tiny/{kind}" and lvlm.origin == family / kind
    assert not lvlm.training
    again = save_native(tmp_path / "tiny", kind, lvlm)
    assert files(again) == files(family / kind)
    assert files(again.parent / "visual") == files(family / "visual")


def test_disk_is_bfloat16_memory_is_float32(family):
    tensors = load_tensors(family / "llama" / "llm" / "model.safetensors")
    tensors |= load_tensors(family / "llama" / "projector" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    visual = load_tensors(family / "visual" / "model.safetensors")
    assert visual["vision_tower.cls_token"].dtype == torch.bfloat16
    assert visual["codebook.codewords"].dtype == torch.float32  # these codewords would be rounded
    assert visual["log_temperature"].dtype == torch.float32
    lvlm = load_native(family / "llama", "cpu")
    assert {parameter.dtype for parameter in lvlm.parameters()} == {torch.float32}
    half = load_native(family / "llama", "cpu", "bfloat16")
    assert next(half.backbone.llm.parameters()).dtype == torch.bfloat16
    assert next(half.visual.vision_tower.parameters()).dtype == torch.bfloat16
    assert half.visual.codebook.codewords.dtype == torch.float32


def test_loaded_in_bfloat16_and_saved_is_still_the_same(family, tmp_path):
    again = save_native(tmp_path / "tiny", "llama", load_native(family / "llama", "cpu", "bfloat16"))
    assert files(again) == files(family / "llama")
    assert files(again.parent / "visual") == files(family / "visual")


def test_float32_on_disk_keeps_every_bit_and_answer(tmp_path):
    lvlm = tiny_lvlm("qwen2")
    loaded = load_native(save_native(tmp_path / "exact", "qwen2", lvlm, dtype="float32"), "cpu")
    assert part_hashes(loaded) == part_hashes(lvlm)
    images = tiny_images(3)
    assert torch.equal(loaded.encode(images).codes, lvlm.encode(images).codes)
    assert loaded.answer(images, QUESTIONS) == lvlm.answer(images, QUESTIONS)
    assert loaded.visual.log_temperature == lvlm.visual.log_temperature
    save_native(tmp_path / "other" / "exact", "qwen2", loaded)
    assert files(tmp_path / "other" / "exact") == files(tmp_path / "exact")


def test_tokenizer_is_the_files_own_whatever_the_architecture(family):
    for kind in ("llama", "qwen2"):
        tokenizer = load_native(family / kind, "cpu").backbone.tokenizer
        original = tiny_backbone(kind).tokenizer
        text = "it's 123 T-shirts — e\u0301, <s> B."
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
        assert tokenizer.backend_tokenizer.to_str() == original.backend_tokenizer.to_str()
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
        assert tokenizer.unk_token is None


def test_two_backbones_share_one_visual_tokenizer(family):
    one, other = load_native(family / "llama", "cpu"), load_native(family / "qwen2", "cpu")
    hashes = part_hashes(one), part_hashes(other)
    assert all(hashes[0][part] == hashes[1][part] for part in ("vision_tower", "codebook", "text_encoder"))
    assert hashes[0]["llm"] != hashes[1]["llm"]


def test_visual_round_trip_with_prior_shared_codebook_and_siglip_tower(tmp_path):
    table = tiny_codebook().levels[0].to(torch.bfloat16).float()
    prior = torch.arange(32)
    book = ResidualCodebook([table, table, table])
    visual = VisualTokenizer(tiny_tower("siglip"), book, prior=prior, aspect="pad")
    save_visual(tmp_path / "visual", visual)
    stored = load_tensors(tmp_path / "visual" / "model.safetensors")["codebook.codewords"]
    assert stored.shape == (1, 32, 16) and stored.dtype == torch.bfloat16  # no value changes
    loaded = load_visual(tmp_path / "visual")
    assert loaded.codebook.shared and loaded.codebook.num_levels == 3
    assert loaded.codebook.fingerprint == book.fingerprint
    assert loaded.prior is not None and torch.equal(loaded.prior, prior)
    assert loaded.aspect == "pad" and loaded.text_encoder is None
    save_visual(tmp_path / "again", loaded)
    assert files(tmp_path / "again") == files(tmp_path / "visual")


def test_a_model_card_that_is_there_stays(copy):
    (copy / "visual" / "README.md").write_text("by hand")
    save_visual(copy / "visual", load_visual(copy / "visual"))
    assert (copy / "visual" / "README.md").read_text() == "by hand"
    assert 'craft.load("tiny/llama")' in (copy / "llama" / "README.md").read_text()


def test_backbone_of_another_codebook_is_refused_with_both_fingerprints(copy):
    other = tiny_codebook(1).fingerprint
    edit(copy / "llama" / "craft.json", codebook=other)
    with pytest.raises(CodebookMismatchError) as error:
        load_native(copy / "llama", "cpu")
    assert other in str(error.value) and tiny_codebook(0).fingerprint in str(error.value)


def test_combining_parts_of_two_families_is_refused_with_both_fingerprints():
    with pytest.raises(CodebookMismatchError) as error:
        LVLM(tiny_visual(codebook_seed=1), tiny_backbone("llama"), "mixed")
    assert tiny_codebook(1).fingerprint in str(error.value)
    assert tiny_codebook(0).fingerprint in str(error.value)


def test_saving_into_a_family_never_changes_its_visual_tokenizer(copy):
    before = files(copy)
    with pytest.raises(CodebookMismatchError, match=tiny_codebook(1).fingerprint):
        save_native(copy, "other", tiny_lvlm("llama", codebook_seed=1))
    with pytest.raises(CheckpointError, match="another vision tower"):
        save_native(copy, "other", tiny_lvlm("llama", seed=1))
    with pytest.raises(CheckpointError, match="cannot name a backbone"):
        save_native(copy, "visual", tiny_lvlm())
    assert files(copy) == before


def test_damaged_codebook_is_noticed_by_its_fingerprint(copy):
    path = copy / "visual" / "model.safetensors"
    tensors = load_tensors(path)
    tensors["codebook.codewords"][0, 3, 5] += 1e-3
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match="holds codebook") as error:
        load_visual(copy / "visual")
    assert tiny_codebook().fingerprint in str(error.value)


def test_missing_files_are_named(copy):
    for file in (
        "llama/llm/tokenizer_config.json",
        "llama/llm/model.safetensors",
        "llama/projector/model.safetensors",
        "llama/craft.json",
        "visual/text_encoder/tokenizer.json",
        "visual/text_encoder/model.safetensors",
        "visual/model.safetensors",
        "visual/config.json",
    ):
        data = (copy / file).read_bytes()
        (copy / file).unlink()
        with pytest.raises(CheckpointError) as error:
            load_native(copy / "llama", "cpu")
        assert file.split("/")[-2] in str(error.value), file
        (copy / file).write_bytes(data)
    load_native(copy / "llama", "cpu")


def test_cut_files_are_named(copy):
    for file in (
        "visual/model.safetensors",
        "llama/projector/model.safetensors",
        "llama/llm/model.safetensors",
        "llama/llm/tokenizer.json",
        "visual/config.json",
    ):
        data = (copy / file).read_bytes()
        (copy / file).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError) as error:
            load_native(copy / "llama", "cpu")
        assert file.split("/")[-2] in str(error.value), file
        (copy / file).write_bytes(data)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("visual/config.json", {"format": "other"}, "is not a visual tokenizer"),
        ("visual/config.json", {"version": 2}, "update CRAFT"),
        ("visual/config.json", {"aspect": None}, "lacks aspect"),
        ("visual/config.json", {"dtype": "float8"}, "float8"),
        ("visual/config.json", {"levels": 3}, "3 levels"),
        ("visual/config.json", {"vision_tower": {"type": "other"}}, "'other' is unknown"),
        ("llama/craft.json", {"prompt": "other"}, "prompt format"),
        ("llama/craft.json", {"version": "one"}, "update CRAFT"),
        ("llama/projector/config.json", {"in": 8}, "does not fit"),
        ("visual/text_encoder/config.json", {"vocab_size": 10}, "different models"),
        ("visual/text_encoder/config.json", {"hidden_size": None}, "lacks hidden_size"),
        ("visual/text_encoder/config.json", {"num_hidden_layers": 2}, "does not fit"),
    ],
)
def test_configs_that_do_not_fit_are_refused(copy, file, changes, message):
    edit(copy / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_native(copy / "llama", "cpu")


def test_parts_of_different_widths_are_refused(copy):
    wide = tiny_backbone("llama", codebook=tiny_codebook(dim=24)).projector
    save_tensors(copy / "llama" / "projector" / "model.safetensors", wide.state_dict())
    edit(copy / "llama" / "projector" / "config.json", **{"in": 24})
    with pytest.raises(CheckpointError, match=r"\b24\b.*\b32\b"):
        load_native(copy / "llama", "cpu")


@pytest.mark.parametrize("kind", ["hybrid", "siglip"])
def test_adding_cls_changes_no_bit_of_any_patch_feature(kind, monkeypatch):
    tower, images = tiny_tower(kind), tiny_images(3)

    def without_cls(patches, with_cls):
        for layer in tower.layers:
            patches = SiglipEncoderLayer.forward(layer, patches, attention_mask=None)
        return patches, patches[:, :1]

    with torch.no_grad():
        features, cls = tower(images)
        with monkeypatch.context() as patch:
            patch.setattr(tower, "_run", without_cls)
            plain, _ = tower(images)
        tower.cls_token.add_(1.0)
        moved, other = tower(images)
    assert torch.equal(features, plain) and torch.equal(moved, plain)
    assert not torch.equal(other, cls)
