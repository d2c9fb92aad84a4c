"""LoRA that acts on prompts with an image only: row by row, in training, and on disk."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image

from builders import tiny_images, tiny_lvlm
from craft.core.errors import CheckpointError, ConfigError, CraftError
from craft.core.tensors import load_tensors
from craft.evaluation.engine import refuse_lora
from craft.evaluation.language import TEXTS, check_language
from craft.evaluation.run import evaluate_lvlm
from craft.formats.checks import add_factors
from craft.formats.load import load
from craft.formats.native import load_native, save_native
from craft.losses import surrogate_alignment
from craft.models.backbone import Borrowed
from craft.models.decoding import SHARED, option_ids, prefill, read, score, write
from craft.models.freezing import part_hashes
from craft.models.image_lora import ImageLora, acting_on, has_image_lora, image_factors
from craft.models.layers import recompute
from craft.models.sampling import Batch, Sampling
from craft.recipes.ask import ask
from craft.recipes.serve import serve
from craft.serving.settings import ServeConfig
from craft.training.config import LoraConfig
from craft.training.lora import add_lora, lora_targets, take_lora

QUESTIONS = ["What is shown?", "Which of these colours?", "Why?"]
NOWHERE = Path("lora")


def factors_of(llm, targets=("all-linear",), seed=0):
    """Random LoRA of rank 2, large enough to change answers."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name in lora_targets(llm, LoraConfig(targets=targets)):
        out, width = llm.get_submodule(name).weight.shape
        factors[f"{name}.A"] = torch.randn(2, width, generator=generator) * 0.3
        factors[f"{name}.B"] = torch.randn(out, 2, generator=generator) * 0.3
    return {name: value.bfloat16() for name, value in factors.items()}


def three(kind="llama"):
    """The same LVLM without LoRA, with LoRA on all prompts, and on prompts with an image."""
    bare, merged, scoped = (tiny_lvlm(kind) for _ in range(3))
    factors = factors_of(bare.backbone.llm)
    add_factors(merged.backbone.llm, factors, NOWHERE)
    add_factors(scoped.backbone.llm, factors, NOWHERE, "image")
    return bare, merged, scoped


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_is_read_by_the_bare_llm_bit_for_bit(kind, dtype):
    bare, merged, scoped = (lvlm.to(dtype) for lvlm in three(kind))
    logits = [m.backbone.logits(m.backbone.inputs(None, QUESTIONS)) for m in (bare, merged, scoped)]
    assert torch.equal(logits[0], logits[2]) and not torch.equal(logits[0], logits[1])
    assert check_language(bare.backbone, 8) == check_language(scoped.backbone, 8)
    assert check_language(merged.backbone, 8).perplexity != check_language(scoped.backbone, 8).perplexity


def test_images_are_read_as_with_merged_lora():
    bare, merged, scoped = three()
    tokens = bare.encode(tiny_images(3))
    logits = [m.backbone.logits(m.backbone.inputs(tokens, QUESTIONS)) for m in (bare, merged, scoped)]
    torch.testing.assert_close(logits[2], logits[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits[2], logits[0], atol=1e-1)
    assert merged.answer(tokens, QUESTIONS, 8) == scoped.answer(tokens, QUESTIONS, 8)
    assert bare.answer(tokens, QUESTIONS, 8) != scoped.answer(tokens, QUESTIONS, 8)


def mixed_rows(lvlm):
    """Prompts with, without and with an image, as segments, and their options."""
    backbone, tokens = lvlm.backbone, lvlm.encode(tiny_images(2))
    rows, options = [], []
    for number, question in enumerate(QUESTIONS):
        seeing = number != 1
        prompt = backbone.tokenized(question, None, seeing)
        part = tokens[number // 2 : number // 2 + 1] if seeing else None
        rows += backbone.segments([prompt], part)[0]
        options.append(option_ids(backbone, question, ["a red cat", "no", "blue"], seeing))
    return rows, options


def test_rows_of_one_batch_each_get_their_own():
    """Reading, writing, sampling and scoring, beside the same row alone."""
    bare, merged, scoped = three()
    rows, options = mixed_rows(bare)
    backbone = scoped.backbone
    together = prefill(backbone, backbone.splice(rows, "left"))
    scores = score(backbone, together, options)
    ids, _ = write(backbone, prefill(backbone, backbone.splice(rows, "left")), 8)
    batch = Batch(backbone, rows, [Sampling(max_new_tokens=8)] * 3)
    while not batch.finished:
        list(batch.step())
    for number, row in enumerate(rows):
        owner = (bare if number == 1 else merged).backbone
        alone = prefill(owner, owner.splice([row], "left"))
        torch.testing.assert_close(together.logits[number], alone.logits[0], atol=1e-4, rtol=1e-4)
        assert ids[number] == batch.ids[number] == write(owner, alone, 8)[0][0]
        expected = score(owner, prefill(owner, owner.splice([row], "left")), [options[number]])[0]
        assert scores[number] == pytest.approx(expected, abs=1e-3)


def test_questions_that_share_an_image():
    """What was read before, and what follows it, have the image."""
    _, merged, scoped = three()
    tokens = merged.encode(tiny_images(1))
    image_of = [0, 0, 0]
    assert SHARED * len(image_of) >= 1
    logits = [read(m.backbone, tokens, QUESTIONS, image_of).logits for m in (merged, scoped)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_another_thread_has_its_own_rows():
    _, _, scoped = three()
    inputs = scoped.backbone.inputs(None, QUESTIONS)
    expected, seen = scoped.backbone.logits(inputs), []
    with acting_on(torch.tensor([True, False, True])):
        thread = Thread(target=lambda: seen.append(scoped.backbone.logits(inputs)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], expected)


def test_maps_that_do_not_see_rows_apart_are_refused():
    linear = torch.nn.Linear(4, 4)
    lora = ImageLora(linear, torch.ones(1, 4), torch.ones(4, 1))
    flat = torch.ones(6, 4)
    with acting_on(torch.tensor([False, False])):
        assert torch.equal(lora(flat), linear(flat))
    torch.testing.assert_close(lora(flat), linear(flat) + 4)
    with acting_on(torch.tensor([True, False])), pytest.raises(CraftError, match="need separate batches"):
        lora(flat)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_tower_learns_through_it_as_through_merged_weights(recomputed):
    """With gradient checkpointing the layers run again in the backward pass."""
    gradients = []
    for lvlm in three()[1:]:
        lvlm.backbone.requires_grad_(False)
        inputs = lvlm.backbone.inputs(lvlm.visual(tiny_images(3)), QUESTIONS, ["a", "b", "c"])
        with recompute(lvlm.backbone.llm) if recomputed else nullcontext():
            hidden = lvlm.backbone.hidden_states(inputs)
        surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"]).backward()
        gradients.append(lvlm.visual.vision_tower.output_projection.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def saved(tmp_path, borrowed, name="llama"):
    """The scoped LVLM, saved as a backbone that names its LLM or holds it; and the bare one."""
    bare, _, scoped = three()
    save_native(tmp_path / "bare", "llama", bare, dtype="float32")
    if borrowed:
        factors = factors_of(bare.backbone.llm)
        scoped.backbone.borrowed = Borrowed(str(tmp_path / "bare/llama/llm"), factors)
    return bare, scoped, save_native(tmp_path / "family", name, scoped, dtype="float32")


@pytest.mark.parametrize("borrowed", [False, True], ids=["held", "named"])
def test_a_saved_backbone_keeps_the_scope(tmp_path, borrowed):
    bare, scoped, folder = saved(tmp_path, borrowed)
    manifest = json.loads((folder / "craft.json").read_text())
    assert (manifest["version"], manifest["lora_scope"]) == (2, "image")  # an older CRAFT refuses it
    assert (folder / "llm").is_dir() is not borrowed
    if not borrowed:  # LoRA is in lora/, not among the LLM's weights too
        stored = load_tensors(folder / "llm/model.safetensors")
        assert stored.keys() == load_tensors(tmp_path / "bare/llama/llm/model.safetensors").keys()
    loaded = load(folder, "cpu", "float32")
    assert part_hashes(loaded) == part_hashes(scoped) != part_hashes(bare)
    text = [m.backbone.logits(m.backbone.inputs(None, TEXTS[:2])) for m in (bare, loaded)]
    assert torch.equal(*text)
    tokens = bare.encode(tiny_images(3))
    assert loaded.answer(tokens, QUESTIONS, 8) == scoped.answer(tokens, QUESTIONS, 8)
    again = save_native(tmp_path / "again", "llama", loaded)
    for path in folder.rglob("*.*"):
        if path.name != "README.md":
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path
    half, bare_half = load(folder, "cpu", "bfloat16"), load(tmp_path / "bare/llama", "cpu", "bfloat16")
    text = [m.backbone.logits(m.backbone.inputs(None, TEXTS[:2])) for m in (bare_half, half)]
    assert torch.equal(*text)


def test_a_file_without_the_entry_means_all_prompts(tmp_path):
    _, _, folder = saved(tmp_path, True)
    manifest = json.loads((folder / "craft.json").read_text())
    old = {key: value for key, value in manifest.items() if key != "lora_scope"} | {"version": 1}
    (folder / "craft.json").write_text(json.dumps(old))
    merged = load(folder, "cpu", "float32")
    assert part_hashes(merged) == part_hashes(three()[1]) and not has_image_lora(merged.backbone.llm)
    save_native(tmp_path / "again", "llama", merged)
    again = json.loads((tmp_path / "again/llama/craft.json").read_text())
    assert (again["version"], again["lora_scope"]) == (1, "all")


@pytest.mark.parametrize("borrowed", [False, True], ids=["held", "named"])
def test_faults_of_a_saved_backbone(tmp_path, borrowed):
    _, _, folder = saved(tmp_path, borrowed)
    with pytest.raises(ConfigError, match=r"llm_bits=4 .*takes its LLM from .*llm and adds LoRA"):
        load_native(folder, "cpu", llm_bits=4)
    path = folder / "craft.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "lora_scope": "text"}))
    with pytest.raises(CheckpointError, match=r"craft\.json.*lora_scope"):
        load(folder, "cpu")
    path.write_text(json.dumps(manifest))
    (folder / "lora/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks lora/model\.safetensors"):
        load(folder, "cpu")


def test_other_lora_on_top_is_merged_beneath():
    """The baseline llm-lora on such an LLM: its update acts on all prompts."""
    bare, _, scoped = three()
    llm = scoped.backbone.llm
    before = image_factors(llm)
    add_lora(llm, LoraConfig(rank=2, targets=("q_proj",)))
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    text = scoped.backbone.logits(scoped.backbone.inputs(None, QUESTIONS))
    factors = take_lora(llm, merge=True)
    assert image_factors(llm).keys() == before.keys() and len(factors) == 4
    torch.testing.assert_close(scoped.backbone.logits(scoped.backbone.inputs(None, QUESTIONS)), text)
    copied = copy.deepcopy(bare)
    add_factors(copied.backbone.llm, factors, NOWHERE)
    assert torch.equal(*(m.backbone.logits(m.backbone.inputs(None, QUESTIONS)) for m in (copied, scoped)))


def test_an_engine_is_refused(tmp_path):
    """Before it is asked anything: its LLM has no LoRA."""
    bare, _, scoped = three()
    settings = {"model": str(saved(tmp_path, False)[2]), "engine": "http://127.0.0.1:9", "device": "cpu"}
    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32)).save(picture)
    for start in (
        lambda: evaluate_lvlm(scoped, [], engine=settings["engine"]),
        lambda: ask(scoped, picture, question="What?", engine=settings["engine"]),
        lambda: serve(ServeConfig(**settings)),
    ):
        with pytest.raises(CraftError, match="has LoRA beside its weights"):
            start()
    refuse_lora(bare)
    with pytest.raises(CraftError, match=r"has LoRA beside its weights.*Leave --engine out"):
        refuse_lora(scoped)
    bare.backbone.borrowed = Borrowed("org/llm", factors_of(bare.backbone.llm))  # merged in memory only
    with pytest.raises(CraftError, match="has LoRA beside its weights"):
        refuse_lora(bare)
