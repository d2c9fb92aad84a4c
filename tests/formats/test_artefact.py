"""The adapted encoder on disk: round trip, refusals, and a backbone that is none the wiser."""

import json

import pytest
import torch

from builders import tiny_codebook, tiny_images, tiny_lvlm, tiny_tower, tiny_visual
from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.tensors import hash_tensors, load_tensors, save_tensors
from craft.formats.artefact import save_artefact
from craft.formats.load import load_artefact
from craft.models.freezing import part_hashes
from craft.quantize import code_counts

MANIFEST = {
    "surrogate": "tiny/llama",
    "base_tower": "b" * 64,
    "data": {"name": "apparel", "fingerprint": "d" * 64, "licence": "MIT", "task": "classification"},
    "held_out": ["bag", "coat"],
    "config": {"seed": 0},
    "metrics": {"accuracy": 0.51239, "unseen": {"accuracy": 0.25}, "losses": [1.0, 2.0]},
}


def adapted(codebook_seed=0):
    """A visual tokenizer whose tower is not the base tower."""
    visual = tiny_visual(seed=7, codebook_seed=codebook_seed)
    with torch.no_grad():
        visual.log_temperature.fill_(3.3)
    return visual


def save(folder, visual=None, **changes):
    visual = visual or adapted()
    prior = code_counts(visual.encode(tiny_images(4)).codes, 32)
    return save_artefact(folder, visual, prior=prior, manifest={**MANIFEST, **changes})


def test_round_trip_and_saved_again_is_byte_identical(tmp_path):
    visual = adapted()
    artefact = load_artefact(save(tmp_path / "1" / "run" / "encoder", visual))
    assert artefact.codebook_fingerprint == visual.codebook.fingerprint
    assert hash_tensors(artefact.state) == hash_tensors(visual.vision_tower.state_dict())
    assert int(artefact.prior.sum()) == 4 * 16 and artefact.prior.dtype == torch.int64
    for key, value in MANIFEST.items():
        assert artefact.manifest[key] == value
    applied = artefact.apply_to(tiny_visual())
    save_artefact(
        tmp_path / "2" / "run" / "encoder", applied, prior=artefact.prior, manifest=artefact.manifest
    )
    for file in ("craft.json", "model.safetensors", "prior.safetensors", "README.md"):
        first, second = (tmp_path / n / "run" / "encoder" / file for n in ("1", "2"))
        assert first.read_bytes() == second.read_bytes(), file


def test_applied_it_encodes_as_the_adapted_tower_and_the_base_stays(tmp_path):
    visual, base, images = adapted(), tiny_visual(), tiny_images(3)
    before = hash_tensors(base.state_dict())
    applied = load_artefact(save(tmp_path / "encoder", visual)).apply_to(base)
    assert torch.equal(applied.encode(images).features, visual.encode(images).features)
    assert not torch.equal(applied.encode(images).features, base.encode(images).features)
    assert applied.codebook is base.codebook and applied.text_encoder is base.text_encoder
    assert applied.prior is not None and base.prior is None
    assert applied.log_temperature == visual.log_temperature
    assert hash_tensors(base.state_dict()) == before


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_backbone_is_shared_and_text_only_behaviour_is_bit_identical(tmp_path, kind):
    lvlm = tiny_lvlm(kind)
    save(tmp_path / "run" / "encoder")
    other = lvlm.with_encoder(tmp_path / "run")
    assert other.backbone is lvlm.backbone
    questions = ["What is a shirt?", "Explain: bag.", "A. one\nB. two\nAnswer in one letter only."]
    with torch.no_grad():
        before = lvlm.backbone.logits(lvlm.backbone.inputs(None, questions))
        after = other.backbone.logits(other.backbone.inputs(None, questions))
    assert torch.equal(before, after)
    assert lvlm.answer(None, questions) == other.answer(None, questions)
    images = tiny_images(2)
    assert not torch.equal(lvlm.encode(images).codes, other.encode(images).codes)
    hashes = part_hashes(lvlm), part_hashes(other)
    assert [part for part in hashes[0] if hashes[0][part] != hashes[1][part]] == ["vision_tower"]


def test_another_codebook_is_refused_with_both_fingerprints(tmp_path):
    artefact = load_artefact(save(tmp_path / "encoder", adapted(codebook_seed=1)))
    theirs, own = tiny_codebook(1).fingerprint, tiny_codebook(0).fingerprint
    for refused in (
        lambda: artefact.apply_to(tiny_visual()),
        lambda: tiny_lvlm().with_encoder(artefact),
        lambda: tiny_lvlm().with_encoder(tmp_path / "encoder"),
    ):
        with pytest.raises(CodebookMismatchError) as error:
            refused()
        assert theirs in str(error.value) and own in str(error.value)
    with pytest.raises(CodebookMismatchError, match=r"fits .*tiny/llama"):
        artefact.apply_to(tiny_visual())


def test_another_architecture_is_refused(tmp_path):
    artefact = load_artefact(save(tmp_path / "encoder"))
    with pytest.raises(CheckpointError, match=r"'hybrid'.*'siglip'"):
        artefact.build_tower(tiny_tower("siglip"))


def test_symmetric_cls_is_kept(tmp_path):
    visual = adapted()
    visual.vision_tower.cls_attention = "symmetric"  # as a user of the Python package would choose it
    applied = load_artefact(save(tmp_path / "encoder", visual)).apply_to(tiny_visual())
    assert applied.vision_tower.cls_attention == "symmetric"
    images = tiny_images(2)
    assert torch.equal(applied.encode(images).features, visual.encode(images).features)


def test_a_run_folder_and_its_encoder_are_the_same(tmp_path):
    save(tmp_path / "run" / "encoder")
    (tmp_path / "run" / "run.json").write_text("{}")
    assert load_artefact(tmp_path / "run").folder == load_artefact(str(tmp_path / "run" / "encoder")).folder


def test_a_path_from_the_home_folder(tmp_path, monkeypatch):
    """As `craft.load` takes it: a shell does not write it out within a config file or a Python script."""
    save(tmp_path / "runs" / "apparel" / "encoder")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_artefact("~/runs/apparel").folder == tmp_path / "runs" / "apparel" / "encoder"


def test_what_is_not_an_encoder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_artefact(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no craft\.json"):
        load_artefact(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"has not finished.*--resume"):
        load_artefact(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "craft.json").write_text('{"format": "craft-native", "version": 1}')
    with pytest.raises(CheckpointError, match="'craft-native'"):
        load_artefact(tmp_path / "model")


@pytest.mark.parametrize("file", ["craft.json", "model.safetensors", "prior.safetensors"])
def test_missing_or_cut_files_are_named(tmp_path, file):
    path = save(tmp_path / "encoder") / file
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=file):
        load_artefact(tmp_path / "encoder")
    path.unlink()
    with pytest.raises(CheckpointError, match=file):
        load_artefact(tmp_path / "encoder")


def test_weights_of_another_run_are_noticed(tmp_path):
    path = save(tmp_path / "encoder") / "model.safetensors"
    tensors = load_tensors(path)
    tensors["cls_token"][0] += 1
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        load_artefact(tmp_path / "encoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": 2}, "update CRAFT"), ({"tower": None}, "lacks tower"), ({"codebook": {}}, "codebook")],
)
def test_manifests_that_are_wrong_are_refused(tmp_path, changes, message):
    path = save(tmp_path / "encoder") / "craft.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(CheckpointError, match=message):
        load_artefact(tmp_path / "encoder")


def test_nothing_unusable_is_written(tmp_path):
    visual = adapted()
    for prior in (torch.zeros(5, dtype=torch.int64), torch.zeros(32)):
        with pytest.raises(CheckpointError, match="prior"):
            save_artefact(tmp_path / "encoder", visual, prior=prior, manifest=MANIFEST)
    with torch.no_grad():
        visual.vision_tower.cls_token[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        save_artefact(
            tmp_path / "encoder", visual, prior=torch.zeros(32, dtype=torch.int64), manifest=MANIFEST
        )
    assert not (tmp_path / "encoder").exists()


def test_model_card_tells_what_a_user_needs(tmp_path):
    card = (save(tmp_path / "apparel-run" / "encoder") / "README.md").read_text()
    for needed in (
        'craft.load("tiny/llama").with_encoder("apparel-run")',
        tiny_codebook().fingerprint,
        "held-out classes: bag, coat",
        "licence: MIT",
        "accuracy: 0.5124",
        "unseen.accuracy: 0.25",
        "d" * 64,
    ):
        assert needed in card
    bare = save_artefact(tmp_path / "bare", adapted(), prior=torch.zeros(32, dtype=torch.int64), manifest={})
    assert "licence: not recorded" in (bare / "README.md").read_text()
