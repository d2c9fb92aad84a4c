"""Folders, files and manifests that cannot be used."""

import json
from pathlib import Path

from data.damage.making import damage, folder
from replicas import paint


@damage(
    "{root}",
    "no images",
    "Expected FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg",
)
def empty_folder(root: Path) -> Path:
    (root / "ash").mkdir()
    return root


@damage(
    "{root}",
    "no class folders",
    "Expected FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg",
)
def loose_pictures(root: Path) -> Path:
    paint(root / "a.png", 1)
    return root


@damage("{root}", "single class, 'ash'", "at least two")
def one_class(root: Path) -> Path:
    return folder(root, "ash")


@damage("{root}", "'ash' alone", "two classes", "two images each")
def one_picture_of_each_class(root: Path) -> Path:
    for number, name in enumerate(("ash", "elm")):
        (root / name).mkdir()
        paint(root / name / "0.png", number)
    return root


@damage("red oak and red_oak in {root}", "'red oak'", "Merge them, or rename one")
def class_twice(root: Path) -> Path:
    return folder(root, "red oak", "red_oak")


@damage(
    "{root}",
    "train",
    "pine",
    "Expected FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg",
)
def classes_beside_train(root: Path) -> Path:
    folder(root / "train", "ash", "elm")
    return folder(root, "pine")


@damage("{root}/a.xlsx", "class folders", "(.jsonl, .ndjson, .json, .csv, .tsv, .parquet)")
def unknown_kind_of_file(root: Path) -> Path:
    (root / "a.xlsx").write_text("x")
    return root / "a.xlsx"


@damage("{root}/m/samples.jsonl", "fingerprint differs", "`craft data prepare`", ".jsonl")
def edited_manifest(root: Path) -> Path:
    manifest = _manifest(root)
    with open(manifest / "samples.jsonl", "a") as file:
        file.write("\n")
    return manifest


@damage("the manifest {root}/m", "{root}/m/samples.jsonl: No such file or directory")
def manifest_without_rows(root: Path) -> Path:
    manifest = _manifest(root)
    (manifest / "samples.jsonl").unlink()
    return manifest


@damage("{root}/m/manifest.json", "format 1", "`craft data prepare`")
def manifest_of_another_format(root: Path) -> Path:
    manifest = _manifest(root)
    told = json.loads((manifest / "manifest.json").read_text())
    (manifest / "manifest.json").write_text(json.dumps(told | {"format": 99}))
    return manifest


@damage(
    "1 of the 8 rows", "{root}/pictures/ash/0.png ({root}/m/samples.jsonl:7)", "relative to {root}/pictures"
)
def manifest_without_a_picture(root: Path) -> Path:
    manifest = _manifest(root)
    (root / "pictures" / "ash" / "0.png").unlink()
    return manifest


def _manifest(root: Path) -> Path:
    from craft.data import Wanted, prepare

    return prepare(folder(root / "pictures", "ash", "elm"), None, root / "m", Wanted(), progress=False).path
