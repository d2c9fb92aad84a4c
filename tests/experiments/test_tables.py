"""`craft reproduce` on tiny models: what stands in tables is what `evaluate` finds; nothing is done twice."""

import functools
import json
import re
import shutil
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from craft.cli import main
from craft.core.errors import ConfigError
from craft.core.files import read_json, write_json
from craft.evaluation import strict
from craft.experiments import EXPERIMENTS, Work, parallel, publish, write_result
from craft.experiments.accuracy import ALL, Line, by_seed, cells_of, difference, measured
from craft.experiments.benches import FILES
from craft.experiments.cells import CRAFT, Method
from craft.experiments.measures import fill
from craft.experiments.paper import theirs
from craft.experiments.parallel import estimate, fill_all, in_order, trainings
from craft.experiments.plan import QUICK, plan_for
from craft.experiments.publish import command, escaped, table
from craft.experiments.tables import MARGIN_PEER, PEER_GAIN, _verdict1, lines5
from craft.experiments.transfers import TABLE3
from craft.experiments.work import KEPT
from craft.formats.load import load
from craft.models.memory import weight_bytes
from craft.pages.matrix import TransferMatrix
from craft.recipes import evaluate
from craft.training.config import AdaptConfig

SLOW = ("table5", "table6", "lambdas", "open-questions", "fig4")
NAMES = [
    *("table1", "table2", "table3", "table4", "table7", "fig2", "fig7"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
]


CALCULATED = {"levers": [{"step": "naive", "TFLOP": 12345.678}], "FLOPs": 1.59, "sizes": {"B": 24}}


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
        more = (
            {"levers": rows, "calculated": CALCULATED, "ways": ["small LLM"]} if name == "bench_train" else {}
        )
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
    assert page.startswith("# ") and f"`craft reproduce {name}" in page
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
    assert found.cells == len(set(cells)) and found.measured
    assert "0 of" in found.line(2)


def test_the_estimate_counts_what_is_not_there(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_core_rate", lambda: parallel.RATE)
    fresh = plan.model_copy(update={"work": tmp_path})
    cells = EXPERIMENTS["table5"].cells(fresh)
    found = estimate(Work(fresh), cells)
    assert found.trainings == found.trainings_left == 4 and found.cells_left == len(cells) == 9
    assert not found.measured and "guess" in found.line()
    answers = found.seconds - 4 * parallel._guess("training", fresh)
    usual, four = (
        fresh.model_copy(update={"adapt": {**fresh.adapt, "max_steps": steps}}) for steps in (200, 4)
    )
    assert parallel._guess("training", usual) == parallel.SECONDS["training"]
    assert estimate(Work(usual), cells).seconds == pytest.approx(answers + 4 * parallel.SECONDS["training"])
    assert estimate(Work(four), cells).seconds < estimate(Work(usual), cells).seconds / 2
    monkeypatch.setattr(parallel, "_core_rate", lambda: parallel.RATE / 2)
    assert estimate(Work(fresh), cells).seconds == 2 * found.seconds
    assert found.time(2) == found.time(1) == found.seconds  # one domain, one seed: one process
    more = fresh.model_copy(update={"seeds": (0, 1, 2)})
    found = estimate(Work(more), EXPERIMENTS["table5"].cells(more))
    assert found.time(8) == found.seconds / 3 < found.time(2) == found.seconds / 2
    assert not list(tmp_path.iterdir())  # an estimate makes nothing


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
        {"line": line, "than": "zero-shot", "domain": ALL, "mean": end - start}
        for line, (start, end) in courses.items()
        if line != "zero-shot"
    ]
    told = _verdict1({"lines": [{"line": line} for line in courses], "rows": rows, "differences": gaps})
    assert "gains +14.0 points over its zero-shot; the paper's margin is 13.5: reached." in told
    assert "ends 8.0 points above the best baseline, Vision FT; the paper's lead is 6.8: reached." in told
    assert "gains +36.0 over its own zero-shot (the paper's +1.9), 22.0 points more than ours." in told
    averages = {(row["method"], row["backbone"]): row["average"] for row in theirs()["table1"]}
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
    kept = read_json(work.file(cell))
    write_json(work.file(cell), {**kept, "key": {**kept["key"], "lvlm": "other"}, "found": {}})
    assert fill(Work(plan), cell) == kept["found"]
    assert read_json(work.file(cell))["key"] == kept["key"]


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
    place = first.place(one.domain, one.seed, one.method)
    kept = {path: path.read_bytes() for path in data.rglob("*.png")}
    for path in kept:  # other colours
        with Image.open(path) as picture:
            inverted = ImageOps.invert(picture)
        inverted.save(path)
    work = Work(again)
    assert not work.is_trained(one.domain, one.seed, one.method)
    assert not any(work.is_measured(cell) for cell in cells.values())
    assert work.trained(one.domain, one.seed, one.method) != place
    learned = read_json(work.place(one.domain, one.seed, one.method) / "run.json")["data_fingerprint"]
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
    assert back.place(one.domain, one.seed, one.method) == place
    assert {name: fill(back, cell) for name, cell in cells.items()} == before
    shutil.rmtree(place)  # to have it made anew
    assert not back.is_trained(one.domain, one.seed, one.method)


def test_models_are_kept_as_long_as_there_is_room(plan, monkeypatch):
    """Those used last; what was once hashed is not read again."""
    loaded = []
    monkeypatch.setattr(
        "craft.experiments.work.load", lambda name, *how: loaded.append(name) or load(name, *how)
    )
    first, second = plan.backbones
    size = weight_bytes(load(first)) + weight_bytes(load(second))
    monkeypatch.setattr("craft.experiments.work.total_memory", lambda _: size / KEPT)
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
    assert "Of what LLM LoRA learned is kept: by number of classes" in page(told)
    assert "Of what LLM LoRA learned is kept: 30 %" in page({**told, "lora blend": 0.3})
    assert "is kept" not in page({**told, "lora blend": 1.0})


def test_groups_share_no_file(plan):
    """Cells of one domain and seed stay in one process: no two groups have a cell or a training in common."""
    wide = plan.model_copy(update={"domains": plan.general, "seeds": (0, 1)})
    cells = [cell for experiment in EXPERIMENTS.values() for cell in experiment.cells(wide)]
    work = Work(wide)
    files = {}
    for cell in cells:
        files.setdefault(work.file(cell), set()).add((cell.domain, cell.seed))
    assert all(len(owners) == 1 for owners in files.values())
    assert all(f"-{seed}-" in work.place(*one).name for one in trainings(cells) for seed in [one[1]])


def test_several_experiments_share_one_pool(plan, tmp_path, monkeypatch):
    """What is there is left out, each cell comes once, and no experiment waits for another's pool."""
    filled, shown = [], []
    monkeypatch.setattr("craft.experiments.plan.plan_for", lambda *_: plan)
    monkeypatch.setattr("craft.experiments.parallel.fill_all", lambda *given: filled.append(given))
    monkeypatch.setattr("craft.experiments.publish", lambda name, *_: shown.append((name, len(filled))) or [])
    assert main(["reproduce", "table3", "table7", "--jobs", "2", "--out", str(tmp_path)]) == 0
    (given,) = filled
    expected = [in_order(EXPERIMENTS[name].cells(plan)) for name in ("table3", "table7")]
    assert given == (plan, expected[0] + expected[1], 2)
    assert shown == [("table3", 1), ("table7", 1)]


def test_cells_reach_no_process_that_are_there_of_these_weights_and_questions(
    results, plan, tmp_path, monkeypatch
):
    results("table3")
    shutil.copytree(plan.work, tmp_path / "work")
    again = plan.model_copy(update={"work": tmp_path / "work"})
    cells = TABLE3.cells(again)
    monkeypatch.setattr("craft.experiments.parallel.ProcessPoolExecutor", None)  # would fail
    fill_all(again, cells, 2)
    place, other = Work(again).file(cells[0]), plan.backbones[1]
    told = read_json(place)
    write_json(place, {name: value for name, value in told.items() if name != "origin"})
    assert estimate(Work(again), cells).cells_left == 0  # one of before there was such a thing
    assert fill(Work(again), cells[0]) == told["found"] and read_json(place) == told
    work = Work(again)
    work.lvlm(other).backbone.llm.get_output_embeddings().weight.data.neg_()
    stale = [cell for cell in cells if other in (cell.backbone, cell.method.model)]
    assert [cell for cell in cells if not work.is_measured(cell)] == stale != cells
    write_json(place, {**told, "key": {**told["key"], "data": "other"}})
    assert estimate(Work(again), cells).cells_left == 1
    with pytest.raises(TypeError):
        fill_all(again, cells, 2)


def test_a_process_that_is_killed_is_told_in_a_sentence(plan, tmp_path, monkeypatch):
    """By the system, where memory runs out: Python says that a pool is broken, which is no fault of CRAFT."""

    class Pool(ProcessPoolExecutor):
        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

    monkeypatch.setattr("craft.experiments.parallel.ProcessPoolExecutor", Pool)
    empty = plan.model_copy(update={"work": tmp_path})
    with pytest.raises(ConfigError, match=r"was killed.*fewer --jobs than 2"):
        fill_all(empty, TABLE3.cells(empty)[:1], 2)


@pytest.mark.parametrize("told", ["{}", "[]", '{"rows": [], "lines": [], "differences": []}'])
def test_what_cannot_be_drawn_again_is_told(told, tmp_path, capsys):
    for name in ("table1", "fig5"):
        (tmp_path / f"{name}.json").write_text(told)
        assert main(["reproduce", name, "--redraw", "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert f"{name}.json is not a result" in error and "Traceback" not in error


def test_bars_in_names_end_no_cell():
    assert table(["line", "a|b"], [["x \\| y", "1|2|"]]) == (
        "| line | a\\|b |\n| --- | ---: |\n| x \\| y | 1\\|2\\| |"
    )
    matrix = TransferMatrix(["a|b"], ["zero-shot"], ["x"], {})
    assert "| backbone | encoder adapted with | a\\|b |" in matrix.to_markdown()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(plan, tmp_path):
    found = []
    for jobs in (1, 2):
        many = plan.model_copy(
            update={"work": tmp_path / str(jobs), "seeds": (0, 1), "backbones": plan.backbones[:1]}
        )
        lines = [Line("craft", Method(CRAFT, plan.surrogates[0]), plan.backbones[0])]
        if jobs > 1:
            fill_all(many, cells_of(many, lines), jobs)
            assert estimate(Work(many), cells_of(many, lines)).cells_left == 0
        found.append(measured(Work(many), lines))
    assert found[0] == found[1]


def test_table_4_names_the_commands_that_are_missing(plan, tmp_path):
    empty = plan.model_copy(update={"benches": tmp_path})
    with pytest.raises(ConfigError, match="craft bench train"):
        publish("table4", EXPERIMENTS["table4"], empty, tmp_path)


def test_table_4_keeps_what_was_calculated_apart(results):
    page = results("table4")[1].read_text()
    measured, _, calculated = page.partition("Calculated, not measured")
    assert "| naive | 12346 |" in calculated and "naive" not in measured
    assert "(B 24)" in calculated and "| FLOPs | 1.59 |" in calculated
    assert "questions per domain" not in page, "it has neither"
    assert "`craft bench train --ways 'small LLM'`" in page and "`craft bench infer`" in page


def test_answers_with_markup_stay_in_their_cell():
    assert escaped("a | b\n**c** <d>") == r"a \| b \*\*c\*\* \<d\>"


def test_the_command_on_the_page_makes_the_result_again():
    plan = plan_for("tiny", True, {"seeds": [3], "limit": 5, "adapt": {"blend": 1}})
    assert plan.adapt == {**QUICK["adapt"], "blend": 1} and plan.quick
    assert command("fig7", plan) == "craft reproduce fig7 --quick --seeds 3 --limit 5 --set blend=1"
    assert command("fig7", plan_for("tiny", False, {})) == "craft reproduce fig7"
    given = {
        "encoders": ["runs/a b"],
        "root": "data",
        "dtype": "float32",
        "adapt": {"lora.targets": ["q", "v"]},
    }
    assert command("fig7", plan_for("tiny", False, given)) == (
        "craft reproduce fig7 --encoders 'runs/a b' --root data --dtype float32 "
        """--set 'lora.targets=["q", "v"]'"""
    )
    with pytest.raises(ConfigError, match="limit"):
        plan_for("tiny", False, {"limit": 0})


def test_the_command_of_a_plan_in_a_file_names_the_file(tmp_path, monkeypatch):
    """Also where the package has no checkout around it, and so no plan of the paper's."""
    monkeypatch.setattr("craft.experiments.plan.PAPER", "no/such.yaml")
    file = tmp_path / "mine.yaml"
    file.write_text("scale: paper\nsurrogates: [a]\nkeep_ratio: 0.6\nadapt: {blend: 1}\n")
    plan = plan_for(str(file), False, {"limit": 7})
    assert command("fig7", plan) == f"craft reproduce fig7 --scale {file} --limit 7"


def test_the_papers_averages_are_those_of_its_rows():
    """A slip in copying would show: the printed averages are those of the printed figures."""
    tables = theirs()
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
