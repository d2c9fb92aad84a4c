"""`craft reproduce` on tiny models: cells once, pages from JSON, figures that agree with `evaluate`."""

import json
from pathlib import Path

import pytest

from builders import tiny_lvlm
from cli.conftest import COLOURS, paint
from craft.core.errors import ConfigError
from craft.experiments import EXPERIMENTS, Plan, Work, publish
from craft.experiments.pruned import How, Subject, marks
from craft.experiments.pruning import COLOURS as LINES
from craft.experiments.publish import write_result
from craft.models.native import save_native
from craft.pruning import STRATEGIES
from craft.recipes import evaluate

DOCS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Two random backbones with a general prior, five classes of pictures, one seed, three steps."""
    base = tmp_path_factory.mktemp("experiments")
    for kind in ("llama", "qwen2"):
        lvlm = tiny_lvlm(kind)
        lvlm.visual.prior = (lvlm.visual.codebook.codewords[0, :, 0] * 100).abs().long()
        save_native(base / "models" / "tiny", kind, lvlm, dtype="float32")
    names = [str(base / "models" / "tiny" / kind) for kind in ("qwen2", "llama")]
    return Plan(
        work=base / "work",
        domains=(str(paint(base / "blobs", COLOURS, count=6)),),
        general=(),
        surrogates=tuple(names[:1]),
        backbones=tuple(names),
        seeds=(0,),
        limit=8,
        adapt={"max_steps": 2, "batch_size": 4, "device": "cpu"},
    )


def test_a_cell_is_what_evaluate_finds(plan):
    work = Work(plan)
    subject = Subject(work, plan.domains[0], 0, plan.backbones[1])
    folder = work.encoder(plan.domains[0], 0).folder
    for how, prior in (
        (How(), None),
        (How("full", 0.5), None),
        (How("full", 0.5, prior="general"), "general"),
    ):
        found = subject.ask(how)
        report = evaluate(plan.backbones[1], folder, keep_ratio=how.keep, limit=8, prior=prior)
        assert (found["accuracy"], found["unseen"]) == (report.accuracy, report.unseen)
        by_id = {row["id"]: row["strict"] for row in report.samples}
        assert marks(found).tolist() == [float(by_id[sample.id]) for sample in subject.samples]


def test_an_encoder_that_is_there_is_used(plan, monkeypatch):
    from craft.experiments import work

    place = Work(plan).encoder(plan.domains[0], 0).folder.parent
    monkeypatch.setattr(work, "adapt", None)  # would fail
    given = Plan(**{**plan.__dict__, "work": plan.work / "empty", "encoders": (str(place),)})
    assert Work(given).encoder(plan.domains[0], 0).folder == place / "encoder"


def test_cells_are_measured_once_and_apart(plan, monkeypatch):
    first = Subject(Work(plan), plan.domains[0], 0, plan.backbones[0])
    found = first.ask(How("fastv", 0.5))
    again = Subject(Work(plan), plan.domains[0], 0, plan.backbones[0])
    monkeypatch.setattr(Subject, "_measure", lambda self, how: {"measured": "now"})
    assert again.ask(How("fastv", 0.5)) == found
    assert again.ask(How("fastv", 0.25)) == {"measured": "now"}
    other = Subject(Work(plan), plan.domains[0], 0, plan.backbones[1])
    assert other.ask(How("cls-attention", 0.75)) == {"measured": "now"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_published_and_goes_on(plan, name, tmp_path, monkeypatch):
    work = plan.work
    plan = Plan(**{**plan.__dict__, "work": work.parent / name})
    (work / "encoders").mkdir(parents=True, exist_ok=True)
    (work.parent / name).mkdir()
    (work.parent / name / "encoders").symlink_to(work / "encoders")
    stop = iter(range(6))
    measure = Subject._measure

    def failing(self, how):
        if next(stop, None) is None:
            raise KeyboardInterrupt
        return measure(self, how)

    monkeypatch.setattr(Subject, "_measure", failing)
    with pytest.raises(KeyboardInterrupt):
        publish(name, EXPERIMENTS[name], plan, tmp_path)
    assert not list(tmp_path.iterdir())
    kept = json.loads((plan.work / "cells.json").read_text())
    assert len(kept) == 6
    monkeypatch.setattr(Subject, "_measure", lambda self, how: invented(how, len(self.samples)))
    written = publish(name, EXPERIMENTS[name], plan, tmp_path)
    data = json.loads(written[0].read_text())
    told = data["provenance"]
    assert told["plan"]["seeds"] == [0] and told["versions"]["torch"] and told["used"] and "commit" in told
    assert data["command"].startswith(f"craft reproduce {name} --domains") and "--limit 8" in data["command"]
    page = written[1].read_text()
    assert page.startswith("# ") and data["command"] in page
    before = {path.name: path.read_bytes() for path in written}
    assert {
        path.name: path.read_bytes() for path in write_result(name, EXPERIMENTS[name], data, tmp_path)
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


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_pages_are_made_of_their_json(name):
    """docs/results: no figure was typed by hand; a page without its JSON is refused too."""
    path = DOCS / f"{name}.json"
    assert path.is_file() == (DOCS / f"{name}.md").is_file()
    if path.is_file():
        data = json.loads(path.read_text())
        assert EXPERIMENTS[name].page(data) == (DOCS / f"{name}.md").read_text()
