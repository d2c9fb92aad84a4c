"""LLaVA checkpoints of transformers: the same logits as transformers' own forward pass, on the same input."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from builders import tiny_images, tiny_tokenizer
from craft.core.errors import CheckpointError, CraftError
from craft.formats.llava import CLIP_MEAN, CLIP_STD, LlavaTower
from craft.formats.load import load
from craft.formats.native import save_native
from craft.models.images import pixels

QUESTIONS = ["What is shown in the picture?", "How many?"]
TEMPLATE = (  # as that of llava-hf/llava-1.5-7b-hf
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% "
    "endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ "
    "content['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% "
    "endif %}"
)


def save_llava(folder, tower="clip", template=None, **changes):
    """A tiny random checkpoint as transformers writes it; returns the model."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"image_size": 32, "patch_size": 8}
    vision = CLIPVisionConfig(**sizes) if tower == "clip" else SiglipVisionConfig(**sizes)
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    strategy = "default" if tower == "clip" else "full"
    told = {"vision_feature_select_strategy": strategy, "image_token_index": image, **changes}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **told)).eval()
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter.mul_(4)  # the default start would make all patches alike
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if tower == "clip":
        written = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": True}
    else:
        written = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return model


@torch.no_grad()
@pytest.mark.parametrize("tower, template", [("clip", None), ("clip", TEMPLATE), ("siglip", None)])
def test_logits_are_those_of_transformers(tmp_path, tower, template):
    model = save_llava(tmp_path / "llava", tower, template)
    lvlm = load(tmp_path / "llava", "cpu")
    assert lvlm.visual.continuous and lvlm.visual.codebook.fingerprint.startswith("tower:")
    images = tiny_images(2)
    tokens = lvlm.encode(images)
    assert tokens.codes.shape == (2, 16, 0) and torch.equal(tokens.features, tokens.quantized)
    ours = lvlm.backbone.logits(lvlm.backbone.inputs(tokens, QUESTIONS, padding="right"))

    theirs_in = images
    if tower == "clip":
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        theirs_in = ((images + 1) / 2 - mean) / std
    tokenizer = lvlm.backbone.tokenizer
    for number, question in enumerate(QUESTIONS):
        text = f"USER: {'<image>' * 16}\n{question} ASSISTANT:"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected = model(input_ids=ids, pixel_values=theirs_in[number : number + 1]).logits[0]
        found = ours[number, : len(expected)]
        assert torch.allclose(found, expected, atol=1e-5)
    generated = model.generate(
        input_ids=ids, pixel_values=theirs_in[1:], attention_mask=torch.ones_like(ids), max_new_tokens=5,
        do_sample=False,
    )  # fmt: skip
    expected_text = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert lvlm.answer(images, QUESTIONS)[1] == expected_text


def test_pictures_are_cropped_as_clips_own_processor_does():
    draw = np.random.default_rng(0)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for shape in ((50, 70, 3), (71, 40, 3), (32, 32, 3), (20, 45, 3), (98, 49, 3)):
        picture = Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8))
        found = (pixels([picture], 32, "crop")[0] + 1) / 2
        expected = torch.as_tensor(np.asarray(theirs(picture, return_tensors="pt")["pixel_values"][0]))
        expected = expected * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
        assert torch.allclose(found, expected, atol=1e-5), shape


@pytest.mark.parametrize("tower, aspect", [("clip", "pad-clip"), ("siglip", "pad")])
def test_pictures_are_padded_where_llavas_own_processor_pads_them(tmp_path, tower, aspect):
    save_llava(tmp_path / "llava", tower)
    mean, std = (CLIP_MEAN, CLIP_STD) if tower == "clip" else ([0.5] * 3, [0.5] * 3)
    theirs = LlavaImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_pad=True, image_mean=mean,
        image_std=std,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "llava")
    visual, draw = load(tmp_path / "llava", "cpu").visual, np.random.default_rng(0)
    assert visual.aspect == aspect
    for shape in ((50, 70, 3), (71, 40, 3), (32, 32, 3), (20, 45, 3)):
        picture = Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8))
        found = (visual.preprocess([picture])[0] + 1) / 2
        expected = torch.as_tensor(np.asarray(theirs(picture, return_tensors="pt")["pixel_values"][0]))
        expected = expected * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        assert torch.allclose(found, expected, atol=1e-5), shape


def test_who_pads_to_a_square_and_with_what(tmp_path):
    save_llava(tmp_path / "llava")
    place = tmp_path / "llava" / "preprocessor_config.json"
    told = json.loads(place.read_text()) | {"do_pad": True}
    for kind, aspect in (("CLIPImageProcessor", "crop"), ("LlavaImageProcessorFast", "pad-clip")):
        place.write_text(json.dumps({**told, "image_processor_type": kind}))
        assert load(tmp_path / "llava", "cpu").visual.aspect == aspect
    place.write_text(place.read_text().replace("0.48145466", "0.25"))
    with pytest.raises(CheckpointError, match=r"\(63, 116, 104\)"):
        load(tmp_path / "llava", "cpu")


def test_the_tower_is_the_same_under_another_version_of_transformers(tmp_path, monkeypatch):
    save_llava(tmp_path / "llava")
    tower = load(tmp_path / "llava", "cpu").visual.vision_tower
    monkeypatch.setattr(transformers.configuration_utils, "__version__", "5.99.0")
    assert load(tmp_path / "llava", "cpu").visual.vision_tower.config == tower.config
    alone = LlavaTower(tower.config)  # all that it is made of
    assert {k: v.shape for k, v in alone.state_dict().items()} == {
        k: v.shape for k, v in tower.state_dict().items()
    }


def test_bfloat16_and_float32_have_one_fingerprint(tmp_path):
    save_llava(tmp_path / "llava")
    one, two = (load(tmp_path / "llava", "cpu", dtype) for dtype in ("float32", "bfloat16"))
    assert one.visual.codebook.fingerprint == two.visual.codebook.fingerprint
    assert next(two.backbone.llm.parameters()).dtype == torch.bfloat16


def test_the_answer_is_learned_with_its_end(tmp_path):
    save_llava(tmp_path / "llava", template=TEMPLATE)
    lvlm = load(tmp_path / "llava", "cpu")
    inputs = lvlm.backbone.inputs(lvlm.encode(tiny_images(1)), QUESTIONS[:1], ["dress"])
    learned = inputs["labels"][0][inputs["labels"][0] >= 0].tolist()
    assert lvlm.backbone.tokenizer.decode(learned) == " dress</s>"


@pytest.mark.parametrize(
    "tower, changes, told",
    [
        ("clip", {"vision_feature_select_strategy": "full"}, "one token per patch"),
        ("clip", {"vision_feature_layer": [-2, -1]}, "read at one layer"),
        ("clip", {"projector_hidden_act": "relu"}, "GELU"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, tower, changes, told):
    save_llava(tmp_path / "llava", tower, **changes)
    with pytest.raises(CheckpointError, match=told):
        load(tmp_path / "llava", "cpu")


@torch.no_grad()
def test_it_can_be_kept_in_our_own_layout(tmp_path):
    save_llava(tmp_path / "llava", template=TEMPLATE)
    lvlm, images = load(tmp_path / "llava", "cpu"), tiny_images(2)
    again = load(save_native(tmp_path / "family", "kept", lvlm, dtype="float32"), "cpu")
    assert again.visual.codebook.fingerprint == lvlm.visual.codebook.fingerprint
    logits = (x.backbone.logits(x.backbone.inputs(x.encode(images), QUESTIONS)) for x in (lvlm, again))
    assert torch.equal(*logits)
    assert again.answer(images, QUESTIONS) == lvlm.answer(images, QUESTIONS)


def test_there_is_no_pruning_by_code(tmp_path):
    save_llava(tmp_path / "llava")
    with pytest.raises(CraftError, match="continuous LVLM has none"):
        load(tmp_path / "llava", "cpu").answer(tiny_images(1), QUESTIONS[:1], keep_ratio=0.5)
