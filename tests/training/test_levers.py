"""What makes a step of an adaptation cheaper changes neither its loss nor its gradients."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, MistralForCausalLM

from builders import alibi_llm, tiny_images, tiny_lvlm
from craft.core.errors import ConfigError
from craft.lessons.adapt import adaptation
from craft.lessons.batches import ImageBatches, image_groups
from craft.lessons.objective import answer_inputs
from craft.lessons.rehearsal import rehearse_step
from craft.models.layers import recompute
from craft.models.memory import kept_per_token
from craft.quantize import search
from craft.quantize.search import SEARCHES, Choice, exact, kept_bytes
from craft.training import micro_batch as memory
from craft.training.config import AdaptConfig
from craft.training.fit import fit
from craft.training.image_cache import ImageCache
from craft.training.run_folder import RunFolder
from tiny_data import tiny_data

FAST = {
    "max_steps": 2,
    "batch_size": 3,
    "device": "cpu",
    "trainable": "all",
    "blend": 1.0,
    "augment": 0.0,
    "losses": {"contrastive": {"weight": 0.0}},
}


def samples_with(questions=(3, 3, 3)):
    """Some questions about each of a few images."""
    samples = tiny_data().train[: len(questions)]
    return [
        replace(sample, id=f"{sample.id}-{n}", question=f"Number {n}: what is it?", answer=f"a bag {n}")
        for sample, count in zip(samples, questions, strict=True)
        for n in range(count)
    ]


def step(lvlm, samples, indices, again=False, **settings):
    """Loss and gradients of one batch."""
    config = AdaptConfig.build(FAST, settings)
    lesson = adaptation(lvlm, samples, config)
    batch = lesson.batches.make(indices, 0)
    with recompute(lvlm, again):
        loss, parts = lesson.objective(batch)
    gradients = torch.autograd.grad(loss, list(lesson.trained.values()), allow_unused=True)
    return loss.detach(), dict(zip(lesson.trained, gradients, strict=True)), parts


def same(one, other, rtol=1e-4):
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6)
    scale = max(float(g.abs().max()) for g in one[1].values() if g is not None)
    assert scale > 0
    for name, gradient in one[1].items():
        if gradient is None:
            assert other[1][name] is None
        else:
            torch.testing.assert_close(gradient, other[1][name], rtol=rtol, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("again", ["selective", True])
def test_checkpointed_layers_do_the_same(kind, per_image, again):
    lvlm, samples = tiny_lvlm(kind, prompt="chat-template"), samples_with((3, 2, 3))
    plain = step(lvlm, samples, [0, 1, 2], questions_per_image=per_image)
    same(plain, step(lvlm, samples, [0, 1, 2], again, questions_per_image=per_image))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_questions_about_one_image_share_it(attention):
    """The same loss and gradients as with one row per question: images have equally many."""
    lvlm, samples = tiny_lvlm(), samples_with((3, 3))
    lvlm.backbone.llm.set_attn_implementation(attention)
    apart = step(lvlm, samples, range(6))
    same(apart, step(lvlm, samples, [0, 1], questions_per_image=3))


@pytest.mark.parametrize("layers", [{"layer_types": ["sliding_attention", "full_attention"]}, {}])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sliding_window_slides_where_questions_share_an_image(layers, reduction):
    """Gemma 3: one layer sees 8 tokens, one all; Mistral: both see 8. Each dialogue has more."""
    torch.manual_seed(0)
    kind = Gemma3ForCausalLM if layers else MistralForCausalLM
    config = kind.config_class(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.2, sliding_window=8, **layers,
    )  # fmt: skip
    lvlm, samples = tiny_lvlm(prompt="chat-template"), samples_with((3, 3))
    lvlm.backbone.llm = kind(config).eval()
    how = {"losses.sal.reduction": reduction}
    apart = step(lvlm, samples, range(6), **how)
    packed = step(lvlm, samples, [0, 1], questions_per_image=3, **how)
    if reduction == "mean":
        same(apart, packed)
    else:  # of all answers about an image
        torch.testing.assert_close(3 * apart[2]["sal"], packed[2]["sal"])


@pytest.mark.parametrize("kind", ["bloom", "mpt", "falcon"])
def test_llms_that_count_positions_themselves_learn_from_questions_about_one_image(kind):
    lvlm, samples = tiny_lvlm(), samples_with((3, 3))
    lvlm.backbone.llm = alibi_llm(kind)
    apart = step(lvlm, samples, range(6))
    same(apart, step(lvlm, samples, [0, 1], questions_per_image=3))


def test_uneven_groups_keep_the_mean_over_answer_tokens():
    lvlm, samples = tiny_lvlm(), samples_with((1, 3, 2))
    apart, packed = (
        step(lvlm, samples, indices, questions_per_image=most)[2]
        for indices, most in ((range(6), 1), (range(3), 3))
    )
    torch.testing.assert_close(apart["sal"], packed["sal"], rtol=1e-5, atol=1e-6)


def test_groups():
    samples = samples_with((3, 1, 2))
    assert image_groups(samples, 1) == [(s,) for s in samples]
    assert [len(group) for group in image_groups(samples, 2)] == [2, 1, 1, 2]
    groups = image_groups(samples, 5)
    assert [len(group) for group in groups] == [3, 1, 2]
    assert [s.id for group in groups for s in group] == [s.id for s in samples]


def test_batch_size_counts_images(tmp_path):
    lvlm = tiny_lvlm()
    config = AdaptConfig.build(
        FAST, {"questions_per_image": 3, "max_steps": None, "out": str(tmp_path / "run")}
    )
    run = RunFolder(tmp_path / "run")
    run.open(config)
    assert fit(lvlm, samples_with((3, 3, 2, 2, 1, 3)), config, run, make_lesson=adaptation).steps == 2


@pytest.mark.parametrize("choice", ["fused", "auto"])
def test_the_search_of_a_run(monkeypatch, choice):
    """`fused` needs a GPU: here `exact` runs under its name."""
    lvlm, used = tiny_lvlm(), []
    monkeypatch.setattr(search, "obstacle", lambda name, tables: None)
    monkeypatch.setattr(search, "choose", lambda tables: Choice("fused", "another machine"))
    monkeypatch.setitem(SEARCHES, "fused", lambda x, tables: used.append(len(x)) or exact(x, tables))
    plain = step(lvlm, samples_with(), [0, 1])
    assert not used
    same(plain, step(lvlm, samples_with(), [0, 1], search=choice))
    settled = adaptation(lvlm, samples_with(), AdaptConfig.build(FAST, {"search": choice})).settled
    assert used and settled.search.name == "fused"


def test_auto_says_what_it_took_whatever_it_is(capsys):
    adaptation(tiny_lvlm(), samples_with(), AdaptConfig.build(FAST, {"search": "auto"}))
    assert "search: exact (cpu, K=32, d=16, 2 tables)" in capsys.readouterr().err
    adaptation(tiny_lvlm(), samples_with(), AdaptConfig.build(FAST))
    assert "search" not in capsys.readouterr().err


def test_what_a_search_keeps_is_estimated(monkeypatch):
    """`fused` needs a GPU: here `exact` runs under its name."""
    monkeypatch.setattr(search, "obstacle", lambda name, tables: None)
    monkeypatch.setitem(SEARCHES, "fused", exact)
    lvlm, config = tiny_lvlm(), AdaptConfig.build(FAST)
    plain = rehearsed(config, lvlm).memory
    fused = rehearsed(config.model_copy(update={"search": "fused"}), lvlm).memory
    assert fused["search"] - plain["search"] == fused["total"] - plain["total"]
    assert fused["search"] - plain["search"] == kept_bytes("fused", lvlm.visual.codebook) > 0


def test_a_search_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="kernel for CUDA"):
        step(tiny_lvlm(), samples_with(), [0, 1], search="fused")


def test_the_fused_optimiser_does_the_same(tmp_path):
    towers = []
    for fused in (False, True):
        lvlm = tiny_lvlm()
        config = AdaptConfig.build(FAST, {"optimizer.fused": fused, "out": str(tmp_path / str(fused))})
        run = RunFolder(config.out)
        run.open(config)
        fit(lvlm, samples_with(), config, run, make_lesson=adaptation)
        towers.append(torch.cat([p.detach().flatten() for p in lvlm.visual.vision_tower.parameters()]))
    torch.testing.assert_close(*towers, rtol=1e-4, atol=2e-5)  # a fifteenth of one step
    assert not torch.equal(
        towers[0], torch.cat([p.flatten() for p in tiny_lvlm().visual.vision_tower.parameters()])
    )


@pytest.mark.parametrize("again", [False, "selective", True])
def test_checkpointing_by_the_memory_there_is(tmp_path, monkeypatch, again):
    """The first of the three that fits; whole layers when nothing does."""
    needed = {}
    for lighter in (False, "selective"):
        config = AdaptConfig.build(FAST, {"gradient_checkpointing": lighter})
        parts = rehearsed(config).memory
        needed[lighter] = 1.3 * (parts["total"] - parts["weights"])
    assert needed["selective"] < needed[False]
    free = math.ceil(needed[again]) + 1 if again is not True else 1000
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    lvlm = tiny_lvlm()
    config = AdaptConfig.build(FAST, {"gradient_checkpointing": "auto", "out": str(tmp_path / "run")})
    run = RunFolder(config.out)
    run.open(config)
    fit(lvlm, samples_with(), config, run, make_lesson=adaptation)
    assert run.record["gradient_checkpointing"] == again
    fixed = config.model_copy(update={"gradient_checkpointing": again})
    assert rehearsed(config).memory == rehearsed(fixed).memory


def rehearsed(config, lvlm=None):
    lvlm = tiny_lvlm() if lvlm is None else lvlm
    return rehearse_step(lvlm, samples_with(), config, partial(adaptation, task="vqa"))


def test_tokens_of_a_sample_are_those_of_its_batch():
    samples = samples_with((3, 1))
    for most, index, window in ((1, 0, 0), (3, 0, 0), (3, 1, 0), (3, 0, 8), (3, 1, 8), (3, 0, 4096)):
        lvlm = tiny_lvlm()
        lvlm.backbone.llm.config.sliding_window = window  # beyond a short one each question has its own row
        config = AdaptConfig.build(FAST, {"questions_per_image": most})
        batches = ImageBatches(lvlm, samples, config, ImageCache(lvlm.visual, 2**20))
        batch = batches.make([index], 0)
        labels = answer_inputs(lvlm.backbone, lvlm.visual(tiny_images(1)), batch)["labels"]
        assert batches.tokens(index) == (*labels.shape, int((labels >= 0).sum()))
        assert batches.answer_tokens(batch) == batches.tokens(index)[2]


def test_questions_that_a_short_window_keeps_apart_take_the_memory_of_rows_apart():
    lvlm, config = tiny_lvlm(), AdaptConfig.build(FAST, {"questions_per_image": 3})
    shared = rehearsed(config, lvlm)
    lvlm.backbone.llm.config.sliding_window = 8
    apart = rehearsed(config, lvlm)
    alone = rehearsed(AdaptConfig.build(FAST, {"batch_size": 9}), lvlm)
    assert apart.tokens == alone.tokens < shared.tokens
    tower = lvlm.visual.vision_tower
    image = 4 * math.prod(lvlm.visual.grid) * kept_per_token(tower.siglip_config, len(tower.layers))
    # encoded once each: 3 images and a mixed one, not 9 and 3
    assert apart.memory["activations"] == alone.memory["activations"] - 8 * image
    assert apart.memory["activations"] > shared.memory["activations"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_stem_is_kept_in_main_memory():
    lvlm, samples = tiny_lvlm().to("cuda"), samples_with()
    config = AdaptConfig.build(FAST, {"trainable": "layers", "device": "cuda"})
    lesson = adaptation(lvlm, samples, config)
    assert lesson.images is not None and lesson.images.through_stem
    assert lesson.images.get(samples[:2]).device.type == "cpu"
    assert lesson.batches.make([0, 1], 0).images.device.type == "cuda"


def test_compile_and_checkpointing_exclude_each_other():
    with pytest.raises(ConfigError, match="set one of them to false"):
        adaptation(
            tiny_lvlm(),
            samples_with(),
            AdaptConfig.build(FAST, {"compile": True, "gradient_checkpointing": True}),
        )


COMPILED = """
import sys
from functools import partialmethod
import torch
from torch._dynamo.utils import counters
torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # no C++ to build
from builders import tiny_lvlm
from craft.lessons.adapt import adaptation
from training.test_levers import FAST, samples_with, same, step
from craft.training.config import AdaptConfig
from craft.training.run_folder import RunFolder
from craft.training.fit import fit
lvlm = tiny_lvlm(tower="siglip")
plain = step(lvlm, samples_with(), [0, 1])
assert not counters["frames"]["ok"]
compiled = step(lvlm, samples_with(), [0, 1], compile=True)
assert counters["frames"]["ok"] > 0, counters["frames"]
same(plain, compiled)
config = AdaptConfig.build(FAST, {"compile": True, "out": sys.argv[1]})
run = RunFolder(config.out)
run.open(config)
fit(lvlm, samples_with(), config, run, make_lesson=adaptation)
assert all(module._compiled_call_impl is None for module in lvlm.modules())
"""


@pytest.mark.slow
def test_compiled_layers_do_the_same(tmp_path):
    """In a process of its own: checks of types at run time are no code that can be compiled."""
    result = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path / "run")],
        env=os.environ | {"CRAFT_TYPECHECK": "0", "PYTHONPATH": os.pathsep.join(["src", "tests"])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
