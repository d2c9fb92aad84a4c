"""CSV and parquet files that cannot be used."""

from pathlib import Path

from data.damage.making import damage, lines
from replicas import parquet, png


@damage("{root}/t.csv:3", "4 cells", "3 columns", '"quotes"')
def comma_in_a_cell(root: Path) -> Path:
    lines(root)
    (root / "t.csv").write_text("image,question,answer\nimg/0.png,What?,a\nimg/1.png,What, then?,b\n")
    return root / "t.csv"


@damage("{root}/t.csv:2", "2 cells", "3 columns", '"quotes"')
def cell_missing(root: Path) -> Path:
    (root / "t.csv").write_text("image,question,answer\nimg/0.png,What?\n")
    return root / "t.csv"


@damage("{root}/t.csv is empty", "first line", "image,question,answer")
def empty_csv(root: Path) -> Path:
    (root / "t.csv").write_text("")
    return root / "t.csv"


@damage("{root}/t.csv:2", "'answer' is empty", "leave the row out")
def empty_cell(root: Path) -> Path:
    lines(root)
    (root / "t.csv").write_text("image,question,answer\nimg/0.png,What?,\n")
    return root / "t.csv"


@damage("{root}/p.parquet", "3 bytes", "Copy the file again")
def not_parquet(root: Path) -> Path:
    (root / "p.parquet").write_bytes(b"PAR")
    return root / "p.parquet"


@damage(
    "4 of 4 rows",
    "{root}/p.parquet, row 1",
    "'image' is missing",
    "picture, caption",
    "--column image=NAME",
    "3 more rows",
)
def columns_of_other_names(root: Path) -> Path:
    return parquet(root / "p.parquet", [{"picture": png(n), "caption": str(n)} for n in range(4)])


@damage("{root}", "one, two", "one of them")
def several_configurations(root: Path) -> Path:
    for name in ("one", "two"):
        parquet(root / name / "train-0.parquet", [{"image": png(n), "label": str(n % 2)} for n in range(4)])
    return root


@damage("{root}/p.parquet, row 2", "'image'", "None")
def null_picture(root: Path) -> Path:
    return parquet(
        root / "p.parquet", [{"image": png(n) if n != 1 else None, "label": str(n % 2)} for n in range(4)]
    )
