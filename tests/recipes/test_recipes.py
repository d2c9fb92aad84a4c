"""adapt -> evaluate -> transfer on tiny models and pictures on disk, as a user would."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from builders import tiny_lvlm
from craft.core.errors import CodebookMismatchError, ConfigError, DataError
from craft.core.tensors import hash_tensors, load_tensors
from craft.formats.load import load_artefact
from craft.formats.prior import save_prior
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import code_counts, search
from craft.recipes import adapt, evaluate, opening, rehearse, transfer
from craft.recipes.benchmarks import _folders, evaluate_all
from craft.recipes.demo import demo_settings
from craft.recipes.opening import Model, run_folder, run_settings
from craft.training.config import AdaptConfig
from craft.training.run_folder import RunFolder
from tiny_data import tiny_data

FAST = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """One finished run on the blobs, shared by the tests below."""
    return adapt(tiny_lvlm(), tiny_data(), tmp_path_factory.mktemp("runs") / "blobs", **FAST)


@pytest.fixture
def folder(tmp_path):
    """Class folders of real files: six classes, six pictures each."""
    for label in range(6):
        place = tmp_path / "pictures" / f"class {label}"
        place.mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (20, 20), (40 * label, 40 * number, 99)).save(place / f"{number}.png")
    return tmp_path / "pictures"


def test_run_folder_and_artefact(adapted):
    names = {path.name for path in adapted.out.iterdir()}
    assert names == {"config.resolved.yaml", "run.json", "metrics.jsonl", "checkpoints", "encoder"}
    run = json.loads((adapted.out / "run.json").read_text())
    assert run["status"] == "finished" and run["held_out"] == ["shirt"] and run["steps"] == 3
    assert {"versions", "commit", "python"} <= set(run["machine"])
    artefact = load_artefact(adapted.out)
    assert artefact.manifest["base_tower"] == run["hashes_before"]["vision_tower"]
    assert artefact.manifest["tower"] == run["hashes_after"]["vision_tower"]
    assert artefact.manifest["data"]["fingerprint"] == tiny_data().fingerprint
    assert torch.equal(artefact.prior, adapted.prior)


def test_a_given_model_stays_where_it_is(monkeypatch):
    """What does not train is shared, and went along to the device of the run."""
    monkeypatch.setattr(opening, "resolve_device", torch.device)  # "meta" stands for another device
    given = tiny_lvlm()
    shared = Model(given, AdaptConfig.build({"device": "cpu"}))()
    assert shared.backbone is given.backbone and shared.visual.vision_tower is not given.visual.vision_tower
    Model(given, AdaptConfig.build({"device": "meta"}))().to("meta")
    tensors = [*given.parameters(), *given.buffers()]
    assert tensors and {tensor.device.type for tensor in tensors} == {"cpu"}


@pytest.mark.parametrize(("wanted", "goes"), [("cuda", False), ("cuda:0", False), ("cuda:1", True)])
def test_a_given_model_on_one_gpu_is_copied_for_another(monkeypatch, wanted, goes):
    given = tiny_lvlm()
    monkeypatch.setattr(LVLM, "device", torch.device("cuda", 0))
    monkeypatch.setattr(VisualTokenizer, "to", lambda self, device: self)
    monkeypatch.setattr(opening, "resolve_device", torch.device)
    taken = Model(given, AdaptConfig.build({"device": wanted}))()
    assert (taken.backbone is not given.backbone) == goes


def test_prior_counts_codes_of_the_adapted_tower(adapted):
    images = [sample.image for sample in tiny_data().train]
    codes = tiny_lvlm().with_encoder(adapted.out).encode(images).codes
    assert torch.equal(adapted.prior, code_counts(codes, 32))


@pytest.mark.parametrize("start, tau", [(4.0, 4.0), (None, 25.0)])
def test_where_tau_starts(tmp_path, start, tau):
    lvlm = tiny_lvlm()
    lvlm.visual.log_temperature.data.fill_(math.log(25.0))
    losses = {"contrastive": {"weight": 1.0, "temperature": start}}
    result = adapt(lvlm, tiny_data(), tmp_path / "run", config={"losses": losses}, **FAST)
    assert result.lvlm.visual.log_temperature.exp().item() == pytest.approx(tau, rel=0.01)
    first = RunFolder(tmp_path / "run").metrics()[0]
    assert rehearse(lvlm, tiny_data(), config={"losses": losses}, **FAST).parts == {
        name: pytest.approx(first[name], rel=1e-5)
        for name in ("loss", "sal", "commitment", "contrastive", "distance", "retention")
    }


def test_the_callers_model_is_not_changed(tmp_path):
    lvlm = tiny_lvlm()
    before = hash_tensors(lvlm.state_dict())
    adapt(lvlm, tiny_data(), tmp_path / "run", **FAST)
    assert hash_tensors(lvlm.state_dict()) == before


def test_patches_may_attend_to_cls(tmp_path):
    lvlm = tiny_lvlm()
    token = lvlm.visual.vision_tower.cls_token.clone()
    told = {**FAST, "losses.contrastive.weight": 0, "cls_attention": "symmetric"}
    run = adapt(lvlm, tiny_data(), tmp_path / "run", **told)
    assert lvlm.visual.vision_tower.cls_attention == "read-only" and torch.equal(
        lvlm.visual.vision_tower.cls_token, token
    )
    loaded = tiny_lvlm().with_encoder(run.out)
    tower = loaded.visual.vision_tower
    assert tower.cls_attention == "symmetric" and not torch.equal(tower.cls_token, token)  # SAL taught it
    images = [sample.image for sample in tiny_data().train]
    codes = loaded.encode(images).codes
    assert torch.equal(run.prior, code_counts(codes, 32))
    tower.cls_attention = "read-only"
    assert not torch.equal(loaded.encode(images).codes, codes)
    plain = adapt(tiny_lvlm(), tiny_data(), tmp_path / "plain", **FAST, **{"losses.contrastive.weight": 0})
    assert torch.equal(plain.lvlm.visual.vision_tower.cls_token, token)  # nothing reads it


def test_saved_encoder_answers_like_the_one_in_memory(adapted):
    data = tiny_data()
    stored = evaluate(tiny_lvlm(), adapted.out, data)
    live = evaluate(adapted.lvlm, None, data)
    assert [row["prediction"] for row in stored.samples] == [row["prediction"] for row in live.samples]
    assert stored.settings["tower"] == load_artefact(adapted.out).manifest["tower"]


def test_same_seed_same_bytes_and_finished_runs_are_returned(adapted, tmp_path):
    again = adapt(tiny_lvlm(), tiny_data(), tmp_path / "again", **FAST)
    one, two = (load_tensors(run.encoder / "model.safetensors") for run in (adapted, again))
    assert hash_tensors(one) == hash_tensors(two)
    returned = adapt(tiny_lvlm(), tiny_data(), adapted.out, resume=True, **FAST)
    assert returned.metrics == adapted.metrics and returned.held_out == ("shirt",)
    with pytest.raises(ConfigError, match="finished; choose another folder, or overwrite"):
        adapt(tiny_lvlm(), tiny_data(), adapted.out, **FAST)


def test_another_codebook_is_refused(adapted):
    with pytest.raises(CodebookMismatchError):
        evaluate(tiny_lvlm(codebook_seed=1), adapted.out, tiny_data())
    with pytest.raises(CodebookMismatchError):
        transfer([adapted.out], [tiny_lvlm(), tiny_lvlm("qwen2", codebook_seed=1)], tiny_data())


def test_folder_end_to_end_with_the_encoders_own_questions(folder, tmp_path):
    result = adapt(tiny_lvlm(), folder, tmp_path / "run", seed=3, trainable="layers", **FAST)
    assert len(result.held_out) == 1
    report = evaluate(tiny_lvlm("qwen2"), result.out, out=tmp_path / "samples.jsonl")
    assert report.settings["seed"] == 3 and report.settings["held_out"] == list(result.held_out)
    assert {row["label"] for row in report.samples if not row["seen"]} == set(result.held_out)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == len(report.samples)
    # Another seed asks other options; the unseen classes stay those of the training.
    other = evaluate(tiny_lvlm(), result.out, folder, seed=4)
    assert other.settings["held_out"] == list(result.held_out)
    assert [row["prompt"] for row in other.samples] != [row["prompt"] for row in report.samples]
    assert {row["id"] for row in other.samples} == {row["id"] for row in report.samples}
    zero = evaluate(tiny_lvlm(), None, like=result.out)
    assert [row["prompt"] for row in zero.samples] == [row["prompt"] for row in report.samples]
    assert len(evaluate(tiny_lvlm(), result.out, limit=3).samples) == 3
    with pytest.raises(ConfigError, match="unseen_fraction"):
        evaluate(tiny_lvlm(), result.out, folder, unseen_fraction=0.5)


def test_training_never_sees_held_out_classes(folder, tmp_path):
    result = adapt(tiny_lvlm(), folder, tmp_path / "run", **FAST)
    train = evaluate(tiny_lvlm(), result.out, split="train")
    words = " ".join(row["prompt"] for row in train.samples)
    assert not any(name in words for name in result.held_out)
    test = evaluate(tiny_lvlm(), result.out)
    assert not {row["id"] for row in train.samples} & {row["id"] for row in test.samples}


def test_changed_data_is_a_leak(folder, tmp_path):
    result = adapt(tiny_lvlm(), folder, tmp_path / "run", **FAST)
    Image.new("RGB", (9, 9)).save(folder / "class 0" / "new.png")
    with pytest.raises(DataError, match="has changed since"):
        evaluate(tiny_lvlm(), result.out)


def test_bad_data_stops_before_anything_is_written(folder, tmp_path):
    (folder / "class 1" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png"):
        adapt(tiny_lvlm(), folder, tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="no embedded domain"):
        adapt(tiny_lvlm(), "nowhere", tmp_path / "run")


def test_resumed_evaluations_take_nothing_of_other_weights(folder, tmp_path, monkeypatch):
    """A backbone that was aligned anew has the name and the tower that it had."""
    asked = []
    monkeypatch.setattr(
        "craft.recipes.benchmarks.evaluate", lambda *a, **k: asked.append(a[0]) or evaluate(*a, **k)
    )
    other = tiny_lvlm()
    next(other.backbone.llm.parameters()).data.neg_()
    reworded = tiny_lvlm()
    reworded.backbone.tokenizer.add_tokens(["flibber"])
    for lvlm, times in ((tiny_lvlm(), 1), (tiny_lvlm(), 1), (other, 2), (tiny_lvlm(), 3), (reworded, 4)):
        evaluate_all(lvlm, data=[folder], out=tmp_path / "out", resume=True, limit=3)
        assert len(asked) == times


def test_an_evaluation_stored_in_the_earlier_form_is_resumed(folder, tmp_path, monkeypatch):
    """`report.json` in the form that it had before `core.store`; one that is damaged is asked again."""
    out = tmp_path / "out"
    evaluate_all(tiny_lvlm(), data=[folder], out=out, limit=3)
    report = json.loads((out / "report.json").read_text())
    assert list(report)[-1] == "asked" and set(report["asked"]) == {
        *("backbone", "weights", "encoder", "like", "data", "root", "seeds", "limit", "split"),
        *("keep_ratio", "prior", "keep_positions", "answer_with", "distractors", "unseen_fraction"),
        *("max_new_tokens", "protocol"),
    }
    asked = []
    monkeypatch.setattr(
        "craft.recipes.benchmarks.evaluate", lambda *a, **k: asked.append(a[0]) or evaluate(*a, **k)
    )
    evaluate_all(tiny_lvlm(), data=[folder], out=out, limit=3, resume=True)
    assert not asked
    for times, damage in enumerate(("[]", '{"asked', json.dumps({"asked": report["asked"]})), start=1):
        (out / "report.json").write_text(damage)
        evaluate_all(tiny_lvlm(), data=[folder], out=out, limit=3, resume=True)
        assert len(asked) == times
    (out / "samples-0.jsonl").write_text("{")
    evaluate_all(tiny_lvlm(), data=[folder], out=out, limit=3, resume=True)
    assert len(asked) == 4


def test_resumed_evaluations_take_nothing_of_other_data(folder, tmp_path, monkeypatch):
    """The data lies where it lay, and pictures, classes or the prior's counts are others."""
    asked = []
    monkeypatch.setattr(
        "craft.recipes.benchmarks.evaluate", lambda *a, **k: asked.append(a[2]) or evaluate(*a, **k)
    )
    lvlm, seeds = tiny_lvlm(), {"seeds": [0, 1], "out": tmp_path / "out", "resume": True}
    prior = save_prior(tmp_path / "prior.safetensors", torch.arange(32), lvlm.visual.codebook, {})
    words = {**seeds, "keep_ratio": 0.5, "prior": str(prior)}

    def times(**more) -> int:
        before = len(asked)
        evaluate_all(lvlm, data=[folder], **words, **more)
        return len(asked) - before

    assert [times(), times()] == [2, 0]
    with monkeypatch.context() as patched:
        patched.setitem(search.SEARCHES, "fused", search.exact)  # which runs without a GPU
        patched.setattr(search, "obstacle", lambda name, tables: None)
        assert [times(search="fused"), times(search="fused"), times()] == [2, 0, 2]  # may find other codes
    assert times(search="exact") == 0  # as when none is named
    for place in folder.glob("class 0/*.png"):
        Image.new("RGB", (20, 20), (7, 200, 9)).save(place)
    assert [times(), times()] == [2, 0]
    (folder / "class 0").rename(folder / "class 9")
    assert [times(), times()] == [2, 0]
    save_prior(prior, torch.arange(32).flip(0), lvlm.visual.codebook, {})
    assert [times(), times()] == [2, 0]


def test_hard_distractors_come_from_the_text_encoder(folder, tmp_path):
    result = adapt(tiny_lvlm(), folder, tmp_path / "run", distractors="hard", **FAST)
    assert result.config.data.distractors == "hard"
    evaluate(tiny_lvlm(), result.out)
    lvlm = tiny_lvlm()
    lvlm.visual.text_encoder = None
    with pytest.raises(ConfigError, match="text encoder"):
        adapt(lvlm, folder, tmp_path / "other", distractors="hard", **FAST)


def test_rehearsal_changes_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lvlm = tiny_lvlm()
    before = hash_tensors(lvlm.state_dict())
    found = rehearse(lvlm, tiny_data(), batch_size=4, max_steps=9, workers=1)
    assert (found.steps, found.samples) == (9, 8)
    assert "frozen" in found.table and found.memory["total"] > found.memory["weights"] > 0
    assert found.parts["loss"] > 0 and found.tokens > 16
    assert hash_tensors(lvlm.state_dict()) == before
    assert list(tmp_path.iterdir()) == []


def test_the_steps_that_are_announced_are_those_of_rows(tmp_path, capsys):
    data = tiny_data()
    data.train = [replace(sample, image=data.train[n // 2].image) for n, sample in enumerate(data.train)]
    given = {key: value for key, value in FAST.items() if key != "max_steps"} | {"questions_per_image": 2}
    result = adapt(tiny_lvlm(), data, tmp_path / "run", config={"max_steps": None}, **given)
    assert "; 1 steps of 4" in capsys.readouterr().err and result.metrics["steps"] == 1


def test_early_stopping_uses_validation_samples(tmp_path):
    result = adapt(tiny_lvlm(), tiny_data(), tmp_path / "run", eval_every=1, eval_limit=2, **FAST)
    assert result.metrics["best_step"] in (1, 2, 3)
    data = tiny_data()
    data.validation = []
    with pytest.raises(ConfigError, match="eval_every"):
        adapt(tiny_lvlm(), data, tmp_path / "other", eval_every=1, **FAST)
    with pytest.raises(ConfigError, match="eval_every"):
        rehearse(tiny_lvlm(), data, eval_every=1, **FAST)


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("craft.recipes.opening.world", lambda: 3)
    with pytest.raises(ConfigError, match="3 processes: raise batch_size"):
        adapt("nothing", "nowhere", tmp_path / "run", batch_size=7, micro_batch=1)


@pytest.mark.parametrize(
    ("data", "name"), [(".", "birds"), ("..", "wood"), ("../birds/", "birds"), ("a.csv", "a")]
)
def test_folders_of_ours_are_called_like_the_data_wherever_one_stands(data, name, tmp_path, monkeypatch):
    place = tmp_path / "wood" / "birds"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    assert run_settings(AdaptConfig, None, data, None, None, {}).out == f"runs/{name}"
    (place / "apparel").mkdir()
    assert run_settings(AdaptConfig, None, Path("./apparel"), None, None, {}).data.name == "./apparel"
    assert demo_settings(data=data).out == f"runs/demo-{name}/run"
    assert _folders([(None, data), (None, "other")]) == [
        Path(data).name if data == "a.csv" else name,
        "other",
    ]


def test_epochs_that_do_not_count_are_told(tmp_path, capsys):
    for settings in ({"max_steps": "null"}, {}):
        run_folder(AdaptConfig.build(None, {"out": str(tmp_path), "epochs": 3, **settings}), False, True)
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and "epochs=3 is ignored because max_steps=200" in said


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Did you mean 'optimizer\.learning_rate'"):
        adapt(tiny_lvlm(), tiny_data(), tmp_path / "run", learning_rte=1)
