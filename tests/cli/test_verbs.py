"""Every verb does its job: status 0, something to read, and JSON that says the same."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from cli.conftest import FAST
from craft.core.tensors import load_tensors
from craft.data import EMBEDDED
from craft.formats.load import load
from craft.training.config import AdaptConfig

FAST_MATRIX = tuple(word.replace("batch_size", "adapt.batch_size") for word in FAST)


def test_adapt_says_who_trains_and_what_comes_next(encoder, family, pictures):
    out, said = encoder
    assert said.status == 0, said.err
    assert "vision_tower" in said.err and "frozen" in said.err  # the table, before training
    assert "adapting: 3 done" in said.err  # plain lines of progress
    assert f"craft eval {family / 'llama'} --encoder {out} --data {pictures}" in said.out
    names = {path.name for path in out.iterdir()}
    assert {"config.resolved.yaml", "run.json", "metrics.jsonl", "checkpoints", "encoder"} <= names


def test_adapt_takes_settings_in_three_ways(craft, family, pictures, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(f"surrogate: {family / 'llama'}\noptimizer: {{learning_rate: 1e-3}}\nbatch_size: 8\n")
    words = ("--data", pictures, "--config", config, "--set", "batch_size=4", "--max_steps", "1")
    dotted = ("--losses.commitment.weight", "0.25", "--data.answer_with=letter", "--device", "cpu")
    said = craft("adapt", *words, *dotted, "--out", tmp_path / "run", "--seed", "3", "--json")
    assert said.status == 0, said.err
    settings = said.json["config"]
    assert settings == yaml.safe_load((tmp_path / "run" / "config.resolved.yaml").read_text())
    assert settings["optimizer"]["learning_rate"] == 1e-3
    assert (settings["batch_size"], settings["seed"], settings["max_steps"]) == (4, 3, 1)
    assert settings["losses"]["commitment"]["weight"] == 0.25
    assert settings["data"]["answer_with"] == "letter"
    assert said.json["metrics"]["steps"] == 1 and len(said.json["held_out"]) == 1


def test_the_root_of_a_configs_data_is_not_that_of_other_data(craft, family, pictures, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("data: {name: stanford-dogs, root: data/stanford-dogs, answer_with: letter}\n")
    words = ("adapt", family / "llama", "--config", config, "--out", tmp_path / "run", *FAST)
    said = craft(*words, "--data", pictures)
    assert said.status == 0, said.err
    assert f"--data {pictures}\n" in said.out and "--root" not in said.out
    saved = yaml.safe_load((tmp_path / "run" / "config.resolved.yaml").read_text())["data"]
    assert (saved["name"], saved["root"], saved["answer_with"]) == (str(pictures), None, "letter")
    kept = AdaptConfig.build(config, {"data.name": "stanford-dogs", "seed": 1}).data
    assert kept.root == "data/stanford-dogs"
    for name in ("data.root", "root"):
        chosen = AdaptConfig.build(config, {"data.name": str(pictures), name: "data/stanford-dogs"}).data
        assert chosen.root == "data/stanford-dogs"
    mine = {"data.root": "photos"}  # names no data
    assert AdaptConfig.build(mine, {"data.name": "mine.jsonl"}).data.root == "photos"


def test_adapt_dry_run_writes_nothing(craft, family, pictures, tmp_path):
    words = ("adapt", family / "llama", "--data", pictures, "--out", tmp_path / "run", "--dry-run", *FAST)
    said = craft(*words)
    assert said.status == 0, said.err
    for word in ("What trains", "frozen", "activations", "total", "commitment"):
        assert word in said.out
    found = craft(*words, "--json").json
    assert found["memory"]["total"] > found["memory"]["weights"] > 0
    assert {row["part"]: row["trainable"] for row in found["parameters"]}["llm"] == 0
    assert not (tmp_path / "run").exists()


def test_eval_before_and_after(craft, family, encoder, tmp_path):
    out, _ = encoder
    zero = craft("eval", family / "qwen2", "--like", out, "--limit", "6", "--json")
    after = craft("eval", family / "qwen2", "--encoder", out, "--limit", "6", "--out", tmp_path, "--json")
    assert zero.status == after.status == 0, zero.err + after.err
    assert zero.json["count"] == after.json["count"] == 6
    assert {"accuracy", "seen", "unseen", "lenient", "unparseable", "interval"} <= set(after.json)
    rows = [json.loads(line) for line in (tmp_path / "samples-0.jsonl").read_text().splitlines()]
    assert sum(row["strict"] for row in rows) / 6 == pytest.approx(after.json["accuracy"])
    kept = json.loads((tmp_path / "report.json").read_text())
    assert {**kept, "reports": 0} == {**after.json, "reports": 0, "asked": kept["asked"]}
    assert kept["reports"][0].items() >= after.json["reports"][0].items()


def test_eval_over_seeds_as_a_table(craft, family, pictures):
    said = craft("eval", family / "llama", "--data", pictures, "--limit", "5", "--seeds", "0,1")
    assert said.status == 0, said.err
    for word in ("strict", "95 % interval", "unparseable", "mean", "±", "chance 25.0 %", "craft adapt"):
        assert word in said.out
    words = ("eval", family / "llama", "--data", pictures, "--limit", "5", "--seeds", "0,1", "--json")
    found = craft(*words).json
    assert [report["settings"]["seed"] for report in found["reports"]] == [0, 1]
    assert found["accuracy"] == pytest.approx(sum(r["accuracy"] for r in found["reports"]) / 2)


def test_prior_is_counted_and_pruned_by(craft, family, encoder, pictures, tmp_path):
    out, _ = encoder
    file = tmp_path / "prior.safetensors"
    words = ("prior", pictures, "--model", family / "llama")
    found = craft(*words, "--encoder", out, "--out", file, "--json").json
    assert found["counts"] == load_tensors(out / "encoder" / "prior.safetensors")["counts"].tolist()
    assert load_tensors(file)["counts"].tolist() == found["counts"]
    said = craft(*words, "--limit", "4")
    assert said.status == 0 and "4 of blobs" in said.out and "Nothing was written" in said.out
    asked = ("eval", family / "qwen2", "--encoder", out, "--limit", "5", "--keep-ratio", "0.5")
    own = craft(*asked, "--json").json
    given = craft(*asked, "--json", "--prior", file, "--keep-positions").json
    assert own["reports"][0]["settings"]["keep_ratio"] == 0.5
    assert given["reports"][0]["settings"]["prior"] == str(file)
    assert given["reports"][0]["settings"]["keep_positions"] is True
    assert "keep ratio 0.5" in craft(*asked).out


def test_show(craft, family, encoder, pictures, tmp_path):
    files = sorted(pictures.rglob("*.png"))[:2]
    words = ("show", *files, "--model", family / "llama", "--encoder", encoder[0])
    said = craft(*words, "--out", tmp_path / "one", "--keep-ratios", "0.5")
    assert said.status == 0, said.err
    assert str(tmp_path / "one") in said.out and "0.png" in said.out
    assert "No code prior" in said.out  # the tiny base tower has none
    found = craft(*words, "--out", tmp_path / "two", "--json").json
    assert [row["tower"] for row in found["maps"]] == ["base", "adapted"] * 2
    assert len(found["maps"][0]["codes"]) == 16 and found["maps"][1]["rank"] is not None
    assert "takes numbers" in craft(*words, "--keep-ratios", "half").complaint


def test_eval_scores_options_beside_written_answers(craft, family, pictures, tmp_path):
    words = ("eval", family / "llama", "--data", pictures, "--limit", "6", "--cache", tmp_path / "codes")
    said = craft(*words, "--protocol", "both", "--classes")
    assert said.status == 0, said.err
    for word in ("scored", "agreement", "By class", "Taken for another", "(no option)"):
        assert word in said.out
    assert list((tmp_path / "codes").glob("*/part-*.safetensors"))
    alone = craft(*words, "--protocol", "options", "--classes", "--json").json
    assert alone["scored"] == alone["accuracy"] and alone["unparseable"] == 0
    assert sum(row["count"] for row in alone["reports"][0]["classes"]) == 6
    assert "likeliest options" in craft(*words, "--protocol", "options").out


def test_scored_options_have_a_reliability_diagram(craft, encoder, pictures, family, tmp_path):
    run, _ = encoder
    words = ("eval", family / "qwen2", "--encoder", run, "--limit", "6", "--out", tmp_path / "out")
    said = craft(*words, "--protocol", "options")
    assert said.status == 0, said.err
    path = tmp_path / "out" / "reliability-0.png"
    assert f"reliability diagram: {path}" in said.out.replace("\n", "")
    assert "with the encoder's temperature" in said.out and "negative log-likelihood" in said.out
    drawn = path.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    path.unlink()
    assert craft(*words, "--protocol", "options", "--resume").status == 0
    assert path.read_bytes() == drawn
    alone = craft(*words)  # the folder's answers are others now, and have no probabilities
    assert alone.status == 0 and "reliability" not in alone.out and not path.exists()
    two = craft(*words, "--protocol", "options", "--seeds", "0,1").out
    assert all(f"reliability diagram, seed {seed}: " in two for seed in (0, 1))
    assert (tmp_path / "out" / "reliability-1.png").is_file()


def test_several_data_sets_make_a_row_of_table_1(craft, family, encoder, pictures, tmp_path):
    run, _ = encoder
    other = tmp_path / "things"
    other.symlink_to(pictures)
    words = ("eval", family / "qwen2", "--limit", "5", "--out", tmp_path / "out")
    said = craft(*words, "--data", pictures, other)
    assert said.status == 0, said.err
    found = craft(*words, "--data", pictures, other, "--json", "--resume").json
    each = [found["benchmarks"][name]["accuracy"] for name in ("blobs", "things")]
    assert found["average"] == pytest.approx(sum(each) / 2)
    row = f"| - | {family / 'qwen2'} | Discrete | " + " | ".join(
        f"{100 * x:.2f}" for x in [*each, sum(each) / 2]
    )
    assert list(found["table_1"])[3:] == ["blobs", "things", "Avg."]
    assert (
        row in said.out or row.replace(str(family / "qwen2"), found["table_1"]["Inference BB."]) in said.out
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"blobs", "things", "config.resolved.yaml"}
    both = craft("eval", *words[1:4], "--data", pictures, other, "--protocol", "both", "--classes").out
    assert all(word in both for word in ("scored", "agreement", "By class: blobs", "By class: things"))
    adapted = craft(
        "eval", family / "qwen2", "--limit", "5", "--encoder", run, "--data", pictures, other, "--json"
    )
    assert adapted.status == 0, adapted.err
    assert adapted.json["table_1"]["Train Surro."] != "-"


def test_resume_asks_only_what_is_missing_or_was_asked_otherwise(craft, family, pictures, tmp_path):
    words = ("eval", family / "llama", "--data", pictures, "--out", tmp_path, "--resume", "--limit")
    first = craft(*words, "4", "--json").json
    marked = (tmp_path / "samples-0.jsonl").read_text().replace('"strict": false', '"strict": true')
    (tmp_path / "samples-0.jsonl").write_text(marked)  # so that it shows where an answer came from
    assert craft(*words, "4", "--json").json["accuracy"] == 1.0
    assert craft(*words, "5", "--json").json["count"] == 5
    (tmp_path / "report.json").unlink()
    assert craft(*words, "4", "--json").json["accuracy"] == first["accuracy"]


def test_compare_two_evaluations(craft, family, encoder, tmp_path):
    run, _ = encoder
    for name, words in (("base", ("--like", run)), ("adapted", ("--encoder", run))):
        done = craft("eval", family / "llama", *words, "--limit", "6", "--out", tmp_path / name, "--json")
        assert done.status == 0, done.err
    said = craft("compare", tmp_path / "base", tmp_path / "adapted")
    assert said.status == 0, said.err
    assert "McNemar, exact" in said.out and "seen" in said.out
    assert "one seed: questions only" in said.out and "other settings" not in said.out
    pruned = ("--encoder", run, "--limit", "6", "--keep-ratio", "0.5", "--out", tmp_path / "pruned")
    assert craft("eval", family / "llama", *pruned).status == 0
    apart = craft("compare", tmp_path / "base", tmp_path / "pruned").out
    assert "other settings: keep_ratio is 1.0 in A and 0.5 in B" in " ".join(apart.split())
    found = craft("compare", tmp_path / "base", tmp_path / "adapted", "--json").json["comparisons"]["all"][
        "all"
    ]
    told = [
        json.loads((tmp_path / name / "report.json").read_text())["accuracy"] for name in ("base", "adapted")
    ]
    assert (found["a"], found["b"]) == tuple(map(pytest.approx, told))
    assert found["difference"] == pytest.approx(told[1] - told[0]) and 0 < found["p_value"] <= 1
    chosen = ("--encoder", run, "--limit", "6", "--protocol", "options", "--out", tmp_path / "chosen")
    assert craft("eval", family / "llama", *chosen).status == 0
    refused = craft("compare", tmp_path / "base", tmp_path / "chosen")
    assert refused.status == 2 and "Evaluate both with the same --protocol" in " ".join(refused.err.split())
    file = tmp_path / "base" / "samples-0.jsonl"
    assert craft("compare", file, file, "--json").json["comparisons"]["all"]["all"]["p_value"] == 1.0
    (tmp_path / "base" / "report.json").unlink()
    assert "no report.json" in craft("compare", tmp_path / "base", tmp_path / "adapted").out


def test_figures_go_into_the_model_card(craft, family, encoder, tmp_path):
    import shutil

    from huggingface_hub import ModelCard

    run = tmp_path / "copy"
    shutil.copytree(encoder[0], run)
    words = ("eval", family / "qwen2", "--encoder", run, "--limit", "5", "--card", "--json")
    told = craft(*words).json
    card = (run / "encoder" / "README.md").read_text()
    assert craft(*words).status == 0 and (run / "encoder" / "README.md").read_text() == card
    found = ModelCard(card).data.eval_results
    values = {result.metric_name: result.metric_value for result in found}
    assert values[f"exact match, {told['reports'][0]['settings']['backbone']}"] == pytest.approx(
        100 * told["accuracy"], abs=0.01
    )
    assert {r.dataset_name for r in found} == {"blobs"} and "## Codebook" in card
    load(str(family / "qwen2")).with_encoder(run)  # the artefact is as good as before


def test_eval_takes_its_flags_from_a_file(craft, family, pictures, tmp_path):
    config = tmp_path / "eval.yaml"
    config.write_text(f"data: {{name: {pictures}, answer_with: letter}}\nlimit: 5\nmax_new_tokens: 2\n")
    found = craft("eval", family / "llama", "--config", config, "--limit", "4", "--json").json
    assert found["count"] == 4  # the command line goes first
    assert found["reports"][0]["settings"]["max_new_tokens"] == 2


def test_what_a_config_switches_off_is_off(craft, pictures, tmp_path):
    """`decode` is on unless it is said otherwise: a picture that nobody decodes may be broken."""
    folder = shutil.copytree(pictures, tmp_path / "blobs")
    broken = next(folder.glob("*/0.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "check.yaml").write_text("decode: false\nroot: null\n")
    assert craft("data", "check", folder).status == 2
    assert craft("data", "check", folder, "--config", tmp_path / "check.yaml").status == 0
    assert craft("data", "check", folder, "--set", "decode=false").status == 0
    again = ("--set", "decode=true", "--config", tmp_path / "check.yaml")  # the command line goes first
    assert craft("data", "check", folder, *again).status == 2


def test_transfer_of_encoders(craft, family, encoder, tmp_path):
    out, _ = encoder
    backbones = (family / "llama", family / "qwen2")
    words = ("transfer", "--encoders", out, "--backbones", *backbones, "--limit", "4")
    said = craft(*words, "--out", tmp_path)
    assert said.status == 0, said.err
    for word in (
        "blobs: strict accuracy",
        "zero-shot",
        "tiny/llama",
        "tiny/qwen2",
        "unseen",
        "(+",
        "another LLM",
    ):
        assert word in said.out
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.resolved.yaml",
        "transfer.json",
        "transfer.md",
        "transfer.png",
    }
    found = json.loads((tmp_path / "transfer.json").read_text())
    assert found["encoders"] == ["zero-shot", "tiny/llama"]
    assert len(found["table"]) == 4
    assert craft(*words, "--json", "--dry-run").json["backbones"] == ["tiny/llama", "tiny/qwen2"]


def test_transfer_adapts_what_it_needs(craft, family, pictures, tmp_path):
    words = (
        "transfer",
        "--surrogates",
        family / "llama",
        "--backbones",
        family / "qwen2",
        "--data",
        pictures,
    )
    more = (
        "--seeds",
        "0,1",
        "--limit",
        "4",
        "--set",
        "max_steps=1",
        "--work",
        tmp_path / "work",
        *FAST_MATRIX,
    )
    dry = craft(*words, *more, "--dry-run")
    assert dry.status == 0 and "for every seed" in dry.out and list(tmp_path.iterdir()) == []
    found = craft(*words, *more, "--json").json
    assert found["settings"]["seeds"] == [0, 1]
    assert [row["runs"] for row in (found["table"][1]["accuracy"],)] == [2]
    assert len(list((tmp_path / "work" / "runs").iterdir())) == 2


def test_a_rehearsed_transfer_finds_pictures_by_their_root(craft, family, pictures, tmp_path):
    places = sorted(pictures.glob("*/*.png"))
    rows = [{"image": str(p.relative_to(pictures)), "label": p.parent.name} for p in places]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("transfer", "--surrogates", family / "llama", "--data", tmp_path / "rows.jsonl", *FAST_MATRIX)
    said = craft(*words, "--root", pictures, "--dry-run")
    assert said.status == 0, said.err


def test_inspect(craft, family, encoder):
    out, _ = encoder
    fingerprint = load(family / "llama").visual.codebook.fingerprint
    kinds = {out: "run", out / "encoder": "adapted encoder", family / "llama": "model", family: "family"}
    for thing, kind in kinds.items():
        found, said = craft("inspect", thing, "--json").json, craft("inspect", thing)
        assert found["kind"] == kind and said.status == 0, said.err
        if kind != "family":
            assert fingerprint in said.out and fingerprint in json.dumps(found)
    run = craft("inspect", out, "--json").json
    assert (run["status"], run["step"], run["changed_parts"]) == ("finished", 3, ["vision_tower"])
    assert run["encoder"]["fits"] == ["tiny/llama"]
    assert craft("inspect", family / "qwen2", "--json").json["llm"] == "qwen2"


def test_export_drops_into_a_vila_u_checkpoint(craft, vila_u, tmp_path):
    base, run = vila_u
    said = craft("export", run, "--format", "vila-u", "--base", base, "--out", tmp_path / "export", "--json")
    assert said.status == 0, said.err
    written = tmp_path / "export" / "vision_tower"
    assert said.json == {"format": "vila-u", "written": str(written)}
    old, new = (load_tensors(folder / "model.safetensors") for folder in (base / "vision_tower", written))
    assert old.keys() == new.keys()
    changed = {name for name in old if not old[name].equal(new[name])}
    assert changed and all("vision_model" in name or "logit_scale" in name for name in changed)


def test_data(craft, pictures, tmp_path):
    listed = craft("data", "list")
    assert listed.status == 0 and "apparel" in listed.out and "CC BY 4.0" in listed.out
    rows = {row["name"]: row for row in craft("data", "list", "--json").json}
    assert {*EMBEDDED, "eurosat"} <= rows.keys() and rows["eurosat"]["images"] == 27000
    assert "timm/eurosat-rgb" in rows["eurosat"]["hub"] and "eurosat" in listed.out
    checked = craft("data", "check", pictures, "--json").json
    assert checked["images"] == 40 and len(checked["held_out"]) == 1
    assert "-> " in craft("data", "check", pictures).out


def test_a_data_set_is_prepared_from_within(craft, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(pictures, tmp_path / "things"))
    assert craft("data", "prepare", ".", "--json").json["out"] == "prepared/things"


def test_demo(craft, family, pictures, tmp_path):
    models = ("--surrogate", family / "qwen2", "--other", family / "llama")
    words = (
        "demo",
        *models,
        "--data",
        pictures,
        "--out",
        tmp_path / "demo",
        "--limit",
        "8",
        "--max-steps",
        "3",
    )
    said = craft(*words, *FAST)
    assert said.status == 0, said.err
    for word in ("tiny/qwen2", "tiny/llama", "zero-shot", "adapted", "seen", "unseen"):
        assert word in said.out
    assert "frozen parts unchanged" in said.out and "text-only answers unchanged" in said.out
    with Image.open(tmp_path / "demo" / "demo.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
    found = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [(row["role"], row["encoder"]) for row in found["rows"]] == [
        (role, encoder) for role in ("surrogate", "other") for encoder in ("zero-shot", "adapted")
    ]
    zero = craft("eval", family / "llama", "--like", tmp_path / "demo" / "run", "--limit", "8", "--json").json
    assert found["rows"][2]["figures"]["all"]["accuracy"] == zero["accuracy"]
    again = craft(*words, *FAST, "--json").json  # replaces its own earlier run
    assert [row["figures"] for row in again["rows"]] == [row["figures"] for row in found["rows"]]


def test_the_page_of_a_demo(craft, family, pictures, tmp_path, monkeypatch):
    """`--ui` serves the demo's encoder; a finished demo with the same settings is not repeated."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'craft-vlm[serve]'")
    served = []
    monkeypatch.setattr("craft.recipes.serve.serve", served.append)
    models = ("--surrogate", family / "qwen2", "--other", family / "llama", "--out", tmp_path / "demo")
    words = ("demo", *models, "--data", pictures, "--limit", "8", *FAST, "--ui")
    first = craft(*words, "--max-steps", "2")
    again = craft(*words, "--max-steps", "2")
    other = craft(*words, "--max-steps", "1", "--json")
    assert [said.status for said in (first, again, other)] == [0, 0, 0], first.err + again.err + other.err
    assert "frozen parts unchanged" in first.out
    assert again.out == "" and "is finished" in again.err
    assert other.json["metrics"]["steps"] == 1 and "is finished" not in other.err
    for config, said in zip(served, (first, again, other), strict=True):
        assert f"page: http://127.0.0.1:{config.port}/" in said.err
        assert config.model == str(family / "qwen2") and config.host == "127.0.0.1"
        assert config.folders() == {pictures.name: str(tmp_path / "demo" / "run" / "encoder")}
    (tmp_path / "demo" / "demo.json").unlink()
    assert "frozen parts unchanged" in craft(*words, "--max-steps", "1", "--resume").out


LIGHT = """
import contextlib, io, json, sys
from craft.cli.main import app, main

def verbs(app, before=()):
    for name in app:
        if not name.startswith("-"):
            yield from verbs(app[name], (*before, name))
    yield before

HEAVY = {"torch", "transformers", "accelerate", "matplotlib", "numpy", "scipy", "PIL", "safetensors"}
answers = {}
for words in [(*verb, *end) for verb in CHOSEN or verbs(app) for end in ENDS]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = main(list(words))
    answers[" ".join(words)] = [status, sorted(HEAVY & set(sys.modules))]
print(json.dumps(answers))
"""


def light(environment, *ends, chosen=()):
    """Status of each command line, and the heavy libraries imported so far; all run in one process.

    Args:
        ends: the words after the verb.
        chosen: the verbs; all if there are none.
    """
    code = f"CHOSEN, ENDS = {[[verb] for verb in chosen]!r}, {ends!r}\n{LIGHT}"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(said.stdout)


def test_help_imports_nothing_heavy(environment):
    answers = light(environment, ["--help"])
    assert answers == {words: [0, []] for words in answers}
    assert {"--help", "adapt --help", "eval --help", "judge --help", "data check --help"} <= answers.keys()


def test_mistakes_in_flags_import_nothing_heavy(environment):
    answers = light(environment, ["--no-such-flag"], ["--seed", "x"])
    assert "transfer --seed x" in answers
    assert answers == {words: [2, []] for words in answers}


def test_mistakes_in_settings_import_nothing_heavy(environment):
    answers = light(
        environment, ["--set", "no_such=1"], chosen=["adapt", "align", "eval", "judge", "transfer"]
    )
    assert len(answers) == 5
    assert answers == {words: [2, []] for words in answers}


@pytest.mark.parametrize("verb", ["demo", "adapt", "eval", "transfer", "inspect", "export", "data list"])
def test_every_verb_has_help_and_the_common_options(craft, verb):
    said = craft(*verb.split(), "--help")
    assert said.status == 0
    for option in ("--config", "--seed", "--device", "--dtype", "--json"):
        assert option in said.out
    assert ("--dry-run" in said.out) == (verb in ("demo", "adapt", "eval", "transfer"))


def test_python_m_craft_and_version(environment):
    from craft import __version__

    command = [sys.executable, "-m", "craft", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert said.stdout.strip() == __version__


def test_align_makes_a_backbone(craft, family, pictures, tmp_path):
    out = tmp_path / "mine"
    words = ("align", family / "llama", "--visual", family, "--data", pictures, "--out", out)
    said = craft(*words, "--stage", "both", "--max-steps", "2", "--lora", "2", *FAST)
    assert said.status == 0, said.err
    for word in ("perplexity of held-out text", "stage 1", "stage 2", f"craft eval {out} --data"):
        assert word in said.out
    assert "aligning, stage 2: 2 done" in said.err
    found = craft("eval", out, "--data", pictures, "--limit", "4", "--json")
    assert found.status == 0 and found.json["count"] == 4
    found = craft("inspect", out, "--json").json
    assert [found[name] for name in ("status", "stage", "step", "steps")] == ["finished", "2", 2, 2]
    assert found["aligned"] == str(family / "llama") and found["data"] == str(pictures)
    shown = craft("inspect", out)
    assert f"{out / 'backbone'}: the model" in shown.out and "nothing" not in shown.out
    assert craft("report", out, "--out", tmp_path / "page.html").status == 0
    page = (tmp_path / "page.html").read_text()
    assert "align" in page and "stage-1" in page and "stage-2" in page
    assert "--overwrite" in craft(*words, "--max-steps", "2", *FAST).complaint


def test_align_finds_its_micro_batch_and_one_process_speaks_for_all(
    craft, family, pictures, tmp_path, monkeypatch
):
    words = ("align", family / "llama", "--visual", family, "--data", pictures, "--stage", "1", *FAST)
    words += ("--max-steps", "1", "--micro-batch", "auto")
    said = craft(*words, "--out", tmp_path / "a", "--json")
    assert said.status == 0, said.err
    assert said.json["config"]["micro_batch"] == "auto"
    assert json.loads((tmp_path / "a/stage-1/run.json").read_text())["micro_batch"] == 4

    def leave():
        raise SystemExit(0)  # as in the second of two processes

    monkeypatch.setattr("craft.core.processes.leave", leave)
    said = craft(*words, "--out", tmp_path / "b", "--json")
    assert (said.status, said.out) == (0, "") and (tmp_path / "b" / "backbone").is_dir()


def test_align_dry_run_tells_what_it_leaves(craft, family, pictures, tmp_path):
    words = ("align", family / "llama", "--visual", family, "--data", pictures, "--out", tmp_path / "run")
    said = craft(*words, "--dry-run", "--set", "device=cpu", "--set", "batch_size=4")
    assert said.status == 0, said.err
    assert said.out.count("nothing was written but the codes of the images") == 1
    assert [place.name for place in tmp_path.iterdir()] == ["codes"]


def test_align_dry_run_of_the_papers_size(craft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = craft("align", "paper/qwen2-0.5b", "--visual", "paper/vila-u", "--dry-run")
    assert said.status == 0, said.err
    assert said.out.count("What trains") == 2 and "494,032,768" in said.out and "595375" in said.out
    assert said.out.count("A dry run: nothing was written. Leave") == 1
    told = craft("align", "paper/qwen2-0.5b", "--visual", "paper/vila-u", "--dry-run", "--json").json
    assert told["stage 2"]["memory"]["optimiser"] > told["stage 1"]["memory"]["optimiser"] > 0
    assert not list(tmp_path.iterdir())
