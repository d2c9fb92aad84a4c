"""JSON by somebody else, or cut short: a refusal that names the file, never a fault in CRAFT."""

import json
from pathlib import Path
from typing import Any

import pytest

from craft.core.errors import CheckpointError, CraftError, DataError
from craft.core.files import read_json
from craft.data import load_data, prepare, read_data
from craft.data.additions import with_options
from craft.evaluation.report import caveats_in
from replicas import class_folders, paint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, None) for name in ("fingerprint", "root", "name", "task", "domain", "notes")),
        *(("root", 5), ("task", "x"), ("notes", 5), ("caveats", 5), ("domain", ["a"])),
        *(("white_level", "abc"), ("white_level", 0)),
    ],
)
def test_a_manifest(tmp_path: Path, field: str, value: object) -> None:
    root = class_folders(tmp_path / "trees", ["ash", "elm"])
    folder = prepare(root, None, tmp_path / "m", progress=False).path
    about = json.loads((folder / "manifest.json").read_text()) | {field: value}
    if value is None:
        del about[field]
    (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=rf"manifest\.json is damaged.*{field}"):
        load_data(folder)


@pytest.mark.parametrize(
    ("features", "is_readable"),
    [("[]", False), ("{x", False), ('{"info": null}', False), ('{"info": {"features": {}}}', True)]
    + [
        (json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", **more}}}}), False)
        for more in ({}, {"names": 5}, {"names": [1, 2]})
    ],
)
def test_class_names_in_parquet(tmp_path: Path, features: str, is_readable: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paint(tmp_path / "0.png", 0)
    content = (tmp_path / "0.png").read_bytes()
    rows = pa.table({"image": [content] * 4, "label": [0, 1, 0, 1]})
    pq.write_table(rows.replace_schema_metadata({b"huggingface": features.encode()}), tmp_path / "t.parquet")
    if is_readable:
        assert read_data(tmp_path / "t.parquet").samples[1].label == "1"
        return
    with pytest.raises(DataError, match=r"t\.parquet: the class names in its metadata"):
        read_data(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "info",
    ["5", "abc", "{features: 5}", "{features: [{name: label, dtype: {class_label: {names: {a: x}}}}]}"],
)
def test_a_readme_that_is_no_card_names_no_classes(tmp_path: Path, info: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paint(tmp_path / "0.png", 0)
    rows = pa.table({"image": [(tmp_path / "0.png").read_bytes()] * 4, "label": [0, 1, 0, 1]})
    pq.write_table(rows, tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text(f"---\ndataset_info: {info}\n---\n")
    assert [sample.label for sample in read_data(tmp_path).samples] == ["0", "1", "0", "1"]


PROBLEM = {"question": "q", "choices": ["a", "b"], "answer": 0, "image": "image.png"}
ENTRY = {"image_name": "1.jpg", "phrase_type": "freeform", "question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("name", "files", "damaged"),
    [
        ("scienceqa", {"problems.json": [], "pid_splits.json": {}}, "problems"),
        ("scienceqa", {"problems.json": {}, "pid_splits.json": {"train": ["1"]}}, "problems"),
        ("scienceqa", {"problems.json": {"1": 3}, "pid_splits.json": {"train": ["1"]}}, "problems"),
        (
            "scienceqa",
            {"problems.json": {"1": PROBLEM | {"choices": 5}}, "pid_splits.json": {"train": ["1"]}},
            "problems",
        ),
        ("scienceqa", {"problems.json": {"1": PROBLEM}, "pid_splits.json": ["1"]}, "pid_splits"),
        (
            "scienceqa",
            {"problems.json": {"1": PROBLEM}, "pid_splits.json": {"train": ["1"]}, "captions.json": [5]},
            "captions",
        ),
        ("ocr-vqa", {"dataset.json": [1]}, "dataset"),
        ("ocr-vqa", {"dataset.json": {"1": {"split": 1}}}, "dataset"),
        ("vqa-rad", {"VQA_RAD Dataset Public.json": {}}, "Public"),
        ("vqa-rad", {"VQA_RAD Dataset Public.json": [ENTRY, {"image_name": "1.jpg"}]}, "Public"),
        ("plantvillage", {"leaf-map.json": {"1": None}}, "leaf-map"),
    ],
)
def test_annotations_of_a_benchmark(tmp_path: Path, name: str, files: dict[str, Any], damaged: str) -> None:
    for folder in ("images", "images/train/1", "VQA_RAD Image Folder"):
        paint(tmp_path / folder / "image.png", 1)
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{damaged}\.json (is damaged|lacks)"):
        load_data(name, tmp_path)


@pytest.mark.parametrize("options", [[], 5, None, "ash"])
def test_an_option_file(tmp_path: Path, options: object) -> None:
    root = class_folders(tmp_path / "trees", ["ash", "elm"])
    path = tmp_path / "o.json"
    path.write_text(json.dumps({"ash": [{"image": "0.png", "options": options}]}))
    with pytest.raises(DataError, match=r"o\.json is not an option file"):
        with_options(read_data(root).samples, path)


@pytest.mark.parametrize(
    "content",
    [[], {"reports": 5}, {"reports": [1]}, {"reports": [{"settings": 5}]}]
    + [{"reports": [{"settings": {"caveats": caveats}}]} for caveats in (5, [1], [["a"]])],
)
def test_a_report_that_is_compared(tmp_path: Path, content: object) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"report\.json is (damaged|not a JSON object)"):
        caveats_in(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000])
def test_json_of_no_use(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CraftError, match=r"a\.json cannot be read as JSON"):
        read_json(tmp_path / "a.json")
