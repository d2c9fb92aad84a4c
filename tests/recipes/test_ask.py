"""`craft ask`: answers are those of the model, files grow row by row, and nothing is lost."""

import copy
import csv
import io
import json
import shutil
import subprocess
import sys

import pytest
import torch

import craft
from craft.cli.main import main
from craft.core.errors import ConfigError, DataError
from craft.data.images import open_image
from craft.formats.artefact import save_artefact
from craft.recipes import ask as asking
from craft.recipes.ask import ask

LLM = "craft-tiny/llama"
CLASSES = ("bag", "coat", "dress", "t-shirt")


@pytest.fixture(scope="module")
def lvlm():
    return craft.load(LLM, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images, one of them damaged, some in a folder below."""
    root = tmp_path_factory.mktemp("photos")
    (root / "more").mkdir()
    for number, sample in enumerate(craft.data.load_data("apparel").test[:19]):
        below = root / "more" if number % 3 == 0 else root
        open_image(sample.image).save(below / f"{number:02d}.png")
    (root / "07b.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def encoder(lvlm, tmp_path_factory):
    """An encoder whose training had classes."""
    import torch

    folder = tmp_path_factory.mktemp("run") / "encoder"
    prior = torch.ones(lvlm.visual.codebook.size, dtype=torch.int64)
    data = {"name": "wardrobe", "classes": list(CLASSES), "question": "What is worn?"}
    manifest = {"data": data, "held_out": ["bag"], "answer_temperature": 2.0}
    return save_artefact(folder, lvlm.visual, prior=prior, manifest=manifest)


def paths(root):
    return sorted(str(path) for path in root.rglob("*.png"))


def test_written_answers_are_those_of_the_model(lvlm, folder):
    asked = ask(lvlm, folder, question="What is shown?", max_new_tokens=6, batch_size=4)
    assert [row["image"] for row in asked.rows] == paths(folder)
    assert asked.failed == 1 and "07b.png" in next(row["error"] for row in asked.rows if "error" in row)
    for row in asked.rows:
        if "error" not in row:
            assert row["answer"] == lvlm.answer([row["image"]], ["What is shown?"], max_new_tokens=6)[0]


def test_an_encoder_brings_its_question_and_its_classes(lvlm, folder, encoder):
    asked = ask(lvlm, folder, encoder)
    rows = [row for row in asked.rows if "error" not in row]
    assert {row["question"] for row in rows} == {"What is worn?"}
    for row in rows:
        assert set(row["probabilities"]) == set(CLASSES)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        first, second = sorted(row["probabilities"], key=lambda c: -row["probabilities"][c])[:2]
        assert (row["answer"], row["runner_up"]) == (first, second)
        assert row["margin"] == pytest.approx(row["probability"] - row["runner_up_probability"], abs=2e-6)
    plain = ask(lvlm, folder, question="What is worn?", options=CLASSES)
    sharper = [row for row in plain.rows if "error" not in row]
    assert [r["answer"] for r in sharper] == [r["answer"] for r in rows]  # the same tower, no calibration
    assert all(a["probability"] >= b["probability"] for a, b in zip(sharper, rows, strict=True))


def test_below_a_probability_the_answer_is_unsure(lvlm, folder):
    rows = ask(lvlm, folder, options=CLASSES, min_probability=0.9).rows
    read = [row for row in rows if "error" not in row]
    assert {row["answer"] == "unsure" for row in read} == {True, False}
    assert all((row["answer"] == "unsure") == (row["probability"] < 0.9) for row in read)


def test_more_options_than_letters_are_scored_without_being_listed(lvlm, folder):
    options = [f"thing {number}" for number in range(40)]
    (row,) = ask(lvlm, paths(folder)[0], options=options).rows
    assert set(row["probabilities"]) == set(options)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("kept", [0, 5, 12])
def test_a_stopped_run_continues_to_the_same_file(lvlm, folder, tmp_path, suffix, kept):
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    settings = {"options": CLASSES, "batch_size": 2}
    ask(lvlm, folder, out=str(whole), **settings)
    content = whole.read_bytes()
    lines = content.splitlines(keepends=True)
    end = kept + (suffix == "csv")
    out.write_bytes(b"".join(lines[:end]) + lines[end][:9])  # killed in the middle of a row
    shutil.copy(f"{whole}.record.json", f"{out}.record.json")
    asked = ask(lvlm, folder, out=str(out), resume=True, **settings)
    assert asked.resumed == kept and len(asked.rows) == 20 and asked.failed == 1
    assert out.read_bytes() == content
    if suffix == "csv":
        table = list(csv.DictReader(io.StringIO(content.decode())))
        assert [row["image"] for row in table] == paths(folder) and table[0]["probability"]
    else:
        assert [json.loads(line)["image"] for line in lines] == paths(folder)


def test_answers_of_another_model_or_setting_are_not_mixed(lvlm, folder, tmp_path):
    """The rows name images and questions; what answered stands in a record beside the file."""
    out = tmp_path / "out.jsonl"
    ask(lvlm, folder, out=str(out), options=CLASSES)
    whole = out.read_bytes()
    record = json.loads((tmp_path / "out.jsonl.record.json").read_text())
    assert len(record["vision_tower"]) == 64 and record["options"] == [list(CLASSES)]
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))
    other = copy.deepcopy(lvlm)
    with torch.no_grad():
        next(other.visual.vision_tower.parameters()).add_(0.1)
    for model, settings, words in (
        (other, {"options": CLASSES}, "another vision_tower"),
        (lvlm, {"options": CLASSES[:-1]}, "another options"),
        (lvlm, {"options": CLASSES, "min_probability": 0.9}, "another min_probability"),
        (lvlm, {"options": CLASSES, "keep_ratio": 0.5}, "another keep_ratio"),
    ):
        with pytest.raises(ConfigError, match=words):
            ask(model, folder, out=str(out), resume=True, **settings)
    assert ask(lvlm, folder, out=str(out), options=CLASSES, resume=True).resumed == 6
    assert out.read_bytes() == whole
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))
    (tmp_path / "out.jsonl.record.json").unlink()
    with pytest.raises(ConfigError, match="record of what gave the answers"):
        ask(lvlm, folder, out=str(out), options=CLASSES, resume=True)


def test_an_existing_file_is_kept(lvlm, folder, tmp_path):
    out = tmp_path / "out.jsonl"
    ask(lvlm, folder, out=str(out), options=CLASSES)
    with pytest.raises(ConfigError, match="--resume"):
        ask(lvlm, folder, out=str(out), options=CLASSES)
    with pytest.raises(ConfigError, match="other images or questions"):
        ask(lvlm, folder, out=str(out), question="another?", options=CLASSES, resume=True)
    with pytest.raises(ConfigError, match=r"\.jsonl or \.csv"):
        ask(lvlm, folder, out=str(tmp_path / "out.txt"), options=CLASSES)


def test_a_table_has_questions_of_its_own(lvlm, folder, tmp_path):
    first, second = paths(folder)[:2]
    table = tmp_path / "questions.jsonl"
    rows = [
        {"image": first, "question": "What is shown?", "options": ["bag", "coat, long"]},
        {"image": second, "question": "Describe it."},
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ask(lvlm, table, max_new_tokens=5).rows
    assert set(asked[0]["probabilities"]) == {"bag", "coat, long"}
    assert asked[1]["answer"] == lvlm.answer([second], ["Describe it."], max_new_tokens=5)[0]
    table.write_text('{"image": "a.png"}\n')
    with pytest.raises(DataError, match="no `question`"):
        ask(lvlm, table)


def test_a_temperature_draws_and_a_seed_repeats(lvlm, folder):
    settings = {"question": "Describe it.", "temperature": 1.5, "max_new_tokens": 8}
    answers = [[r.get("answer") for r in ask(lvlm, folder, seed=seed, **settings).rows] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_one_image_is_streamed(lvlm, folder):
    pieces = []
    image = paths(folder)[0]
    (row,) = ask(lvlm, image, question="Describe it.", stream=pieces.append, max_new_tokens=12).rows
    assert "".join(pieces) == row["answer"] == lvlm.answer([image], ["Describe it."], max_new_tokens=12)[0]


def test_several_images_in_one_prompt_need_a_format_that_has_them(lvlm, folder):
    images = paths(folder)[:2]
    with pytest.raises(craft.CraftError, match="one image"):
        ask(lvlm, images, question="Same?", together=True)
    (row,) = ask(lvlm, images[:1], question="What?", together=True, max_new_tokens=5).rows
    assert row["image"] == images[:1] and row["answer"] == lvlm.answer(images[:1], ["What?"])[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "There is no question"),
        ({"options": ("bag",)}, "at least two"),
        ({"options": ("bag", "bag")}, "at least two"),
        ({"question": "q", "pictures": ()}, "no images"),
        ({"question": "q", "pictures": ("*.nothing",)}, "matches no file"),
    ],
)
def test_what_cannot_be_asked_is_refused(lvlm, folder, settings, message):
    pictures = settings.pop("pictures", (str(folder),))
    with pytest.raises((ConfigError, DataError), match=message):
        ask(lvlm, pictures, **settings)


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    words = ["ask", LLM, str(folder), "--options", "bag,coat,dress", "--device", "cpu", "--dtype", "float32"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 20 and "%" in out and "1 of 20 images could not be read" in err
    assert main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 20
    file = tmp_path / "answers.jsonl"
    assert main([*words, "--out", str(file)]) == 0 and "20 answers" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(paths(folder)[:3]) + "\n"))
    assert main(["ask", LLM, "-", "--question", "What?", "--max-new-tokens", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"x")
    assert main(["ask", LLM, str(bad), "--question", "What?"]) == 2
    assert "None of the 1 images" in capsys.readouterr().err


def test_asking_imports_no_server():
    code = "import sys, craft.recipes.ask; print('fastapi' in sys.modules, 'uvicorn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_options_with_commas_are_several_values():
    assert asking.split_options(("a, b,c",)) == ("a", "b", "c")
    assert asking.split_options(("coat, long", "bag")) == ("coat, long", "bag")
