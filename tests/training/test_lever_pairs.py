"""Levers in pairs: each alone is tested elsewhere; two of them in one step must not disturb each other.

A step of `fit` is compared with the plain one: its loss, and the gradient of every weight that trains.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import torch

from builders import tiny_lvlm
from craft.core.errors import ConfigError
from craft.formats.load import load
from craft.formats.native import save_native
from craft.lessons.adapt import adaptation
from craft.lessons.retention import base_features
from craft.training.config import AdaptConfig
from craft.training.fit import fit
from craft.training.run_folder import RunFolder
from training.test_levers import same, samples_with

PLAIN = {
    "max_steps": 1,
    "batch_size": 6,
    "device": "cpu",
    "blend": 1.0,
    "augment": 0.0,
    "losses.contrastive.weight": 0.0,
    "losses.retention.weight": 0.0,
}

SAME = {
    "workers": {"workers": 1},
    "cache_mib": {"cache_mib": 0},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing=selective": {"gradient_checkpointing": "selective"},
    "micro_batch": {"micro_batch": 4},
    "micro_batch=auto": {"micro_batch": "auto"},
    "search": {"search": "auto"},
    "questions_per_image": {"questions_per_image": 3, "batch_size": 2},
    "compile": {"compile": True},
}
"""Levers that leave the result as it is. Two images of three questions make all six."""

CHANGING = {
    "trainable=all": {"trainable": "all"},
    "trainable=lora": {"trainable": "lora", "lora.rank": 2},
    "augment": {"augment": 1.0},
    "contrastive": {"losses.contrastive.weight": 1.0},
    "retention": {"losses.retention.weight": 3.0},
    "cumulative": {"losses.commitment.form": "cumulative"},
    "sum": {"losses.sal.reduction": "sum"},
    "cls_attention": {"cls_attention": "symmetric", "losses.contrastive.weight": 1.0},
    "llm_bits": {"llm_bits": 4},
}
"""Levers that change the result; with one from above, it is the result of the changing one alone."""

REFUSED = {("gradient_checkpointing", "compile"), ("gradient_checkpointing=selective", "compile")}
"""Pairs that exclude each other: the message names both."""

OTHERWISE = {
    ("contrastive", "questions_per_image"),  # one text for each image, not for each question
    ("cls_attention", "questions_per_image"),
    ("retention", "questions_per_image"),  # each image is mixed once, not once for each question
    ("augment", "questions_per_image"),  # all questions see one augmented picture
    ("sum", "questions_per_image"),  # the sum is over all answers about an image
}
"""Pairs whose result is documented to be another one (`AdaptConfig`, `LoopConfig`)."""


@pytest.fixture
def take_step(monkeypatch, tmp_path):
    """Settings -> loss and gradients of one step of `fit`.

    For the retention loss each image is mixed, and the base tower is another one: in the first step the tower
    is still the base tower, and the loss would be 0.
    """
    whole, gradients = tiny_lvlm(), {}
    # Answers of different lengths: micro-batches have different shares of the loss.
    samples = [replace(s, answer="a bag " * n) for n, s in enumerate(samples_with((3, 3)), start=1)]
    other = tiny_lvlm(seed=1).visual.vision_tower
    other.stem.load_state_dict(whole.visual.vision_tower.stem.state_dict())

    def keep(lvlm):
        named = lvlm.named_parameters()
        gradients.update({name: p.grad.clone() for name, p in named if p.requires_grad})

    def step(*levers):
        settings = {name: value for lever in levers for name, value in lever.items()}
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        config = AdaptConfig.build({}, {**PLAIN, **settings, "out": str(out)})
        run = RunFolder(out)
        run.open(config)
        gradients.clear()
        fit(model(config), samples, config, run, make_lesson=adaptation)
        return torch.tensor(run.metrics()[0]["loss"]), dict(gradients)

    def model(config):
        if config.llm_bits is None:
            return deepcopy(whole)
        save_native(tmp_path / "family", "llama", whole, dtype="float32")
        return load(tmp_path / "family" / "llama", "cpu", llm_bits=config.llm_bits)

    monkeypatch.setattr("craft.training.fit.check_gradients", keep)
    monkeypatch.setattr("craft.lessons.adapt.base_features", lambda _, stem: base_features(other, stem))
    for module in ("retention", "objective"):
        monkeypatch.setattr(f"craft.lessons.{module}.MIXED", 1.0)
    # Slow, and nothing that is compared: processes (tests/training/test_image_cache.py has real ones), memory
    # that is given back, and bytes that are on the disk for certain.
    monkeypatch.setattr("craft.lessons.batches.decoders", ThreadPoolExecutor)
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection: None)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return step


def differs(one, other):
    """How two steps differ in what trains, in loss or in gradients; "" if they do not."""
    if one[1].keys() != other[1].keys():
        return "other weights train"
    try:
        same(one, other)
    except AssertionError as difference:
        return str(difference)
    return ""


def faults(step, pairs, plain):
    """What is wrong with pairs of levers, by their names.

    Args:
        step: takes one.
        pairs: names of levers, the second one from `SAME`.
        plain: the first lever's name -> the step to compare with.
    """
    wrong = {}
    for first, second in pairs:
        levers = SAME.get(first) or CHANGING[first], SAME[second]
        if (first, second) in REFUSED:
            with pytest.raises(ConfigError) as refusal:
                step(*levers)
            names = {name.partition("=")[0] for name in (first, second)}
            fault = "" if all(name in str(refusal.value) for name in names) else "the message names not both"
        else:
            fault = differs(plain(first), step(*levers))
            if (first, second) in OTHERWISE:
                fault = "" if fault else "is documented to differ"
        if fault:
            wrong[first, second] = fault
    return wrong


def available():
    """The changing levers that can be used here."""
    return [name for name in CHANGING if name != "llm_bits" or find_spec("bitsandbytes")]


def test_levers_that_leave_the_result_do_so_in_pairs(take_step):
    plain = take_step()
    pairs = [pair for pair in combinations(SAME, 2) if "compile" not in pair or pair in REFUSED]
    assert faults(take_step, pairs, lambda first: plain) == {}


def test_levers_that_leave_the_result_leave_that_of_the_others(take_step):
    plain, changed = take_step(), {name: take_step(CHANGING[name]) for name in available()}
    assert [name for name, one in changed.items() if not differs(plain, one)] == []
    pairs = [(name, other) for name in changed for other in SAME if other != "compile"]
    assert faults(take_step, pairs, changed.get) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_in_pairs(take_step, monkeypatch):
    """In a process of its own: checks of types at run time cannot be compiled.

    The warning that is ignored is torch's about its own code.
    """
    if os.environ.get("CRAFT_TYPECHECK") != "0":
        me = f"{__file__}::test_compiled_layers_in_pairs"
        again = subprocess.run(
            [sys.executable, "-m", "pytest", me],
            env=os.environ | {"CRAFT_TYPECHECK": "0"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert again.returncode == 0, again.stdout
        return
    counters, compile_layer = torch._dynamo.utils.counters, torch.nn.Module.compile

    def compiled(layer):
        compile_layer(layer, backend="eager")  # captured and guarded, but nothing to build

    def step(*levers):
        torch._dynamo.reset()
        counters.clear()
        result = take_step(*levers)
        assert (counters["frames"]["ok"] > 0) == any("compile" in lever for lever in levers)
        return result

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    pairs = [(name, "compile") for name in (*SAME, *available()) if name != "compile"]
    pairs = [pair for pair in pairs if pair not in REFUSED]
    assert faults(step, pairs, lambda first: step(CHANGING.get(first, {}))) == {}
