"""Two processes over gloo are one process at the same global batch; and what happens when one fails."""

import json

import numpy as np
import pytest

import together as workers
from craft.core.errors import ConfigError, DataError, TrainingError
from craft.core.processes import ProcessLost
from together import together

# A batch of five: process 0 has three samples of a step and process 1 has two, of different answer lengths.
SETTINGS = {
    "max_steps": 4,
    "batch_size": 5,
    "optimizer": {"learning_rate": 1e-3, "max_grad_norm": 1.0},
    "device": "cpu",
    "trainable": "all",
    "blend": 1.0,
    "losses": {"contrastive": {"weight": 1.0}, "commitment": {"weight": 0.1}},
}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run with one process."""
    return workers.train(str(tmp_path_factory.mktemp("alone") / "run"), SETTINGS)


def same_training(one, other):
    """Losses of every step and the weights at the end agree as far as float32 lets them."""
    assert any(line["retention"] > 0 for line in other["lines"])
    assert [line["step"] for line in one["lines"]] == [line["step"] for line in other["lines"]]
    for line, expected in zip(one["lines"], other["lines"], strict=True):
        for name in ("loss", "sal", "commitment", "contrastive", "distance", "retention"):
            assert line[name] == pytest.approx(expected[name], rel=2e-4), (line["step"], name)
    for name, value in other["tower"].items():
        # Adam divides by the gradient's size: where that is rounding noise, so is the step.
        near = np.isclose(one["tower"][name], value, atol=2e-4)
        assert near.mean() > 0.98, name


@pytest.mark.parametrize("environment", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_are_one(tmp_path, alone, environment):
    first, second = together(2, workers.train, str(tmp_path / "run"), SETTINGS, **environment)
    assert isinstance(first, dict) and isinstance(second, dict), (first, second)
    same_training(first, alone)
    assert first["hashes"] == second["hashes"]
    for part in ("llm", "projector", "codebook", "text_encoder"):
        assert first["hashes"][part] == alone["hashes"][part]
    assert first["record"]["processes"] == second["record"]["processes"] == 2
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"run.json", "config.resolved.yaml", "metrics.jsonl", "checkpoints"}


@pytest.mark.parametrize(
    "environment", [{}, pytest.param(FSDP2, marks=pytest.mark.slow)], ids=["ddp", "fsdp2"]
)
def test_resumed_equals_unbroken(tmp_path, environment):
    settings = {**SETTINGS, "max_steps": 3, "checkpoint_every": 1, "micro_batch": 2}
    whole, _ = together(2, workers.train, str(tmp_path / "whole"), settings, **environment)
    together(2, workers.train, str(tmp_path / "broken"), settings, **environment)
    for file in (tmp_path / "broken" / "checkpoints" / "step-00000003").iterdir():
        file.unlink()  # killed before the last checkpoint
    (tmp_path / "broken" / "checkpoints" / "step-00000003").rmdir()
    again, _ = together(2, workers.train, str(tmp_path / "broken"), settings, True, **environment)
    assert again["lines"] == whole["lines"]
    assert again["hashes"] == whole["hashes"]


@pytest.mark.parametrize("size", [2, "auto"])
def test_micro_batches_of_two_processes_are_one_batch(tmp_path, alone, size):
    """Eq. 4 too, though each process and each micro-batch has a part of the images."""
    settings = {**SETTINGS, "micro_batch": size}
    first, second = together(2, workers.train, str(tmp_path / "run"), settings)
    assert isinstance(first, dict) and isinstance(second, dict), (first, second)
    same_training(first, alone)


@pytest.mark.parametrize("environment", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_a_failing_process_ends_all_with_the_reason(tmp_path, environment):
    first, second = together(2, workers.trouble, str(tmp_path / "run"), SETTINGS, "error", **environment)
    assert isinstance(second, DataError)
    assert isinstance(first, TrainingError) and not isinstance(first, ProcessLost)
    assert str(first).endswith("at step 2, so this one stops. process 1: the picture has gone")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed" and "the picture has gone" in record["reason"]


MORE = [{0: "before"}, {1: "between"}, {0: "between", 1: "before"}]


@pytest.mark.parametrize(
    "stumbles", [{1: "before"}, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE)]
)
def test_a_failure_before_what_the_main_process_does_alone_ends_all(stumbles):
    outcomes = together(2, workers.joint, stumbles)
    first = min(stumbles, key=lambda rank: stumbles[rank])  # "before" comes before "between"
    other = 1 - first
    assert outcomes[first] == f"{stumbles[first]} in {first}"
    assert outcomes[other] == (
        f"Another process failed at the start, so this one stops. process {first}: {outcomes[first]}"
    )


@pytest.mark.parametrize(
    "stumbles, said",
    [({0: "within"}, "within in 0"), pytest.param({}, "all is well", marks=pytest.mark.slow)],
)
def test_what_the_main_process_does_alone_within_what_all_do(stumbles, said):
    assert together(2, workers.joint, stumbles) == [said, said]


@pytest.mark.slow
def test_a_process_that_cannot_begin_ends_all(tmp_path):
    first, second = together(2, workers.train, str(tmp_path / "run"), SETTINGS, False, 1)
    assert isinstance(second, DataError)
    assert "at the start" in str(first) and str(second) in str(first)


def test_a_process_that_vanishes_ends_all(tmp_path):
    first, second = together(2, workers.trouble, str(tmp_path / "run"), SETTINGS, "vanish")
    assert second is None
    assert isinstance(first, ProcessLost) and "Process 0 of 2" in str(first)


@pytest.mark.slow
def test_fewer_samples_than_processes_are_refused(tmp_path):
    outcomes = together(2, workers.train, str(tmp_path / "run"), {**SETTINGS, "batch_size": 1})
    assert all(isinstance(error, ConfigError) and "2 processes" in str(error) for error in outcomes)
