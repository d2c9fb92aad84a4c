"""The pruning experiments on tiny models: cells once, pages from JSON, figures that agree with `evaluate`."""

import json
import weakref

import pytest

from builders import tiny_lvlm
from craft.core.errors import ConfigError
from craft.formats.native import save_native
from craft.pruning import STRATEGIES
from craft.recipes import evaluate
from paper.cells import marks_of
from paper.development import DEVELOPMENT
from paper.estimate import estimate
from paper.experiments import EXPERIMENTS
from paper.plan import Plan
from paper.pruned import Pruning, Subject
from paper.pruning import COLOURS as LINES
from paper.pruning import measured
from paper.publish import publish, write_result
from paper.work import Work

PRUNING = {name: EXPERIMENTS[name] for name in ("fig5", "pruning-ablation")}
PRUNING["pruning-choices"] = DEVELOPMENT["pruning-choices"]


def test_a_cell_is_what_evaluate_finds(plan):
    work = Work(plan)
    subject = Subject(work, plan.domains[0], 0, plan.backbones[1])
    folder = work.encoder(plan.domains[0], 0).folder
    for how, prior in (
        (Pruning(), None),
        (Pruning("full", 0.5), None),
        (Pruning("full", 0.5, prior="general"), "general"),
    ):
        found = subject.ask(how)
        report = evaluate(plan.backbones[1], folder, keep_ratio=how.keep, limit=8, prior=prior)
        assert (found["accuracy"], found["unseen"]) == (report.accuracy, report.unseen)
        by_id = {row["id"]: row["strict"] for row in report.samples}
        assert marks_of(found).tolist() == [float(by_id[sample.id]) for sample in subject.samples]


def test_a_cell_belongs_to_one_way_of_reading_words(plan):
    cell = EXPERIMENTS["table7"].cells(plan)[0]
    one, other = Work(plan), Work(plan)
    other.lvlm(cell.backbone).backbone.tokenizer.add_tokens(["flibber"])
    assert one.digest(cell) == Work(plan).digest(cell) != other.digest(cell)


def test_a_general_prior_that_is_missing_shows_before_any_training(plan, tmp_path):
    lvlm = tiny_lvlm("llama")  # as VILA-U's checkpoints, it brings none
    save_native(tmp_path / "models", "llama", lvlm, dtype="float32")
    model = str(tmp_path / "models" / "llama")
    work = Work(
        plan.model_copy(update={"work": tmp_path / "work", "surrogates": (model,), "backbones": (model,)})
    )
    for name in ("pruning-ablation", "pruning-choices"):
        with pytest.raises(ConfigError, match="came without a general code prior"):
            estimate(work, PRUNING[name].cells(work.plan))
    assert estimate(work, EXPERIMENTS["fig5"].cells(work.plan)).trainings_left == 1


def test_cells_are_measured_once_and_apart(plan, monkeypatch):
    first = Subject(Work(plan), plan.domains[0], 0, plan.backbones[0])
    found = first.ask(Pruning("fastv", 0.5))
    again = Subject(Work(plan), plan.domains[0], 0, plan.backbones[0])
    monkeypatch.setattr(Subject, "_measure", lambda self, how: {"measured": "now"})
    assert again.ask(Pruning("fastv", 0.5)) == found
    assert again.ask(Pruning("fastv", 0.25)) == {"measured": "now"}
    other = Subject(Work(plan), plan.domains[0], 0, plan.backbones[1])
    assert other.ask(Pruning("cls-attention", 0.75)) == {"measured": "now"}


@pytest.mark.parametrize("name", PRUNING)
def test_an_experiment_is_published_and_goes_on(plan, name, tmp_path, monkeypatch):
    work = plan.work
    plan = Plan(**{**plan.__dict__, "work": work.parent / name})
    (work.parent / name).mkdir()
    for part in ("encoders", "times"):
        (work / part).mkdir(parents=True, exist_ok=True)
        (work.parent / name / part).symlink_to(work / part)
    stop = iter(range(6))
    measure = Subject._measure

    def failing(self, how):
        if next(stop, None) is None:
            raise KeyboardInterrupt
        return measure(self, how)

    monkeypatch.setattr(Subject, "_measure", failing)
    with pytest.raises(KeyboardInterrupt):
        publish(name, PRUNING[name], plan, tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(list((plan.work / "cells").glob("pruned-*.json"))) == 6
    monkeypatch.setattr(Subject, "_measure", lambda self, how: invented(how, len(self.samples)))
    written = publish(name, PRUNING[name], plan, tmp_path)
    data = json.loads(written[0].read_text())
    told = data["provenance"]
    assert told["plan"]["seeds"] == [0] and told["versions"]["torch"] and told["used"] and "commit" in told
    assert (
        data["command"].startswith(f"{PRUNING[name].program} {name} --domains")
        and "--limit 8" in data["command"]
    )
    page = written[1].read_text()
    assert page.startswith("# ") and data["command"] in page
    before = {path.name: path.read_bytes() for path in written}
    assert {
        path.name: path.read_bytes() for path in write_result(name, PRUNING[name], data, tmp_path)
    } == before


def invented(how, count):
    """A cell, better the more tokens are kept: pages are made of any numbers."""
    right = round(count * how.keep)
    about = {"seen": None, "unseen": 0.5, "unparseable": 0.0, "count": count, "floor": 0.0, "codes": 3.0}
    return {**about, "accuracy": right / count, "marks": "1" * right + "0" * (count - right)}


def test_every_strategy_has_a_line():
    assert list(LINES) == list(STRATEGIES)


def test_an_empty_plan_is_refused(plan):
    with pytest.raises(ConfigError, match="without seeds"):
        Work(Plan(work=plan.work, seeds=()))


def test_one_subject_is_held_at_a_time(plan, monkeypatch):
    """Each has a vision tower of its own, and at the paper's scale there are 150."""
    held, counts = weakref.WeakSet(), []

    def ask(self, how):
        held.add(self)
        counts.append(len(held))
        return invented(how, len(self.samples))

    monkeypatch.setattr(Subject, "ask", ask)
    measured(Work(plan), {"no pruning": Pruning()})
    assert counts == [1] * len(plan.backbones) and len(counts) > 1
