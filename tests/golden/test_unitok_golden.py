"""Everything in `golden/unitok_small` that CRAFT computes, as UniTok's own code computes it, against ours.

Codes and ids are equal; pixels agree to 1e-6, features to 1e-4, embeddings to 1e-5, logits to 2e-4, gradients
to 1e-4 of the largest entry.
"""

import json
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import craft
from craft.core.errors import CheckpointError, CodebookMismatchError, CraftError
from craft.core.tensors import load_tensors, save_tensors
from craft.formats.unitok import HEADS, export_unitok
from craft.models.decoding import generate_ids
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.models.sequence_projector import SequenceProjector
from craft.models.vitamin import VitaminTower
from docs.reading import script

GOLDEN = Path(__file__).parent / "unitok_small"
IMAGES = sorted((GOLDEN / "images").glob("*.png"))
QUESTION = "What is shown? Answer with one word."
close = partial(torch.testing.assert_close, rtol=0)


@cache
def expected() -> dict[str, Tensor]:
    return load_tensors(GOLDEN / "expected.safetensors")


@cache
def facts() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


def load(folder: Path = GOLDEN) -> LVLM:
    return craft.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def lvlm() -> LVLM:
    return load()


# vision


def test_pixels_features_and_codes(lvlm: LVLM) -> None:
    close(lvlm.visual.preprocess(IMAGES), expected()["pixel_values.mllm"], atol=1e-6)
    tokens = lvlm.encode(IMAGES)
    close(tokens.features, expected()["vision.features_normalized"], atol=1e-4)
    assert torch.equal(tokens.codes, expected()["vision.codes"])
    close(tokens.quantized, expected()["vision.quantized"], atol=1e-6)
    tower = lvlm.visual.vision_tower
    assert isinstance(tower, VitaminTower) and tokens.grid == (4, 4)
    for path in ("recon", "llava_pad"):
        codes = lvlm.encode(expected()[f"pixel_values.{path}"]).codes
        assert torch.equal(codes, expected()[f"{path}.codes"])


@torch.no_grad()
def test_inside_the_tower(lvlm: LVLM) -> None:
    tower: Any = lvlm.visual.vision_tower
    x = tower.stem(expected()["pixel_values.mllm"])
    for stage in tower.stages:
        x = stage(x)
    x = tower.pool(x).flatten(2).transpose(1, 2)
    close(x, expected()["vision.conv_stem_output"], atol=1e-4)
    for layer in tower.layers:
        x = layer(x)
    close(tower.norm(x), expected()["vision.encoder_output"], atol=1e-4)
    close(tower.quant_proj(tower.norm(x)), expected()["vision.features"], atol=1e-4)


def test_training_mode_changes_nothing(lvlm: LVLM) -> None:
    before = lvlm.encode(IMAGES).features
    lvlm.train()
    after = lvlm.encode(IMAGES).features
    lvlm.eval()
    assert torch.equal(before, after)


def test_levels_are_equals_so_nothing_is_pruned_by_the_first(lvlm: LVLM) -> None:
    assert lvlm.visual.need_codes("this test").is_product
    with pytest.raises(CraftError, match="no level comes first"):
        lvlm.answer(IMAGES, [QUESTION] * 2, keep_ratio=0.5)
    assert not craft.load("craft-tiny/qwen2", device="cpu").visual.need_codes("this test").is_product


def test_stored_values_are_counted_with_the_stem() -> None:
    tower: Any = load().visual.vision_tower.requires_grad_(True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = tower(expected()["pixel_values.mllm"][:1])
    weights = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    measured = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert alive and 4 * tower.stored_per_image(False) == pytest.approx(measured, rel=0.02)
    assert tower.stored_per_image(True) < tower.stored_per_image("selective")


def test_real_size_on_the_meta_device() -> None:
    """Parameters are those of UniTok's own classes: encoder 332.3 M, quant_proj 3.25 M, codebooks 0.26 M."""
    measure = script("measure_families")
    lvlm = measure.unitok()
    tower = lvlm.visual.vision_tower
    sizes = [sum(p.numel() for p in part.parameters()) for part in (tower, tower.quant_proj)]
    assert [round(size / 1e6, 2) for size in sizes] == [335.58, 3.25] and tower.grid == (16, 16)
    assert measure.step(lvlm, 2) == (2, 3, 32000)
    assert all(parameter.grad is not None for parameter in tower.parameters())


# codes -> LLM


@torch.no_grad()
def test_projector_prompts_and_answers(lvlm: LVLM) -> None:
    backbone, tokens = lvlm.backbone, lvlm.encode(IMAGES)
    assert isinstance(backbone.projector, SequenceProjector)
    mixed = backbone.projector.attn_projection(tokens.quantized)
    close(mixed, expected()["mllm.attn_projection_output"], atol=1e-4)
    close(backbone.read(tokens), expected()["mllm.image_embeds"], atol=1e-5)
    prompt = backbone.tokenized(QUESTION)
    assert [*prompt.before, -200, *prompt.after] == facts()["infer"]["input_ids"]
    inputs = backbone.inputs(tokens, [QUESTION] * 2)
    close(inputs["inputs_embeds"][:1], expected()["infer.inputs_embeds"], atol=1e-5)
    logits = backbone.logits(inputs)
    close(logits[:1], expected()["infer.logits"], atol=2e-4)
    close(logits[:, -1], expected()["infer.last_logits_all_images"], atol=2e-4)
    assert generate_ids(backbone, inputs, 6) == facts()["infer"]["greedy_ids_per_image_with_cache"]


@torch.no_grad()
def test_dropped_tokens_never_reach_the_projector(lvlm: LVLM) -> None:
    tokens = lvlm.encode(IMAGES[:1])
    kept = expected()["prune.kept"]
    assert lvlm.backbone.projector is not None
    pruned = lvlm.backbone.projector(tokens.quantized[:, kept])
    close(pruned, expected()["prune.image_embeds_of_kept_codes"], atol=1e-5)
    assert not torch.allclose(pruned, lvlm.backbone.read(tokens)[:, kept], atol=1e-2)


def test_training_loss_and_gradients() -> None:
    lvlm = load().requires_grad_(False)
    tower: Any = lvlm.visual.vision_tower.requires_grad_(True)
    prompt = lvlm.backbone.tokenized(QUESTION, facts()["train"]["answer"])
    assert [*prompt.before, -200, *prompt.after, *prompt.answer] == facts()["train"]["input_ids"]
    kept: dict[str, Tensor] = {}

    def keep(_module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        kept["encoder_output"], kept["features"] = inputs[0], output
        for value in kept.values():
            value.retain_grad()

    handle = tower.quant_proj.register_forward_hook(keep)
    tokens = lvlm.visual(expected()["pixel_values.mllm"][:1], with_cls=False)
    handle.remove()
    inputs = lvlm.backbone.inputs(tokens, [QUESTION], [facts()["train"]["answer"]])
    assert torch.equal(inputs["labels"], expected()["train.labels_spliced"])
    logits = lvlm.backbone.logits(inputs)[0]
    close(logits[facts()["train"]["answer_logit_positions"]], expected()["train.answer_logits"], atol=2e-4)
    loss = F.cross_entropy(logits[:-1], inputs["labels"][0, 1:], ignore_index=-100)
    close(loss, expected()["train.loss"], atol=1e-5)
    loss.backward()
    gradients = {name: value.grad for name, value in kept.items()}
    named = dict(tower.named_parameters())
    gradients |= {
        "encoder.blocks.0.mlp.w1.bias": named["layers.0.mlp.w1.bias"].grad,
        "encoder.norm.weight": named["norm.weight"].grad,
        "encoder.patch_embed.backbone.pool.norm.weight": named["pool.norm.weight"].grad,
        "encoder.patch_embed.backbone.stem.conv1.weight": named["stem.conv1.weight"].grad,
        "quant_proj.attn.v_bias": named["quant_proj.attn.v_bias"].grad,
        "quant_proj.norm1.weight": named["quant_proj.norm1.weight"].grad,
    }
    for name, gradient in gradients.items():
        wanted = expected()[f"grad.train_loss.{name}"]
        close(gradient, wanted, atol=1e-4 * float(wanted.abs().max()))


# on disk


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "unitok"))


def as_pth(folder: Path, extra: Any = None) -> Path:
    """The tokenizer as the pickle that is published."""
    settings = json.loads((folder / "unitok_tokenizer.json").read_text())
    tensors = load_tensors(folder / "unitok_tokenizer.safetensors")
    content = {"args": settings["pth"]["args"], "trainer": {"unitok": tensors}, "epoch": 0, "extra": extra}
    torch.save(content, folder / "unitok_tokenizer.pth")
    for name in ("unitok_tokenizer.json", "unitok_tokenizer.safetensors"):
        (folder / name).unlink()
    return folder / "unitok_tokenizer.pth"


def test_the_mllm_folder_finds_the_tokenizer(copy: Path) -> None:
    assert torch.equal(load(copy / "unitok_mllm").encode(IMAGES).codes, expected()["vision.codes"])
    for name in ("unitok_tokenizer.json", "unitok_tokenizer.safetensors"):
        shutil.move(copy / name, copy / "unitok_mllm" / name)
    assert torch.equal(load(copy / "unitok_mllm").encode(IMAGES).codes, expected()["vision.codes"])
    (copy / "unitok_mllm" / "unitok_tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"unitok_tokenizer\.json is missing"):
        load(copy)
    (copy / "unitok_mllm" / "unitok_tokenizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="visual tokenizer is not there"):
        load(copy)


def test_the_published_pickle_is_read_without_running_it(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pth = as_pth(copy)
    with pytest.raises(CheckpointError, match="attention heads of the model 'vitamin_golden_small'"):
        load(copy)
    monkeypatch.setitem(HEADS, "vitamin_golden_small", 4)
    lvlm = load(copy)
    assert torch.equal(lvlm.encode(IMAGES).codes, expected()["vision.codes"])
    written = export_unitok(lvlm, copy, tmp_path / "out")  # as safetensors
    old, new = (load_tensors(path / "unitok_tokenizer.safetensors") for path in (GOLDEN, written))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert json.loads((written / "unitok_tokenizer.json").read_text())["pth"]["args"]["num_codebooks"] == 4
    content = torch.load(pth, weights_only=True)
    content["args"]["num_codebooks"] = 5
    torch.save(content, pth)
    with pytest.raises(CheckpointError, match="not possible"):
        load(copy)
    del content["args"]
    torch.save(content, pth)
    with pytest.raises(CheckpointError, match="does not hold"):
        load(copy)


class _Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("this code ran",))


def test_a_pickle_with_code_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_pth(copy, _Code())
    with pytest.raises(CheckpointError, match="weights_only=True"):
        load(copy)
    assert "this code ran" not in capsys.readouterr().out
    (copy / "unitok_tokenizer.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"weights_only=True|does not hold"):
        load(copy)


def test_an_mllm_of_another_codebook_is_refused(copy: Path) -> None:
    path = copy / "unitok_mllm" / "model.safetensors"
    tensors = load_tensors(path)
    tensors["model.multi_embedder.quantizer.codebooks.1.codebook.weight"][0, 0] += 1
    save_tensors(path, tensors)
    with pytest.raises(CodebookMismatchError, match="different checkpoints"):
        load(copy)


def test_missing_tensors_are_named(copy: Path) -> None:
    path = copy / "unitok_tokenizer.safetensors"
    tensors = load_tensors(path)
    del tensors["encoder.blocks.1.attn.qkv.weight"]
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=r"lacks tensor encoder\.blocks\.1\.attn\.qkv\.weight"):
        load(copy)


def adapt(out: Path, **more: Any) -> Any:
    settings = {"data.limit": 40, "batch_size": 4, "max_steps": 4, "eval_limit": 4, "device": "cpu"}
    settings |= {"dtype": "float32", "optimizer.learning_rate": 1e-2, "checkpoint_every": 2, "blend": 1}
    return craft.adapt(surrogate=str(GOLDEN), data="apparel", out=out, **settings, **more)


def test_adapting_changes_the_tower_alone_and_resumes(tmp_path: Path, copy: Path) -> None:
    adapt(tmp_path / "whole", **{"losses.retention.weight": 0})
    run = json.loads((tmp_path / "whole" / "run.json").read_text())
    before, after = run["hashes_before"], run["hashes_after"]
    assert {part for part in before if before[part] != after[part]} == {"vision_tower"}
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for path in (*(tmp_path / "broken").glob("checkpoints/step-*4"), tmp_path / "broken" / "encoder"):
        shutil.rmtree(path)
    (tmp_path / "broken" / "run.json").write_text(json.dumps({**run, "status": "running"}))
    adapt(tmp_path / "broken", **{"losses.retention.weight": 0}, resume=True)
    weights = [
        load_tensors(tmp_path / name / "encoder" / "model.safetensors") for name in ("whole", "broken")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    lvlm, base = load().with_encoder(tmp_path / "whole"), load()
    assert not torch.equal(lvlm.encode(IMAGES).codes, expected()["vision.codes"])
    assert part_hashes(lvlm)["llm"] == part_hashes(base)["llm"]
    text = [model.backbone.logits(model.backbone.inputs(None, [QUESTION])) for model in (base, lvlm)]
    assert torch.equal(*text)

    written = export_unitok(lvlm, copy, tmp_path / "out")
    for name in ("unitok_tokenizer.json", "unitok_tokenizer.safetensors"):
        shutil.copy(written / name, copy / name)
    assert torch.equal(load(copy).encode(IMAGES).codes, lvlm.encode(IMAGES).codes)
    old, new = (load_tensors(folder / "unitok_tokenizer.safetensors") for folder in (GOLDEN, written))
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith(("encoder.", "quant_proj.")) for name in changed)
