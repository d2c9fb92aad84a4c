"""The VILA-U layout: what is read, what is refused, and what is written back."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from craft.core.errors import CheckpointError, CodebookMismatchError, CraftError
from craft.formats.artefact import save_artefact
from craft.formats.load import load_artefact
from craft.formats.vila_u import VISION as PREFIX
from craft.formats.vila_u import (
    export_vision_tower,
    load_vila_u,
    read_codebook,
    save_vila_u,
    siglip_vision_config,
)
from craft.formats.weight_folder import WeightFolder

GOLDEN = Path(__file__).parents[1] / "golden" / "vila_u_small"
PARTS = ("config.json", "llm", "vision_tower", "mm_projector", "siglip_config")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that a test may damage."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (GOLDEN / part).is_dir() else shutil.copyfile
        copy(GOLDEN / part, folder / part)
    return folder


def load(folder: Path, dtype: str = "float32"):
    return load_vila_u(folder, device="cpu", dtype=dtype)


def refused(folder: Path, *words: str) -> str:
    """Loading raises one paragraph that has all the words."""
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shard(folder: Path, count: int = 3) -> None:
    """Rewrite `model.safetensors` as shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, mapping = sorted(tensors), {}
    for index in range(count):
        file = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[index::count]}
        save_file(part, folder / file, {"format": "pt"})
        mapping |= dict.fromkeys(part, file)
    index_file = {"metadata": {"total_size": 0}, "weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


def edit(folder: Path, change) -> None:
    """Change the tensors of a folder's `model.safetensors`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def set_config(root: Path, **values) -> None:
    file = root / "vision_tower" / "config.json"
    config = json.loads(file.read_text())
    config["rqvaesiglip"].update(values)
    file.write_text(json.dumps(config))


# reading


def test_sharded_folders_load_the_same(root: Path) -> None:
    whole = load(root).state_dict()
    for part in ("llm", "vision_tower", "mm_projector"):
        shard(root / part, 2)
    for name, value in load(root).state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_missing_shard_is_named(root: Path) -> None:
    shard(root / "vision_tower")
    (root / "vision_tower" / "model-00002-of-00003.safetensors").unlink()
    refused(root, "model-00002-of-00003.safetensors", "missing")


def test_shard_without_a_promised_tensor_is_named(root: Path) -> None:
    shard(root / "llm", 2)
    file = root / "llm" / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    refused(root, "model-00001-of-00002.safetensors", gone)


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_truncated_file_is_named(root: Path, part: str) -> None:
    file = root / part / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(root, str(file), "damaged")


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_garbage_file_is_named(root: Path, part: str) -> None:
    file = root / part / "model.safetensors"
    file.write_bytes(b"not safetensors at all")
    refused(root, str(file), "damaged")


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_missing_part_is_named(root: Path, part: str) -> None:
    shutil.rmtree(root / part)
    refused(root, str(root / part))


@pytest.mark.parametrize(
    "file", ["config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json"]
)
def test_missing_or_broken_config_is_named(root: Path, file: str) -> None:
    (root / file).write_text("{ not json")
    refused(root, file)
    (root / file).unlink()
    refused(root, file)


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "does not exist")


def test_missing_tokenizer_is_named(root: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (root / "llm" / name).unlink()
    refused(root, str(root / "llm"), "tokenizer")


def test_missing_llm_tensor_is_named(root: Path) -> None:
    edit(root / "llm", lambda tensors: tensors.pop("model.norm.weight"))
    refused(root, "model.norm.weight")


def test_missing_tower_tensor_is_named(root: Path) -> None:
    gone = PREFIX + "encoder.layers.1.mlp.fc1.weight"
    edit(root / "vision_tower", lambda tensors: tensors.pop(gone))
    refused(root, gone)


def test_parts_of_different_models_are_refused(root: Path) -> None:
    def narrow(tensors: dict) -> None:
        tensors["layers.0.weight"] = tensors["layers.0.weight"][:, :32].contiguous()

    edit(root / "mm_projector", narrow)
    refused(root, "projector", "32")


def test_pytorch_model_bin_is_refused_with_a_command_that_works(root: Path) -> None:
    folder = root / "mm_projector"
    original = load_file(folder / "model.safetensors")
    torch.save(original, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    text = refused(root, "pytorch_model.bin", "weights_only=True", str(folder))
    words = shlex.split(text[text.index("python -c") :])
    subprocess.run([sys.executable, *words[1:]], check=True)
    converted = load_file(folder / "model.safetensors")
    assert all(torch.equal(converted[name], value) for name, value in original.items())
    load(root)


def test_weights_that_the_hub_has_as_pickles_alone(root: Path) -> None:
    (root / "mm_projector" / "model.safetensors").unlink()  # only safetensors are fetched
    refused(root, "mm_projector", "pytorch_model.bin")


def test_shared_codebook_may_appear_once_or_at_every_level(root: Path) -> None:
    set_config(root, shared_codebook=True)
    refused(root, "codebooks.1.weight", "shared_codebook")  # four different tables contradict the flag
    name = "rqvaesiglip.quantizer.codebooks.{}.weight"

    def copies(tensors: dict) -> None:
        for level in range(1, 4):
            tensors[name.format(level)] = tensors[name.format(0)].clone()

    edit(root / "vision_tower", copies)
    everywhere = load(root).visual.codebook

    def once(tensors: dict) -> None:
        for level in range(1, 4):
            del tensors[name.format(level)]

    edit(root / "vision_tower", once)
    alone = load(root).visual.codebook
    assert alone.shared and everywhere.shared
    assert alone.fingerprint == everywhere.fingerprint
    set_config(root, shared_codebook=False)
    refused(root, "codebooks.1.weight")


def test_logit_scale_is_log_temperature_under_either_alias(root: Path) -> None:
    value = load_file(root / "vision_tower" / "model.safetensors")["rqvaesiglip.logit_scale"].clone()
    assert load(root).visual.log_temperature == value[0]

    def move(tensors: dict) -> None:
        tensors["rqvaesiglip.siglip_model.logit_scale"] = tensors.pop("rqvaesiglip.logit_scale")

    edit(root / "vision_tower", move)
    assert load(root).visual.log_temperature == value[0]
    edit(root / "vision_tower", lambda tensors: tensors.pop("rqvaesiglip.siglip_model.logit_scale"))
    load(root)


def test_siglip_config_that_contradicts_the_weights_is_refused(root: Path) -> None:
    file = root / "siglip_config" / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["num_hidden_layers"] = 5
    file.write_text(json.dumps(config))
    refused(root, str(file), "num_hidden_layers")


def test_siglip_config_without_a_folder_beside_comes_from_shapes(root: Path) -> None:
    shutil.rmtree(root / "siglip_config")
    set_config(root, pretrained_model="google/siglip-large-patch16-256")
    weights = WeightFolder(root / "vision_tower")
    config = siglip_vision_config(weights, PREFIX, root, "google/siglip-large-patch16-256")
    assert config["num_attention_heads"] == 1  # heads are 64 wide in the published models
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "image_size": 64,
        "patch_size": 16,
    }
    assert {key: config[key] for key in sizes} == sizes
    load(root)


def siglip_weights(hidden: int, inner: int, layers: int, patch: int, patches: int) -> WeightFolder:
    """Shapes of a vision tower, without values."""
    weights = WeightFolder(GOLDEN / "vision_tower")
    weights.shapes = {
        PREFIX + "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        PREFIX + "embeddings.position_embedding.weight": (patches, hidden),
        PREFIX + "encoder.layers.0.mlp.fc1.weight": (inner, hidden),
        PREFIX + f"encoder.layers.{layers - 1}.mlp.fc1.weight": (inner, hidden),
    }
    return weights


def test_siglip_large_and_so400m_from_shapes(tmp_path: Path) -> None:
    for hidden, inner, layers, patch, patches, heads, image in (
        (1024, 4096, 24, 16, 256, 16, 256),
        (1152, 4304, 27, 14, 729, 16, 384),  # 27 patches of 14 px, and 6 px over
    ):
        weights = siglip_weights(hidden, inner, layers, patch, patches)
        config = siglip_vision_config(weights, PREFIX, tmp_path, "google/siglip-large-patch16-256")
        assert (config["num_attention_heads"], config["image_size"]) == (heads, image)
        assert (config["num_hidden_layers"], config["intermediate_size"]) == (layers, inner)
        assert (config["layer_norm_eps"], config["hidden_act"]) == (1e-6, "gelu_pytorch_tanh")


def test_so400m_with_its_own_config_beside(tmp_path: Path) -> None:
    weights = siglip_weights(1152, 4304, 27, 14, 729)
    file = tmp_path / "siglip" / "config.json"
    file.parent.mkdir()
    told = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
    for image in (384, 392):  # 392 px are 28 patches
        vision = {**told, "num_attention_heads": 16, "image_size": image}
        file.write_text(json.dumps({"vision_config": vision}))
        if image == 384:
            assert siglip_vision_config(weights, PREFIX, tmp_path, "siglip")["image_size"] == 384
        else:
            with pytest.raises(CheckpointError, match="image_size 392"):
                siglip_vision_config(weights, PREFIX, tmp_path, "siglip")


def test_text_encoder_comes_with_the_checkpoint(root: Path) -> None:
    lvlm = load(root)
    assert lvlm.visual.text_encoder is not None
    with pytest.raises(CraftError, match=r"tokenizer"):
        lvlm.visual.text_encoder.encode(["a cat"])
    edit(root / "vision_tower", lambda t: [t.pop(name) for name in list(t) if ".text_model." in name])
    assert load(root).visual.text_encoder is None


def test_unknown_aspect_mode_is_refused(root: Path) -> None:
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "image_aspect_ratio": "anyres"}))
    refused(root, "anyres", "resize")


# writing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_untrained_is_written_back_byte_for_byte(
    root: Path, tmp_path: Path, dtype: str, sharded: bool
) -> None:
    if sharded:
        for part in ("llm", "vision_tower"):
            shard(root / part)
    save_vila_u(load(root, dtype), tmp_path / "out")
    assert files(tmp_path / "out") == files(root)
    save_vila_u(load(tmp_path / "out", dtype), tmp_path / "again")
    assert files(tmp_path / "again") == files(root)


def test_trained_tower_changes_its_own_bytes_only(root: Path, tmp_path: Path) -> None:
    lvlm = load(root)
    with torch.no_grad():
        lvlm.visual.vision_tower.layers[0].mlp.fc1.bias.add_(0.5)
        lvlm.visual.vision_tower.cls_token.add_(1)
        lvlm.visual.log_temperature.add_(0.25)
    save_vila_u(lvlm, tmp_path / "out")
    before, after = files(root), files(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["vision_tower/model.safetensors"]
    old, new = (load_file(folder / "vision_tower/model.safetensors") for folder in (root, tmp_path / "out"))
    assert {name for name in old if not torch.equal(old[name], new[name])} == {
        PREFIX + "encoder.layers.0.mlp.fc1.bias",
        "rqvaesiglip.logit_scale",
    }
    again = load(tmp_path / "out")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.encode(pixels).features, lvlm.encode(pixels).features)
    assert torch.equal(again.visual.log_temperature, lvlm.visual.log_temperature)


def test_padding_row_is_kept_in_the_file(root: Path, tmp_path: Path) -> None:
    save_vila_u(load(root), tmp_path / "out")
    stored = load_file(tmp_path / "out/vision_tower/model.safetensors")[
        "rqvaesiglip.quantizer.codebooks.0.weight"
    ]
    assert stored.shape == (65, 64)
    assert read_codebook(tmp_path / "out" / "vision_tower").size == 64


def test_saving_over_the_origin_or_without_one_is_refused(root: Path) -> None:
    lvlm = load(root)
    with pytest.raises(CheckpointError, match="choose another folder"):
        save_vila_u(lvlm, root)
    lvlm.origin = None
    with pytest.raises(CheckpointError, match="native layout"):
        save_vila_u(lvlm, root.parent / "out")


def test_exported_vision_tower_drops_in(root: Path, tmp_path: Path) -> None:
    lvlm = load(root)
    with torch.no_grad():
        for parameter in lvlm.visual.vision_tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    written = export_vision_tower(lvlm, root, tmp_path / "out")
    assert written == tmp_path / "out" / "vision_tower"
    shutil.rmtree(root / "vision_tower")
    shutil.copytree(written, root / "vision_tower")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(load(root).encode(pixels).codes, lvlm.encode(pixels).codes)


def test_export_of_an_untrained_tower_is_the_original(root: Path, tmp_path: Path) -> None:
    export_vision_tower(load(root), root, tmp_path / "out")
    assert files(tmp_path / "out" / "vision_tower") == files(root / "vision_tower")


def test_nothing_is_written_over_the_checkpoint_or_what_holds_it(root: Path) -> None:
    lvlm, before = load(root), files(root)
    for place in (root, root / "copy", root.parent):
        with pytest.raises(CheckpointError, match="choose another folder"):
            save_vila_u(lvlm, place)
    assert files(root) == before


def test_no_export_over_the_checkpoint_or_what_holds_it(root: Path) -> None:
    inside = root.parent / "vision_tower" / "checkpoint"
    shutil.copytree(root, inside)
    lvlm, before = load(inside), files(inside)
    for out in (inside, inside / "vision_tower", root.parent):
        with pytest.raises(CheckpointError, match="choose another folder"):
            export_vision_tower(lvlm, inside, out)
    assert files(inside) == before


def test_export_refuses_another_codebook(root: Path, tmp_path: Path) -> None:
    lvlm = load(root)
    edit(root / "vision_tower", lambda t: t["rqvaesiglip.quantizer.codebooks.0.weight"][0].add_(1))
    with pytest.raises(CodebookMismatchError) as caught:
        export_vision_tower(lvlm, root, tmp_path / "out")
    assert lvlm.visual.codebook.fingerprint in str(caught.value)
    assert read_codebook(root / "vision_tower").fingerprint in str(caught.value)


def test_export_refuses_a_symmetric_cls_token(root: Path, tmp_path: Path) -> None:
    lvlm = load(root)
    lvlm.visual.vision_tower.cls_attention = "symmetric"
    with pytest.raises(CheckpointError, match="read-only"):
        export_vision_tower(lvlm, root, tmp_path / "out")


def test_adapted_encoder_goes_into_a_backbone_and_into_an_export(root: Path, tmp_path: Path) -> None:
    lvlm, base = load(root), load(root)
    with torch.no_grad():
        for parameter in lvlm.visual.vision_tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
        lvlm.visual.log_temperature.add_(0.125)
    prior = torch.arange(64)
    save_artefact(tmp_path / "encoder", lvlm.visual, prior=prior, manifest={"surrogate": "vila-u-small"})
    pixels = torch.randn(2, 3, 64, 64)
    other = base.with_encoder(tmp_path / "encoder")
    assert torch.equal(other.encode(pixels).codes, lvlm.encode(pixels).codes)
    assert not torch.equal(other.encode(pixels).codes, base.encode(pixels).codes)
    assert other.backbone is base.backbone
    assert other.visual.prior is not None and torch.equal(other.visual.prior, prior)

    export_vision_tower(load_artefact(tmp_path / "encoder"), root, tmp_path / "a")
    export_vision_tower(lvlm, root, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_adapted_encoder_of_another_codebook_is_refused(root: Path, tmp_path: Path) -> None:
    lvlm = load(root)
    save_artefact(tmp_path / "encoder", lvlm.visual, prior=torch.arange(64), manifest={})
    edit(root / "vision_tower", lambda t: t["rqvaesiglip.quantizer.codebooks.0.weight"][0].add_(1))
    base = load(root)
    with pytest.raises(CodebookMismatchError) as caught:
        base.with_encoder(tmp_path / "encoder")
    for model in (lvlm, base):
        assert model.visual.codebook.fingerprint in str(caught.value)
