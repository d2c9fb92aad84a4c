"""The real lmms-eval finds CRAFT by its entry point and runs a local task on it, with CRAFT's own answers."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from builders import tiny_lvlm
from craft.evaluation.export import to_lmms
from craft.evaluation.report import Report
from craft.formats.native import save_native
from tiny_data import tiny_data

needs_lmms = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason="lmms-eval is not installed: pip install --no-deps lmms-eval"
)

TASK = """\
task: NAME
dataset_path: parquet
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: KIND
doc_to_visual: !function CODE.to_visual
doc_to_text: question
doc_to_target: TARGET
MORE
metric_list: [{metric: METRIC, aggregation: mean, higher_is_better: true}]
metadata: {version: 0.0}
"""

WRITING = """\
generation_kwargs: {max_new_tokens: 5, do_sample: false, until: ["\\n\\n"]}
process_results: !function local.marked\
"""

RUN = """\
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from craft.core.errors import CraftError

folder, model, tasks = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
manager = TaskManager(include_path=folder, include_defaults=False)
found = simple_evaluate(
    model="craft", model_args=f"pretrained={model},device=cpu", tasks=tasks, task_manager=manager,
    batch_size=4, log_samples=True, bootstrap_iters=0,
)
samples = {t: [(s["doc_id"], s["filtered_resps"]) for s in rows] for t, rows in found["samples"].items()}
keep = {k: v for k, v in found.items() if k not in ("samples", "configs")}
open(folder + "/found.json", "w").write(json.dumps({"samples": samples, **keep}, default=str))
"""


@pytest.fixture(scope="module")
def lmms_run(tmp_path_factory):
    """One process of lmms-eval with three local tasks: written answers, scored options, no image."""
    from datasets import Dataset, Features, Image, Sequence, Value

    folder = tmp_path_factory.mktemp("lmms")
    lvlm, samples = tiny_lvlm(), tiny_data(test=6).test
    model = save_native(folder / "family", "llama", lvlm, dtype="float32")
    kinds = Features(
        image=Image(), question=Value("string"), answer=Value("string"),
        choices=Sequence(Value("string")), correct=Value("int64"),
    )  # fmt: skip
    rows = [
        {
            "image": sample.image,
            "question": sample.prompt(),
            "answer": sample.answer,
            "choices": list(sample.choices),
            "correct": sample.correct,
        }
        for sample in samples
    ]
    Dataset.from_list(rows, features=kinds).to_parquet(folder / "test.parquet")
    (folder / "local.py").write_text(
        "def to_visual(doc):\n    return [doc['image'].convert('RGB')]\n\n\n"
        "def blind(doc):\n    return []\n\n\n"
        "def marked(doc, results):\n    return {'exact_match': float(results[0].strip() == doc['answer'])}\n"
    )
    for name, kind, target, metric, more, visual in (
        ("craft_write", "generate_until", "answer", "exact_match", WRITING, "to_visual"),
        ("craft_blind", "generate_until", "answer", "exact_match", WRITING, "blind"),
        ("craft_score", "multiple_choice", "correct", "acc", "doc_to_choice: choices", "to_visual"),
    ):
        text = TASK.replace("NAME", name).replace("DATA", str(folder / "test.parquet")).replace("KIND", kind)
        text = text.replace("TARGET", target).replace("METRIC", metric).replace("MORE", more)
        (folder / f"{name}.yaml").write_text(text.replace("CODE.to_visual", f"local.{visual}"))
    words = [sys.executable, "-c", RUN, str(folder), str(model), "craft_write,craft_blind,craft_score"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (folder / "found.json").exists(), done.stderr[-3000:] + done.stdout[-2000:]
    return lvlm, samples, json.loads((folder / "found.json").read_text())


@needs_lmms
@pytest.mark.slow
def test_a_task_of_written_answers(lmms_run):
    lvlm, samples, found = lmms_run
    said = {number: reply for number, (reply, *_) in found["samples"]["craft_write"]}
    for number, sample in enumerate(samples):
        assert said[number] == lvlm.answer([sample.image], [sample.prompt()])[0].split("\n\n")[0].strip()
    blind = {number: reply for number, (reply, *_) in found["samples"]["craft_blind"]}
    assert blind[0] == lvlm.answer(None, [samples[0].prompt()])[0].split("\n\n")[0].strip()


@needs_lmms
@pytest.mark.slow
def test_a_task_of_scored_options(lmms_run):
    from craft.models.decoding import option_ids, read, score

    lvlm, samples, found = lmms_run
    hits = []
    for number, replies in found["samples"]["craft_score"]:
        sample = samples[number]
        reading = read(lvlm.backbone, lvlm.encode([sample.image]), [sample.prompt()])
        scores = score(
            lvlm.backbone, reading, [option_ids(lvlm.backbone, sample.prompt(), sample.choices, end=False)]
        )[0]
        assert [float(value) for value, _ in replies] == pytest.approx([-one for one in scores], abs=1e-3)
        hits.append(max(range(4), key=scores.__getitem__) == sample.correct)
    assert found["results"]["craft_score"]["acc,none"] == pytest.approx(sum(hits) / len(hits))


@needs_lmms
@pytest.mark.slow
def test_our_results_have_the_shape_of_theirs(lmms_run):
    _, _, found = lmms_run
    row = {"id": "a", "strict": True, "lenient": True, "unparseable": False, "seen": True, "choices": []}
    ours = to_lmms({"mine": Report.of([row, {**row, "strict": False}], {"backbone": "b", "data": "mine"})})
    assert set(ours) - {"configs"} <= set(found)
    assert {key.split(",")[-1] for key in ours["results"]["mine"]} <= {"none", "alias"}
    assert set(ours["n-samples"]["mine"]) == set(found["n-samples"]["craft_write"])
    assert ours["results"]["mine"]["exact_match,none"] == 0.5


@needs_lmms
@needs_lmms
def test_an_empty_continuation_is_named():
    from craft.core.errors import CraftError
    from craft.evaluation.lmms import CraftLVLM

    model = object.__new__(CraftLVLM)
    model.lvlm = tiny_lvlm()
    assert len(model._score("What is it?", None, ["red", "blue"])) == 2
    with pytest.raises(CraftError, match=r"continuation of 'What is it\?' is empty"):
        model._score("What is it?", None, ["red", " "])


def test_the_entry_point_is_declared():
    found = [point.value for point in entry_points(group="lmms_eval.models") if point.name == "craft"]
    assert set(found) == {"craft.evaluation.lmms:manifest"}
