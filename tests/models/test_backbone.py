"""Backbone and LVLM: inputs, generation, gradient, and who may be combined with whom."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import FalconH1Config, FalconH1ForCausalLM

from builders import tiny_backbone, tiny_lvlm
from craft.core.errors import CheckpointError, CodebookMismatchError, CraftError
from craft.losses import surrogate_alignment
from craft.models.backbone import Backbone
from craft.models.decoding import generate, generate_ids
from craft.models.lvlm import LVLM
from craft.models.prompts import build_prompt

QUESTIONS = ["what?", "what is shown in this picture?", "a red cat or not, and why?"]


@pytest.fixture(params=["llama", "qwen2"])
def lvlm(request: pytest.FixtureRequest) -> LVLM:
    return tiny_lvlm(request.param, tower="siglip")


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32)


def test_generation_does_not_depend_on_batch_mates(lvlm: LVLM, pixels: torch.Tensor) -> None:
    together = lvlm.answer(pixels, QUESTIONS, max_new_tokens=8)
    alone = [lvlm.answer(pixels[i : i + 1], [QUESTIONS[i]], max_new_tokens=8)[0] for i in range(3)]
    assert together == alone
    assert lvlm.answer(pixels, QUESTIONS, max_new_tokens=8, batch_size=2) == together
    assert lvlm.answer(lvlm.encode(pixels), QUESTIONS, max_new_tokens=8) == together


def test_generation_equals_greedy_without_cache(lvlm: LVLM, pixels: torch.Tensor) -> None:
    backbone, tokens = lvlm.backbone, lvlm.encode(pixels)
    fast = generate_ids(backbone, backbone.inputs(tokens, QUESTIONS), 6)
    for row in range(3):
        inputs = backbone.inputs(tokens[row : row + 1], QUESTIONS[row : row + 1])
        ids: list[int] = []
        while len(ids) < 6:
            table = backbone.llm.get_input_embeddings()
            embeds = torch.cat([inputs["inputs_embeds"], table(torch.tensor([ids], dtype=torch.long))], dim=1)
            with torch.no_grad():
                best = int(backbone.llm(inputs_embeds=embeds).logits[0, -1].argmax())
            if best == backbone.tokenizer.eos_token_id:
                break
            ids.append(best)
        assert fast[row] == ids


def test_generation_stops_at_the_end_token(lvlm: LVLM, pixels: torch.Tensor) -> None:
    ids = generate_ids(lvlm.backbone, lvlm.backbone.inputs(lvlm.encode(pixels), QUESTIONS), 8)
    lvlm.backbone.llm.generation_config.eos_token_id = [2, ids[0][2]]
    again = generate_ids(lvlm.backbone, lvlm.backbone.inputs(lvlm.encode(pixels), QUESTIONS), 8)
    assert again[0] == ids[0][: ids[0].index(ids[0][2])]


@pytest.mark.parametrize(
    "kind, told",
    [
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("granite", {"logits_scaling": 8.0}),
        ("granitemoe", {"logits_scaling": 8.0, "num_local_experts": 2, "num_experts_per_tok": 1}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
def test_logits_are_the_llms_own_where_it_caps_or_scales_them(kind: str, told: dict[str, float]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1}
    more = {"head_dim": 8} if kind == "gemma2" else {}
    config = AutoConfig.for_model(kind, **sizes, eos_token_id=2, initializer_range=0.2, **more, **told)
    backbone = tiny_backbone()
    backbone.llm = AutoModelForCausalLM.from_config(config).eval()
    inputs = backbone.inputs(None, QUESTIONS, padding="right")
    inputs["inputs_embeds"] = inputs["inputs_embeds"].detach().requires_grad_()
    logits = backbone.logits(inputs), backbone.llm(**inputs).logits
    torch.testing.assert_close(*logits)
    assert not torch.allclose(logits[0], backbone.llm.lm_head(backbone.hidden_states(inputs)))
    gradients = (torch.autograd.grad(found.square().sum(), inputs["inputs_embeds"])[0] for found in logits)
    torch.testing.assert_close(*gradients)


def test_text_only_answers(lvlm: LVLM) -> None:
    answers = lvlm.answer(None, QUESTIONS, max_new_tokens=4)
    assert len(answers) == 3
    assert answers == [lvlm.answer(None, [question], max_new_tokens=4)[0] for question in QUESTIONS]
    assert lvlm.answer(None, []) == []


def test_training_inputs(lvlm: LVLM, pixels: torch.Tensor) -> None:
    tokens = lvlm.encode(pixels)
    inputs = lvlm.backbone.inputs(tokens, QUESTIONS, ["a", "a red cat", ""])
    count, width, _ = inputs["inputs_embeds"].shape
    for name in ("attention_mask", "position_ids", "labels"):
        assert inputs[name].shape == (count, width)
    end = lvlm.backbone.tokenizer.eos_token_id
    for row, answer in enumerate(["a", "a red cat", ""]):
        length = int(inputs["attention_mask"][row].sum())
        assert inputs["attention_mask"][row, :length].all()  # padded on the right
        learned = inputs["labels"][row][inputs["labels"][row] != -100].tolist()
        assert learned[-1] == end
        assert lvlm.backbone.tokenizer.decode(learned[:-1]) == f" {answer}"
        assert inputs["labels"][row, length - 1] == end
        assert torch.equal(inputs["position_ids"][row, :length], torch.arange(length))
        assert (inputs["inputs_embeds"][row, length:] == 0).all()


def test_padding_side_does_not_change_the_loss(lvlm: LVLM, pixels: torch.Tensor) -> None:
    tokens, answers = lvlm.encode(pixels), ["a", "a red cat", "no"]
    losses = []
    for side in ("left", "right"):
        inputs = lvlm.backbone.inputs(tokens, QUESTIONS, answers, padding=side)
        hidden = lvlm.backbone.hidden_states(inputs)
        losses.append(surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_gradient_reaches_the_vision_tower_through_a_frozen_llm(lvlm: LVLM, pixels: torch.Tensor) -> None:
    lvlm.backbone.requires_grad_(False)
    inputs = lvlm.backbone.inputs(lvlm.visual(pixels), QUESTIONS, ["a", "b", "c"])
    hidden = lvlm.backbone.hidden_states(inputs)
    surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"]).backward()
    gradient = lvlm.visual.vision_tower.embeddings.patch_embedding.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in lvlm.backbone.parameters())


def test_pruned_tokens_with_and_without_their_old_positions(lvlm: LVLM, pixels: torch.Tensor) -> None:
    full = lvlm.encode(pixels)
    kept = torch.tensor([0, 3, 9, 15])
    few = replace(
        full,
        features=full.features[:, kept],
        codes=full.codes[:, kept],
        quantized=full.quantized[:, kept],
        residual=full.residual[:, kept],
        positions=full.positions[:, kept],
    )
    packed = lvlm.backbone.inputs(few, QUESTIONS[:3])
    spread = lvlm.backbone.inputs(few, QUESTIONS[:3], keep_positions=True)
    whole = lvlm.backbone.inputs(full, QUESTIONS[:3])
    assert torch.equal(packed["inputs_embeds"], spread["inputs_embeds"])
    assert spread["position_ids"][0, -1] == whole["position_ids"][0, -1]
    assert packed["position_ids"][0, -1] == whole["position_ids"][0, -1] - 12
    real = spread["position_ids"][0][spread["attention_mask"][0]]
    assert real[:6].tolist() == [0, 1, 4, 10, 16, 17]
    assert len(generate(lvlm.backbone, few, QUESTIONS, 3, keep_positions=True)) == 3


def test_padding_tokens_of_ragged_rows_are_left_out(lvlm: LVLM, pixels: torch.Tensor) -> None:
    full = lvlm.encode(pixels)
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[1, 10:] = False
    inputs = lvlm.backbone.inputs(replace(full, attention_mask=mask), ["what?"] * 3)
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert lengths[1] == lengths[0] - 6 == lengths[2] - 6


def test_read_gives_what_the_llm_gets(lvlm: LVLM, pixels: torch.Tensor) -> None:
    backbone, tokens = lvlm.backbone, lvlm.encode(pixels)
    read = backbone.read(tokens)
    assert backbone.projector is not None
    assert torch.equal(read, backbone.projector(tokens.quantized))
    start = len(backbone.tokenized(QUESTIONS[0]).before)
    inputs = backbone.inputs(tokens[:1], QUESTIONS[:1])
    assert torch.equal(inputs["inputs_embeds"][0, start : start + read.shape[1]], read[0])


def test_counts_must_agree(lvlm: LVLM, pixels: torch.Tensor) -> None:
    for images, questions in ((pixels, QUESTIONS[:2]), (pixels[:1], QUESTIONS)):
        with pytest.raises(CraftError, match="Each image needs one question"):
            lvlm.answer(images, questions)
    with pytest.raises(CraftError, match="3 questions"):
        lvlm.backbone.inputs(lvlm.encode(pixels[:2]), QUESTIONS)
    for ratio in (0.0, 1.5, -1.0):
        with pytest.raises(CraftError, match="keep_ratio"):
            lvlm.answer(pixels, QUESTIONS, keep_ratio=ratio)


def test_pruning_without_a_prior_says_so(lvlm: LVLM, pixels: torch.Tensor) -> None:
    with pytest.raises(CraftError, match="keep_ratio=1"):
        lvlm.answer(pixels, QUESTIONS, keep_ratio=0.5)


def test_backbone_of_another_codebook_is_refused() -> None:
    one, other = tiny_lvlm(codebook_seed=0), tiny_lvlm(codebook_seed=1)
    with pytest.raises(CodebookMismatchError) as caught:
        LVLM(one.visual, other.backbone, "mixed")
    for model in (one, other):
        assert model.visual.codebook.fingerprint in str(caught.value)


def test_chat_template_backbone_answers(pixels: torch.Tensor) -> None:
    lvlm = tiny_lvlm("qwen2", prompt="chat-template")
    assert lvlm.answer(pixels, QUESTIONS, max_new_tokens=3) == [
        lvlm.answer(pixels[i : i + 1], [QUESTIONS[i]], max_new_tokens=3)[0] for i in range(3)
    ]


def test_splice_takes_any_number_of_images(lvlm: LVLM, pixels: torch.Tensor) -> None:
    backbone = lvlm.backbone
    images = backbone.read(lvlm.encode(pixels))
    text = torch.tensor([1, 5, 6])
    spliced = backbone.splice([[text, images[0], text, images[1]], [text], [images[2]]])
    assert spliced["attention_mask"].sum(1).tolist() == [38, 3, 16]
    assert torch.equal(spliced["inputs_embeds"][0, 22:38], images[1])


def test_token_ids_are_made_once_per_question_and_format():
    backbone = tiny_lvlm().backbone
    made, calls = backbone.tokenizer, []

    class Counting(type(made)):
        def __call__(self, text, **settings):
            calls.append(text)
            return super().__call__(text, **settings)

    backbone.tokenizer = copy.copy(made)
    backbone.tokenizer.__class__ = Counting
    asked = [("What is it?", "a bag", True), ("What is it?", None, True), ("What is it?", "a bag", False)]
    found = [backbone.tokenized(*one) for one in asked]
    assert found == [build_prompt(backbone.prompt, made, *one) for one in asked]
    count = len(calls)
    assert count and found == [backbone.tokenized(*one) for one in asked] and len(calls) == count
    backbone.prompt = "vila-u"
    assert backbone.tokenized(*asked[0]) == build_prompt("vila-u", made, *asked[0]) != found[0]


def test_llms_with_recurrent_layers_are_refused_before_any_work():
    with torch.device("meta"):
        llm = FalconH1ForCausalLM(FalconH1Config(vocab_size=300, hidden_size=32, num_hidden_layers=1))
    made = tiny_backbone()
    with pytest.raises(CheckpointError, match="falcon_h1"):
        Backbone(made.projector, llm, made.tokenizer, "plain", made.codebook_fingerprint)
