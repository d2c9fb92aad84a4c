"""configs/paper: every file says what the paper says; a step of each surrogate fits in shape and memory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import environment, run  # noqa: F401 (a fixture)
from craft.data import BENCHMARKS
from craft.recipes.benchmarks import TABLE_1
from craft.training.config import AdaptConfig
from paper.cells import CRAFT, Method
from paper.cli import main as paper
from paper.development import LAMBDAS, OPEN
from paper.development import main as development
from paper.experiments import EXPERIMENTS
from paper.plan import Plan, plan_for
from paper.sizes import counted, rehearse
from paper.work import Work

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "paper").glob("*.yaml"))
ADAPT = [path for path in FILES if path.stem.startswith("adapt-")]
A100 = 40 * 2**30
LIGHT = "adapt-qwen2-0.5b"


@pytest.fixture(scope="module")
def plan():
    """The plan of `--scale paper`."""
    return plan_for("paper", False, {})


def as_the_paper(config):
    """§4.1, in the settings of a training."""
    losses, optimizer = config.losses, config.optimizer
    assert (config.batch_size, optimizer.warmup_ratio, optimizer.weight_decay) == (24, 0.03, 0.0)
    assert losses.commitment.weight == 0.1 and losses.sal.weight == 1.0
    assert [config.contrastive_weight(task) for task in ("classification", "vqa")] == [1.0, 0.1]
    assert config.data.answer_with == "letter" and config.data.unseen_fraction == 0.2
    assert (config.trainable, config.blend, config.augment, config.max_steps) == ("all", 1.0, 0.0, None)


def test_every_file_has_a_test():
    assert [path.name for path in FILES if path not in ADAPT] == ["reproduce.yaml"]
    assert len(ADAPT) == 5


@pytest.mark.parametrize("path", ADAPT, ids=lambda path: path.stem)
def test_an_adaptation_at_the_papers_scale(path):
    config = AdaptConfig.build(path)
    as_the_paper(config)
    assert Path(config.surrogate).name == path.stem.removeprefix("adapt-")
    if path.stem == LIGHT:  # the large ones take seconds to build
        step = rehearse(config.surrogate, config)
        assert step is not None and step.micro_batch == 3 and step.logits[:2] == (3, 3)
        assert 280e6 < step.trained < 300e6 < step.parameters and step.memory < A100


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in ADAPT if p.stem != LIGHT], ids=lambda path: path.stem)
def test_another_surrogate_at_the_papers_scale(path):
    config = AdaptConfig.build(path)
    step = rehearse(config.surrogate, config)
    assert step is not None and step.memory < A100 and step.parameters > 0.8e9


def test_the_plan_is_the_papers(plan):
    assert plan.domains == tuple(TABLE_1) and set(plan.domains) <= set(BENCHMARKS)
    assert (plan.seeds, plan.keep_ratio, plan.limit) == ((0, 1, 2), 0.8, None)
    assert (plan.explained, plan.explain_tokens) == (350, 1024)
    assert set(plan.surrogates) == set(plan.backbones) and len(plan.backbones) == 5
    for domain in plan.domains:
        config = Work(plan).settings(domain, 1, Method(CRAFT, plan.surrogates[0]))
        as_the_paper(config)
        assert config.data.root == f"data/{domain}" and config.seed == 1
    files = {Path(AdaptConfig.build(path).surrogate).name for path in ADAPT}
    assert files == {Path(name).name for name in plan.surrogates}


def test_sweeps_train_with_the_weights_that_their_lines_name(plan):
    """The plan's own λ_con is another one than craft-tiny's default."""
    for line in LAMBDAS.lines(plan):
        losses = Work(plan).settings(plan.domains[0], 0, line.method).losses
        weights = {"λ_con": losses.contrastive.weight, "λ_commit": losses.commitment.weight}
        named = re.findall(r"(λ_\w+) ([\d.]+)", line.label)
        assert named and all(weights[name] == float(value) for name, value in named)
    alone = next(line for line in OPEN.lines(plan) if line.label == "without commitment")
    losses = Work(plan).settings(plan.domains[0], 0, alone.method).losses
    assert (losses.commitment.weight, losses.contrastive.weight) == (0, 0)


def test_what_the_plan_asks_for(plan):
    """Table 7: five surrogates, ten benchmarks, three seeds; five backbones, and zero-shot."""
    trained, cells = counted(EXPERIMENTS["table7"].cells(plan))
    assert trained == 5 * 10 * 3
    assert cells == 10 * 3 * (5 * 5 + 5 + 5)  # answers, zero-shot, codes of each encoder
    shown = {cell.method.model for cell in EXPERIMENTS["table3"].cells(plan)} - {""}
    assert {Path(name).name for name in shown} == {"vila-u-7b", "qwen2-0.5b"}  # as in the paper


def test_a_dry_run_without_checkpoints(tmp_path):
    said = run("table4", "fig7", "--scale", "paper", "--dry-run", "--json", main=paper)
    assert said.status == 0, said.err
    assert said.json["experiments"][-1] == {"experiment": "together", "trainings": "0", "cells": "0"}
    assert "cannot read" in run("table1", "--scale", tmp_path / "no.yaml", main=paper).complaint


def test_a_dry_run_leaves_out_what_the_run_would_leave_out(tmp_path):
    """The explainer of Table 2 is not there."""
    words = ("--explainer", "craft-tiny/none", "--work", tmp_path, "--dry-run")
    said = run("table2", "fig7", *words, "--json", main=paper)
    assert said.status == 0, said.err
    rows = {row["experiment"]: row for row in said.json}
    assert rows["table2"]["time"] == "left out" and rows["together"]["cells left"] == "0"
    assert "table2 is left out: There is no model 'craft-tiny/none'" in said.err
    assert "no model" in run("table2", *words, main=paper).complaint


def test_the_command_line_lists_helps_and_explains_mistakes():
    assert "table1" in run(main=paper).out
    assert run("list", "--json", main=paper).json == ["all", *EXPERIMENTS]
    helped = run("--help", main=paper).out
    assert all(word in helped for word in ("bench", "list", "--quick", "--dry-run", "--redraw"))
    assert "There is no experiment 'table9'" in run("table9", main=paper).complaint
    assert "no setting" in run("fig7", "--set", "learning=1", "--dry-run", main=paper).complaint
    assert "`python -m paper --help`" in run("fig7", "--fast", main=paper).complaint
    assert "pruning-choices" in run("list", main=development).out


def test_the_package_runs_from_the_checkout(environment):  # noqa: F811
    command = [sys.executable, "-m", "paper", "list", "--json"]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert json.loads(said.stdout) == ["all", *EXPERIMENTS]


def test_the_papers_trainings_have_no_retention_loss():
    plan, method = Plan.build(None, {}), Method(CRAFT, "craft-tiny/qwen2")
    assert Work(plan).settings("apparel", 0, method).losses.retention.weight == 0
    changed = Plan.build(None, {"adapt": {"losses.retention.weight": 2.0}})
    assert Work(changed).settings("apparel", 0, method).losses.retention.weight == 2
