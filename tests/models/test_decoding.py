"""The fast ways of reading and answering give what the plain ones give: one prompt at a time, no cache."""

from dataclasses import replace

import pytest
import torch
from transformers import Gemma3ForCausalLM, MistralForCausalLM

from builders import alibi_llm, tiny_images, tiny_lvlm
from craft.core.errors import CraftError
from craft.models.decoding import generate_ids, option_ids, read, score, window_of, write
from craft.models.prompts import build_prompt

QUESTIONS = [
    "What is shown?",
    "Which of these is it?\nA. coat\nB. bag",
    "Name it.",
    "What?",
    "How many are there?",
]
IMAGE_OF = [0, 1, 0, 0, 1]
OPTIONS = ["coat", "bag", "pair of boots", "coat with a bag"]


def plain_ids(lvlm, tokens, row, count=5):
    """Greedy ids, one question, all of the sequence again for every token."""
    backbone, ids = lvlm.backbone, []
    image = tokens[IMAGE_OF[row] : IMAGE_OF[row] + 1]
    prompt = build_prompt(backbone.prompt, backbone.tokenizer, QUESTIONS[row])
    for _ in range(count):
        parts, _ = backbone.segments([replace(prompt, answer=ids)], image)
        token = int(backbone.logits(backbone.splice(parts))[0, -1].argmax())
        if token in backbone.end_ids():
            break
        ids = [*ids, token]
    return ids


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_an_image_read_once_answers_all_its_questions(kind):
    lvlm = tiny_lvlm(kind)
    tokens = lvlm.encode(tiny_images(2))
    reading = read(lvlm.backbone, tokens, QUESTIONS, IMAGE_OF)
    ids, margins = write(lvlm.backbone, reading, 5)
    assert ids == [plain_ids(lvlm, tokens, row) for row in range(5)]
    apart = read(lvlm.backbone, tokens[0:1], QUESTIONS[:1])
    torch.testing.assert_close(reading.logits[:1], apart.logits)
    assert all(0 < margin <= 2 for margin in margins)


def test_the_image_is_really_read_once(monkeypatch):
    lvlm = tiny_lvlm()
    widths = []
    base = lvlm.backbone.llm.model
    base.register_forward_pre_hook(
        lambda m, args, kwargs: widths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    tokens = lvlm.encode(tiny_images(2))
    read(lvlm.backbone, tokens, QUESTIONS, IMAGE_OF)
    assert widths[0] == (2, 17) and widths[1][0] == 5  # BOS and 16 tokens, twice; then five questions
    widths.clear()
    read(lvlm.backbone, lvlm.encode(tiny_images(5)), QUESTIONS, range(5))
    assert len(widths) == 1  # nothing to share


@pytest.mark.parametrize("keep_positions", [False, True])
def test_reading_once_honours_pruned_images(keep_positions):
    """Rows that keep different numbers of tokens, and positions with gaps."""
    lvlm = tiny_lvlm()
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, ::3] = False
    tokens = replace(lvlm.encode(tiny_images(2)), attention_mask=mask)
    together = read(lvlm.backbone, tokens, QUESTIONS, IMAGE_OF, keep_positions)
    for row, image in enumerate(IMAGE_OF):
        alone = read(lvlm.backbone, tokens[image : image + 1], QUESTIONS[row : row + 1], None, keep_positions)
        torch.testing.assert_close(together.logits[row : row + 1], alone.logits)
        assert torch.equal(together.last[row], alone.last[0])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("shared", [False, True])
def test_scores_are_the_log_probabilities_of_the_answers(kind, shared):
    """Against teacher forcing: every option alone behind its prompt, in full."""
    lvlm = tiny_lvlm(kind)
    backbone, tokens = lvlm.backbone, lvlm.encode(tiny_images(2))
    options = [OPTIONS, OPTIONS[:2], [], OPTIONS[::-1], OPTIONS[1:]]
    ids = [option_ids(backbone, q, some) for q, some in zip(QUESTIONS, options, strict=True)]
    if shared:
        reading = read(backbone, tokens, QUESTIONS, IMAGE_OF)
        write(backbone, reading, 3)  # what was generated is not in the way
        scores = score(backbone, reading, ids)
    else:
        scores = [
            score(backbone, read(backbone, tokens[i : i + 1], [q]), [some])[0]
            for q, i, some in zip(QUESTIONS, IMAGE_OF, ids, strict=True)
        ]
    for row, some in enumerate(options):
        assert len(scores[row]) == len(some)
        for option, found in zip(some, scores[row], strict=True):
            inputs = backbone.inputs(tokens[IMAGE_OF[row] : IMAGE_OF[row] + 1], [QUESTIONS[row]], [option])
            told = backbone.logits(inputs)[0, :-1].float().log_softmax(-1)
            labels = inputs["labels"][0, 1:]
            wanted = told[labels != -100].gather(1, labels[labels != -100][:, None]).sum()
            assert found == pytest.approx(float(wanted.detach()), abs=1e-4)


@pytest.mark.parametrize("kind", [Gemma3ForCausalLM, MistralForCausalLM])
def test_sliding_windows_slide_as_in_one_prompt_alone(kind):
    """Gemma 3: one layer sees 8 tokens, one all; Mistral: both see 8. Prompts have more."""
    torch.manual_seed(0)
    layers = {"layer_types": ["sliding_attention", "full_attention"]} if kind is Gemma3ForCausalLM else {}
    config = kind.config_class(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.2, sliding_window=8, **layers,
    )  # fmt: skip
    lvlm = tiny_lvlm()
    backbone, tokens = lvlm.backbone, lvlm.encode(tiny_images(2))
    backbone.llm = kind(config).eval()
    assert window_of(backbone.llm) == 8 and window_of(tiny_lvlm().backbone.llm) is None
    as_in_one_prompt_alone(lvlm, tokens)


@pytest.mark.parametrize("kind", ["bloom", "mpt", "falcon"])
def test_llms_that_count_positions_themselves_count_as_in_one_prompt_alone(kind):
    lvlm = tiny_lvlm()
    backbone, tokens = lvlm.backbone, lvlm.encode(tiny_images(2))
    backbone.llm = alibi_llm(kind)
    assert backbone.counts_positions and not tiny_lvlm().backbone.counts_positions
    as_in_one_prompt_alone(lvlm, tokens)
    with pytest.raises(CraftError, match=f"type {kind} counts positions itself"):
        backbone.inputs(tokens, QUESTIONS[:2], keep_positions=True)


def as_in_one_prompt_alone(lvlm, tokens):
    """Reading, writing and scoring of all questions together do what each question does by itself."""
    backbone = lvlm.backbone
    reading = read(backbone, tokens, QUESTIONS, IMAGE_OF)
    ids = [option_ids(backbone, question, OPTIONS) for question in QUESTIONS]
    written = write(backbone, reading, 3)[0]
    scores = score(backbone, reading, ids)  # what was written is not in the way
    for row, (question, image) in enumerate(zip(QUESTIONS, IMAGE_OF, strict=True)):
        alone = read(backbone, tokens[image : image + 1], [question])
        torch.testing.assert_close(reading.logits[row : row + 1], alone.logits)
        assert written[row] == plain_ids(lvlm, tokens, row, 3)
        for option, found in zip(OPTIONS, scores[row], strict=True):
            inputs = backbone.inputs(tokens[image : image + 1], [question], [option])
            told = backbone.logits(inputs)[0, :-1].float().log_softmax(-1)
            labels = inputs["labels"][0, 1:]
            wanted = told[labels != -100].gather(1, labels[labels != -100][:, None]).sum()
            assert found == pytest.approx(float(wanted.detach()), abs=1e-4)


def test_letters_need_no_pass_of_their_own():
    lvlm = tiny_lvlm()
    words = [word[1:] for word in lvlm.backbone.tokenizer.get_vocab() if word.startswith("Ġ") and word[1:]][
        :3
    ]
    ids = option_ids(lvlm.backbone, "Which?", words)
    assert len(words) == 3 and all(
        len(one) == 1 for one in ids
    )  # one token as the tiny tokenizer writes them
    reading = read(lvlm.backbone, lvlm.encode(tiny_images(1)), ["Which?"])
    before = reading.cache.get_seq_length()
    scores = score(lvlm.backbone, reading, [ids])
    assert reading.cache.get_seq_length() == before
    told = reading.logits[0].log_softmax(-1)
    assert scores[0] == pytest.approx([float(told[one[0]]) for one in ids])


def test_options_end_with_the_end_token():
    backbone = tiny_lvlm().backbone
    assert all(ids[-1] in backbone.end_ids() for ids in option_ids(backbone, "Which?", OPTIONS))


def test_text_only_questions_are_read_too():
    backbone = tiny_lvlm().backbone
    ids, _ = write(backbone, read(backbone, None, QUESTIONS[:2]), 4)
    assert ids == generate_ids(backbone, backbone.inputs(None, QUESTIONS[:2]), 4)


def test_attention_without_masks_is_refused():
    backbone = tiny_lvlm().backbone
    reading = read(backbone, None, ["What?"])
    backbone.llm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(CraftError, match="flash_attention_2"):
        score(backbone, reading, [option_ids(backbone, "What?", OPTIONS, image=False)])
