"""Chameleon checkpoints: everything equal to transformers' own class, and one tower for two LLMs."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, ChameleonForConditionalGeneration

from builders import tiny_lvlm
from chameleons import CODES, SIDE, save_chameleon
from craft.core.errors import CheckpointError, CodebookMismatchError, ConfigError
from craft.core.tensors import hash_tensors, load_tensors
from craft.formats.artefact import save_artefact
from craft.formats.chameleon import export_chameleon
from craft.formats.code_cache import CodeCache
from craft.formats.load import load, load_artefact, load_visual_tokenizer
from craft.formats.native import save_native, save_visual
from craft.losses import surrogate_alignment
from craft.losses.table_gradient import affine, affine_fit
from craft.models.decoding import generate_ids, largest, prefill, read, score
from craft.models.freezing import freeze_all_but, part_hashes
from craft.models.layers import layers_of, recompute
from craft.models.memory import estimate_memory
from craft.quantize import code_counts

QUESTIONS = ["What is shown?", "How many of them are there?", "a red cat or not, and why?"]
ANSWERS = ["a bag", "two", "a red cat"]


@cache
def rounds_down(processor):
    """Whether this release of transformers rounds down what it blends on white; newer ones and we do not."""
    half = processor.image_processor.convert_to_rgb(Image.new("RGBA", (1, 1), (14, 14, 14, 126)))
    return int(np.asarray(half)[0, 0, 0]) == 135  # it is 135.9


def pictures():
    """One picture each: landscape, portrait with transparency, square, narrow."""
    draw = np.random.default_rng(0)
    shapes = ((50, 70, 3), (71, 40, 4), (SIDE, SIDE, 3), (33, 90, 3))
    return [Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


def opaque(processor):
    """The pictures; without transparency where `rounds_down`."""
    return [picture.convert("RGB") if rounds_down(processor) else picture for picture in pictures()]


@pytest.fixture(scope="module", params=["small", "large"])
def both(request, tmp_path_factory):
    """transformers' model and processor, and our LVLM, of one checkpoint."""
    folder = tmp_path_factory.mktemp("chameleon") / request.param
    model, processor = save_chameleon(folder, request.param)
    return model, processor, load(folder, "cpu")


def adapted(lvlm, steps=3):
    """A few steps of Eq. 2 through the table; the loss at each step."""
    backbone, tower = lvlm.backbone, lvlm.visual.vision_tower
    rows = backbone.table.rows(backbone.embeddings)[0]
    slope, explained = affine_fit(lvlm.visual.codebook.levels[0], rows)
    assert explained > 0.9
    backbone.table.gradient = affine(slope)
    parameters = freeze_all_but(lvlm, ["vision_tower"])
    assert len(parameters) == len(list(tower.parameters()))
    optimiser, losses = torch.optim.AdamW(parameters, lr=1e-3), []
    pixels = lvlm.visual.preprocess(pictures()[:3])
    for _ in range(steps):
        inputs = backbone.inputs(lvlm.visual(pixels), QUESTIONS, ANSWERS)
        loss = surrogate_alignment(backbone.hidden_states(inputs), backbone.lm_head, inputs["labels"])
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimiser.step()
        losses.append(float(loss.detach()))
    lvlm.requires_grad_(False)
    return losses


def save_encoder(folder, lvlm):
    counts = code_counts(lvlm.encode(pictures()).codes, CODES)
    return save_artefact(folder, lvlm.visual, prior=counts, manifest={"surrogate": lvlm.name})


@torch.no_grad()
def test_pixels_features_and_codes_are_those_of_transformers(both):
    model, processor, lvlm = both
    shown = opaque(processor)
    values = processor.image_processor(shown, return_tensors="pt")["pixel_values"]
    pixels = lvlm.visual.preprocess(shown)
    assert torch.equal(lvlm.visual.vision_tower._normalised(pixels), values)
    tokens = lvlm.encode(shown)
    vq = model.model.vqmodel
    assert tokens.grid == (8, 8) and lvlm.visual.vision_tower.dim == 8
    assert torch.equal(tokens.features, vq.quant_conv(vq.encoder(values)).flatten(2).transpose(1, 2))
    assert torch.equal(tokens.codes.flatten(), vq.encode(values, return_dict=True).image_tokens)
    assert len(tokens.codes.unique()) > CODES // 2
    ids = lvlm.backbone.table.token_ids(tokens.codes)[..., 0]
    assert torch.equal(ids, model.get_image_tokens(values))
    assert (ids.sort().values != ids).any()  # the tokens do not count up with the codes
    read_rows = lvlm.backbone.read(tokens)
    assert torch.equal(read_rows, model.get_image_features(values, return_dict=True).pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("image", [True, False])
def test_prompts_logits_and_greedy_ids_are_those_of_transformers(both, image):
    model, processor, lvlm = both
    backbone = lvlm.backbone
    for picture, question in zip(opaque(processor), QUESTIONS, strict=False):
        images = {"images": [picture]} if image else {}
        theirs = processor(text=[("<image>" if image else "") + question], return_tensors="pt", **images)
        tokens = lvlm.encode([picture]) if image else None
        inputs = backbone.inputs(tokens, [question])
        assert inputs["inputs_embeds"].shape[1] == theirs["input_ids"].shape[1]
        expected = model(**theirs).logits
        assert torch.equal(backbone.logits(inputs), expected)
        torch.testing.assert_close(prefill(backbone, inputs).logits, expected[:, -1], rtol=1e-5, atol=1e-5)
        written = model.generate(**theirs, max_new_tokens=12, do_sample=False)[0]
        written = [i for i in written[theirs["input_ids"].shape[1] :].tolist() if i not in backbone.end_ids()]
        assert generate_ids(backbone, inputs, 12) == [written] and len(written) > 2


@torch.no_grad()
def test_the_loss_is_that_of_transformers(both):
    model, processor, lvlm = both
    theirs = processor(
        images=[pictures()[0]],
        text=[f"<image>{QUESTIONS[0]}<reserved08706>{ANSWERS[0]}</s>"],
        return_for_text_completion=True,
        return_tensors="pt",
    )
    inputs = lvlm.backbone.inputs(lvlm.encode(pictures()[:1]), QUESTIONS[:1], ANSWERS[:1])
    hidden = lvlm.backbone.hidden_states(inputs)
    ours = surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"])
    assert torch.allclose(ours, model(**theirs, labels=inputs["labels"]).loss, rtol=1e-6)


def test_batches_and_options_do_not_depend_on_each_other(both):
    lvlm = both[2]
    together = lvlm.answer(pictures()[:3], QUESTIONS, max_new_tokens=6)
    assert together == [lvlm.answer([p], [q], 6)[0] for p, q in zip(pictures(), QUESTIONS, strict=False)]
    backbone, tokens = lvlm.backbone, lvlm.encode(pictures()[:1])
    options = [[[40, 41], [50, 51, 52]]]
    found = score(backbone, read(backbone, tokens, QUESTIONS[:1]), options)[0]
    start = backbone.segments([backbone.tokenized(QUESTIONS[0])], tokens)[0][0]
    for value, ids in zip(found, options[0], strict=True):
        logits = backbone.logits(backbone.splice([[*start, torch.tensor(ids)]]))[0].log_softmax(-1)
        expected = sum(float(logits[n - len(ids) - 1, token].detach()) for n, token in enumerate(ids))
        assert abs(value - expected) < 1e-4


def test_no_image_token_is_ever_written_and_margins_are_of_what_is(both):
    lvlm = both[2]
    logits = prefill(lvlm.backbone, lvlm.backbone.inputs(lvlm.encode(pictures()[:1]), QUESTIONS[:1])).logits
    ids = lvlm.backbone.table.ids[0]
    assert (logits[:, ids] == torch.finfo(torch.float32).min).all()
    assert float(largest(logits)[0]) < 1e3
    assert torch.equal(largest(logits[:, :20]), logits[:, :20].abs().amax(dim=-1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "CMYK"])
def test_pixels_of_every_mode_are_those_of_the_processor(both, mode):
    _, processor, lvlm = both
    picture = pictures()[1].convert(mode)
    if mode == "P":
        picture.info["transparency"] = 3
    values = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    found = lvlm.visual.vision_tower._normalised(lvlm.visual.preprocess([picture]))
    if mode in ("RGBA", "LA", "P") and rounds_down(processor):
        torch.testing.assert_close(found, values, rtol=0, atol=2.1 * 2 / 255)
    else:
        assert torch.equal(found, values)


def test_transparency_counts_in_the_cache_of_codes(both):
    visual = both[2].visual
    clear = pictures()[1].copy()
    clear.putalpha(0)
    solid = clear.copy()
    solid.putalpha(255)  # the same colours
    found = CodeCache().encode(visual, [clear, solid], 2, False)
    codes = found.codes[found.rows]
    assert torch.equal(codes.long(), visual.encode([clear, solid]).codes)
    assert not torch.equal(codes[0], codes[1])


def test_dropout_of_the_vq_model_never_runs(both):
    lvlm = both[2]
    before = lvlm.encode(pictures()).features
    try:
        lvlm.train()
        assert not any(module.training for module in lvlm.visual.vision_tower.modules())
        assert torch.equal(lvlm.encode(pictures()).features, before)
    finally:
        lvlm.eval()


def test_the_gradient_of_the_tower_is_right_and_the_same_if_blocks_run_again(both):
    tower = both[2].visual.vision_tower.requires_grad_(True)
    pixels = both[2].visual.preprocess(pictures()[:1])
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(tower(pixels)[0].shape, generator=draw)

    def gradients(again):
        tower.zero_grad()
        with recompute(tower, again):
            (tower(pixels)[0] * weight).sum().backward()
        return [parameter.grad.clone() for parameter in tower.parameters()]

    plain = gradients(False)
    for again in (True, "selective"):
        assert all(map(torch.equal, plain, gradients(again)))
    assert len(layers_of(tower)) == len(tower.layers) > 3
    tower.double()
    with torch.no_grad():  # central differences, in the direction of the gradient
        step = 1e-6
        values = []
        for sign in (1, -2):
            for parameter, gradient in zip(tower.parameters(), plain, strict=True):
                parameter.add_(sign * step * gradient)
            values.append(float((tower(pixels)[0] * weight).sum()))
        for parameter, gradient in zip(tower.parameters(), plain, strict=True):
            parameter.add_(step * gradient)
    tower.float().requires_grad_(False).zero_grad()
    norm = sum(float(gradient.double().square().sum()) for gradient in plain)
    assert abs((values[0] - values[1]) / (2 * step) / norm - 1) < 1e-3


def test_one_llm_adapts_the_tower_and_the_other_reads_its_codes(tmp_path):
    small, large = (save_chameleon(tmp_path / size, size) and tmp_path / size for size in ("small", "large"))
    lvlm, other = load(small, "cpu"), load(large, "cpu")
    assert lvlm.visual.codebook.fingerprint == other.visual.codebook.fingerprint
    hashes, codes = part_hashes(lvlm), lvlm.encode(pictures()).codes
    text = lvlm.backbone.logits(lvlm.backbone.inputs(None, QUESTIONS)).detach()
    losses = adapted(lvlm)  # random LLMs: no loss has to fall
    assert len(set(losses)) == 3 and all(map(np.isfinite, losses))
    after = part_hashes(lvlm)
    assert after.pop("vision_tower") != hashes.pop("vision_tower") and after == hashes
    assert torch.equal(lvlm.backbone.logits(lvlm.backbone.inputs(None, QUESTIONS)), text)

    before = other.backbone.logits(other.backbone.inputs(None, QUESTIONS))
    encoder = save_encoder(tmp_path / "encoder", lvlm)
    moved = other.with_encoder(encoder)
    new = moved.encode(pictures()).codes
    assert torch.equal(new, lvlm.encode(pictures()).codes) and (new != codes).float().mean() > 0.1
    assert torch.equal(moved.backbone.logits(moved.backbone.inputs(None, QUESTIONS)), before)
    assert moved.answer(pictures()[:1], QUESTIONS[:1], keep_ratio=0.5)

    out = export_chameleon(load_artefact(encoder), large, tmp_path / "out")
    theirs, original = (
        ChameleonForConditionalGeneration.from_pretrained(folder, dtype="auto") for folder in (out, large)
    )
    values = lvlm.visual.vision_tower._normalised(lvlm.visual.preprocess(pictures()))
    ids = other.backbone.table.token_ids(new)[..., 0]
    assert torch.equal(theirs.get_image_tokens(values), ids)
    assert torch.equal(load(out, "cpu").encode(pictures()).codes, new)
    for name, value in theirs.state_dict().items():
        trained = name.startswith(("model.vqmodel.encoder.", "model.vqmodel.quant_conv."))
        assert torch.equal(value, original.state_dict()[name]) != trained, name
    for file in large.iterdir():
        if file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes()


def test_export_keeps_shards_dtype_and_every_byte_of_what_was_not_trained(tmp_path):
    model, _ = save_chameleon(tmp_path / "whole")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="60KB")
    for file in (tmp_path / "whole").glob("*.json"):
        if not (tmp_path / "base" / file.name).exists():
            (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    base = tmp_path / "base"
    lvlm = load(base, "cpu")
    export_chameleon(lvlm, base, tmp_path / "same")
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) > 2
    assert all((tmp_path / "same" / file.name).read_bytes() == file.read_bytes() for file in base.iterdir())
    adapted(lvlm, steps=1)
    export_chameleon(lvlm, base, tmp_path / "out")
    changed = 0
    for shard in shards:
        old, new = load_tensors(shard), load_tensors(tmp_path / "out" / shard.name)
        assert old.keys() == new.keys()
        for name, value in old.items():
            trained = name.startswith(("model.vqmodel.encoder.", "model.vqmodel.quant_conv."))
            assert new[name].dtype == value.dtype == torch.bfloat16
            assert trained or torch.equal(new[name], value)
            changed += not torch.equal(new[name], value)
    assert changed > 10
    for target in (base, base / "below", tmp_path):
        with pytest.raises(CheckpointError, match="choose another folder"):
            export_chameleon(lvlm, base, target)


def test_the_visual_tokenizer_alone_and_in_bfloat16(tmp_path):
    save_chameleon(tmp_path)
    whole, alone = load(tmp_path, "cpu"), load_visual_tokenizer(tmp_path, "cpu")
    assert hash_tensors(alone.state_dict()) == hash_tensors(whole.visual.state_dict())
    rounded = load(tmp_path, "cpu", "bfloat16")
    assert rounded.visual.codebook.fingerprint == whole.visual.codebook.fingerprint
    assert next(rounded.backbone.llm.parameters()).dtype == torch.bfloat16
    assert len(rounded.answer(pictures()[:2], QUESTIONS[:2])) == 2


def test_memory_is_counted_and_less_if_blocks_run_again(both):
    lvlm = both[2]
    freeze_all_but(lvlm, ["vision_tower"])
    plain, again = (
        estimate_memory(lvlm, 2, 80, gradient_checkpointing=mode)["activations"] for mode in (False, True)
    )
    tower = lvlm.visual.vision_tower
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = tower(lvlm.visual.preprocess(pictures()[:1]))
    weights = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    measured = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert alive and abs(4 * tower.stored_per_image(False) / measured - 1) < 0.02
    assert again < plain
    lvlm.requires_grad_(False)


def test_encoders_of_other_codebooks_are_refused_with_both_fingerprints(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        save_chameleon(tmp_path / name, vq_seed=seed)
    one, two = (load(tmp_path / name, "cpu") for name in ("one", "two"))
    encoder = save_encoder(tmp_path / "encoder", one)
    siglip = tiny_lvlm()
    for other in (two, siglip):
        with pytest.raises(CodebookMismatchError) as caught:
            other.with_encoder(encoder)
        for lvlm in (one, other):
            assert lvlm.visual.codebook.fingerprint in str(caught.value)
    with pytest.raises(CodebookMismatchError, match=two.visual.codebook.fingerprint):
        export_chameleon(load_artefact(encoder), tmp_path / "two", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prior = torch.ones(siglip.visual.codebook.size, dtype=torch.int64)
    foreign = save_artefact(tmp_path / "foreign", siglip.visual, prior=prior, manifest={})
    with pytest.raises(CodebookMismatchError, match=siglip.visual.codebook.fingerprint):
        one.with_encoder(foreign)


def change(file, **entries):
    content = json.loads(file.read_text())
    content.update(entries)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def without_a_code(folder):
    content = json.loads((folder / "config.json").read_text())["vocabulary_map"]
    del content["IMGIMGDZ"]
    change(folder / "config.json", vocabulary_map=content)


def processor(folder, **entries):
    file = folder / "processor_config.json"
    change(file, image_processor=json.loads(file.read_text())["image_processor"] | entries)


def other_vq(folder, **entries):
    file = folder / "config.json"
    change(file, vq_config=json.loads(file.read_text())["vq_config"] | entries)


def without_sep(folder):
    change(folder / "tokenizer_config.json", sep_token=None)


@pytest.mark.parametrize(
    "damage, message",
    [
        (without_a_code, r"vocabulary_map names 63 image tokens.*64 codewords"),
        (lambda f: change(f / "config.json", vocabulary_map=None), "lacks vocabulary_map"),
        (lambda f: processor(f, resample=3), r"resample 3"),
        (lambda f: processor(f, do_center_crop=False), r"do_center_crop False"),
        (lambda f: processor(f, size={"height": 32, "width": 32}), "scales the shorter side"),
        (
            lambda f: processor(f, size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
            "makes images of 64 px, and the VQ model reads 32 px",
        ),
        (lambda f: processor(f, image_std=[0.0, 1.0, 1.0]), "image_std"),
        (lambda f: other_vq(f, base_channels=64), "conv_in.weight has shape .32, 3, 3, 3. instead of .64"),
        (lambda f: other_vq(f, double_latent=True), "double_latent"),
        (lambda f: other_vq(f, embed_dim=16), "quant_conv.*has shape"),
        (without_sep, "lacks sep_token"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, damage, message):
    save_chameleon(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, "cpu")


def test_the_native_layout_holds_the_tower_but_not_the_llm(tmp_path):
    save_chameleon(tmp_path / "base")
    lvlm = load(tmp_path / "base", "cpu")
    save_visual(tmp_path / "visual", lvlm.visual, "float32")  # for `craft align`, which adds another LLM
    again = load_visual_tokenizer(tmp_path / "visual", "cpu", "float32")
    assert torch.equal(again.encode(pictures()).features, lvlm.encode(pictures()).features)
    assert again.codebook.fingerprint == lvlm.visual.codebook.fingerprint
    with pytest.raises(CheckpointError, match="--format chameleon"):
        save_native(tmp_path / "family", "one", lvlm)
    assert not (tmp_path / "family").exists()


def test_files_of_older_releases_of_transformers_load(tmp_path):
    """As on the hub: the processor's settings in a file of their own, the tokenizer with a Llama class."""
    save_chameleon(tmp_path)
    codes = load(tmp_path, "cpu").encode(pictures()).codes
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    images = settings.pop("image_processor")
    file.write_text(json.dumps(settings))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    change(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    lvlm, processor = load(tmp_path, "cpu"), AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(lvlm.encode(pictures()).codes, codes)
    for question in QUESTIONS:
        theirs = processor(images=pictures()[:1], text=f"<image>{question}")["input_ids"][0]
        prompt = lvlm.backbone.tokenized(question)
        assert prompt.before + [processor.image_token_id] * 64 + prompt.after == list(theirs)


def test_packing_is_refused(tmp_path):
    save_chameleon(tmp_path)
    with pytest.raises(ConfigError, match="llm_bits"):
        load(tmp_path, "cpu", llm_bits=4)
