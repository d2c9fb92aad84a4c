"""Each baseline on a tiny model: it changes the part it names and no other, and comes back from disk."""

import json
import math
import shutil

import pytest
import torch

from builders import tiny_continuous, tiny_images, tiny_lvlm
from craft.core.errors import CheckpointError, CodebookMismatchError, ConfigError, CraftError
from craft.core.tensors import hash_tensors
from craft.formats.artefact import Artefact
from craft.formats.llm_source import Borrowed
from craft.formats.load import load_artefact
from craft.formats.native import load_native, save_native
from craft.formats.tuned import Tuned
from craft.lessons.baselines import BASELINES, LdifsObjective, feature_distance, ldifs
from craft.models.freezing import part_hashes
from craft.recipes import adapt, evaluate
from craft.recipes.baseline import METHODS, load_tuned, rehearse, tune
from craft.training.config import BaselineConfig
from tiny_data import tiny_data

PART = {"vision-ft": "vision_tower", "ldifs": "vision_tower", "projector-ft": "projector", "llm-lora": "llm"}
FAST = {"max_steps": 3, "batch_size": 2, "learning_rate": 1e-2, "device": "cpu", "lora__rank": 2}
each_method = pytest.mark.parametrize("method", PART)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One finished run of each method on the continuous model."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: METHODS[name](tiny_continuous(), tiny_data(), folder / name, **FAST) for name in PART}


def text_logits(lvlm):
    with torch.no_grad():
        return lvlm.backbone.logits(lvlm.backbone.inputs(None, ["How many?", "Name it."]))


@each_method
def test_only_the_named_part_changes(runs, method):
    record = json.loads((runs[method].out / "run.json").read_text())
    before, after = record["hashes_before"], record["hashes_after"]
    assert before == part_hashes(tiny_continuous())
    assert after == part_hashes(runs[method].lvlm)
    assert {part for part in before if before[part] != after[part]} == {PART[method]}
    assert (record["status"], record["method"], record["steps"]) == ("finished", method, 3)
    assert record["data_fingerprint"] == tiny_data().fingerprint and record["held_out"] == ["shirt"]


@each_method
def test_the_callers_model_is_not_changed(tmp_path, method):
    lvlm = tiny_continuous()
    before = hash_tensors(lvlm.state_dict())
    METHODS[method](lvlm, tiny_data(), tmp_path / "run", **{**FAST, "max_steps": 1})
    assert hash_tensors(lvlm.state_dict()) == before


def test_a_tuned_llm_is_saved_whole_where_it_was_borrowed(tmp_path):
    """Its name alone would bring the LLM back as it was before."""
    lvlm = tiny_lvlm()
    lvlm.backbone.borrowed = Borrowed("org/llm", {})
    tuned = METHODS["llm-lora"](lvlm, tiny_data(), tmp_path / "run", **FAST)
    for number, one in enumerate((tuned.lvlm, load_tuned(tuned.out, lvlm))):
        again = load_native(save_native(tmp_path / f"family-{number}", "saved", one, "float32"), "cpu")
        assert part_hashes(again)["llm"] == part_hashes(one)["llm"] != part_hashes(lvlm)["llm"]
    assert lvlm.backbone.borrowed is not None


@each_method
def test_what_is_loaded_is_what_was_tuned(runs, method):
    tuned, again = runs[method].lvlm, load_tuned(runs[method].out, tiny_continuous())
    assert part_hashes(again) == part_hashes(tuned)
    samples = tiny_data().test
    pictures, questions = [s.image for s in samples], [s.prompt() for s in samples]
    assert again.answer(pictures, questions) == tuned.answer(pictures, questions)
    report = evaluate(tiny_continuous(), runs[method].out, tiny_data())
    assert report.settings["encoder"].endswith("tuned") and report.settings["held_out"] == ["shirt"]
    assert [row["prediction"] for row in report.samples] == [
        row["prediction"] for row in evaluate(tuned, None, tiny_data()).samples
    ]


def test_lora_is_rounded_once_whether_merged_or_loaded(tmp_path):
    lvlm = tiny_continuous()
    lvlm.backbone.to(torch.bfloat16)
    tuned = METHODS["llm-lora"](lvlm, tiny_data(), tmp_path / "run", **FAST).lvlm
    loaded = load_tuned(tmp_path / "run", lvlm)
    assert part_hashes(loaded)["llm"] == part_hashes(tuned)["llm"] != part_hashes(lvlm)["llm"]


@each_method
def test_only_lora_changes_how_the_llm_talks_without_pictures(runs, method):
    same = torch.equal(text_logits(runs[method].lvlm), text_logits(tiny_continuous()))
    assert same == (method != "llm-lora")


@each_method
def test_files_hold_only_what_changed(runs, method):
    names = {path.name for path in (runs[method].out / "tuned").iterdir()}
    assert names == {"craft.json", "model.safetensors", "README.md"}
    tuned = load_artefact(runs[method].out)
    assert isinstance(tuned, Tuned) and tuned.parts == (PART[method],)
    assert set(tuned.manifest["base"]) == {PART[method]}
    assert bool(tuned.state) == (PART[method] == "vision_tower") != bool(tuned.rest)
    if method == "llm-lora":
        assert {name.rpartition(".")[2] for name in tuned.rest} == {"A", "B"}
        assert all(min(factor.shape) == 2 for factor in tuned.rest.values())


@pytest.mark.parametrize("method", ["vision-ft", "llm-lora"])
def test_validation_chooses_and_a_finished_run_is_returned(tmp_path, method):
    settings = {**FAST, "eval_every": 1, "eval_limit": 2, "blend": 1.0}
    result = METHODS[method](tiny_continuous(), tiny_data(), tmp_path / "run", **settings)
    assert result.metrics["best_step"] in (1, 2, 3)
    again = METHODS[method](tiny_continuous(), tiny_data(), tmp_path / "run", resume=True, **settings)
    assert again.metrics == result.metrics and part_hashes(again.lvlm) == part_hashes(result.lvlm)


@pytest.mark.parametrize("method", ["llm-lora", "ldifs"])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, method):
    settings = {**FAST, "max_steps": 4, "checkpoint_every": 2, "augment": 0.0}
    whole = METHODS[method](tiny_continuous(), tiny_data(), tmp_path / "whole", **settings)
    METHODS[method](tiny_continuous(), tiny_data(), tmp_path / "broken", **settings)
    last = tmp_path / "broken" / "checkpoints" / "step-00000004"
    for file in last.iterdir():  # as if it had been killed before the last checkpoint
        file.unlink()
    last.rmdir()
    record = json.loads((tmp_path / "broken" / "run.json").read_text())
    (tmp_path / "broken" / "run.json").write_text(json.dumps({**record, "status": "running"}))
    again = METHODS[method](tiny_continuous(), tiny_data(), tmp_path / "broken", resume=True, **settings)
    assert part_hashes(again.lvlm) == part_hashes(whole.lvlm)
    files = [run.tuned / "model.safetensors" for run in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_blend_mixes_what_trained_with_what_it_was(tmp_path):
    base = tiny_continuous()
    for method in ("projector-ft", "llm-lora"):
        full, half = (
            METHODS[method](base, tiny_data(), tmp_path / f"{method}-{share}", **FAST, blend=share).lvlm
            for share in (1.0, 0.5)
        )
        named = [dict(lvlm.named_parameters()) for lvlm in (base, full, half)]
        for name, weight in named[0].items():
            mixed = (weight + named[1][name]) / 2
            torch.testing.assert_close(named[2][name].data, mixed.data, atol=1e-6, rtol=1e-5)


def test_a_frozen_tower_in_bfloat16_is_read_behind_its_stem(tmp_path):
    lvlm = tiny_continuous()
    lvlm.visual.vision_tower.to(torch.bfloat16)
    settings = {**FAST, "max_steps": 1, "augment": 0.0, "dtype": "bfloat16"}
    assert METHODS["projector-ft"](lvlm, tiny_data(), tmp_path / "run", **settings).metrics["steps"] == 1


@each_method
def test_compile_is_for_every_method(method):
    make_lesson, settings = (
        BASELINES[method].make_lesson,
        {"compile": True, "lora": {"rank": 2}, "device": "cpu"},
    )
    lesson = make_lesson(tiny_continuous(), tiny_data().train, BaselineConfig.build(settings))
    assert getattr(lesson.objective, "inner", lesson.objective).compiled
    both = BaselineConfig.build(settings, {"gradient_checkpointing": True})
    with pytest.raises(ConfigError, match="set one of them to false"):
        make_lesson(tiny_continuous(), tiny_data().train, both)


@pytest.mark.parametrize("method, model", [("ldifs", tiny_continuous), ("vision-ft-codebook", tiny_lvlm)])
def test_cls_never_runs_where_nothing_reads_it(tmp_path, monkeypatch, method, model):
    lvlm, with_cls = model(), []
    kind = type(lvlm.visual.vision_tower)
    run = kind._run
    monkeypatch.setattr(kind, "_run", lambda self, x, cls: with_cls.append(cls) or run(self, x, cls))
    METHODS[method](lvlm, tiny_data(), tmp_path / "run", **FAST)
    assert with_cls and not any(with_cls)


def slow_distance(now, then):
    total, count = 0.0, 0
    for image in range(now[0].shape[0]):
        for token in range(now[0].shape[1]):
            for one, two in zip(now, then, strict=True):
                a, b = one[image, token].tolist(), two[image, token].tolist()
                size_a, size_b = math.hypot(*a), math.hypot(*b)
                total += sum((x / size_a - y / size_b) ** 2 for x, y in zip(a, b, strict=True))
                count += len(a)
    return total / count


def test_ldifs_distance_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    now, then = (
        [torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2)] for _ in range(2)
    )
    assert float(feature_distance(now, then)) == pytest.approx(slow_distance(now, then), rel=1e-5)
    assert float(feature_distance(now, now)) == 0


def test_ldifs_starts_at_zero_and_grows(runs):
    lines = [json.loads(line) for line in (runs["ldifs"].out / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["ldifs"] == 0.0 < lines[1]["ldifs"]
    assert lines[1]["loss"] == pytest.approx(lines[1]["sal"] + 10 * lines[1]["ldifs"], rel=1e-6)
    plain = [json.loads(x) for x in (runs["vision-ft"].out / "metrics.jsonl").read_text().splitlines()]
    assert plain[0]["loss"] == lines[0]["loss"] and "ldifs" not in plain[0]


@pytest.mark.parametrize("tower, layers", [("hybrid", 4), ("siglip", 1)])
def test_ldifs_compares_with_the_initial_tower(tower, layers):
    lvlm = tiny_continuous(tower=tower)
    settings = {"ldifs": {"layers": layers}, "device": "cpu", "augment": 0.0, "trainable": "all"}
    lesson = ldifs(lvlm, tiny_data().train, BaselineConfig.build(settings))
    objective = lesson.objective
    assert isinstance(objective, LdifsObjective)
    with torch.no_grad():
        for parameter in lvlm.visual.vision_tower.layers.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = lesson.batches.make([0, 1], 0)
    loss, parts = objective(batch)

    def outputs(tower_now):
        outs = []
        hooks = [
            layer.register_forward_hook(lambda _, __, out: outs.append(out[0])) for layer in tower_now.layers
        ]
        tower_now(batch.images)
        for hook in hooks:
            hook.remove()
        return outs if layers > 1 else outs[-1:]

    with torch.no_grad():
        now = outputs(lvlm.visual.vision_tower)
        then = outputs(tiny_continuous(tower=tower).visual.vision_tower)
    assert len(now) == min(layers, 2)
    assert float(parts["ldifs"]) == pytest.approx(slow_distance(now, then), rel=1e-4)
    torch.testing.assert_close(loss.detach(), parts["sal"] + 10 * parts["ldifs"])
    (only,) = torch.autograd.grad(loss, [next(lvlm.visual.vision_tower.layers.parameters())])
    assert only.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in objective.initial.parameters())


def test_vision_ft_is_the_autoregressive_loss_on_features(runs):
    line = json.loads((runs["vision-ft"].out / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["loss"] == line["sal"] and line["commitment"] == line["contrastive"] == 0
    assert line["features_moved"] > 0 and "codes_changed" not in line


def test_vision_ft_with_the_codebook_is_adapt_without_commitment(tmp_path):
    ours = METHODS["vision-ft-codebook"](tiny_lvlm(), tiny_data(), tmp_path / "one", **FAST)
    weights = {f"losses.{name}.weight": 0.0 for name in ("commitment", "contrastive", "retention")}
    theirs = adapt(tiny_lvlm(), tiny_data(), tmp_path / "two", **FAST, **weights)
    assert part_hashes(ours.lvlm) == part_hashes(theirs.lvlm)
    assert type(load_artefact(ours.out)) is Artefact
    assert part_hashes(load_tuned(ours.out, tiny_lvlm())) == part_hashes(ours.lvlm)


@pytest.mark.parametrize("method", ["projector-ft", "vision-ft-codebook"])
def test_the_run_folder_has_the_methods_name(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    result = METHODS[method](tiny_lvlm(), tiny_data(), **{**FAST, "max_steps": 1})
    assert str(result.out) == f"runs/blobs-{method}"


def test_zero_shot_is_the_model_itself(tmp_path):
    lvlm = tiny_continuous()
    result = METHODS["zero-shot"](lvlm, tiny_data(), seed=1, max_steps=5)
    assert part_hashes(result.lvlm) == part_hashes(lvlm)
    assert result.held_out == ("shirt",) and result.metrics == {"steps": 0} and result.out is None


def test_projector_and_llm_can_be_tuned_on_a_discrete_model(tmp_path):
    for method in ("projector-ft", "llm-lora"):
        result = METHODS[method](tiny_lvlm(), tiny_data(), tmp_path / method, **FAST)
        before, after = part_hashes(tiny_lvlm()), part_hashes(result.lvlm)
        assert {part for part in before if before[part] != after[part]} == {PART[method]}
        images = tiny_images(2)
        assert torch.equal(result.lvlm.encode(images).codes, tiny_lvlm().encode(images).codes)
        assert part_hashes(load_tuned(result.out, tiny_lvlm())) == after


@pytest.mark.parametrize("method", ["vision-ft", "ldifs"])
def test_a_discrete_model_is_refused_where_a_continuous_one_is_needed(tmp_path, method):
    with pytest.raises(ConfigError, match=r"tiny/llama is discrete.*vision-ft-codebook"):
        METHODS[method](tiny_lvlm(), tiny_data(), tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="is discrete"):
        rehearse(method, tiny_lvlm(), tiny_data(), **FAST)


def test_a_continuous_model_is_refused_where_codes_are_needed(tmp_path):
    for run in (adapt, METHODS["vision-ft-codebook"]):
        with pytest.raises(CraftError, match="needs codes, and a continuous LVLM has none"):
            run(tiny_continuous(), tiny_data(), tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()


def test_tuned_parts_fit_their_own_model_only(runs):
    for method, error in (("vision-ft", CodebookMismatchError), ("projector-ft", CodebookMismatchError)):
        with pytest.raises(error, match="tower:"):
            load_tuned(runs[method].out, tiny_lvlm())
    other = tiny_continuous("qwen2")  # another backbone of the same tower
    assert load_tuned(runs["vision-ft"].out, other).backbone is other.backbone
    for method, part in (("projector-ft", "projector"), ("llm-lora", "llm")):
        stranger = tiny_continuous()
        next(getattr(stranger.backbone, part).parameters()).data.mul_(2)
        with pytest.raises(CheckpointError, match=rf"{part} .* was tuned from that of tiny/continuous-llama"):
            load_tuned(runs[method].out, stranger)


def test_damaged_files_and_unfinished_runs(runs, tmp_path):
    copy = shutil.copytree(runs["projector-ft"].out, tmp_path / "copy")
    weights = copy / "tuned" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="damaged"):
        load_tuned(copy, tiny_continuous())
    shutil.rmtree(copy / "tuned")
    with pytest.raises(CheckpointError, match="has not finished"):
        load_tuned(copy, tiny_continuous())


def test_settings_are_those_of_adapt(tmp_path):
    with pytest.raises(ConfigError, match="There is no setting 'learning_rat'"):
        METHODS["vision-ft"](tiny_continuous(), tiny_data(), tmp_path / "run", learning_rat=1)
    rehearsal = rehearse("llm-lora", tiny_continuous(), tiny_data(), **FAST)
    trained = {part: count for part, _, count in rehearsal.parameters if count}
    assert set(trained) == {"llm"} and rehearsal.steps == 3
    assert rehearsal.parts["sal"] > 0


def test_unknown_methods_are_refused_and_zero_shot_has_no_dry_run():
    with pytest.raises(ConfigError, match="no method 'lora' to tune by; use one of vision-ft, projector-ft"):
        tune("lora", tiny_continuous(), tiny_data())
    with pytest.raises(ConfigError, match=r"no method 'zero-shot' to tune by.*`craft eval MODEL`"):
        rehearse("zero-shot", tiny_continuous(), tiny_data())
