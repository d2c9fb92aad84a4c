"""Folders that somebody else made: nothing outside is read, copied or patched, and no code in them runs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from builders import tiny_lvlm
from craft.core.errors import CheckpointError, ConfigError, CraftError
from craft.core.files import member
from craft.formats import names
from craft.formats.llm_source import load_borrowed, open_llm
from craft.formats.load import load, load_artefact
from craft.formats.native import save_native
from craft.formats.weight_folder import WeightFolder
from craft.judging.answers import read_cases
from craft.recipes import adapt, build_prior, load_tuned, tune
from craft.recipes.judge import answers_of, judge_settings
from craft.recipes.options import _load
from craft.recipes.show import show
from tiny_data import tiny_data

ROOT = Path(__file__).parents[2]
OUTSIDE = (
    *("../victim/model.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a\\b", "C:\\a"),
    *("a\0b", "./a", "a/", None, 5, ["a"], {"a": 1}),
)


@pytest.fixture
def model(tmp_path):
    return save_native(tmp_path / "family", "llama", tiny_lvlm())


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_an_index(tmp_path, name):
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    for one in (victim, folder, folder / "a"):
        one.mkdir()
    tensors = {"w": torch.zeros(2)}
    for path in (victim / "model.safetensors", folder / "own.safetensors", folder / "a/b.safetensors"):
        save_file(tensors, path)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    before = (victim / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"index\.json names .*plain name"):
        WeightFolder(folder).write(tmp_path / "target", {"w": torch.ones(2)})
    assert (victim / "model.safetensors").read_bytes() == before and not (tmp_path / "target").exists()
    index.write_text(json.dumps({"weight_map": {"w": "own.safetensors"}}))
    assert WeightFolder(folder).write(tmp_path / "target", {"w": torch.ones(2)}) == ["w"]


def test_links_that_leave_the_folder(tmp_path):
    folder, store = tmp_path / "folder", tmp_path / "store"
    folder.mkdir()
    store.mkdir()
    save_file({"w": torch.zeros(2)}, store / "x.safetensors")
    (folder / "x.safetensors").symlink_to(store / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "x.safetensors"}}')
    with pytest.raises(CheckpointError, match="link to a file outside its folder"):
        WeightFolder(folder)
    (folder / "x.safetensors").unlink()
    save_file({"w": torch.zeros(2)}, folder / "y.safetensors")
    (folder / "x.safetensors").symlink_to("y.safetensors")  # inside
    weights = WeightFolder(folder)
    (store / "secret.txt").write_text("secret")
    for link, goal in (("notes.txt", store / "secret.txt"), ("more", store)):
        (folder / link).symlink_to(goal)
        with pytest.raises(CheckpointError, match=rf"{link} is a link to"):
            weights.write(tmp_path / link / "target", {"w": torch.ones(2)})
        (folder / link).unlink()
    assert not list(tmp_path.rglob("target/notes.txt"))


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    save_file({"w": torch.zeros(2)}, cache / "blobs" / "123")
    (snapshot / "x.safetensors").symlink_to("../../blobs/123")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"w": "x.safetensors"}}')
    assert WeightFolder(snapshot).where["w"].name == "x.safetensors"
    (snapshot / "z.safetensors").symlink_to(tmp_path / "other")
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(CheckpointError, match="link"):
        member(snapshot, "z.safetensors", "index")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "images/../../secret.png", "a\\b.png"])
def test_images_of_judged_answers(tmp_path, name):
    row = {"id": "1", "prompt": "?", "prediction": "a", "answer": "a"}
    (tmp_path / "answers.jsonl").write_text(json.dumps({**row, "image": name}))
    with pytest.raises(CheckpointError, match=r"answers\.jsonl names .*not a path inside its folder"):
        read_cases(tmp_path)
    (tmp_path / "answers.jsonl").write_text(json.dumps({**row, "image": "images/a.png"}))
    assert read_cases(tmp_path)[0].image == tmp_path / "images/a.png"


def test_a_backbone_names_the_visual_tokenizer_of_its_family_only(model):
    manifest = json.loads((model / "craft.json").read_text())
    for wrong in ("../../elsewhere/visual", "/elsewhere/visual", "visual", "", "../visual/../visual"):
        (model / "craft.json").write_text(json.dumps({**manifest, "visual": wrong}))
        with pytest.raises(CheckpointError, match=r"craft\.json.*visual cannot be"):
            load(model, "cpu")


# Code


def calls(tree):
    """Calls that let transformers read a folder, by line."""
    for node in ast.walk(tree):
        reads = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if reads and node.func.attr in ("from_pretrained", "from_config"):
            yield node


def test_every_call_of_transformers_refuses_code_and_pickles():
    files = [
        p
        for name in ("src", "paper", "train_tiny", "scripts", "benchmarks", "examples")
        for p in (ROOT / name).rglob("*.py")
    ]
    seen = 0
    for path in files:
        for call in calls(ast.parse(path.read_text())):
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            where = f"{path.name}:{call.lineno}"
            assert words.get("trust_remote_code") == "False", where
            loads = ast.unparse(call.func.value)
            weights = call.func.attr == "from_pretrained" and ("Model" in loads or "Llava" in loads)
            assert not weights or words.get("use_safetensors") == "True", where
            seen += 1
    assert seen >= 12


def plant(folder, *files):
    """Let JSON files of a folder name a class in a Python file, which writes `marker` if it runs."""
    marker = folder / "marker"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\nclass Own: pass\n")
    for file in files:
        content = json.loads((folder / file).read_text())
        kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer", "AutoProcessor")
        content["auto_map"] = {kind: "own.Own" for kind in kinds}
        if "tokenizer_class" in content or "tokenizer" in file:
            content["auto_map"]["AutoTokenizer"] = ["own.Own", "own.Own"]
            content["tokenizer_class"] = "OwnTokenizer"
        else:
            content |= {"model_type": "own-model", "architectures": ["Own"]}
        (folder / file).write_text(json.dumps(content))
    return marker


@pytest.mark.parametrize(
    "files", [("config.json",), ("tokenizer_config.json",), ("config.json", "tokenizer_config.json")]
)
def test_code_of_a_model_never_runs(model, files):
    marker = plant(model / "llm", *files)
    program = "import sys, craft; craft.load(sys.argv[1], 'cpu')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run(
        [sys.executable, "-c", program, str(model)],
        input="y\n" * 9,
        text=True,
        capture_output=True,
        env=environment,
    )
    assert run.returncode and not marker.exists()
    assert "CheckpointError" in run.stderr and "CRAFT runs no code of a model" in run.stderr
    assert (
        "[y/N]" not in run.stdout + run.stderr and "trust_remote_code=True" not in run.stderr.splitlines()[-1]
    )
    for use in (lambda: open_llm(model / "llm", torch.float32), lambda: _load(model / "llm")):
        with pytest.raises(CheckpointError):
            use()
    assert not marker.exists()


def test_a_known_architecture_is_loaded_without_the_code_beside_it(model):
    llm = model / "llm"
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((llm / file).read_text())
        content["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
        (llm / file).write_text(json.dumps(content))
    (llm / "own.py").write_text(f"open({str(llm / 'marker')!r}, 'w')")
    load(model, "cpu")
    assert not (llm / "marker").exists()


def test_adapters_kernels_and_pickles(model):
    llm = model / "llm"
    config = (llm / "config.json").read_text()
    for name in ("attn_implementation", "_attn_implementation"):
        (llm / "config.json").write_text(json.dumps({**json.loads(config), name: "kernels-community/own"}))
        with pytest.raises(CheckpointError, match=r"kernels-community/own.*code on the hub"):
            load(model, "cpu")
    (llm / "config.json").write_text(config)
    (llm / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    with pytest.raises(CheckpointError, match="Merge it into that model"):
        load(model, "cpu")
    (llm / "adapter_config.json").unlink()
    (llm / "model.safetensors").rename(llm / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle file.*Convert it once.*save_file"):
        load(model, "cpu")


# Models that a file names


def test_no_model_is_loaded_because_a_manifest_names_it(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"loaded {arguments}")

    data = tiny_data()
    small = {"max_steps": 1, "batch_size": 4, "device": "cpu"}
    adapt(tiny_lvlm(), data, tmp_path / "run", **small)
    tune("llm-lora", tiny_lvlm(), data, tmp_path / "tuned", **small)
    monkeypatch.setattr("craft.recipes.arguments.load", refuse)
    monkeypatch.setattr(names, "hub_folder", refuse)
    image = data.test[0].image
    for name in ("evil/model", "http://evil/x", str(tmp_path), "../run"):
        for run, part in (("run", "encoder"), ("tuned", "tuned")):
            path = tmp_path / run / part / "craft.json"
            manifest = json.loads(path.read_text())
            path.write_text(json.dumps({**manifest, "surrogate": name, "config": {"surrogate": name}}))
        run = tmp_path / "run"
        with pytest.raises(ConfigError, match="Name the model: --model MODEL"):
            build_prior("apparel", encoder=run)
        with pytest.raises(ConfigError, match="Name the model: --model MODEL"):
            show([image], encoder=run, out=tmp_path / "pictures")
    path.write_text(
        json.dumps({**manifest, "surrogate": "evil/model", "config": {"surrogate": "evil/model"}})
    )
    with pytest.raises(ConfigError, match="evil/model"):
        load_tuned(tmp_path / "tuned")
    path = tmp_path / "run" / "encoder" / "craft.json"
    path.write_text(path.read_text().replace("../run", "evil/model"))
    with pytest.raises(ConfigError, match="--backbone MODEL"):
        answers_of(judge_settings(str(tmp_path / "run"), None, None, None, None, {}))
    monkeypatch.undo()
    show([image], tiny_lvlm(), tmp_path / "run", out=tmp_path / "pictures")


def test_an_llm_that_a_backbone_names_is_not_downloaded(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(*arguments, **options):
        asked.append(options)
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        CraftError, match=r"CRAFT downloads only what you name yourself.*hf download evil/llm"
    ):
        load_borrowed(tmp_path, "evil/llm", torch.float32)
    assert [options.get("local_files_only") for options in asked] == [True]
    with pytest.raises(CraftError, match="could not be downloaded"):
        open_llm("good/llm", torch.float32)
    assert "local_files_only" not in asked[-1]


# Files that are cut short, or belong elsewhere


def test_damaged_files_are_named(model, tmp_path):
    path = model / "llm" / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for content in (
        b"",
        whole[:5],
        whole[: length // 2],
        whole[:-7],
        (2**62).to_bytes(8, "little") + whole[8:],
        whole[:8] + b"x" * length + whole[8 + length :],
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"llm/model\.safetensors is damaged"):
            load(model, "cpu")
    path.write_bytes(whole)
    load(model, "cpu")


@pytest.mark.parametrize(
    "file", ["llm/model.safetensors", "projector/model.safetensors", "../visual/model.safetensors"]
)
def test_integers_instead_of_numbers_are_refused(model, file):
    from safetensors.torch import load_file

    path = model / file
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.endswith("weight") and tensors[n].is_floating_point())
    save_file({**tensors, name: tensors[name].long()}, path, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=f"{name.removeprefix('vision_tower.')} has (integers|dtype torch.int64)"
    ):
        load(model, "cpu")


def test_a_model_is_no_encoder_and_an_encoder_no_model(model, tmp_path):
    adapt(tiny_lvlm(), tiny_data(), tmp_path / "run", max_steps=1, batch_size=4, device="cpu")
    for folder in (tmp_path / "run", tmp_path / "run" / "encoder"):
        with pytest.raises(CheckpointError, match="needs a backbone"):
            load(folder, "cpu")
    with pytest.raises(CheckpointError, match="is not an adapted encoder"):
        load_artefact(model)
    with pytest.raises(CheckpointError, match="is not an adapted encoder"):
        load_artefact(model.parent)
