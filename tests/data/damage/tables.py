"""CSV, parquet and tars that cannot be used."""

import io
import tarfile
from pathlib import Path

from data.damage.making import damage, lines
from replicas import parquet, png


@damage('{root}/t.csv:3: 4 cells, and the head names 3 columns. Put cells that hold a separator in "quotes".')
def comma_in_a_cell(root: Path) -> Path:
    lines(root)
    (root / "t.csv").write_text("image,question,answer\nimg/0.png,What?,a\nimg/1.png,What, then?,b\n")
    return root / "t.csv"


@damage('{root}/t.csv:2: 2 cells, and the head names 3 columns. Put cells that hold a separator in "quotes".')
def cell_missing(root: Path) -> Path:
    (root / "t.csv").write_text("image,question,answer\nimg/0.png,What?\n")
    return root / "t.csv"


@damage("{root}/t.csv is empty. Its first line must name the columns, like image,question,answer.")
def empty_csv(root: Path) -> Path:
    (root / "t.csv").write_text("")
    return root / "t.csv"


@damage("{root}/t.csv:2: 'answer' must be a text that is not empty, not None.")
def empty_cell(root: Path) -> Path:
    lines(root)
    (root / "t.csv").write_text("image,question,answer\nimg/0.png,What?,\n")
    return root / "t.csv"


@damage(
    "{root}/p.parquet cannot be read as parquet: Parquet file size is 3 bytes, smaller than the "
    "minimum file footer (8 bytes) Copy the file again."
)
def not_parquet(root: Path) -> Path:
    (root / "p.parquet").write_bytes(b"PAR")
    return root / "p.parquet"


@damage(
    "4 of 4 rows cannot be used. {root}/p.parquet, row 1: the field 'image' is missing. A row needs image, question, "
    "answer, or image and label; this one has picture, caption. Say which is which: --column image=NAME. "
    "(And 3 more rows alike.)"
)
def columns_of_other_names(root: Path) -> Path:
    return parquet(root / "p.parquet", [{"picture": png(n), "caption": str(n)} for n in range(4)])


@damage("{root} holds several configurations: one, two. Give the folder of one of them.")
def several_configurations(root: Path) -> Path:
    for name in ("one", "two"):
        parquet(root / name / "train-0.parquet", [{"image": png(n), "label": str(n % 2)} for n in range(4)])
    return root


@damage("{root}/p.parquet, row 2: 'image' must be a text that is not empty, not None.")
def null_picture(root: Path) -> Path:
    return parquet(
        root / "p.parquet", [{"image": png(n) if n != 1 else None, "label": str(n % 2)} for n in range(4)]
    )


@damage(
    "{root}/s.tar is not a whole, uncompressed tar (invalid header). Unpack a compressed one, or copy it again."
)
def compressed_tar(root: Path) -> Path:
    with tarfile.open(root / "s.tar", "w:gz") as tar:
        _add(tar, "0.png", png(0))
    return root / "s.tar"


@damage(
    "{root}/s.tar is not a whole, uncompressed tar (unexpected end of data). Unpack a compressed one, or copy it again."
)
def cut_tar(root: Path) -> Path:
    with tarfile.open(root / "s.tar", "w") as tar:
        for n in range(4):
            _add(tar, f"{n}.png", png(n))
            _add(tar, f"{n}.cls", b"oak" if n % 2 else b"elm")
    whole = (root / "s.tar").read_bytes()
    (root / "s.tar").write_bytes(whole[: 512 * 3])
    return root / "s.tar"


@damage("{root}/s.tar: its member 0.json cannot be read (Expecting value: line 1 column 1 (char 0)).")
def bad_json_in_a_tar(root: Path) -> Path:
    with tarfile.open(root / "s.tar", "w") as tar:
        _add(tar, "0.png", png(0))
        _add(tar, "0.json", b"nothing")
    return root / "s.tar"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
