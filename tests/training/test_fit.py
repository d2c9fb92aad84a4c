"""The real loop on a tiny model: it learns, it stops, it goes on, and it moves nothing that is frozen."""

import itertools
import json
import os
import shutil
import signal
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from builders import tiny_lvlm
from craft.core.errors import ConfigError, DataError, TrainingError
from craft.core.interrupt import Interrupted
from craft.core.tensors import hash_tensors
from craft.lessons import adapt as adapting
from craft.lessons.adapt import adaptation, settle
from craft.lessons.batches import ImageBatches
from craft.lessons.retention import BLEND_OF_FEW, RETENTION_OF_FEW
from craft.models.freezing import part_hashes
from craft.quantize import search
from craft.quantize.search import SEARCHES, Choice, choose, exact
from craft.recipes import adapt
from craft.training import checkpoint
from craft.training.checks import check_frozen, check_gradients, choose_trainable
from craft.training.config import AdaptConfig
from craft.training.engine import Engine
from craft.training.fit import fit
from craft.training.lesson import Settled
from craft.training.run_folder import RunFolder
from tiny_data import tiny_data

FAST = {
    "max_steps": 6,
    "batch_size": 4,
    "optimizer": {"learning_rate": 1e-3},
    "device": "cpu",
    "trainable": "all",
    "blend": 1.0,
    "losses": {"contrastive": {"weight": 1.0}, "commitment": {"weight": 0.1}},
}


def train(out, overrides=None, lvlm=None, resume=False, validate=None, data=None):
    lvlm = tiny_lvlm() if lvlm is None else lvlm
    config = AdaptConfig.build(FAST, {"out": str(out), **(overrides or {})})
    run = RunFolder(out)
    run.open(config, resume=resume)
    lesson = partial(adaptation, earlier=Settled.of(run.record))
    result = fit(
        lvlm, (data or tiny_data()).train, config, run, make_lesson=lesson, resume=resume, validate=validate
    )
    return lvlm, run, result


def tower_hash(lvlm):
    return hash_tensors({**lvlm.visual.vision_tower.state_dict(), "tau": lvlm.visual.log_temperature})


def losses(run):
    return [{k: v for k, v in line.items() if k != "samples_per_s"} for line in run.metrics()]


def test_overfits_eight_samples(tmp_path):
    settings = {
        "max_steps": 30,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "trainable": "layers",
        "losses.retention.weight": 0.0,
    }
    _, run, result = train(tmp_path / "run", settings)
    lines = run.metrics()
    assert len(lines) == result.steps == 30
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    # The LLM is random and frozen: the tower alone cannot do much.
    assert lines[-1]["sal"] < lines[0]["sal"] - 0.2
    assert lines[-1]["contrastive"] < 0.5 * lines[0]["contrastive"]
    assert lines[-1]["codes_changed"] > 0
    assert {"commitment", "distance", "lr", "samples_per_s"} <= set(lines[0])


def test_only_the_tower_moves(tmp_path):
    lvlm = tiny_lvlm()
    before = part_hashes(lvlm)
    lvlm.train()  # frozen is frozen whatever the mode
    _, run, _ = train(tmp_path / "run", lvlm=lvlm)
    after = part_hashes(lvlm)
    assert {part for part in before if before[part] != after[part]} == {"vision_tower"}
    assert run.record["hashes_before"] == before
    assert run.record["hashes_after"] == after


def test_layers_only_leaves_the_entrance(tmp_path):
    for tower, entrance in (("hybrid", "stem"), ("siglip", "embeddings")):
        lvlm = tiny_lvlm(tower=tower)
        module = getattr(lvlm.visual.vision_tower, entrance)
        before, all_before = hash_tensors(module.state_dict()), tower_hash(lvlm)
        train(tmp_path / tower, {"trainable": "layers"}, lvlm)
        assert hash_tensors(module.state_dict()) == before
        assert tower_hash(lvlm) != all_before


@pytest.mark.parametrize("trainable", ["all", "layers"])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, trainable):
    settings = {"trainable": trainable, "checkpoint_every": 2, "eval_every": 2, "max_grad_norm": 1.0}
    scores = {2: 0.5, 4: 0.1, 6: 0.9}

    def validate_until(limit):
        calls = iter(sorted(scores))

        def validate(lvlm):
            step = next(calls)
            if step == limit:
                os.kill(os.getpid(), signal.SIGTERM)
            return scores[step]

        return validate

    whole, whole_run, whole_result = train(tmp_path / "whole", settings, validate=validate_until(None))
    with pytest.raises(Interrupted, match=r"step 4 of 6.*--resume"):
        train(tmp_path / "broken", settings, validate=validate_until(4))
    record = json.loads((tmp_path / "broken" / "run.json").read_text())
    assert (record["status"], record["interrupted_at"]) == ("interrupted", 4)
    again, run, result = train(tmp_path / "broken", settings, resume=True, validate=lambda _: scores[6])
    assert tower_hash(again) == tower_hash(whole)
    assert losses(run) == losses(whole_run)
    assert (result.best_step, result.best_validation) == (whole_result.best_step, 0.9) == (6, 0.9)


def test_the_minutes_of_a_resumed_run_are_those_of_all_its_parts(tmp_path, monkeypatch):
    ticks, passed = itertools.count(), [0.0]
    clock = SimpleNamespace(monotonic=lambda: passed[0] + 1e-6 * next(ticks))
    monkeypatch.setattr(sys.modules["craft.training.fit"], "time", clock)

    def two_minutes_then_stop(lvlm):
        passed[0] += 120
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.5

    def three_minutes(lvlm):
        passed[0] += 180
        return 0.4

    with pytest.raises(Interrupted):
        train(tmp_path / "run", {"eval_every": 4}, validate=two_minutes_then_stop)
    passed[0] += 3600  # nobody trains
    _, run, result = train(tmp_path / "run", {"eval_every": 4}, resume=True, validate=three_minutes)
    assert result.minutes == run.record["training_minutes"] == 5
    again = train(tmp_path / "run", {"eval_every": 4}, resume=True)[2]  # killed behind its last step, say
    assert again.minutes == 5


def test_deepspeed_is_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"DeepSpeed is not offered: use FSDP2 \(configs/fsdp2\.yaml\)"):
        adapt("./no model", "apparel", device="cpu")


def test_resumed_after_a_crash_between_checkpoints(tmp_path):
    settings = {"checkpoint_every": 2}
    whole, whole_run, _ = train(tmp_path / "whole", settings)
    _, run, _ = train(tmp_path / "crashed", settings)
    last = sorted((tmp_path / "crashed" / "checkpoints").glob("step-*"))
    assert [path.name for path in last] == ["step-00000004", "step-00000006"]  # the newest two
    for file in last[-1].iterdir():
        assert file.suffix in (".safetensors", ".json")
        file.unlink()
    last[-1].rmdir()
    again, run, _ = train(tmp_path / "crashed", settings, resume=True)
    assert tower_hash(again) == tower_hash(whole)
    assert losses(run) == losses(whole_run)


def test_a_resumed_run_keeps_the_search_that_auto_chose(tmp_path, monkeypatch):
    settings = {"search": "auto", "checkpoint_every": 2}

    def interrupted(out, chosen):
        """A run that stopped at step 4 on a machine where auto took `chosen`."""
        with monkeypatch.context() as there, pytest.raises(KeyboardInterrupt):
            there.setattr(search, "choose", lambda tables: Choice(chosen, "another machine"))
            train(out, settings | {"eval_every": 4}, validate=stop)

    def stop(lvlm):
        raise KeyboardInterrupt

    used = []
    monkeypatch.setitem(SEARCHES, "fused", lambda x, tables: used.append(len(x)) or exact(x, tables))
    interrupted(tmp_path / "run", "fused")
    assert choose(tiny_lvlm().visual.codebook).name == "exact"  # what auto takes here
    used.clear()
    with monkeypatch.context() as a_gpu:
        a_gpu.setattr(search, "obstacle", lambda name, tables: None)
        a_gpu.setattr(adapting, "obstacle", lambda name, tables: None)
        _, run, _ = train(tmp_path / "run", settings | {"eval_every": 4}, resume=True, validate=lambda _: 0.5)
    assert used and run.record["search"] == {"name": "fused", "why": "another machine"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["search"]["name"] == "fused"

    samples = tiny_data().train
    fused = Settled(Choice("fused", "a GPU"), 1.0, 0.0)
    config = AdaptConfig.build(FAST, settings)
    with pytest.raises(ConfigError, match=r"auto chose fused .*kernel for CUDA.*--overwrite"):
        settle(tiny_lvlm(), samples, config, fused)
    removed = Settled(Choice("gram", "an older version"), 1.0, 0.0)
    with pytest.raises(ConfigError, match=r"auto chose gram .* was removed: .*exact.*--overwrite"):
        settle(tiny_lvlm(), samples, config, removed)
    set_by_hand = config.model_copy(update={"search": "exact"})
    assert settle(tiny_lvlm(), samples, set_by_hand, fused).search.name == "exact"


def test_a_run_that_began_before_the_retention_loss_goes_on_without():
    config, samples = AdaptConfig.build(FAST, {"blend": None}), tiny_data().train
    begun = {"search": {"name": "exact", "why": "as set"}}
    assert config.losses.retention.weight is None
    without = settle(tiny_lvlm(), samples, config, Settled.of(begun))
    assert (without.retention, without.blend) == (0.0, BLEND_OF_FEW)
    for record in ({}, {**begun, "retention": 3.0}):  # it begins now; it has the loss
        settled = settle(tiny_lvlm(), samples, config, Settled.of(record))
        assert (settled.retention, settled.blend) == (RETENTION_OF_FEW, 1.0)


def test_what_was_settled_survives_the_record():
    settled = Settled(Choice("exact", "as set"), 0.3, None)
    assert Settled.of(settled.to_record()) == settled and "retention" not in settled.to_record()
    assert Settled.of({"status": "running"}) is None


def test_a_search_that_cannot_run_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="search=fused is a kernel for CUDA"):
        train(tmp_path / "run", {"search": "fused"})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_resume_refuses_other_weights_and_settings(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"other settings: optimizer\.learning_rate was 0\.001 and is 0\.1"):
        train(tmp_path / "run", {"learning_rate": 0.1}, resume=True)
    with pytest.raises(ConfigError, match="not those"):
        train(tmp_path / "run", lvlm=tiny_lvlm(seed=5), resume=True)


def test_run_folder_is_not_overwritten(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run"):
        train(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a run folder"):
        train(tmp_path / "mine")
    config = AdaptConfig.build(FAST)
    (tmp_path / "run" / "notes.txt").write_text("keep me")
    RunFolder(tmp_path / "run").open(config, overwrite=True)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"notes.txt", "run.json", "config.resolved.yaml"}


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    whole, whole_run, _ = train(tmp_path / "whole", {"checkpoint_every": 2})
    run = tmp_path / "run"
    (run / ".config.resolved.yaml.123-0a1b2c3d.tmp").mkdir(parents=True)  # killed in its first second
    train(run, {"checkpoint_every": 2, "max_steps": 6})
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    half = run / "checkpoints" / ".step-00000006.123-0a1b2c3d.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (run / ".run.json.123-0a1b2c3d.tmp").write_text("{")
    with open(run / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 7, "lo')
    again, resumed, _ = train(run, {"checkpoint_every": 2}, resume=True)
    assert tower_hash(again) == tower_hash(whole) and losses(resumed) == losses(whole_run)
    assert not [path.name for path in run.rglob(".*")]


def test_killed_before_the_first_checkpoint(tmp_path):
    whole, whole_run, _ = train(tmp_path / "whole")
    _, run, _ = train(tmp_path / "run")
    shutil.rmtree(run.checkpoints)
    again, resumed, _ = train(tmp_path / "run", resume=True)
    assert tower_hash(again) == tower_hash(whole) and losses(resumed) == losses(whole_run)


def test_killed_while_an_old_run_was_replaced(tmp_path):
    train(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "status": "starting"}))
    (tmp_path / "run" / "config.resolved.yaml").unlink()
    _, run, _ = train(tmp_path / "run", {"max_steps": 2})  # neither resumed nor refused
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_trackers(tmp_path):
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(tmp_path / "none", {"trackers": ("wandb",)})
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run, _ = train(tmp_path / "run", {"trackers": "[tensorboard]", "max_steps": 3})
    (events,) = (tmp_path / "run" / "trackers").rglob("events.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    logged = [(event.step, event.value) for event in read.Scalars("loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"])) for line in run.metrics()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_equal_one_batch(tmp_path, reduction):
    settings = {"losses.contrastive.weight": 0.0, "losses.sal.reduction": reduction, "max_steps": 1}
    settings["batch_size"] = 5
    one, one_run, _ = train(tmp_path / "one", settings)
    two, two_run, _ = train(tmp_path / "two", {**settings, "micro_batch": 2})  # of 1, 2 and 2
    for name in ("loss", "sal", "commitment", "distance"):
        assert one_run.metrics()[0][name] == pytest.approx(two_run.metrics()[0][name], rel=1e-5)
    pairs = zip(one.visual.vision_tower.parameters(), two.visual.vision_tower.parameters(), strict=True)
    distance = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    # Adam's first step is the gradient's sign times the rate, and the gradient of a few is rounding noise.
    assert (distance < 1e-5).float().mean() > 0.98


@pytest.mark.parametrize("what", [True, "selective"])
def test_gradient_checkpointing_changes_no_bit(tmp_path, what):
    plain, plain_run, _ = train(tmp_path / "plain")
    again, run, _ = train(tmp_path / "again", {"gradient_checkpointing": what})
    assert run.record["gradient_checkpointing"] == what
    assert tower_hash(again) == tower_hash(plain)
    assert losses(run) == losses(plain_run)


def test_keeps_so_many_checkpoints(tmp_path):
    train(tmp_path / "run", {"checkpoint_every": 1, "keep_checkpoints": 3})
    names = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert names == ["step-00000004", "step-00000005", "step-00000006"]


def test_a_failed_run_says_why_and_can_go_on(tmp_path, monkeypatch):
    make = ImageBatches.make

    def fail_at_step_4(self, indices, step):
        if step == 3:
            raise DataError("the picture has gone")
        return make(self, indices, step)

    with monkeypatch.context() as patched, pytest.raises(DataError):
        patched.setattr(ImageBatches, "make", fail_at_step_4)
        train(tmp_path / "run", {"checkpoint_every": 2})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "DataError: the picture has gone")
    again, run, _ = train(tmp_path / "run", {"checkpoint_every": 2}, resume=True)
    whole, whole_run, _ = train(tmp_path / "whole")
    assert tower_hash(again) == tower_hash(whole) and losses(run) == losses(whole_run)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "running" and "reason" not in record  # the recipe says that it is finished


def test_a_loss_that_is_not_finite_names_its_batch(tmp_path):
    lvlm = tiny_lvlm()
    with torch.no_grad():
        lvlm.visual.vision_tower.cls_token.fill_(float("nan"))
    data = tiny_data()
    with pytest.raises(
        TrainingError, match=r"step 1 .*contrastive is not finite.*The batch: .*-\d"
    ) as caught:
        train(tmp_path / "run", lvlm=lvlm, data=data)
    assert sum(sample.id in str(caught.value) for sample in data.train) >= 4
    assert not (tmp_path / "run" / "encoder").exists()


@pytest.mark.parametrize("bad", [4, 6])
def test_weights_that_are_not_finite_are_neither_scored_nor_written(tmp_path, monkeypatch, bad):
    """The loss is finite and its gradient is not: in a step with a checkpoint, and in the last one."""
    step, done, scored = Engine.step, [], []

    def broken(self):
        done.append(self)
        if len(done) == bad:
            next(p for p in self.model.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")
        step(self)

    def validate(lvlm):
        scored.append(len(done))
        return 1.0

    settings = {"checkpoint_every": 2, "eval_every": 2}
    with monkeypatch.context() as patched, pytest.raises(TrainingError, match=f"In step {bad} the loss was"):
        patched.setattr(Engine, "step", broken)
        train(tmp_path / "run", settings, validate=validate)
    assert scored == list(range(2, bad, 2))
    newest = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    assert newest.step == bad - 2 and all(value.isfinite().all() for value in newest.weights.values())
    with monkeypatch.context() as patched, pytest.raises(TrainingError, match=f"In step {bad} the loss was"):
        patched.setattr(Engine, "step", broken)
        done.clear()
        train(tmp_path / "bare", {"checkpoint_every": 2})


def test_keeps_the_earliest_best(tmp_path):
    seen = []

    def validate(lvlm):
        seen.append(tower_hash(lvlm))
        return [0.5, 0.5, 0.2][len(seen) - 1]

    lvlm, run, result = train(tmp_path / "run", {"eval_every": 2}, validate=validate)
    assert (result.best_step, result.best_validation) == (2, 0.5)
    assert tower_hash(lvlm) == seen[0] != seen[1]
    assert [line.get("validation") for line in run.metrics()][1::2] == [0.5, 0.5, 0.2]


def test_the_best_weights_are_none_of_a_step_that_was_lost(tmp_path, monkeypatch):
    """Step 4 was the best, and the run was killed before its checkpoint; done again, step 4 is not so good,
    as may be on a GPU, or with another number of processes."""
    save, seen, scores = checkpoint.save, [], [0.5, 0.9, 0.4, 0.3]

    def validate(lvlm):
        seen.append(tower_hash(lvlm))
        return scores[len(seen) - 1]

    def killed(folder, step, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        return save(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", killed)
    settings = {"eval_every": 2, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", settings, validate=validate)
    lvlm, run, result = train(tmp_path / "run", settings, resume=True, validate=validate)
    assert (result.best_step, result.best_validation) == (2, 0.5)
    assert tower_hash(lvlm) == seen[0]
    assert [path.name for path in run.checkpoints.glob("best*")] == ["best-00000002.safetensors"]


def test_a_run_of_version_0_1_0_goes_on(tmp_path):
    """Its best weights have no step in their name."""
    settings, steps = {"eval_every": 2, "checkpoint_every": 2}, [0.5, 0.2, 0.1]
    whole, run, _ = train(tmp_path / "run", settings, validate=lambda _: steps.pop(0))
    (run.checkpoints / "best-00000002.safetensors").rename(run.checkpoints / "best.safetensors")
    again, _, result = train(tmp_path / "run", settings, resume=True)
    assert result.best_step == 2 and tower_hash(again) == tower_hash(whole)


def test_blend_lies_between_base_and_trained(tmp_path):
    base, (full, _, _) = tiny_lvlm(), train(tmp_path / "full")
    half, _, _ = train(tmp_path / "half", {"blend": 0.5})
    name = "layers.0.mlp.fc1.weight"
    a, b, c = (m.visual.vision_tower.state_dict()[name] for m in (base, full, half))
    torch.testing.assert_close(c, (a + b) / 2)


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_what_is_scored_is_what_is_kept(tmp_path, trainable):
    """Blended; and training goes on from what it had reached, as if nobody had looked."""
    settings = {"blend": 0.5, "trainable": trainable}
    prompts, scored = tiny_data().train[:4], []

    def validate(lvlm):
        scored.append(lvlm.encode([sample.image for sample in prompts]).features)
        return float(len(scored))  # the last is the best

    lvlm, run, _ = train(tmp_path / "run", {**settings, "eval_every": 3}, validate=validate)
    torch.testing.assert_close(scored[-1], lvlm.encode([sample.image for sample in prompts]).features)
    unseen, other, _ = train(tmp_path / "other", settings)
    assert tower_hash(lvlm) == tower_hash(unseen)
    assert [line["loss"] for line in run.metrics()] == [line["loss"] for line in other.metrics()]


def test_gradient_checks_name_the_part():
    lvlm = tiny_lvlm()
    choose_trainable(lvlm, AdaptConfig(), 1.0)
    with pytest.raises(
        TrainingError, match=r"No gradient reached visual\.log_temperature|No gradient reached"
    ):
        check_gradients(lvlm)
    for parameter in lvlm.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(TrainingError, match="whole vision tower is zero"):
        check_gradients(lvlm)
    stray = next(lvlm.backbone.llm.parameters())
    lvlm.visual.vision_tower.layers[0].mlp.fc1.weight.grad.fill_(1)
    check_gradients(lvlm)
    stray.grad = torch.zeros_like(stray)
    with pytest.raises(TrainingError, match=r"backbone\.llm.*frozen"):
        check_gradients(lvlm)
    with pytest.raises(TrainingError, match="changed during training: llm"):
        check_frozen({"llm": "a", "vision_tower": "b"}, {"llm": "x", "vision_tower": "y"})


def test_float16_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="float16"):
        train(tmp_path / "run", {"dtype": "float16"})


def test_bfloat16_autocast_runs(tmp_path):
    _, run, _ = train(tmp_path / "run", {"dtype": "bfloat16", "max_steps": 2})
    assert all(0 < line["loss"] < 100 for line in run.metrics())
