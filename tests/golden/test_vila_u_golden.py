"""Everything in `golden/vila_u_small`, as VILA-U's own code computes it, against ours.

Codes and ids are equal; floats agree to 1e-5 (relative where values exceed 1), gradients to 1e-4.
Deviations and their causes: README.md beside this file.
"""

import copy
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from craft.core.tensors import load_tensors
from craft.formats.vila_u import load_vila_u
from craft.losses import commitment_cumulative, surrogate_alignment
from craft.models.decoding import generate_ids
from craft.models.images import pixels
from craft.models.lvlm import LVLM
from craft.models.prompts import VICUNA_SYSTEM, build_prompt, decode
from craft.models.vision_tower import SiglipTower

GOLDEN = Path(__file__).parent / "vila_u_small"
IMAGES = sorted((GOLDEN / "images").glob("*.png"))
QUESTION = "What is shown? Answer with one word."
MODES = ("resize", "pad")
PILLOW = int(version("pillow").partition(".")[0])


@cache
def expected() -> dict[str, Tensor]:
    return load_tensors(GOLDEN / "expected.safetensors")


@cache
def facts() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lvlm() -> LVLM:
    return load_vila_u(GOLDEN, device="cpu", dtype="float32")


def close(actual: Tensor, name: str, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected()[name], rtol=tolerance, atol=tolerance)


# pixels


def test_pixels_resize_are_bit_equal_but_for_the_rgba_image() -> None:
    ours = pixels(IMAGES, 64, "resize")
    for row in (0, 1, 3):
        assert torch.equal(ours[row], expected()["pixel_values.resize"][row])
    rgb_first = expected()["pixel_values.resize.image_2_converted_to_rgb_first"]
    if PILLOW >= 13:
        assert torch.equal(ours[2], rgb_first)
    else:  # it resizes in the other order an image that becomes wider and less high
        torch.testing.assert_close(ours[2], rgb_first, rtol=0, atol=7.1 * 2 / 255)
    difference = (ours[2] - expected()["pixel_values.resize"][2]).abs().max()
    assert (
        0.05 < difference < 0.2
    )  # the reference's inference path resizes RGBA as it is: premultiplied alpha


def test_pixels_pad_are_bit_equal() -> None:
    assert torch.equal(pixels(IMAGES, 64, "pad"), expected()["pixel_values.pad"])


# vision


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_visual_tokens(lvlm: LVLM, mode: str) -> None:
    tokens = lvlm.visual(expected()[f"pixel_values.{mode}"], partial_sums=True)
    close(tokens.features, f"vision.{mode}.features")
    assert torch.equal(tokens.codes, expected()[f"vision.{mode}.codes"])
    assert torch.equal(tokens.quantized, expected()[f"vision.{mode}.z_q_sum"])
    assert (tokens.quantized - expected()[f"vision.{mode}.z_q"]).abs().max() <= 2.4e-7
    close(tokens.residual, f"vision.{mode}.first_level_sq_residual")
    assert tokens.partial_sums is not None
    per_level = (tokens.features[:, :, None] - tokens.partial_sums).square()
    close(per_level.sum(-1), f"vision.{mode}.sq_residual_per_level")
    close(per_level.mean((0, 1, 3)), f"vision.{mode}.commitment_loss_per_level")
    loss = commitment_cumulative(tokens.features, tokens.partial_sums, reduction="mean")
    close(loss, f"vision.{mode}.commitment_loss")
    table = lvlm.visual.codebook.levels[0]
    distances = (tokens.features[:, :, None] - table).square().sum(-1)
    close(distances, f"vision.{mode}.first_level_distances")
    close(lvlm.backbone.read(tokens), f"vision.{mode}.projector_output")


@pytest.mark.parametrize("mode", MODES)
def test_code_statistics(lvlm: LVLM, mode: str) -> None:
    tokens, told = lvlm.encode(expected()[f"pixel_values.{mode}"]), facts()["vision"][mode]
    assert lvlm.visual.codebook.size == told["codebook_size"]
    distinct = [len(set(tokens.codes[..., level].flatten().tolist())) for level in range(4)]
    assert distinct == told["distinct_codes_per_level"]


def test_padding_row_is_not_a_codeword(lvlm: LVLM) -> None:
    assert lvlm.visual.codebook.size == 64
    assert lvlm.visual.codebook.levels.abs().sum(-1).min() > 0


def test_encode_from_files_equals_the_stored_pixels(lvlm: LVLM) -> None:
    codes = lvlm.encode([str(path) for path in IMAGES]).codes
    assert torch.equal(codes[[0, 1, 3]], expected()["vision.resize.codes"][[0, 1, 3]])


def test_one_image_has_the_codes_it_has_in_a_batch(lvlm: LVLM) -> None:
    for row in range(4):
        alone = lvlm.encode(expected()["pixel_values.resize"][row : row + 1])
        assert torch.equal(alone.codes[0], expected()["vision.resize.codes"][row])


# prompts


def test_tokenizer_samples(lvlm: LVLM) -> None:
    tokenizer = lvlm.backbone.tokenizer
    for text, ids in facts()["tokenizer"]["samples"].items():
        prompt = build_prompt("vila-u", _verbatim(tokenizer), text, image=False)
        assert prompt.before == ids, text
    for token, number in facts()["tokenizer"]["special_ids"].items():
        assert tokenizer.convert_tokens_to_ids(token) == number
    assert (len(tokenizer), tokenizer.pad_token) == (404, "<unk>")


def _verbatim(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that removes the conversation around the question."""

    class Verbatim(type(tokenizer)):
        def __call__(self, text: str, **options: object) -> dict:
            return super().__call__(_without_conversation(text), **options)

    twin = copy.copy(tokenizer)
    twin.__class__ = Verbatim
    return twin


def _without_conversation(text: str) -> str:
    bare = text.removeprefix(f"{VICUNA_SYSTEM} USER: ").removesuffix(" ASSISTANT:")
    return f" {bare}" if bare.startswith(" ") else bare


def test_inference_prompt_ids(lvlm: LVLM) -> None:
    prompt = build_prompt("vila-u", lvlm.backbone.tokenizer, QUESTION)
    assert [*prompt.before, -200, *prompt.after] == facts()["infer"]["input_ids"]
    assert prompt.answer == []


def test_training_prompt_ids(lvlm: LVLM) -> None:
    prompt = build_prompt("vila-u", lvlm.backbone.tokenizer, QUESTION, facts()["train"]["answer"])
    assert [*prompt.before, -200, *prompt.after, *prompt.answer] == facts()["train"]["input_ids"]
    assert prompt.answer == facts()["train"]["answer_label_ids"]
    ignored = [-100] * (len(prompt.before) + 1 + len(prompt.after))
    assert ignored + prompt.answer == facts()["train"]["labels"]


# LLM


@torch.no_grad()
def test_inference(lvlm: LVLM) -> None:
    tokens = lvlm.encode(expected()["pixel_values.resize"])
    one = lvlm.backbone.inputs(tokens[:1], [QUESTION])
    close(one["inputs_embeds"], "infer.inputs_embeds")
    assert torch.equal(one["attention_mask"], expected()["infer.attention_mask"])
    close(lvlm.backbone.logits(one), "infer.logits")
    start, end = facts()["infer"]["image_span_in_embeds"]
    assert torch.equal(one["inputs_embeds"][:, start:end], lvlm.backbone.read(tokens[:1]))
    close(
        lvlm.backbone.logits(lvlm.backbone.inputs(tokens, [QUESTION] * 4))[:, -1],
        "infer.last_logits_all_images",
    )


def test_greedy_tokens_and_text(lvlm: LVLM) -> None:
    tokens = lvlm.encode(expected()["pixel_values.resize"])
    wanted = facts()["infer"]["greedy_5_ids_per_image"]
    assert generate_ids(lvlm.backbone, lvlm.backbone.inputs(tokens, [QUESTION] * 4), 5) == wanted
    for row in range(4):
        assert generate_ids(lvlm.backbone, lvlm.backbone.inputs(tokens[row : row + 1], [QUESTION]), 5) == [
            wanted[row]
        ]
    text = facts()["infer"]["greedy_5_text_image_0_generate_content"]
    assert decode(lvlm.backbone.tokenizer, wanted[0]) == text
    assert lvlm.answer(expected()["pixel_values.resize"], [QUESTION] * 4)[0] == text


def test_training_loss_and_gradients(lvlm: LVLM) -> None:
    tokens = lvlm.visual(expected()["pixel_values.resize"][:1])
    tokens.features.retain_grad()
    inputs = lvlm.backbone.inputs(tokens, [QUESTION], [facts()["train"]["answer"]])
    close(inputs["inputs_embeds"], "train.inputs_embeds")
    assert torch.equal(inputs["attention_mask"], expected()["train.attention_mask"])
    assert torch.equal(inputs["labels"], expected()["train.labels_spliced"])
    hidden = lvlm.backbone.hidden_states(inputs)
    first, last = facts()["train"]["answer_logits_positions"]
    close(lvlm.backbone.lm_head(hidden)[0, first : last + 1], "train.answer_logits")
    loss = surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"])
    close(loss, "train.loss")

    lvlm.zero_grad()
    loss.backward()
    tower = lvlm.visual.vision_tower
    close(tokens.features.grad, "grad.features", 1e-4)
    close(tower.embeddings.patch_embedding.weight.grad, "grad.patch_embedding.weight", 1e-4)
    close(tower.embeddings.position_embedding.weight.grad, "grad.position_embedding.weight", 1e-4)
    close(tower.layers[1].mlp.fc1.weight.grad, "grad.encoder.layers.1.mlp.fc1.weight", 1e-4)
    with_gradient = [name for name, value in tower.named_parameters() if value.grad is not None]
    assert "cls_token" not in with_gradient
    assert len(with_gradient) == facts()["train"]["vision_parameters_with_gradient_count"]
    lvlm.zero_grad()


@torch.no_grad()
def test_right_padded_batch_with_two_images_in_one_row(lvlm: LVLM) -> None:
    image = iter(lvlm.backbone.read(lvlm.encode(expected()["pixel_values.resize"][1:])))
    rows: list[list[Tensor]] = []
    for ids, kept in zip(
        expected()["batch.input_ids"], expected()["batch.input_attention_mask"], strict=True
    ):
        real = ids[kept].tolist()
        row: list[Tensor] = []
        while -200 in real:
            at = real.index(-200)
            row += [torch.tensor(real[:at]), next(image)]
            real = real[at + 1 :]
        rows.append([*row, torch.tensor(real)])
    spliced = lvlm.backbone.splice(rows, padding="right")
    close(spliced["inputs_embeds"], "batch.inputs_embeds")
    assert torch.equal(spliced["attention_mask"], expected()["batch.attention_mask"])
    assert torch.equal(spliced["position_ids"], expected()["batch.position_ids"])
    last = torch.tensor(facts()["batch"]["last_positions"])
    close(lvlm.backbone.logits(spliced)[torch.arange(2), last], "batch.last_logits")


def test_rope_scaling_is_honoured(lvlm: LVLM) -> None:
    frequencies = lvlm.backbone.llm.model.rotary_emb.inv_freq
    assert frequencies[0] == 0.5  # 1 without the linear factor 2


# bfloat16 and training mode: where we differ on purpose (README.md beside this file)


def test_bfloat16_codes_come_from_a_float32_search() -> None:
    lvlm = load_vila_u(GOLDEN, device="cpu", dtype="bfloat16")
    assert lvlm.visual.codebook.codewords.dtype == torch.float32
    tokens = lvlm.encode(expected()["pixel_values.resize"])
    reference = expected()["bf16.features"].float()
    assert (
        tokens.features - reference
    ).abs().max() <= 0.125  # two units in the last place at magnitude 8..16

    exact = lvlm.visual.codebook.quantize(reference)
    best = expected()["vision.resize.codes"]
    assert (exact.codes == best).all(-1).sum() > 54  # the reference's own search keeps 54 of 64 rows
    assert (tokens.codes == best).all(-1).sum() > 54
    assert torch.equal(tokens.quantized, lvlm.visual.codebook.lookup(tokens.codes))


def test_reference_bfloat16_codes_are_farther_than_ours() -> None:
    """Where level-1 codes differ, ours are the nearer: the reference rounds distances to bfloat16."""
    lvlm = load_vila_u(GOLDEN, device="cpu", dtype="float32")
    features, theirs = expected()["bf16.features"].float(), expected()["bf16.codes"][..., 0]
    ours = lvlm.visual.codebook.quantize(features).codes[..., 0]
    table = lvlm.visual.codebook.levels[0].double()
    flips = ours != theirs
    assert flips.any()
    mine = (features.double() - table[ours]).square().sum(-1)[flips]
    other = (features.double() - table[theirs]).square().sum(-1)[flips]
    assert (mine < other).all()


def test_training_mode_changes_no_codeword(lvlm: LVLM) -> None:
    """The reference's quantiser rewrites its codebook in `.train()`; ours has no training behaviour."""
    before = lvlm.visual.codebook.codewords.clone()
    lvlm.train()
    tokens = lvlm.visual(expected()["pixel_values.resize"], partial_sums=True)
    lvlm.eval()
    assert torch.equal(tokens.codes, expected()["ema_step.codes"])
    loss = commitment_cumulative(tokens.features, tokens.partial_sums, reduction="mean")
    close(loss.detach(), "ema_step.commitment_loss")
    assert torch.equal(lvlm.visual.codebook.codewords, before)
    for level in (0, 3):
        moved = expected()[f"ema_step.codebooks.{level}.weight"][:-1]
        assert not torch.equal(before[level], moved)
    assert isinstance(lvlm.visual.vision_tower, SiglipTower)
