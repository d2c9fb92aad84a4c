"""`micro_batch=auto`: what fits is tried out, with an allocator that really refuses."""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

import together as workers
from builders import tiny_lvlm
from craft.core.errors import TrainingError
from craft.lessons.adapt import adaptation
from craft.lessons.batches import ImageBatches
from craft.lessons.rehearsal import rehearse_step
from craft.lessons.retention import base_features
from craft.training.config import AdaptConfig
from craft.training.fit import fit
from craft.training.micro_batch import fitting
from craft.training.run_folder import RunFolder
from tiny_data import tiny_data

limited = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where a limit of memory holds")


@limited
def test_halves_until_it_fits():
    (size,) = workers.together(1, workers.fitting_into, 2.5, 8)
    assert size == 2
    (size,) = workers.together(1, workers.fitting_into, 100.0, 8)
    assert size == 8


@limited
def test_not_even_one():
    (error,) = workers.together(1, workers.fitting_into, 0.5, 8)
    assert isinstance(error, TrainingError) and "single sample" in str(error)


def run(out, resume=False, **settings):
    base = {"max_steps": 2, "batch_size": 6, "device": "cpu", "checkpoint_every": 1, "micro_batch": "auto"}
    config = AdaptConfig.build({**base, **settings}, {"out": str(out)})
    folder = RunFolder(out)
    folder.open(config, resume=resume)
    fit(tiny_lvlm(), tiny_data().train, config, folder, make_lesson=adaptation, resume=resume)
    return folder


@pytest.fixture
def tried(monkeypatch):
    """How many samples micro-batches were made of; more than three do not fit."""
    make, sizes = ImageBatches.make, []

    def too_large(self, indices, step):
        sizes.append(len(indices))
        if len(indices) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return make(self, indices, step)

    monkeypatch.setattr(ImageBatches, "make", too_large)
    return sizes


def test_a_dry_run_tries_what_fits_too(tried):
    config = AdaptConfig.build({"batch_size": 6, "device": "cpu", "micro_batch": "auto"})
    lesson, samples = partial(adaptation, task="classification"), tiny_data().train
    result = rehearse_step(tiny_lvlm(), samples, config, lesson)
    assert tried == [6, 3, 3] and result.parts["loss"] > 0
    three = rehearse_step(tiny_lvlm(), samples, config.model_copy(update={"micro_batch": 3}), lesson)
    assert (result.parts, result.memory) == (three.parts, three.memory)


def test_what_was_found_is_kept(tmp_path, tried):
    result = run(tmp_path / "run")
    assert result.record["micro_batch"] == 3
    assert tried == [6, 3] + [3, 3] * 2
    tried.clear()
    for file in (tmp_path / "run" / "checkpoints" / "step-00000002").iterdir():
        file.unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000002").rmdir()
    run(tmp_path / "run", resume=True)
    assert tried == [3, 3]  # nothing is tried again, and nothing else taken


@pytest.fixture
def one_step(monkeypatch, tmp_path):
    """Settings and samples -> the parts of the loss and the gradients of the first step of `fit`."""
    gradients, runs = {}, itertools.count()

    def keep(lvlm):
        gradients.update({n: p.grad.clone() for n, p in lvlm.named_parameters() if p.requires_grad})

    other = tiny_lvlm(seed=1).visual.vision_tower  # with the base tower itself the first loss is 0
    monkeypatch.setattr("craft.training.fit.check_gradients", keep)
    monkeypatch.setattr("craft.lessons.adapt.base_features", lambda _, stem: base_features(other, stem))

    def step(samples, lesson=adaptation, kind=AdaptConfig, **settings):
        out = tmp_path / f"run-{next(runs)}"
        base = {"max_steps": 1, "device": "cpu", "trainable": "all", "augment": 1.0, "out": str(out)}
        config = kind.build({**base, **settings})
        folder = RunFolder(out)
        folder.open(config)
        gradients.clear()
        fit(tiny_lvlm(), samples, config, folder, make_lesson=lesson)
        line = {n: v for n, v in folder.metrics()[0].items() if n not in ("samples_per_s", "codes_changed")}
        return line, dict(gradients)

    return step


def same_step(one, other):
    """Loss and gradient to 2e-6 of their size."""
    assert one[0] == pytest.approx(other[0], rel=2e-6)
    flat = [torch.cat([gradient.flatten() for gradient in step[1].values()]) for step in (one, other)]
    assert one[1].keys() == other[1].keys() and flat[0].norm() > 0
    assert (flat[0] - flat[1]).norm() <= 2e-6 * flat[1].norm()


def mixed_samples(count):
    """Images with a class and images with a question and no class, with answers of several lengths."""
    samples = tiny_data(train=count).train
    return [
        replace(sample, answer="a bag " * (1 + number % 3), **({} if number % 3 else {"label": None}))
        for number, sample in enumerate(samples)
    ]


ALL_TERMS = {
    "losses.contrastive.weight": 1.0,
    "losses.contrastive.temperature": 10.0,
    "losses.commitment.weight": 0.1,
    "losses.retention.weight": 3.0,
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch", [5, 12])
def test_no_term_depends_on_the_micro_batch(one_step, batch, reduction):
    samples = mixed_samples(12)
    settings = {**ALL_TERMS, "losses.sal.reduction": reduction, "batch_size": batch}
    whole = one_step(samples, **settings)
    assert all(whole[0][name] > 0 for name in ("sal", "commitment", "contrastive", "retention"))
    for size in range(1, batch + 1):
        same_step(one_step(samples, micro_batch=size, **settings), whole)


@pytest.mark.parametrize(
    "more",
    [
        {"questions_per_image": 2, "losses.sal.reduction": "sum"},
        {"questions_per_image": 3},
        {"cls_attention": "symmetric", "trainable": "layers"},
        {"losses.commitment.form": "cumulative", "losses.commitment.reduction": "mean"},
        {"losses.contrastive.weight": 0.1, "losses.retention.weight": 0.0},
        {"batch_size": 20},  # more than one epoch: an image is in the batch twice
    ],
    ids=str,
)
def test_nor_does_it_under_other_settings(one_step, more):
    samples = [
        replace(sample, id=f"{sample.id}-{n}", question=f"Number {n}?")
        for sample in mixed_samples(9)
        for n in range(3)
    ]
    settings = {**ALL_TERMS, "batch_size": 7, **more}
    whole = one_step(samples, **settings)
    for size in (1, 2, 5, "auto"):
        same_step(one_step(samples, micro_batch=size, **settings), whole)


def test_a_dry_run_shows_the_contrastive_loss_of_the_whole_texts():
    lesson, samples = partial(adaptation, task="classification"), tiny_data(train=12).train
    values = []
    for size in (None, 1):
        config = AdaptConfig.build({"batch_size": 12, "device": "cpu", "micro_batch": size, **ALL_TERMS})
        values.append(rehearse_step(tiny_lvlm(), samples, config, lesson).parts["contrastive"])
    assert values[1] > 0.3 * values[0]  # one image alone has no text to repel


def test_halves_once_more_if_a_later_step_does_not_fit(tmp_path, monkeypatch, capsys):
    """The step is repeated, with the result of the smaller size; a resumed run goes on with it."""
    make, calls = ImageBatches.make, []

    def too_large_later(self, indices, step):
        calls.append((step, len(indices)))
        if step == 2 and len(indices) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")
        return make(self, indices, step)

    fixed = run(tmp_path / "fixed", max_steps=4, micro_batch=3)
    monkeypatch.setattr(ImageBatches, "make", too_large_later)
    stepped = run(tmp_path / "run", max_steps=4)
    assert stepped.record["micro_batch"] == 1
    assert "no longer fit into memory at step 3; continuing with 3" in capsys.readouterr().err
    lines = [[line["loss"] for line in folder.metrics()] for folder in (fixed, stepped)]
    assert lines[0] == pytest.approx(lines[1], rel=1e-5)
    assert calls[-6:] == [(3, 1)] * 6
    notes = [
        json.loads((path / "state.json").read_text())["notes"]
        for path in sorted(stepped.checkpoints.iterdir())
    ]
    assert [note["micro_batch"] for note in notes] == [1, 1]


def test_a_given_size_is_kept_and_may_change_on_resume(tmp_path, monkeypatch):
    make = ImageBatches.make

    def too_large_later(self, indices, step):
        if step == 1 and len(indices) > 2:
            raise MemoryError
        return make(self, indices, step)

    whole = run(tmp_path / "whole", micro_batch=None)
    monkeypatch.setattr(ImageBatches, "make", too_large_later)
    with pytest.raises(MemoryError):
        run(tmp_path / "run", micro_batch=3)
    again = run(tmp_path / "run", resume=True, micro_batch=2)
    losses = [[line["loss"] for line in folder.metrics()] for folder in (whole, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 GiB for an array"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
    ],
    ids=repr,
)
def test_every_kind_of_full_memory_is_halved(error):
    def trial(size):
        if size > 2:
            raise error

    assert fitting(trial, 8) == 2


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path, monkeypatch):
    def broken(self, indices, step):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ImageBatches, "make", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(tmp_path / "run")
