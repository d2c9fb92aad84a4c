"""Tables on tiny models: their figures are those of `evaluate`, and nothing is done twice."""

import functools
import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from craft.core.errors import ConfigError
from craft.core.files import read_json, write_json
from craft.evaluation.matching import strict
from craft.formats.load import load
from craft.models.memory import weight_bytes
from craft.pages.matrix import TransferMatrix
from craft.recipes import evaluate
from craft.training.config import AdaptConfig
from paper import experiments
from paper.accuracy import ALL, by_seed, difference
from paper.benches import FILES
from paper.cells import CRAFT, Cell, Method
from paper.cli import main
from paper.development import DEVELOPMENT
from paper.estimate import estimate, trainings
from paper.measures import fill
from paper.plan import QUICK, plan_for
from paper.publish import command, escaped, publish, table, write_result
from paper.reported import reported
from paper.tables import MARGIN_PEER, PEER_GAIN, _verdict1, lines5
from paper.transfers import TABLE3
from paper.work import MODEL_SHARE, Work

EXPERIMENTS = {**experiments.EXPERIMENTS, **DEVELOPMENT}
SLOW = ("table5", "table6", "lambdas", "open-questions", "fig4")
NAMES = [
    *("table1", "table2", "table3", "table4", "table7", "fig2", "fig7"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
]


def file_of(work: Work, cell: Cell) -> Path:
    return work.records.path(work.label(cell))


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    """What an experiment wrote, by name; each is run when it is first asked for."""
    out = tmp_path_factory.mktemp("results")
    told = {
        "machine": {"device": "a machine", "threads": 2},
        "sizes": {"size": "tiny"},
        "ratios": {"a/b": 0.5},
    }
    for name in FILES.values():
        rows = [{"way": "ours", "ms": 1.25, "parts": {}}, {"way": "theirs", "ms": None}]
        more = {"levers": rows, "ways": ["small LLM"]} if name == "bench_train" else {}
        write_json(plan.benches / f"{name}.json", {"rows": rows, **told, **more})
    return functools.cache(lambda name: publish(name, EXPERIMENTS[name], plan, out))


def data_of(results, name):
    return json.loads(results(name)[0].read_text())


@pytest.mark.parametrize("name", NAMES)
def test_page_and_pictures_are_made_of_the_json_alone(results, name, tmp_path):
    data = data_of(results, name)
    again = write_result(name, EXPERIMENTS[name], data, tmp_path)
    assert [path.name for path in again] == [path.name for path in results(name)]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in results(name)]
    page = again[1].read_text()
    assert page.startswith("# ") and f"`{EXPERIMENTS[name].program} {name}" in page
    for picture in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (tmp_path / picture).is_file()
    if name.startswith("table"):
        assert "*Theirs*, at another scale" in page


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_to_do(results, plan, name):
    results(name)
    work = Work(plan)
    cells = EXPERIMENTS[name].cells(plan)
    found = estimate(work, cells)
    assert (found.trainings_left, found.cells_left, found.seconds) == (0, 0, 0)
    assert found.cells == len(set(cells)) and "0 of" in found.line and "0 min" in found.line


def test_the_estimate_counts_what_is_not_there(results, plan, tmp_path):
    fresh = plan.model_copy(update={"work": tmp_path})
    cells = EXPERIMENTS["table5"].cells(fresh)
    left = estimate(Work(fresh), cells)
    assert left.trainings == left.trainings_left == 4 and left.cells_left == len(cells) == 9
    assert left.seconds is None and left.time == "unknown" and "unknown" in left.line
    assert not list(tmp_path.iterdir())  # an estimate makes nothing
    results("table3")
    longer = plan.model_copy(update={"adapt": {**plan.adapt, "max_steps": 3}})
    once, twice = (
        estimate(Work(longer.model_copy(update={"seeds": seeds})), cells)
        for seeds, cells in (
            (seeds, TABLE3.cells(longer.model_copy(update={"seeds": seeds}))) for seeds in ((0,), (0, 7))
        )
    )
    assert 0 < once.trainings_left * 2 == twice.trainings_left
    assert once.seconds and twice.seconds == pytest.approx(2 * once.seconds)


def test_a_row_is_what_evaluate_finds(results, plan):
    data, work = data_of(results, "table7"), Work(plan)
    domain, (own, other) = plan.domains[0], plan.backbones
    folder = work.trained(domain, 0, Method(CRAFT, own))
    line = f"{other}, adapted with {own}"
    after = evaluate(other, folder, limit=8)
    before = evaluate(other, like=folder, limit=8)
    row = next(row for row in data["rows"] if row["line"] == line)
    for name in ("accuracy", "seen", "unseen", "unparseable"):
        assert (row[name], row["before"][name]) == (getattr(after, name), getattr(before, name))
    marks = [np.array([one["strict"] for one in report.samples], float) for report in (after, before)]
    gap = difference(data, line)
    assert gap is not None and gap["mean"] == pytest.approx((marks[0] - marks[1]).mean())
    assert gap["low"] <= gap["mean"] <= gap["high"]


def test_codes_changed_are_counted_on_the_test_pictures(results, plan):
    data, work, domain = data_of(results, "table7"), Work(plan), plan.domains[0]
    name = plan.surrogates[1]
    base = work.lvlm(name)
    after = base.with_encoder(work.trained(domain, 0, Method(CRAFT, name)))
    cell = next(cell for cell in EXPERIMENTS["table7"].cells(plan) if cell.measure == "codes")
    images = [sample.image for sample in work.samples(cell)]
    before, now = (lvlm.encode(images).codes[..., 0] for lvlm in (base, after))
    row = next(row for row in data["rows"] if row["line"] == f"{name}, adapted with {name}")
    assert row["codes"] == pytest.approx(float((before != now).float().mean()))


def test_forgetting_is_measured_on_other_data(results, plan):
    data, other = data_of(results, "table1"), plan.general[1]
    line = f"CRAFT, {plan.surrogates[0]}"
    row = next(row for row in data["rows"] if row["line"] == line)
    folder = Work(plan).trained(plan.domains[0], 0, Method(CRAFT, plan.surrogates[0]))
    after, before = (
        evaluate(plan.backbones[0], encoder, other, seed=0, limit=plan.general_limit).accuracy
        for encoder in (folder, None)
    )
    assert row["general"] == pytest.approx(after - before)
    assert all(row["general"] is None for row in data["rows"] if row["line"].startswith("zero-shot"))


def test_table_1_has_each_method_beside_its_own_zero_shot(results, plan):
    data = data_of(results, "table1")
    lines = {line["line"]: line for line in data["lines"]}
    assert [name for name, line in lines.items() if line["tokens"] == "continuous"] == [
        "zero-shot, continuous", "Vision FT", "Projector FT", "LDIFS",
    ]  # fmt: skip
    zero = by_seed(data, "zero-shot, continuous")
    assert by_seed(data, "LDIFS", ALL, "before.accuracy") == zero
    assert by_seed(data, f"CRAFT, {plan.surrogates[1]}", ALL, "before.accuracy") == by_seed(data, "zero-shot")
    assert difference(data, "zero-shot") is None


def test_table_1_holds_accuracy_against_the_papers_lead_and_gain_against_its_gain():
    """A rival that begins low gains more and may yet end lower."""
    courses = {"zero-shot": (0.5, 0.5), "Vision FT": (0.2, 0.56), "LDIFS": (0.2, 0.4)}
    courses["CRAFT, a"] = (0.5, 0.64)
    rows = [
        {"line": line, "domain": "x", "seed": 0, "accuracy": end, "unseen": None}
        | {"before": {"accuracy": start, "unseen": None}}
        for line, (start, end) in courses.items()
    ]
    gaps = [
        {
            "line": line,
            "than": "zero-shot",
            "domain": ALL,
            "mean": end - start,
            "low": end - start,
            "high": end - start,
        }
        for line, (start, end) in courses.items()
        if line != "zero-shot"
    ]
    data = {"lines": [{"line": line} for line in courses], "rows": rows, "differences": gaps}
    with_contrastive = {"plan": {"adapt": {"losses.contrastive.weight": None}}}
    text = _verdict1(data | {"provenance": with_contrastive})
    assert (
        "The largest gain of CRAFT is +14.0 [14.0, 14.0] points (CRAFT, a); the paper's is +13.5. It ends"
        in text
    )
    assert "ends 8.0 points above the best baseline, Vision FT" in text
    assert "the paper's CRAFT ends 6.8 points above" in text
    assert "gains +36.0 over its own zero-shot (the paper's +1.9), 22.0 points more than CRAFT." in text
    without = _verdict1(data | {"provenance": {"plan": {"adapt": {}}}})
    assert "without the contrastive loss; Table 5 has it with all losses" in without
    averages = {(row["method"], row["backbone"]): row["average"] for row in reported()["table1"]}
    gain = averages["Vision FT", "VILA-7B"] - averages["Zero-shot", "VILA-7B"]
    ahead = averages["CRAFT", "VILA-U-7B"] - averages["Vision FT", "VILA-7B"]
    assert gain == pytest.approx(100 * PEER_GAIN) and ahead == pytest.approx(100 * MARGIN_PEER)


def test_table_5_removes_one_loss_at_a_time(plan):
    weights = {}
    for line in lines5(plan):
        config = AdaptConfig.build(None, dict(line.method.settings))
        losses = config.losses
        weights[line.label] = (
            config.contrastive_weight("classification"), losses.commitment.weight, losses.sal.weight,
        )  # fmt: skip
    assert weights == {
        "all": (1.0, 0.1, 1.0),
        "without contrastive": (0.0, 0.1, 1.0),
        "without commitment": (1.0, 0.0, 1.0),
        "without SAL": (1.0, 0.1, 0.0),
    }


@pytest.mark.slow
def test_table_6_compares_with_zero_shot_of_the_same_size(results, plan):
    data, work = data_of(results, "table6"), Work(plan)
    assert [line["line"] for line in data["lines"]] == ["10 %", "25 %", "50 %", "100 %"]
    small = evaluate(work.lvlm(plan.backbones[0], 0.25, 0), data=plan.domains[0], seed=0, limit=8)
    assert by_seed(data, "25 %", ALL, "before.accuracy") == [small.accuracy]
    assert difference(data, "10 %", "100 %") is not None


def test_means_over_seeds_and_domains():
    rows = [
        {"line": "a", "domain": domain, "seed": seed, "accuracy": value, "before": {"accuracy": 0.1}}
        for domain, seed, value in (("x", 0, 0.2), ("x", 1, 0.4), ("y", 0, 0.6), ("y", 1, 0.6))
    ]
    data = {"rows": rows}
    assert by_seed(data, "a") == pytest.approx([0.4, 0.5])
    assert by_seed(data, "a", "x", "gain.accuracy") == pytest.approx([0.1, 0.3])
    rows[0]["accuracy"] = None
    assert by_seed(data, "a") is None


def test_other_weights_are_another_cell(plan, tmp_path, monkeypatch):
    """What is kept belongs to weights and questions: a retrained encoder is asked again."""
    cell = EXPERIMENTS["table3"].cells(plan)[0]
    work = Work(plan)
    fill(work, cell)
    kept = read_json(file_of(work, cell))
    write_json(file_of(work, cell), {**kept, "key": {**kept["key"], "lvlm": "other"}, "result": {}})
    assert fill(Work(plan), cell) == kept["result"]
    assert read_json(file_of(work, cell))["key"] == kept["key"]


def test_a_cell_stored_in_the_earlier_form_is_read(plan, tmp_path):
    """The file's name and the record, in the form that they had before `core.store`."""
    cell = EXPERIMENTS["table3"].cells(plan)[0]
    work = Work(plan)
    result = fill(work, cell)
    path = file_of(work, cell)
    identity = json.dumps(
        [asdict(cell), plan.adapt, plan.keep_ratio, plan.dtype], sort_keys=True, default=str
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    assert path == plan.work / "cells" / f"answers-blobs-{cell.seed}-{cell.method.name}-{digest}.json"
    record = read_json(path)
    fields = ("measure", "key", "origin", "seconds", "result")
    assert set(record) == set(fields) and set(record["key"]) == {"lvlm", "data", "held_out"}
    write_json(path, {name: record[name] for name in fields} | {"result": {**result, "marker": 1}})
    assert Work(plan).is_measured(cell) and fill(Work(plan), cell) == {**result, "marker": 1}
    write_json(path, record)


def test_encoders_of_other_pictures_under_the_same_name_are_made_anew(plan, tmp_path):
    """The folder's name stays where a picture in it is replaced; what was asked of the old ones is asked anew
    too, and nothing is lost: the old pictures are back, and so are their encoders."""
    data = tmp_path / "blobs"
    shutil.copytree(plan.domains[0], data)
    again = plan.model_copy(update={"work": tmp_path / "work", "domains": (str(data),)})
    cells = {cell.measure: cell for cell in TABLE3.cells(again) if cell.method.name == CRAFT}
    cells["judged"] = EXPERIMENTS["table2"].cells(again)[0]
    first = Work(again)
    before = {name: fill(first, cell) for name, cell in cells.items()}
    one = cells["answers"]
    place = first.run_folder(one.domain, one.seed, one.method)
    kept = {path: path.read_bytes() for path in data.rglob("*.png")}
    for path in kept:  # other colours
        with Image.open(path) as picture:
            inverted = ImageOps.invert(picture)
        inverted.save(path)
    work = Work(again)
    assert not work.is_trained(one.domain, one.seed, one.method)
    assert not any(work.is_measured(cell) for cell in cells.values())
    assert work.trained(one.domain, one.seed, one.method) != place
    learned = read_json(work.run_folder(one.domain, one.seed, one.method) / "run.json")["data_fingerprint"]
    assert learned == work.questions(one.domain, one.seed).fingerprint
    judged, samples = cells["judged"], work.samples(cells["judged"])
    said = work.lvlm(judged.backbone).answer(
        [sample.image for sample in samples],
        [sample.prompt("Justify your answer.") for sample in samples],
        plan.explain_tokens,
    )
    assert [row["response"] for row in fill(work, judged)["rows"]] == said
    for path, content in kept.items():
        path.write_bytes(content)
    back = Work(again)
    assert back.run_folder(one.domain, one.seed, one.method) == place
    assert {name: fill(back, cell) for name, cell in cells.items()} == before
    shutil.rmtree(place)  # to have it made anew
    assert not back.is_trained(one.domain, one.seed, one.method)


def test_models_are_kept_as_long_as_there_is_room(plan, monkeypatch):
    """Those used last; what was once hashed is not read again."""
    loaded = []
    monkeypatch.setattr("paper.work.load", lambda name, *how: loaded.append(name) or load(name, *how))
    first, second = plan.backbones
    size = weight_bytes(load(first)) + weight_bytes(load(second))
    monkeypatch.setattr("paper.work.total_memory", lambda _: size / MODEL_SHARE)
    work = Work(plan)
    hashes = [work.hashes(name) for name in (first, second, plan.continuous, first)]
    assert loaded == [first, second, plan.continuous] and hashes[0] == hashes[3]
    work.lvlm(second)
    work.lvlm(plan.continuous)
    assert len(loaded) == 3
    work.lvlm(first)
    work.lvlm(plan.continuous)
    assert loaded[3:] == [first]
    work.lvlm(second)
    assert loaded[4:] == [second]


def test_pruning_is_crafts_alone(plan, tmp_path):
    """By the prior that its encoder brings: a checkpoint as VILA-U's has none."""
    work = Work(plan.model_copy(update={"work": tmp_path, "keep_ratio": 0.5}))
    for name in plan.backbones:
        work.lvlm(name).visual.prior = None
    for name, measure in (("table2", "judged"), ("table3", "answers")):
        cells = [cell for cell in EXPERIMENTS[name].cells(work.plan) if cell.measure == measure]
        for method in ("zero-shot", CRAFT):
            cell = next(cell for cell in cells if cell.method.name == method)
            found, lvlm, samples = fill(work, cell), work.made(cell), work.samples(cell)
            directive = "Justify your answer." if measure == "judged" else None
            said = lvlm.answer(
                [sample.image for sample in samples],
                [sample.prompt(directive) for sample in samples],
                plan.explain_tokens if measure == "judged" else 5,
                keep_ratio=0.5 if method == CRAFT else 1.0,
            )
            if measure == "judged":
                assert [row["response"] for row in found["rows"]] == said
            else:
                right = [strict(text, sample.answer) for text, sample in zip(said, samples, strict=True)]
                assert found["marks"] == "".join("1" if one else "0" for one in right)


def test_other_weights_or_lengths_are_asked_to_justify_anew(plan, tmp_path):
    """Answers under way are kept beside a cell: none of another LLM or of another length is taken for it."""
    for change in ({}, None, {"explain_tokens": 4}):
        work = Work(plan.model_copy(update={"work": tmp_path, **(change or {})}))
        cell = EXPERIMENTS["table2"].cells(work.plan)[0]
        lvlm = work.lvlm(cell.backbone)
        if change is None:  # aligned again, say: the same tower, another LLM
            lvlm.backbone.llm.get_output_embeddings().weight.data.neg_()
        assert not work.is_measured(cell)
        samples = work.samples(cell)
        said = lvlm.answer(
            [sample.image for sample in samples],
            [sample.prompt("Justify your answer.") for sample in samples],
            work.plan.explain_tokens,
        )
        assert [row["response"] for row in fill(work, cell)["rows"]] == said


def test_pictures_of_codes_are_drawn_in_the_work_folder(results, plan):
    """A folder of one's own as data: nothing is written into it."""
    results("fig7")
    assert not [*Path(plan.domains[0]).glob("*.*")]
    assert [*plan.work.glob("show/*/*.png")]


@pytest.mark.parametrize("name", ["table2", "fig2"])
def test_pages_of_justified_answers_tell_how_many_there_are(results, plan, name):
    assert f"at most {plan.explained} questions per domain and seed; torch" in results(name)[1].read_text()


def test_table_2_tells_what_became_of_lora(results):
    told = data_of(results, "table2")
    page = EXPERIMENTS["table2"].page
    assert "Share of its tuning that counts: by number of classes" in page(told)
    assert "Share of its tuning that counts: 30 %" in page({**told, "lora blend": 0.3})
    assert "its tuning" not in page({**told, "lora blend": 1.0})


def test_groups_share_no_file(plan):
    """Cells of one domain and seed stay in one process: no two groups have a cell or a training in common."""
    wide = plan.model_copy(update={"domains": plan.general, "seeds": (0, 1)})
    cells = [cell for experiment in EXPERIMENTS.values() for cell in experiment.cells(wide)]
    work = Work(wide)
    files = {}
    for cell in cells:
        files.setdefault(work.label(cell), set()).add((cell.domain, cell.seed))
    assert all(len(owners) == 1 for owners in files.values())
    assert all(f"-{seed}-" in work.run_folder(*one).name for one in trainings(cells) for seed in [one[1]])


def test_what_is_left_are_cells_of_other_weights_or_questions(results, plan, tmp_path):
    results("table3")
    shutil.copytree(plan.work, tmp_path / "work")
    again = plan.model_copy(update={"work": tmp_path / "work"})
    cells, other = TABLE3.cells(again), plan.backbones[1]
    work = Work(again)
    work.lvlm(other).backbone.llm.get_output_embeddings().weight.data.neg_()
    stale = [cell for cell in cells if other in (cell.backbone, cell.method.model)]
    assert [cell for cell in cells if not work.is_measured(cell)] == stale != cells
    path = file_of(Work(again), cells[0])
    record = read_json(path)
    write_json(path, {**record, "key": {**record["key"], "data": "other"}})
    assert estimate(Work(again), cells).cells_left == 1


@pytest.mark.parametrize("told", ["{}", "[]", '{"rows": [], "lines": [], "differences": []}'])
def test_what_cannot_be_drawn_again_is_told(told, tmp_path, capsys):
    for name in ("table1", "fig5"):
        (tmp_path / f"{name}.json").write_text(told)
        assert main([name, "--redraw", "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert f"{name}.json is not a result" in error and "Traceback" not in error


def test_bars_in_names_end_no_cell():
    assert table(["line", "a|b"], [["x \\| y", "1|2|"]]) == (
        "| line | a\\|b |\n| --- | ---: |\n| x \\| y | 1\\|2\\| |"
    )
    matrix = TransferMatrix(["a|b"], ["zero-shot"], ["x"], {})
    assert "| backbone | encoder adapted with | a\\|b |" in matrix.to_markdown()


def test_table_4_names_the_commands_that_are_missing(plan, tmp_path):
    empty = plan.model_copy(update={"benches": tmp_path})
    with pytest.raises(ConfigError, match="python -m paper bench train"):
        publish("table4", EXPERIMENTS["table4"], empty, tmp_path)


def test_table_4_names_the_commands_that_measured_it(results):
    page = results("table4")[1].read_text()
    assert "questions per domain" not in page, "it has neither"
    assert (
        "`python -m paper bench train --ways 'small LLM'`" in page and "`python -m paper bench infer`" in page
    )


def test_answers_with_markup_stay_in_their_cell():
    assert escaped("a | b\n**c** <d>") == r"a \| b \*\*c\*\* \<d\>"


def test_the_command_on_the_page_makes_the_result_again():
    plan = plan_for("tiny", True, {"seeds": [3], "limit": 5, "adapt": {"blend": 1}})
    assert plan.adapt == {**QUICK["adapt"], "blend": 1} and plan.quick
    assert command("fig7", plan) == "python -m paper fig7 --quick --seeds 3 --limit 5 --set blend=1"
    assert command("fig7", plan_for("tiny", False, {})) == "python -m paper fig7"
    given = {
        "domains": ["my data"],
        "root": "data",
        "dtype": "float32",
        "adapt": {"lora.targets": ["q", "v"]},
    }
    assert command("fig7", plan_for("tiny", False, given)) == (
        "python -m paper fig7 --domains 'my data' --root data --dtype float32 "
        """--set 'lora.targets=["q", "v"]'"""
    )
    with pytest.raises(ConfigError, match="limit"):
        plan_for("tiny", False, {"limit": 0})


def test_the_command_of_a_plan_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("scale: paper\nsurrogates: [a]\nkeep_ratio: 0.6\nadapt: {blend: 1}\n")
    plan = plan_for(str(file), False, {"limit": 7})
    assert command("fig7", plan) == f"python -m paper fig7 --scale {file} --limit 7"


def test_the_papers_averages_are_those_of_its_rows():
    """A slip in copying would show: the printed averages are those of the printed figures."""
    tables = reported()
    for row in tables["table1"]:
        assert sum(row["accuracy"].values()) / 10 == pytest.approx(row["average"], abs=0.006)
    whole = {(row["surrogate"], row["backbone"]): row["accuracy"] for row in tables["table7"]}
    for row in tables["table1"]:
        if row["tokens"] == "Discrete":
            assert whole[row["surrogate"], row["backbone"]] == row["accuracy"]
    for row in tables["table6"]:
        figures = [value for name, value in row.items() if name not in ("codebook", "average")]
        assert sum(figures) / 5 == pytest.approx(row["average"], abs=0.006)
    for row in tables["table2"]:
        overall = row["faithfulness"] + row["relevance"] - row["verbosity"] / 2
        assert overall == pytest.approx(row["overall"], abs=0.011)
