"""`micro_batch=auto`: what fits is tried out, with an allocator that really refuses."""

import sys
from functools import partial

import pytest
import torch

import together as workers
from builders import tiny_lvlm
from craft.core.errors import TrainingError
from craft.lessons.adapt import adaptation
from craft.lessons.batches import ImageBatches
from craft.lessons.rehearsal import rehearse_step
from craft.training.config import AdaptConfig
from craft.training.fit import fit
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


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path, monkeypatch):
    def broken(self, indices, step):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ImageBatches, "make", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(tmp_path / "run")
