"""The transfer matrix: who is asked what, what is computed once and kept, and what is written."""

import hashlib
import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from builders import tiny_lvlm
from craft.core.errors import CodebookMismatchError, ConfigError, CraftError, DataError
from craft.evaluation.report import Report
from craft.models.visual_tokenizer import VisualTokenizer
from craft.pages.matrix import ZERO_SHOT, TransferCell, TransferMatrix
from craft.recipes import adapt, transfer
from tiny_data import tiny_data

evaluating = import_module("craft.recipes.evaluate")  # the module, not the function
FAST = {"max_steps": 2, "batch_size": 4, "optimizer": {"learning_rate": 1e-3}, "device": "cpu"}
MATRIX = {"adapt": FAST}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished matrix of two surrogates, two seeds and one data set; its folder."""
    work = tmp_path_factory.mktemp("work")
    lvlms = [tiny_lvlm(), tiny_lvlm("qwen2")]
    return transfer(surrogates=lvlms, data=[tiny_data()], seeds=(0, 1), work=work, config=MATRIX), work


def test_every_surrogate_meets_every_backbone(made):
    matrix, work = made
    assert matrix.encoders == [ZERO_SHOT, "tiny/llama", "tiny/qwen2"]
    assert matrix.backbones == ["tiny/llama", "tiny/qwen2"]
    assert matrix.data == ["blobs"] and len(matrix.table()) == 6
    for (_, encoder, backbone), cell in matrix.cells.items():
        assert cell.diagonal == (encoder == backbone)
        if encoder != ZERO_SHOT:
            assert len(cell.reports) == 2
            pairs = zip(cell.reports, cell.zero_shot, strict=True)
            assert all(_asked(after) == _asked(before) for after, before in pairs)
            gain = matrix.figure("blobs", encoder, backbone) - matrix.figure("blobs", ZERO_SHOT, backbone)
            assert matrix.gain("blobs", encoder, backbone) == pytest.approx(gain)
    assert {path.name for path in work.iterdir()} == {"runs", "codes", "cells"}
    assert len(list((work / "runs").iterdir())) == 4
    # Data in memory has one set of questions: zero-shot is asked once per backbone.
    assert len(list((work / "cells").glob("*.json"))) == 2 + 8


def _asked(report: Report) -> list[str]:
    return [row["prompt"] for row in report.samples]


def test_a_stopped_matrix_goes_on(made, monkeypatch):
    matrix, work = made
    lvlms = [tiny_lvlm(), tiny_lvlm("qwen2")]
    lost = sorted((work / "cells").glob("*.json"))[0]
    lost.unlink()
    asked = []
    ask = evaluating.evaluate_lvlm
    monkeypatch.setattr(
        evaluating, "evaluate_lvlm", lambda lvlm, *a, **k: asked.append(lvlm.name) or ask(lvlm, *a, **k)
    )
    monkeypatch.setattr(VisualTokenizer, "encode", None)  # codes are kept: no image is encoded again
    again = transfer(surrogates=lvlms, data=[tiny_data()], seeds=(0, 1), work=work, config=MATRIX)
    assert len(asked) == 1 and lost.is_file()
    assert again.table() == matrix.table()


def test_other_questions_and_other_weights_are_not_taken_from_the_folder(made):
    _, work = made
    before = set((work / "cells").iterdir())
    transfer(surrogates=[tiny_lvlm()], data=[tiny_data()], seeds=(0,), work=work, limit=3, config=MATRIX)
    fewer = set((work / "cells").iterdir()) - before
    assert len(fewer) == 2 and all(len(json.loads(p.read_text())["samples"]) == 3 for p in fewer)
    with pytest.raises(ConfigError, match="max_steps was 2 and is 3"):
        transfer(
            surrogates=[tiny_lvlm()],
            data=[tiny_data()],
            seeds=(0,),
            work=work,
            config=MATRIX,
            max_steps=3,
        )


def test_answers_of_another_text_tokenizer_are_not_taken(tmp_path):
    common = {"data": [tiny_data()], "seeds": (0,), "work": tmp_path, "config": MATRIX, "limit": 3}
    transfer(surrogates=[tiny_lvlm()], **common)
    other = tiny_lvlm()
    other.backbone.tokenizer.add_tokens(["flibber"])
    transfer(surrogates=[other], **common)
    assert len(list((tmp_path / "cells").iterdir())) == 4


def test_an_encoder_of_other_weights_is_made_again(tmp_path, capsys):
    common = {"data": [tiny_data()], "seeds": (0,), "work": tmp_path, "config": MATRIX}
    transfer(surrogates=[tiny_lvlm()], **common)
    other = tiny_lvlm()
    other.backbone.projector.requires_grad_(False)
    next(other.backbone.projector.parameters()).add_(0.1)
    transfer(surrogates=[other], **common)
    assert "made with other weights of tiny/llama" in capsys.readouterr().err
    assert len(list((tmp_path / "cells").iterdir())) == 4


def test_data_that_changed_is_told(made, tmp_path):
    _, work = made
    with pytest.raises(DataError, match="blobs has changed since"):
        transfer(surrogates=[tiny_lvlm()], data=[tiny_data(train=9)], seeds=(0,), work=work, config=MATRIX)
    given = {
        "seeds": (0,),
        "work": tmp_path,
        "config": {"adapt": {**FAST, "data": {"limit": 6}}},
    }  # not for a `Data`
    transfer(surrogates=[tiny_lvlm()], data=[tiny_data()], **given)
    with pytest.raises(DataError, match="blobs has changed since"):
        transfer(surrogates=[tiny_lvlm()], data=[tiny_data(train=9)], **given)


def test_encoders_that_are_given(tmp_path):
    one = adapt(tiny_lvlm(), tiny_data(), tmp_path / "one", config=FAST)
    two = adapt(tiny_lvlm(), tiny_data(), tmp_path / "two", seed=1, config=FAST)
    twin = adapt(tiny_lvlm(), tiny_data(), tmp_path / "twin", config=FAST)
    matrix = transfer([one.out, two.out], [tiny_lvlm(), tiny_lvlm("qwen2")], tiny_data())
    assert matrix.encoders == [ZERO_SHOT, "tiny/llama"]  # two seeds share a row
    assert len(matrix.cells["blobs", "tiny/llama", "tiny/qwen2"].reports) == 2
    json.dumps(matrix.to_json(samples=True))
    matrix = transfer([one.out, twin.out], [tiny_lvlm()], tiny_data())
    assert matrix.encoders == [ZERO_SHOT, "tiny/llama (one)", "tiny/llama (twin)"]


def test_encoders_of_other_data_are_no_seeds_of_one(tmp_path):
    """Asked about one data set, those that were adapted to two are not averaged."""
    dots = replace(tiny_data(), name="dots")
    one = adapt(tiny_lvlm(), tiny_data(), tmp_path / "one", config=FAST)
    two = adapt(tiny_lvlm(), dots, tmp_path / "two", config=FAST)
    matrix = transfer([one.out, two.out], [tiny_lvlm()], tiny_data())
    assert matrix.encoders == [ZERO_SHOT, "tiny/llama on blobs", "tiny/llama on dots"]
    assert all(len(cell.reports) == 1 for cell in matrix.cells.values())
    assert matrix.cells["blobs", "tiny/llama on dots", "tiny/llama"].diagonal


def test_encoders_of_other_settings_are_no_seeds_of_one(tmp_path):
    for number, rate in enumerate((1e-3, 2e-3)):
        config = {**FAST, "optimizer": {"learning_rate": rate}}
        adapt(tiny_lvlm(), tiny_data(), tmp_path / str(rate) / "blobs", seed=number, config=config)
    places = [tmp_path / str(rate) / "blobs" for rate in (1e-3, 2e-3)]
    matrix = transfer(places, [tiny_lvlm()], tiny_data())
    assert matrix.encoders == [ZERO_SHOT, *(f"tiny/llama ({place})" for place in places)]
    assert all(len(cell.reports) == 1 for cell in matrix.cells.values())


def test_models_of_one_name_are_not_put_together(tmp_path):
    twins = [tiny_lvlm(), tiny_lvlm(seed=1)]
    with pytest.raises(ConfigError, match="Two of the models are called tiny/llama"):
        transfer(surrogates=twins, data=[tiny_data()], seeds=(0,), work=tmp_path, config=MATRIX)
    with pytest.raises(ConfigError, match="Two of the models are called tiny/llama"):
        transfer(["somewhere"], twins)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_show_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match="at least one encoder"):
        transfer([], [tiny_lvlm()])
    with pytest.raises(ConfigError, match="at least one backbone"):
        transfer([tmp_path], [])
    with pytest.raises(ConfigError, match="no setting 'max_stepz'"):
        transfer(surrogates=[tiny_lvlm()], config={"max_stepz": 3})
    for ratio, fault in ((2.0, "above 0"), (0.5, "without a code prior")):
        with pytest.raises(CraftError, match=fault):
            transfer(surrogates=[tiny_lvlm()], data=[tiny_data()], work=tmp_path, keep_ratio=ratio)
    with pytest.raises(CodebookMismatchError):
        transfer(
            surrogates=[tiny_lvlm()],
            backbones=[tiny_lvlm(codebook_seed=1)],
            data=[tiny_data()],
            work=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def report(right: list[bool], seen: list[bool] | None = None) -> Report:
    """A report of so many answers."""
    marks = [{"strict": mark, "lenient": mark, "unparseable": False} for mark in right]
    known = seen or [True] * len(right)
    rows = [{**mark, "seen": s, "choices": ["a", "b"]} for mark, s in zip(marks, known, strict=True)]
    return Report.of(rows, {"seed": 0})


@pytest.fixture
def drawn():
    """A matrix with known figures: two models, two data sets."""
    before = report([True, False, False, False] * 10, [True, True, False, False] * 10)
    after = {
        True: report([True, True, True, False] * 10, [True, True, False, False] * 10),
        False: report([True, True, False, False] * 10, [True, True, False, False] * 10),
    }
    models = ["family/a", "family/b"]
    cells = {}
    for data in ("blobs", "dots"):
        for backbone in models:
            cells[data, ZERO_SHOT, backbone] = TransferCell(
                data, ZERO_SHOT, backbone, False, [before], [before]
            )
            for encoder in models:
                own = encoder == backbone
                cells[data, encoder, backbone] = TransferCell(
                    data, encoder, backbone, own, [after[own]] * 2, [before] * 2
                )
    return TransferMatrix(["blobs", "dots"], [ZERO_SHOT, *models], models, cells, {"seeds": [0, 1]})


def test_gains_and_their_means(drawn):
    gain = drawn.cells["blobs", "family/a", "family/a"].gain()
    assert gain["mean"] == pytest.approx(0.5) and gain["std"] == 0 and gain["runs"] == 2
    assert gain["interval"][0] < 0.5 < gain["interval"][1]
    assert drawn.gain("dots", "family/a", "family/b", "seen") == pytest.approx(0.5)
    assert drawn.gain("dots", "family/a", "family/b", "unseen") == pytest.approx(0.0)
    assert drawn.gain("dots", ZERO_SHOT, "family/b") is None
    means = {(row["data"], row["diagonal"]): row for row in drawn.summary()}
    assert set(means) == {(data, own) for data in ("blobs", "dots", "all") for own in (True, False)}
    assert means["all", True]["accuracy"] == pytest.approx(0.5)
    assert means["all", False]["accuracy"] == pytest.approx(0.25)
    assert means["all", False]["positive"] == means["all", False]["cells"] == 4


def test_what_is_written(drawn, tmp_path):
    paths = drawn.save(tmp_path / "out")
    assert [path.name for path in paths] == ["transfer.json", "transfer.md", "transfer.png"]
    found = json.loads(paths[0].read_text())
    assert len(found["table"]) == 12 and found["settings"]["seeds"] == [0, 1]
    page = paths[1].read_text()
    assert "| family/a | zero-shot | 25.0 | 25.0 | 25.0 |" in page
    assert "| family/a | family/a * | 75.0 ± 0.0 (+50.0) | 75.0 ± 0.0 (+50.0) | 75.0 (+50.0) |" in page
    assert "one seed: questions only" in page
    gains = r"\+25.0 \[.*\] \| \+50.0 \[.*\] \| \+0.0 \[-.*, \+.*\]"
    assert re.search(rf"\| all \| another LLM \| {gains} \| 4 of 4 \| \+25.0 \|", page)
    first = paths[2].read_bytes()
    with Image.open(paths[2]) as picture:
        assert picture.width > picture.height > 200
    assert Path(drawn.save(tmp_path / "again")[2]).read_bytes() == first


def test_a_part_of_a_matrix_can_be_shown(drawn, tmp_path):
    del drawn.cells["dots", "family/b", "family/a"]
    page = drawn.to_markdown()
    assert "| family/a | family/b | 50.0 ± 0.0 (+25.0) | - | - |" in page
    drawn.save(tmp_path)


def test_answers_stored_in_the_earlier_form_are_read(made, monkeypatch):
    """The file's name and the record, in the form that they had before `core.store`."""
    _, work = made
    for path in (work / "cells").glob("*.json"):
        record = json.loads(path.read_text())
        key = record.pop("key")
        assert set(key) == {
            *("backbone", "tower", "prior", "questions", "held_out"),
            *("keep_ratio", "limit", "max_new_tokens"),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        assert path.stem.endswith(f"-{digest}") and path.name.startswith("blobs-")
        commit = record.pop("commit")
        path.write_text(json.dumps({"key": key, "commit": commit, **record}, indent=2))
    monkeypatch.setattr(evaluating, "evaluate_lvlm", None)  # nothing is asked again
    lvlms = [tiny_lvlm(), tiny_lvlm("qwen2")]
    transfer(surrogates=lvlms, data=[tiny_data()], seeds=(0, 1), work=work, config=MATRIX)
