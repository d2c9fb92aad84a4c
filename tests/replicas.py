"""Tiny copies of the ten benchmarks in their original layouts: same folders, same formats."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def paint(path: Path, number: int, size: int = 12) -> str:
    """A picture that differs from all others; the ending settles the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, size)).save(path)
    return path.name


def pixels(number: int, size: int = 12) -> np.ndarray:
    """Noise around a colour."""
    draw = np.random.default_rng(number)
    return np.clip(draw.integers(0, 255, 3) + draw.integers(-25, 25, (size, size, 3)), 0, 255).astype(
        np.uint8
    )


def png(number: int) -> bytes:
    """The same as the bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, format="PNG")
    return stream.getvalue()


def write(path: Path, value: Any) -> None:
    """JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def class_folders(root: Path, names: Sequence[str], each: int = 5, ending: str = ".jpg") -> Path:
    """`root/<name>/*`."""
    for c, name in enumerate(names):
        for n in range(each):
            paint(root / name / f"{name.split('-')[0]}_{n}{ending}", 1000 * c + n)
    return root


def iconqa(root: Path) -> Path:
    """problems.json, pid_splits.json, and the other two sub-tasks, which are not asked for."""
    problems, splits = {}, dict[str, list[str]]()
    for split, count in (("train", 12), ("val", 3), ("test", 5)):
        for n in range(count):
            pid = str(len(problems))
            options = ["square", "circle", "triangle"][: 2 + n % 2]
            problems[pid] = {
                "question": "What shape is shown?",
                "choices": options,
                "answer": n % 2,
                "ques_type": "choose_txt",
                "split": split,
                "grade": "grade1",
                "skills": ["geometry"],
            }
            splits.setdefault(f"choose_txt_{split}", []).append(pid)
            paint(root / "iconqa_data" / "iconqa" / split / "choose_txt" / pid / "image.png", int(pid))
    problems["900"] = {"question": "Pick.", "choices": ["choice_0.png", "choice_1.png"], "answer": 1}
    problems["901"] = {"question": "How many?", "choices": None, "answer": "7"}
    splits |= {"choose_img_train": ["900"], "fill_in_blank_train": ["901"]}
    write(root / "iconqa_data" / "problems.json", problems)
    write(root / "iconqa_data" / "pid_splits.json", splits)
    return root


def ocr_vqa(root: Path) -> Path:
    """dataset.json and covers, some of them dead: one never fetched, one an error page, one a real GIF."""
    books = {}
    for n in range(20):
        id = f"{n:010d}"
        books[id] = {
            "imageURL": f"http://images.example/{id}.jpg",
            "questions": ["Who wrote this book?", "Is this a cook book?"],
            "answers": [f"Author {n % 4}", "Yes" if n % 2 else "No"],
            "title": f"Book {n}",
            "authorName": f"Author {n % 4}",
            "genre": "Cookbooks",
            "split": 1 if n < 12 else 2 if n < 14 else 3,
        }
        if n == 3:
            continue
        paint(root / "images" / f"{id}{'.gif' if n == 5 else '.jpg'}", n)
        if n == 4:
            (root / "images" / f"{id}.jpg").write_text("<html>404 Not Found</html>")
    write(root / "dataset.json", books)
    return root


def scienceqa(root: Path) -> Path:
    """problems.json with text-only questions among the others, pid_splits.json, captions.json."""
    problems, splits = {}, dict[str, list[str]]()
    for split, count in (("train", 12), ("val", 3), ("test", 5)):
        for n in range(count + 1):
            pid = str(len(problems) + 1)
            problems[pid] = {
                "question": "Which is it?",
                "choices": ["an element", "a compound", "a mixture", "none", "all"][: 2 + n % 4],
                "answer": n % 2,
                "hint": "The picture shows a model." if n % 2 else "",
                "image": None if n == count else "image.png",
                "task": "closed choice",
                "grade": "grade3",
                "subject": "natural science",
                "topic": "chemistry",
                "category": "Atoms",
                "skill": "Name it",
                "lecture": "",
                "solution": "",
                "split": split,
            }
            splits.setdefault(split, []).append(pid)
            if n < count:
                paint(root / "images" / split / pid / "image.png", int(pid))
    write(root / "problems.json", problems)
    write(root / "pid_splits.json", splits | {"minival": splits["val"][:1]})
    write(root / "captions.json", {"captions": {"1": "a ball and a stick"}})
    return root


def vqa_rad(root: Path) -> Path:
    """The public JSON: numbers among the answers, blanks at the ends, test phrases."""
    entries = []
    for n in range(20):
        entries.append(
            {
                "qid": n + 1,
                "phrase_type": ("freeform", "para", "test_freeform", "test_para")[
                    n % 4 if n >= 12 else n % 2
                ],
                "image_name": paint(root / "VQA_RAD Image Folder" / f"synpic{n // 2}.jpg", n),
                "image_organ": "CHEST",
                "question": "Is there a mass? " if n % 2 else "How many lesions?",
                "question_type": "PRES" if n % 2 else "COUNT",
                "answer": ("Yes" if n % 3 else "no ") if n % 2 else 3 + n % 5,
                "answer_type": "CLOSED " if n % 2 else "OPEN",
            }
        )
    write(root / "VQA_RAD Dataset Public.json", entries)
    return root


def eurosat(root: Path) -> Path:
    """The zip of 2018: 2750/<Class>/<Class>_<n>.jpg."""
    class_folders(root / "EuroSAT" / "2750", ("AnnualCrop", "Forest", "Industrial", "Residential", "SeaLake"))
    return root


def kvasir(root: Path) -> Path:
    """Version 1."""
    names = ("dyed-lifted-polyps", "esophagitis", "normal-cecum", "normal-z-line", "polyps")
    class_folders(root / "kvasir-dataset", names)
    return root


def plant_village(root: Path) -> Path:
    """GitHub's three renderings of each picture, and a 39th class."""
    names = (
        "Apple___Apple_scab",
        "Corn_(maize)___Common_rust_",
        "Pepper,_bell___healthy",
        "Grape___Esca_(Black_Measles)",
        "Tomato___Spider_mites Two-spotted_spider_mite",
        "Background_without_leaves",
    )
    for rendering in ("color", "grayscale", "segmented"):
        class_folders(root / "raw" / rendering, names, ending=".JPG")
    return root


def flowers102(root: Path) -> Path:
    """MATLAB lists: labels from 1, image numbers from 1."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    labels = np.array([[1, 2, 77, 102, 54] * 4], dtype=np.uint8)
    for n in range(20):
        paint(root / "jpg" / f"image_{n + 1:05d}.jpg", n)
    savemat(root / "imagelabels.mat", {"labels": labels})
    numbers = np.arange(1, 21, dtype=np.uint16)[None]
    savemat(
        root / "setid.mat", {"trnid": numbers[:, :10], "valid": numbers[:, 10:13], "tstid": numbers[:, 13:]}
    )
    return root


def stanford_cars(root: Path) -> Path:
    """The devkit's structs, and Kaggle's doubled folders."""
    from scipy.io import savemat

    names = [
        "AM General Hummer SUV 2000",
        "Acura RL Sedan 2012",
        "BMW M3 Coupe 2012",
        "Ram C/V Cargo Van Minivan 2012",
    ]
    names.append("smart fortwo Convertible 2012")
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    kind = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    places = {
        "train": root / "devkit" / "cars_train_annos.mat",
        "test": root / "cars_test_annos_withlabels.mat",
    }
    for split, place in places.items():
        rows = np.zeros((1, 10), dtype=kind)
        for n in range(10):
            name = paint(
                root / f"cars_{split}" / f"cars_{split}" / f"{n + 1:05d}.jpg", n + (split == "test") * 50
            )
            rows[0, n] = (1, 1, 9, 9, n % 5 + 1, name)
        savemat(place, {"annotations": rows})
    return root


def stanford_dogs(root: Path) -> Path:
    """Images/<wordnet id>-<breed>, and lists as MATLAB cells."""
    from scipy.io import savemat

    names = ("n02085620-Chihuahua", "n02086240-Shih-Tzu", "n02087046-toy_terrier", "n02088094-Afghan_hound")
    names += ("n02113799-standard_poodle",)
    class_folders(root / "Images", names)
    for split, chosen in (("train", range(3)), ("test", range(3, 5))):
        files = [f"{name}/{name.split('-')[0]}_{n}.jpg" for name in names for n in chosen]
        cells = np.empty((len(files), 1), dtype=object)
        cells[:, 0] = files
        labels = np.array([[names.index(f.split("/")[0]) + 1] for f in files], dtype=np.uint8)
        savemat(root / f"{split}_list.mat", {"file_list": cells, "annotation_list": cells, "labels": labels})
    return root


REPLICAS: dict[str, Callable[[Path], Path]] = {
    "iconqa": iconqa,
    "ocr-vqa": ocr_vqa,
    "scienceqa": scienceqa,
    "vqa-rad": vqa_rad,
    "eurosat": eurosat,
    "flowers102": flowers102,
    "kvasir": kvasir,
    "plantvillage": plant_village,
    "stanford-cars": stanford_cars,
    "stanford-dogs": stanford_dogs,
}
"""A builder for each benchmark, by its name."""


def parquet(
    path: Path, rows: list[dict[str, Any]], names: dict[str, list[str]] | None = None, group: int = 4
) -> Path:
    """A parquet file as `datasets` writes it: pictures as {bytes, path}, class names in the schema.

    Args:
        rows: `image` holds bytes or None.
        names: class columns and their names.
        group: rows in a row group.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {k: {"bytes": v, "path": None} if isinstance(v, bytes) else v for k, v in row.items()} for row in rows
    ]
    table = pa.Table.from_pylist(rows)
    features = {column: {"names": words, "_type": "ClassLabel"} for column, words in (names or {}).items()}
    told = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), path, row_group_size=group)
    return path
