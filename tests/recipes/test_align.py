"""`craft.align` from folders and files to a backbone that `craft.load` takes."""

import json
import os
import shutil
import signal

import pytest
import torch
from PIL import Image

import craft
import together as workers
from builders import tiny_lvlm
from craft.core.errors import CheckpointError, ConfigError, CraftError, DataError
from craft.core.interrupt import Interrupted
from craft.core.tensors import hash_tensors, load_tensors, save_tensors
from craft.data.chats import Conversation
from craft.formats.llm_source import open_llm
from craft.formats.native import save_native
from craft.models.image_lora import image_factors
from craft.models.visual_tokenizer import VisualTokenizer
from craft.recipes.align import align, rehearse
from craft.recipes.align_data import read_sets
from craft.training.config import AlignConfig
from together import together

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "grey": (128, 128, 128)}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
FAST = {"batch_size": 4, "learning_rate": 1e-2, "device": "cpu", "max_steps": 2}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for kind in ("llama", "qwen2"):
        save_native(folder, kind, tiny_lvlm(kind), dtype="float32")
    return folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A LLaVA file of twelve conversations about four pictures, and one of text."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(12):
        name = list(COLOURS)[number % 4]
        Image.new("RGB", (32, 32), COLOURS[name]).save(folder / f"{name}.png")
        said = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": name}]
        rows.append({"id": f"{number}", "image": f"{name}.png", "conversations": said})
    (folder / "chat.json").write_text(json.dumps(rows))
    talk = [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "hello"}]
    (folder / "text.json").write_text(json.dumps([{"id": "t", "conversations": talk}]))
    return folder


def weights(lvlm):
    return hash_tensors({**lvlm.backbone.llm.state_dict(), **lvlm.backbone.projector.state_dict()})


@pytest.fixture(scope="module")
def aligned(family, chat, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "llama"
    text = chat / "text.json"
    return align(family / "llama", family, chat / "chat.json", out=out, text=text, text_share=0.25, **FAST)


def test_the_result_loads_and_answers(aligned, family):
    lvlm = craft.load(aligned.out)
    assert lvlm.visual.codebook.fingerprint == craft.load(family / "llama").visual.codebook.fingerprint
    image = Image.new("RGB", (32, 32), COLOURS["red"])
    assert lvlm.answer([image], ["What colour?"]) == aligned.lvlm.answer([image], ["What colour?"])
    names = {path.name for path in aligned.out.iterdir()}
    assert {"visual", "backbone", "stage-1", "stage-2", "run.json", "config.resolved.yaml"} == names
    assert {path.name for path in aligned.backbone.iterdir()} == {
        "craft.json",
        "projector",
        "llm",
        "README.md",
    }


def test_the_record(aligned):
    run = json.loads((aligned.out / "run.json").read_text())
    assert run["status"] == "finished" and run["rows"] == {"1": 12, "2": 16}  # a quarter of stage 2 is text
    assert run["language"] == aligned.language and len(run["language"]["after"]["answers"]) == 6
    assert run["language"]["before"]["perplexity"] != run["language"]["after"]["perplexity"]
    card = (aligned.backbone / "README.md").read_text()
    for word in ("perplexity", "Name three colours.", "| 2 | 16 | 2 |", "chat.json"):
        assert word in card
    stage = json.loads((aligned.out / "stage-1" / "run.json").read_text())
    changed = [p for p in stage["hashes_before"] if stage["hashes_before"][p] != stage["hashes_after"][p]]
    assert changed == ["projector"]


def test_a_second_llm_never_runs_the_vision_tower(aligned, family, chat, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the vision tower ran")

    monkeypatch.setattr(VisualTokenizer, "forward", refuse)
    out = aligned.out.parent / "qwen2"
    cached = aligned.out.parent / "codes"
    second = align(family / "qwen2", family, chat / "chat.json", "1", out, codes=cached, **FAST)
    assert set(second.metrics) == {"1"}


def test_interrupted_and_resumed_is_the_unbroken_run(aligned, family, chat, tmp_path, monkeypatch):
    from craft.lessons import align as alignment

    settings = {**FAST, "text": chat / "text.json", "text_share": 0.25, "max_steps": 2}
    make, calls = alignment.RowBatches.make, []

    def interrupting(self, indices, step):
        calls.append(step)
        if len(calls) == 3:  # the first step of stage 2
            os.kill(os.getpid(), signal.SIGTERM)
        return make(self, indices, step)

    monkeypatch.setattr(alignment.RowBatches, "make", interrupting)
    words = (family / "llama", family, chat / "chat.json", "both", tmp_path / "run")
    with pytest.raises(Interrupted):
        align(*words, **settings)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "interrupted"
    with pytest.raises(ConfigError, match=r"a run that is interrupted; .*resume"):
        align(*words, **settings)
    again = align(*words, resume=True, **settings)
    assert weights(again.lvlm) == weights(aligned.lvlm)
    assert again.language == aligned.language
    assert len(calls) == 4  # nothing was done twice
    assert align(*words, resume=True, **settings).metrics == again.metrics  # finished: read, not trained


def test_a_failure_stands_in_the_run_folder(family, chat, tmp_path, monkeypatch):
    words = (family / "llama", family, chat / "chat.json", "1", tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(CheckpointError):
        patched.setattr("craft.recipes.align.save_native", lambda *_: load_tensors(tmp_path / "gone"))
        align(*words, **FAST)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed" and record["reason"].startswith("CheckpointError: ")
    align(*words, resume=True, **FAST)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished" and "reason" not in record


@pytest.mark.parametrize("start", [align, rehearse], ids=["run", "dry run"])
def test_conversations_that_are_cut_off_before_their_answer_are_left_out(
    family, chat, tmp_path, capsys, start
):
    rows = json.loads((chat / "chat.json").read_text())
    for row in rows:
        row["image"] = str(chat / row["image"])
    for row in rows[::2]:
        row["conversations"][0]["value"] += " " + "Look closely. " * 20
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    words = (family / "llama", family, tmp_path / "chat.json", "1", tmp_path / "run")
    settings = {**FAST, "max_length": 100, "batch_size": 1, "max_steps": 6}  # each row alone in its batch
    result = start(*words, **settings)
    assert "left out: 6 of the 12 conversations in `data` (0, 2, 4, 6, 8, …)" in capsys.readouterr().err
    assert (result["1"].samples if start is rehearse else result.metrics["1"]["rows"]) == 6
    with pytest.raises(DataError, match=r"12 of the 12 conversations in `data` \(0, 1, .*max_length=20 "):
        start(*words[:4], tmp_path / "none", **{**settings, "max_length": 20})


def test_start(family, chat, tmp_path, aligned):
    started = rehearse(
        family / "llama", family, chat / "chat.json", "2", tmp_path / "c", start=str(aligned.out), **FAST
    )
    anew = rehearse(family / "llama", family, chat / "chat.json", "2", tmp_path / "c", **FAST)
    assert started["2"].parts["loss"] != anew["2"].parts["loss"]
    assert not (tmp_path / "c").exists()


def test_lora_apart(family, chat, tmp_path):
    settings = {**FAST, "lora.rank": 2, "lora.merge": False}
    result = align(family / "llama", family, chat / "chat.json", "2", tmp_path / "run", **settings)
    assert {path.name for path in result.backbone.iterdir()} == {
        "craft.json",
        "projector",
        "lora",
        "README.md",
    }
    manifest = json.loads((result.backbone / "craft.json").read_text())
    assert manifest["llm"] == str(family / "llama")
    loaded = craft.load(result.out)
    for name, value in result.lvlm.backbone.llm.state_dict().items():
        torch.testing.assert_close(loaded.backbone.llm.state_dict()[name], value, atol=1e-2, rtol=1e-2)
    assert weights(loaded) != weights(craft.load(family / "llama"))
    again = save_native(tmp_path / "again", "backbone", loaded)
    for path in result.backbone.rglob("*.*"):
        if path.name != "README.md":
            assert path.read_bytes() == (again / path.relative_to(result.backbone)).read_bytes()
    (tmp_path / "run/backbone/lora/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks lora/model\.safetensors, the LoRA of its LLM"):
        craft.load(result.out)


@pytest.mark.parametrize("merge", [True, False], ids=["held", "named"])
def test_lora_acts_on_prompts_with_an_image_only(family, chat, tmp_path, merge):
    """Without an image the aligned LLM is the LLM it was, to the last bit; with one it is not."""
    settings = {**FAST, "lora.rank": 2, "lora.merge": merge, "dtype": "float32"}
    result = align(family / "llama", family, chat / "chat.json", "2", tmp_path / "run", **settings)
    assert result.language["before"] == result.language["after"]
    assert (result.backbone / "llm").is_dir() is merge
    assert json.loads((result.backbone / "craft.json").read_text())["lora_scope"] == "image"
    assert "which acts on prompts with an image only" in (result.backbone / "README.md").read_text()
    bare, image = craft.load(family / "llama"), Image.new("RGB", (32, 32), COLOURS["red"])
    for lvlm in (result.lvlm, craft.load(result.out)):
        if merge and lvlm is not result.lvlm:  # it is on disk in bfloat16, as every new backbone
            for weight in bare.backbone.llm.parameters():
                weight.data = weight.data.bfloat16().float()
        prompts = [m.backbone.inputs(None, ["Say hello.", "Why?"]) for m in (bare, lvlm)]
        logits = [m.backbone.logits(inputs) for m, inputs in zip((bare, lvlm), prompts, strict=True)]
        assert torch.equal(*logits)
        tokens = lvlm.encode([image])
        inputs = lvlm.backbone.inputs(tokens, ["What colour?"])
        with_lora = lvlm.backbone.logits(inputs)
        for factor in image_factors(lvlm.backbone.llm).values():
            factor.zero_()
        assert (with_lora - lvlm.backbone.logits(inputs)).abs().max() > 1e-3


def test_the_scope_of_lora(family, chat, tmp_path):
    """As set, as in the result that a run starts from, or `image`; text cannot train LoRA that spares it."""
    words, settings = (family / "llama", family, chat / "chat.json", "2"), {**FAST, "lora.rank": 2}
    text = {"text": chat / "text.json", "text_share": 0.25}

    def scope(name, **more):
        result = align(*words, tmp_path / name, **{**settings, **more})
        record = json.loads((result.backbone / "craft.json").read_text())
        changed = result.language["before"]["perplexity"] != result.language["after"]["perplexity"]
        assert changed is (record.get("lora_scope") != "image")
        return record.get("lora_scope"), record["version"]

    assert scope("merged", **text, **{"lora.scope": "all"}) == (None, 1)  # nothing is kept apart
    apart = {"lora.scope": "all", "lora.merge": False}
    assert scope("all", **apart) == ("all", 1)
    assert scope("image") == ("image", 2)
    for first, expected in (("all", "all"), ("image", "image")):
        more = {"start": str(tmp_path / first), "lora.merge": False}
        assert scope(f"again-{first}", **more)[0] == expected
    assert scope("other", start=str(tmp_path / "all"), **{"lora.scope": "image"})[0] == "image"
    for start in (align, rehearse):
        with pytest.raises(DataError, match=r"text\.json.* has no image, and LoRA .*set lora\.scope=all"):
            start(*words, tmp_path / "none", **settings, **text)
    assert not (tmp_path / "none").exists()


def test_the_visual_tokenizer_is_written_as_the_family_has_it(family, chat, tmp_path):
    """It was read in bfloat16, and the family's is float32."""
    settings = {**FAST, "dtype": "bfloat16", "max_steps": 1}
    result = align(family / "llama", family, chat / "chat.json", "1", tmp_path / "run", **settings)
    name = "visual/model.safetensors"
    assert (result.out / name).read_bytes() == (family / name).read_bytes()


def test_lora_goes_on_from_an_earlier_result(family, chat, tmp_path, capsys):
    words = (family / "llama", family, chat / "chat.json")
    settings = {**FAST, "lora.rank": 2, "lora.merge": False}
    first = align(*words, "2", tmp_path / "first", **settings)
    again = {**settings, "start": str(first.out), "max_steps": 1, "learning_rate": 1e-9}
    for rank in (2, 3):  # a step so small that nothing moves: what is saved is what it began with
        second = align(*words, "2", tmp_path / str(rank), **{**again, "lora.rank": rank})
        for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"):
            (a, b), (a2, b2) = (
                [one.lvlm.backbone.borrowed.lora[f"{name}.{f}"].float() for f in "AB"]
                for one in (first, second)
            )
            assert len(a2) == rank and (b @ a).abs().max() > 1e-3
            torch.testing.assert_close(b2 @ a2, b @ a, atol=1e-4, rtol=1e-2)  # bfloat16 on disk
    started = rehearse(*words, "2", tmp_path / "dry", **again)["2"].parts["loss"]
    assert "was made with the LLM" not in capsys.readouterr().err
    manifest = json.loads((first.backbone / "craft.json").read_text())
    (first.backbone / "craft.json").write_text(json.dumps({**manifest, "llm": "org/other"}))
    rehearse(*words, "2", tmp_path / "dry", **again)
    assert "was made with the LLM org/other, and this run" in capsys.readouterr().err
    (first.backbone / "craft.json").write_text(json.dumps(manifest))
    llm = craft.load(first.out)
    with_none = rehearse(
        *words, "2", tmp_path / "dry", **{**again, "start": _without_lora(first.out, tmp_path)}
    )
    assert llm.backbone.borrowed.lora and started != with_none["2"].parts["loss"]


def _without_lora(out, tmp_path):
    shutil.copytree(out / "backbone/projector", tmp_path / "bare/projector")
    return str(tmp_path / "bare")


@pytest.mark.parametrize("start", [align, rehearse], ids=["run", "dry run"])
def test_lora_that_cannot_go_on_is_refused_before_images_are_encoded(
    family, chat, tmp_path, monkeypatch, start
):
    words = (family / "llama", family, chat / "chat.json")
    settings = {**FAST, "lora.rank": 2, "lora.merge": False}
    first = align(*words, "2", tmp_path / "first", **settings)
    again = {**settings, "start": str(first.out)}
    monkeypatch.setattr("craft.recipes.align.encode_sets", None)
    for changed, message in [
        ({"lora.rank": 1}, r"has rank 2; set lora\.rank"),
        ({"lora.targets": ["q_proj"]}, "other linear maps than that of this run"),
        ({"lora.rank": 0}, "has LoRA; continue from it with stage 2"),
        ({"stage": "1"}, "has LoRA; continue from it with stage 2"),
    ]:
        with pytest.raises(CraftError, match=message):
            start(*words, out=tmp_path / "run", **{"stage": "2", **again, **changed})
    path = first.backbone / "lora/model.safetensors"
    factors = load_tensors(path)
    name = next(name for name in factors if name.endswith(".A"))
    save_tensors(path, {**factors, name: factors[name][:, 1:].clone()})
    with pytest.raises(CheckpointError, match="does not fit this LLM at model"):
        start(*words, "2", tmp_path / "run", **again)
    save_tensors(path, {key: value for key, value in factors.items() if key != name})
    with pytest.raises(CheckpointError, match="does not fit this LLM at model"):
        start(*words, "2", tmp_path / "run", **again)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("start", [align, rehearse], ids=["run", "dry run"])
def test_lora_that_cannot_be_is_refused_before_any_work(family, chat, tmp_path, monkeypatch, start):
    words = (family / "llama", family, chat / "chat.json", "both", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"called q \(lora\.targets\); the layers have down_proj, "):
        start(*words, **FAST, **{"lora.rank": 2, "lora.targets": ["q"]})
    monkeypatch.setattr("craft.training.lora.find_spec", lambda name: None)
    monkeypatch.setattr("craft.recipes.align.read_sets", None)  # data are not even read
    with pytest.raises(ConfigError, match="LoRA needs peft: pip install"):
        start(*words, **FAST, **{"lora.rank": 2})
    assert not (tmp_path / "run").exists()


def test_the_dot_in_a_size_is_no_suffix(family, chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen-0.5B").symlink_to(family / "llama")
    result = align("qwen-0.5B", family, chat / "chat.json", "1", **{**FAST, "max_steps": 1})
    assert (str(result.out), result.lvlm.name) == ("runs/align-qwen-0.5B", "qwen-0.5B")


def test_dry_run(family, chat, tmp_path):
    rehearsals = rehearse(family / "llama", family, chat / "chat.json", out=tmp_path / "run", **FAST)
    assert set(rehearsals) == {"1", "2"} and all(r.parts["loss"] > 0 for r in rehearsals.values())
    trained = {stage: {part: t for part, _, t in r.parameters if t} for stage, r in rehearsals.items()}
    assert set(trained["1"]) == {"projector"} and set(trained["2"]) == {"projector", "llm"}


def test_places_in_the_home_folder(family, chat, tmp_path, aligned, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "earlier").symlink_to(aligned.out)
    words = family / "llama", family, chat / "chat.json", "1", "~/runs/a"
    rehearse(*words, start="~/earlier", **FAST)
    rehearse(*words, codes="~/kept", **FAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "kept", "runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["codes"]


def test_the_papers_setting_on_the_meta_device():
    rehearsals = rehearse("paper/qwen2-0.5b", "paper/vila-u", batch_size=128, micro_batch=16)
    rows = {part: (count, trained) for part, count, trained in rehearsals["2"].parameters}
    assert rows["llm"] == (494_032_768, 494_032_768)  # Qwen2-0.5B's published count
    assert rows["codebook"] == (4 * 16384 * 1024, 0) and rows["vision_tower"][1] == 0
    assert rehearsals["1"].samples == 595_375 and rehearsals["2"].samples == 1_150_000
    memory = rehearsals["2"].memory
    assert memory["optimiser"] == 2 * memory["gradients"] == 8 * (494_032_768 + rows["projector"][0])
    assert memory["search"] == 0 and memory["total"] < 40 * 2**30  # fits the paper's A100 of 40 GB
    with pytest.raises(ConfigError, match="without weights"):
        align("paper/qwen2-0.5b", "paper/vila-u", ["digits"])


def test_mistakes(family, chat, tmp_path):
    options = {"out": tmp_path / "run", **FAST}
    with pytest.raises(ConfigError, match="Which LLM"):
        align(visual=family, data=chat / "chat.json", **options)
    with pytest.raises(ConfigError, match=r"eval_every .* an alignment has none"):
        align(family / "llama", family, chat / "chat.json", eval_every=1, **options)
    with pytest.raises(DataError, match="No data"):
        align(family / "llama", family, **options)
    with pytest.raises(CheckpointError, match="no visual tokenizer"):
        align(family / "llama", "./nothing", chat / "chat.json", **options)
    with pytest.raises(CheckpointError, match="There is no LLM"):
        align("./nothing", family, chat / "chat.json", **options)
    with pytest.raises(DataError, match=r"chat\.json, entry 1 has an image \(as have 11 more\)"):
        align(family / "llama", family, chat / "chat.json", text=chat / "chat.json", **options)
    with pytest.raises(DataError, match="Stage 1"):
        align(family / "llama", family, chat / "text.json", "1", **options)
    assert not (tmp_path / "run" / "stage-1").exists()


@pytest.mark.parametrize("start", [align, rehearse], ids=["run", "dry run"])
def test_an_llm_that_cannot_be_is_refused_before_images_are_encoded(
    family, chat, tmp_path, monkeypatch, start
):
    monkeypatch.setattr("craft.recipes.align.encode_sets", None)
    words = (family, chat / "chat.json", "both", tmp_path / "run")
    with pytest.raises(CheckpointError, match="There is no LLM"):
        start("./nothing", *words, **FAST)
    with pytest.raises(CheckpointError, match="holds no projector"):
        start(family / "llama", *words, start=str(chat), **FAST)


def test_a_stage_reads_what_it_trains_on_and_no_more():
    data, captions, text = ([Conversation(name, (("q", "a"),))] for name in ("own", "caption", "text"))

    def read(stage, *arguments):
        settings = AlignConfig.build({"stage": stage, "captions": ["(given)"] if arguments[1] else []})
        return {name: [c.id for c in part] for name, part in read_sets(settings, *arguments).items() if part}

    assert read("1", data, captions, text) == read("1", None, captions, None) == {"captions": ["caption"]}
    assert read("1", data, None, text) == {"data": ["own"]}
    assert read("2", data, captions, text) == {"data": ["own"], "text": ["text"]}
    both = {"data": ["own"], "captions": ["caption"], "text": ["text"]}
    assert read("both", data, captions, text) == both
    for stage in ("2", "both"):
        with pytest.raises(DataError, match="No data"):
            read(stage, None, captions, text)


@pytest.mark.parametrize("start", [align, rehearse], ids=["run", "dry run"])
def test_turns_that_a_chat_template_rewrites_are_refused_before_images_are_encoded(
    family, chat, tmp_path, monkeypatch, start
):
    """As Qwen3's does; with both stages it would stop when the first is done."""

    def templated(*arguments):
        llm, words = open_llm(*arguments)
        words.chat_template = (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ '!' if loop.last else '.' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}"
        )
        return llm, words

    monkeypatch.setattr("craft.recipes.align.open_llm", templated)
    monkeypatch.setattr("craft.recipes.align.encode_sets", None)
    rows = json.loads((chat / "chat.json").read_text())
    rows[7]["conversations"] += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    (tmp_path / "chat.json").write_text(
        json.dumps([{**row, "image": str(chat / row["image"])} for row in rows])
    )
    words = (family / "llama", family, tmp_path / "chat.json", "both", tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"chat\.json, entry 8: .*one turn per conversation, or .*prompt=plain"
    ):
        start(*words, **FAST, captions=chat / "chat.json")


@pytest.mark.parametrize("environment, lora", [({}, 0), (FSDP2, 2)], ids=["ddp", "fsdp2-lora"])
def test_two_processes_are_one(family, chat, tmp_path, environment, lora):
    settings = {**FAST, "batch_size": 5, "lora.rank": lora, "questions_per_row": 2}
    words = (str(family / "llama"), str(family), str(chat / "chat.json"))
    alone = workers.aligned(*words, str(tmp_path / "alone"), settings)
    results = together(2, workers.aligned, *words, str(tmp_path / "run"), settings, **environment)
    assert all(isinstance(one, dict) for one in results), results
    assert results[0] == results[1]
    assert results[0]["losses"] == pytest.approx(alone["losses"], rel=1e-3)
    lvlm = craft.load(tmp_path / "run")
    assert lvlm.answer([Image.new("RGB", (32, 32), COLOURS["red"])], ["What colour?"])
