"""What a run leaves when it is killed or a disk is full, and of an optimiser that processes share."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch
from accelerate.tracking import GeneralTracker

from builders import tiny_lvlm
from craft.core.errors import ConfigError, DataError
from craft.lessons.batches import ImageBatches
from craft.training import checkpoint
from craft.training.config import AdaptConfig
from craft.training.engine import Engine
from craft.training.lesson import Objective
from training.test_fit import FAST, losses, tower_hash, train


class Kept(GeneralTracker):
    """A tracker that remembers what it is given."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.lines, self.finished = {}, [], 0

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_):
        self.lines.append({"step": step, **values})

    def finish(self):
        self.finished += 1


def test_trackers_get_the_lines_of_metrics_and_are_closed_after_a_failure_too(tmp_path, monkeypatch):
    make, tracker = ImageBatches.make, Kept()
    monkeypatch.setattr("craft.training.engine._trackers", lambda names: [tracker])
    _, run, _ = train(tmp_path / "run", {"trackers": "[wandb]", "max_steps": 2})
    assert tracker.lines == run.metrics() and tracker.config["seed"] == "0" and tracker.finished == 1

    def gone(self, indices, step):
        if step == 1:
            raise DataError("the picture has gone")
        return make(self, indices, step)

    monkeypatch.setattr(ImageBatches, "make", gone)
    with pytest.raises(DataError):
        train(tmp_path / "failed", {"trackers": "[wandb]", "max_steps": 2})
    assert tracker.finished == 2


@pytest.mark.parametrize("main", [True, False])
def test_one_process_alone_puts_a_sharded_optimiser_together(tmp_path, monkeypatch, main):
    """All moments of a large LLM at once would not fit onto each device that shares them."""
    held, most = [], []

    class Shard:
        def full_tensor(self):
            held.append(self)
            most.append(len(held))
            return self

        def to(self, device):
            assert device == "cpu"
            held.clear()
            return torch.ones(6)

    class Idle(Objective):
        def forward(self, batch):
            raise AssertionError("this test takes no step")

    engine = Engine(AdaptConfig.build(FAST), tmp_path)
    engine.sharded = True
    moments = {"exp_avg": Shard(), "exp_avg_sq": Shard()}
    engine.optimizer = SimpleNamespace(state_dict=lambda: {"state": {0: moments}, "param_groups": []})
    objective = Idle()
    objective.lvlm = tiny_lvlm().requires_grad_(False)
    objective.lvlm.register_parameter("learned", torch.nn.Parameter(torch.ones(2, 3)))
    engine._whole = objective
    monkeypatch.setattr("craft.training.engine.is_main", lambda: main)
    state = engine.optimizer_state()["state"]
    if main:
        assert most == [1, 1]
        assert {name: value.shape for name, value in state[0].items()} == dict.fromkeys(moments, (2, 3))
    else:
        assert state == {}


def test_killed_before_old_checkpoints_are_deleted(tmp_path, monkeypatch):
    """What is left of them, whole or in part, is deleted when the run goes on."""
    settings = {"checkpoint_every": 1, "keep_checkpoints": 1}
    folder = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patched:
        patched.setattr("craft.training.checkpoint.keep_newest", lambda *_: None)
        train(tmp_path / "run", settings)
    assert len(list(folder.glob("step-*"))) == 6

    def killed(path, **_):
        next(iter(sorted(path.iterdir()))).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("craft.core.files.shutil.rmtree", killed)
        train(tmp_path / "run", settings, resume=True)
    whole = {"state.json", "model.safetensors", "optimizer.safetensors"}
    assert all({file.name for file in path.iterdir()} == whole for path in folder.glob("step-*"))
    train(tmp_path / "run", settings, resume=True)
    assert [path.name for path in folder.iterdir()] == ["step-00000006"]


def test_a_full_disk_is_what_a_failed_run_tells(tmp_path, monkeypatch):
    save = checkpoint.save

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(*args):
        monkeypatch.setattr("os.fsync", full)  # from here on, for run.json too
        return save(*args)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", fill)
        with pytest.raises(
            ConfigError, match=r"model\.safetensors: No space left on device.*free some space"
        ):
            train(tmp_path / "run", {"checkpoint_every": 2})
    monkeypatch.undo()
    again, run, _ = train(tmp_path / "run", {"checkpoint_every": 2}, resume=True)
    whole, whole_run, _ = train(tmp_path / "whole")
    assert tower_hash(again) == tower_hash(whole) and losses(run) == losses(whole_run)
