"""Everything in `golden/tar_small` that CRAFT computes, as Tar's own code computes it, against ours.

Codes, ids and labels are equal; pixels agree to 1e-6, features and gradients to 1e-5, logits to 5e-5.
"""

import json
import shutil
import subprocess
import sys
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import craft
from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.tensors import load_tensors
from craft.formats.artefact import save_artefact
from craft.formats.load import load_artefact
from craft.formats.tar import export_tar
from craft.formats.vila_u import HEADS
from craft.losses.table_gradient import Soft, TableGradient, affine, affine_fit, identity
from craft.models.decoding import generate_ids
from craft.models.freezing import answer_hashes
from craft.models.images import float_pixels, pixels
from craft.models.lvlm import LVLM
from craft.models.ta_tok import TaTokTower

GOLDEN = Path(__file__).parent / "tar_small"
IMAGES = sorted((GOLDEN / "images").glob("*.png"))
QUESTION = "What is shown? Answer with one word."
SIZE = 66
PILLOW = int(version("pillow").partition(".")[0])
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
both = pytest.mark.parametrize("name", ["a", "b"])


@cache
def expected() -> dict[str, Tensor]:
    return load_tensors(GOLDEN / "expected.safetensors")


@cache
def facts() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@cache
def loaded(name: str, scale: int | None = None) -> LVLM:
    return craft.load(GOLDEN / f"Tar-{name}", device="cpu", dtype="float32", scale=scale)


def images() -> list[Path] | Tensor:
    """The images; before Pillow 13 the reference's pixels of them (tests/golden/README.md, 7)."""
    return IMAGES if PILLOW >= 13 else expected()["llava.pixel_values"]


# pixels, features, codes


def test_pixels() -> None:
    same = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    ours, theirs = pixels(IMAGES, SIZE), expected()["llava.pixel_values"]
    same(ours[0], theirs[0])
    if PILLOW >= 13:
        same(ours[1], theirs[1])
    else:  # it resizes in the other order an image that becomes wider and less high
        torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=7.1 * 2 / 255)
    same(float_pixels(IMAGES, SIZE), expected()["script.pixel_values"])
    same(float_pixels(IMAGES, SIZE, antialias=False), expected()["script_no_antialias.pixel_values"])


@both
def test_features_and_codes(name: str) -> None:
    lvlm = loaded(name)
    close(lvlm.visual.codebook.codewords[0], expected()["codebook"])
    tokens = lvlm.encode(images())
    close(tokens.features, expected()["llava.z"])
    assert torch.equal(tokens.codes[..., 0], expected()["llava.codes"])
    close(tokens.quantized, expected()["llava.quantized"])
    assert tokens.grid == (9, 9)
    for path, antialias in (("script", True), ("script_no_antialias", False)):
        codes = lvlm.encode(float_pixels(IMAGES, SIZE, antialias)).codes[..., 0]
        assert torch.equal(codes, expected()[f"{path}.codes"])
    close(lvlm.encode(float_pixels(IMAGES, SIZE)).features, expected()["script.z"])


@both
@pytest.mark.parametrize(("scale", "side"), [(2, 4), (3, 3)])
def test_scales(name: str, scale: int, side: int) -> None:
    lvlm = loaded(name, scale)
    tokens = lvlm.encode(images())
    assert tokens.grid == (side, side)
    close(tokens.features, expected()[f"llava.scale{scale}.z"])
    assert torch.equal(tokens.codes[..., 0], expected()[f"llava.scale{scale}.codes"])
    logits = lvlm.backbone.logits(lvlm.backbone.inputs(tokens, [QUESTION] * 2))[:, -1]
    close(logits, expected()[f"{name}.llava.scale{scale}.last_logits"], atol=5e-5, rtol=0)


def test_both_copies_of_the_visual_tokenizer_have_one_fingerprint() -> None:
    """Tar-b holds it in bfloat16; the fingerprint of codewords derived in another dtype would differ."""
    assert (GOLDEN / "Tar-b" / "model.safetensors").is_file()
    assert loaded("a").visual.codebook.fingerprint == loaded("b").visual.codebook.fingerprint


# codes -> LLM


@both
@torch.no_grad()
def test_prompts_logits_and_answers(name: str) -> None:
    lvlm = loaded(name)
    backbone, listed = lvlm.backbone, facts()[name]["llava"]
    tokens = lvlm.encode(images())
    assert torch.equal(backbone.read(tokens), expected()[f"{name}.image_embeds"])
    prompt = backbone.tokenized(QUESTION)
    assert [*prompt.before, -200, *prompt.after] == listed["input_ids"]
    inputs = backbone.inputs(tokens, [QUESTION] * 2)
    close(backbone.logits(inputs)[:, -1], expected()[f"{name}.llava.last_logits"], atol=5e-5, rtol=0)
    assert generate_ids(backbone, inputs, 6) == [image["greedy_ids"] for image in listed["images"]]
    penalised = [image["greedy_ids_with_repetition_penalty_1.1"] for image in listed["images"]]
    assert generate_ids(backbone, inputs, 6, repetition_penalty=1.1) == penalised


@both
@torch.no_grad()
def test_the_published_script(name: str) -> None:
    lvlm = loaded(name)
    backbone, tokens = lvlm.backbone, lvlm.encode(float_pixels(IMAGES, SIZE))
    assert backbone.table is not None
    prompt = backbone.tokenized(QUESTION)
    image_ids = backbone.table.token_ids(tokens.codes)[..., 0].tolist()
    whole = [[*prompt.before, *ids, *prompt.after] for ids in image_ids]
    for number, ids in enumerate(whole):
        assert ids == expected()[f"{name}.script.input_ids.{number}"].tolist()
    inputs = backbone.inputs(tokens, [QUESTION] * 2)
    logits = backbone.logits(inputs)
    close(logits[:, -1], expected()[f"{name}.script.last_logits"], atol=5e-5, rtol=0)
    if name == "a":
        close(logits[0], expected()["a.script.logits"], atol=5e-5, rtol=0)
    listed = facts()[name]["script"]
    assert generate_ids(backbone, inputs, 6) == [image["greedy_ids"] for image in listed]
    key = "greedy_ids_with_the_folder's_repetition_penalty_1.1"
    assert generate_ids(backbone, inputs, 6, 1.1, whole) == [image[key] for image in listed]


# training


def training_loss(lvlm: LVLM, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The reference's loss on its training conversation, and what lies between pixels and loss."""
    kept: dict[str, Tensor] = {}
    tower, backbone = lvlm.visual.vision_tower, lvlm.backbone
    assert isinstance(tower, TaTokTower)

    def keep(key: str):
        def hook(_module, _inputs, output: Tensor | tuple[Tensor, ...]) -> None:
            kept[key] = output if isinstance(output, Tensor) else output[0]
            kept[key].retain_grad()

        return hook

    handles = [
        tower.layers[-1].register_forward_hook(keep("hidden")),
        tower.in_linear.register_forward_hook(keep("projected_z")),
    ]
    tokens = lvlm.visual(expected()["llava.pixel_values"][:1], with_cls=False)
    for handle in handles:
        handle.remove()
    tokens.features.retain_grad()
    kept["z"] = tokens.features
    ids = expected()[f"{name}.train.input_ids"][0]
    at = int((ids == -200).nonzero()[0, 0])
    image = backbone.read(tokens)[0]
    inputs = backbone.splice([[ids[:at], image, ids[at + 1 :]]])
    logits = backbone.logits(inputs)[0]
    labels = expected()[f"{name}.train.labels_spliced"][0]
    kept["logits"] = logits[:-1][labels[1:] != -100]
    return F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100), kept


def trainable(name: str) -> LVLM:
    """A model of its own, because gradients are kept in it."""
    lvlm = craft.load(GOLDEN / f"Tar-{name}", device="cpu", dtype="float32")
    lvlm.requires_grad_(False)
    lvlm.visual.vision_tower.requires_grad_(True)
    return lvlm


def rule_of(lvlm: LVLM, kind: str) -> TableGradient:
    assert lvlm.backbone.table is not None
    codewords = lvlm.visual.codebook.levels
    rows = lvlm.backbone.table.rows(lvlm.backbone.embeddings)
    if kind == "affine":
        return affine(affine_fit(codewords[0], rows[0])[0])
    if kind == "soft":  # the fixture's softmax over cos / 0.03 is one over -|z - c|² / 0.06
        return Soft(codewords, rows, [0.06])
    return identity


# The LLM b is wider than the codebook, so `identity` cannot be its rule.
@pytest.mark.parametrize(
    ("name", "kind"), [("a", "affine"), ("a", "soft"), ("a", "identity"), ("b", "affine"), ("b", "soft")]
)
def test_training_loss_and_gradients(name: str, kind: str) -> None:
    lvlm = trainable(name)
    assert lvlm.backbone.table is not None
    lvlm.backbone.table.gradient = rule_of(lvlm, kind)
    loss, kept = training_loss(lvlm, name)
    close(kept["logits"], expected()[f"{name}.train.logits_at_kept_labels"], atol=5e-5, rtol=0)
    close(loss, expected()[f"{name}.train.loss"])
    loss.backward()
    for key in ("z", "projected_z", "hidden"):
        if (wanted := expected().get(f"{name}.ste_{kind}.grad.{key}")) is not None:
            assert kept[key].grad is not None
            close(kept[key].grad[0], wanted)
    state = dict(lvlm.visual.vision_tower.named_parameters())
    if kind == "identity":
        for theirs, ours in {
            "bottleneck.in_linear.weight": "in_linear.weight",
            "encode_task_layer.0.weight": "task_layer.weight",
            "encoder.embeddings.patch_embedding.weight": "embeddings.patch_embedding.weight",
            "encoder.encoder.layers.1.mlp.fc1.weight": "layers.1.mlp.fc1.weight",
        }.items():
            close(state[ours].grad, expected()[f"a.ste_identity.grad.{theirs}"])
    trained_names = {n for n, parameter in lvlm.named_parameters() if parameter.grad is not None}
    assert trained_names and all(n.startswith("visual.vision_tower.") for n in trained_names)


@both
def test_without_a_rule_no_gradient_is_made_up(name: str) -> None:
    with pytest.raises(craft.CraftError, match="no gradient of its own"):
        training_loss(trainable(name), name)


# on disk


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "tar"))


def test_an_llm_without_its_visual_tokenizer(family: Path) -> None:
    (family / "TA-Tok" / "ta_tok.safetensors").rename(family / "TA-Tok" / "ta_tok.pth")
    with pytest.raises(CheckpointError, match=r"ta_tok\.pth is a pickle file.*Tar-7B-v0\.1"):
        craft.load(family / "Tar-a")
    shutil.rmtree(family / "TA-Tok")
    with pytest.raises(CheckpointError, match=r"neither in its shards nor in.*convert_ta_tok"):
        craft.load(family / "Tar-a")
    lvlm = craft.load(
        family / "Tar-b", device="cpu", dtype="float32"
    )  # its shards have it, and SigLIP's config
    assert torch.equal(lvlm.encode(images()).codes[..., 0], expected()["llava.codes"])
    shutil.copytree(family, family / "elsewhere")
    lvlm = craft.load(family / "Tar-a", device="cpu", dtype="float32", visual=family / "elsewhere" / "Tar-b")
    assert torch.equal(lvlm.encode(images()).codes[..., 0], expected()["llava.codes"])


def test_an_encoder_goes_with_its_scale(tmp_path: Path) -> None:
    lvlm = craft.load(GOLDEN / "Tar-a", device="cpu", dtype="float32", scale=2)
    prior = torch.ones(256, dtype=torch.int64)
    folder = save_artefact(tmp_path / "encoder", lvlm.visual, prior=prior, manifest={})
    assert lvlm.with_encoder(folder).visual.grid == (4, 4)
    with pytest.raises(CheckpointError, match=r"scale=2, and this model was loaded with scale=1.*\?scale=2"):
        loaded("b").with_encoder(folder)
    written = export_tar(load_artefact(folder), GOLDEN / "Tar-a", tmp_path / "out")
    for file in written.iterdir():  # no weight depends on the scale
        assert file.read_bytes() == (GOLDEN / "TA-Tok" / file.name).read_bytes()


def test_answers_at_another_scale_are_another_models() -> None:
    """Stores of answers compare these hashes: the weights are the same, the answers are not."""
    one, two = (answer_hashes(loaded("a", scale)) for scale in (None, 2))
    assert one["words"] != two["words"]
    assert {**one, "words": ""} == {**two, "words": ""}
    assert one == answer_hashes(loaded("a", 1))


def test_heads_that_no_published_model_has_need_the_config(family: Path) -> None:
    shutil.rmtree(family / "siglip2_config")
    with pytest.raises(CheckpointError, match="number of attention heads is unknown"):
        craft.load(family / "Tar-a")


def test_without_siglips_config_the_image_size_is_that_of_the_settings(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 patches of 7 pixels leave 3 of 66 pixels over, which the tensors do not tell."""
    shutil.rmtree(family / "siglip2_config")
    monkeypatch.setitem(HEADS, 48, 4)
    lvlm = craft.load(family / "Tar-a", device="cpu", dtype="float32")
    assert lvlm.visual.image_size == SIZE
    assert torch.equal(lvlm.encode(images()).codes[..., 0], expected()["llava.codes"])


def test_a_visual_tokenizer_of_another_size_is_refused(family: Path) -> None:
    path = family / "Tar-a" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_image_tokens": 255}))
    with pytest.raises(CheckpointError, match=r"255 image tokens.*256 codewords"):
        craft.load(family / "Tar-a")


def test_an_encoder_of_another_family_is_refused(tmp_path: Path) -> None:
    lvlm = craft.load("craft-tiny/qwen2", device="cpu", dtype="float32")
    with pytest.raises(CodebookMismatchError, match=loaded("a").visual.codebook.fingerprint):
        export_tar(lvlm, GOLDEN / "Tar-a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@both
def test_exported_towers_load_and_all_else_is_copied(name: str, tmp_path: Path, family: Path) -> None:
    lvlm = craft.load(GOLDEN / f"Tar-{name}", device="cpu", dtype="float32")
    written = export_tar(lvlm, family / f"Tar-{name}", tmp_path / "same")
    original = family / "TA-Tok" if name == "a" else family / "Tar-b"
    for file in written.iterdir():
        assert file.read_bytes() == (original / file.name).read_bytes()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lvlm.visual.vision_tower.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.bfloat16())
    written = export_tar(lvlm, family / f"Tar-{name}", tmp_path / "new")
    assert written == (tmp_path / "new" / "TA-Tok" if name == "a" else tmp_path / "new")
    shutil.rmtree(original)
    shutil.move(written, original)
    again = craft.load(family / f"Tar-{name}", device="cpu", dtype="float32")
    codes = again.encode(images()).codes
    assert torch.equal(codes, lvlm.encode(images()).codes)
    assert not torch.equal(codes[..., 0], expected()["llava.codes"])
    assert again.visual.codebook.fingerprint == lvlm.visual.codebook.fingerprint


def test_a_pickle_converted_by_its_user_loads(family: Path) -> None:
    folder = family / "TA-Tok"
    made = (
        "import sys, types, torch, json; from safetensors.torch import load_file\n"
        "module = types.ModuleType('easydict'); module.EasyDict = type('EasyDict', (dict,), {})\n"
        "module.EasyDict.__module__ = 'easydict'; sys.modules['easydict'] = module\n"
        "args = module.EasyDict(json.load(open(sys.argv[1] + '/ta_tok.json'))['model']['args'])\n"
        "sd = load_file(sys.argv[1] + '/ta_tok.safetensors')\n"
        "torch.save({'model': {'args': args, 'sd': sd}}, sys.argv[1] + '/ta_tok.pth')\n"
    )
    subprocess.run([sys.executable, "-c", made, str(folder)], check=True)
    for name in ("ta_tok.json", "ta_tok.safetensors"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="pickle file"):
        craft.load(family / "Tar-a")
    script = Path(__file__).parents[2] / "scripts" / "convert_ta_tok.py"
    command = [sys.executable, str(script), str(folder / "ta_tok.pth"), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "tensors and the settings are in" in done.stdout
    lvlm = craft.load(family / "Tar-a", device="cpu", dtype="float32")
    assert torch.equal(lvlm.encode(images()).codes[..., 0], expected()["llava.codes"])
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 1 and "exists" in again.stderr


def test_options_after_the_name(tmp_path: Path) -> None:
    lvlm = craft.load(f"{GOLDEN / 'Tar-a'}?scale=3&visual={GOLDEN / 'Tar-b'}", device="cpu", dtype="float32")
    assert lvlm.visual.grid == (3, 3)
    assert torch.equal(lvlm.encode(images()).codes[..., 0], expected()["llava.scale3.codes"])
    for query, words in {"scale=0": "whole number", "size=3": "scale=NUMBER", "scale=10": "more"}.items():
        with pytest.raises(craft.CraftError, match=words):
            craft.load(f"{GOLDEN / 'Tar-a'}?{query}")
    with pytest.raises(craft.CraftError, match="Tar's layout"):
        craft.load("craft-tiny/qwen2?scale=2")
