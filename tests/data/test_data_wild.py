"""Tables as they are found in the wild: from spreadsheets, other trainers and copies that were cut short.
Every row is read or named, and none is lost in silence."""

import base64
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft.core.errors import DataError
from craft.core.files import sha256_file
from craft.data import Wanted, load_data, prepare, read_data
from craft.data.additions import with_texts
from craft.data.chats import read_conversations
from craft.data.images import image_bytes
from craft.data.load import Reading
from craft.data.problems import Problems
from craft.data.readers.tables import read_rows, read_tables
from craft.data.sample import Sample
from replicas import paint, parquet, png

BASE64 = base64.b64encode(png(3)).decode()
QUESTION = "Which tree?"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in range(20):
        paint(tmp_path / f"{n}.png", n)
    return tmp_path


def samples(path: Path, content: str | bytes, **options: object) -> list[Sample]:
    """The samples of a file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_tables([path], **options).samples  # type: ignore[arg-type]


def sample(root: Path, row: dict, **options: object) -> Sample:
    """The sample of a single row."""
    return samples(
        root / "q.jsonl", json.dumps({"image": "0.png", "question": QUESTION, "answer": "oak"} | row)
    )[0]


def refused(path: Path, content: str | bytes, *facts: str) -> str:
    """The message of the refusal, which contains these facts in their order and is short."""
    with pytest.raises(DataError) as caught:
        samples(path, content)
    message, position = str(caught.value), 0
    for fact in facts:
        position = message.find(fact, position)
        assert position >= 0, f"{fact!r} is not in {message}"
    assert len(message) < 1000 and "\n" not in message
    return message


def table(separator: str, *rows: str, count: int = 20) -> str:
    """A table of `count` rows, some of them replaced from row 9 on, as they stand in the file."""
    good = [f"{n}.png,{QUESTION},{('oak', 'elm')[n % 2]}".replace(",", separator) for n in range(count)]
    good[8 : 8 + len(rows)] = [row.replace(",", separator) for row in rows]
    return "\n".join(["image,question,answer".replace(",", separator), *good]) + "\n"


# Quotes


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t"), ("csv", ";")])
@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['8.png,Which tree?,"oak'], 10),  # never closes: ten rows would be read
        (['8.png,"Which tree?,oak'], 10),
        (['8.png,Which tree?,"oak', "9.png,Which tree?,elm", '10.png,"Which, tree?",elm'], 10),
        (
            ['8.png,Which tree?,"oak', "9.png,Which tree?,elm", '10.png,Which tree?,fir"'],
            10,
        ),  # closes too late
        (['8.png,Which tree?,"oak', '9.png,Which tree?,elm"'], 10),
        (['8.png,Which tree?,"oak" tree'], 10),
        (["8.png,Which tree?,oak", '9.png,Which tree?,"5" pipe'], 11),
    ],
)
def test_a_quote_that_does_not_close_is_named(
    root: Path, ending: str, separator: str, rows: list[str], line: int
) -> None:
    message = refused(
        root / f"q.{ending}", table(separator, *rows), f"q.{ending}:{line}: a cell ", 'quote (")'
    )
    assert "Close" in message


def test_quotes_that_are_meant_are_read(root: Path) -> None:
    rows = ['8.png,"Which ""big"", old\ntree?",5" oak', '9.png,"see\n1.png",elm']
    read = samples(root / "q.csv", table(",", *rows))
    assert len(read) == 20
    assert (read[8].question, read[8].answer) == ('Which "big", old\ntree?', '5" oak')
    assert read[9].question == "see\n1.png"
    last = 'question,answer,image\n"What\nis it?",oak,0.png\n"And\nthis, then?",elm,1.png\n'
    assert [s.answer for s in samples(root / "last.csv", last)] == ["oak", "elm"]


CELL = st.text(st.sampled_from("ab \",;|'\t\nÖ木"), max_size=6).map(lambda text: f"x{text}y")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8),
    dialect=st.sampled_from([("csv", ","), ("csv", ";"), ("tsv", "\t")]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n"]),
    damage=st.integers(0, 200),
)
def test_rows_in_are_rows_read_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, rows, dialect, quoting, end, damage
) -> None:
    """Whatever one lost quote does, no row vanishes: each is read, or the file is refused."""
    ending, separator = dialect
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerow(["image", "question", "answer"])
    writer.writerows([f"{n}.png", *row] for n, row in enumerate(rows))
    path = tmp_path_factory.mktemp("t") / f"q.{ending}"
    path.write_text("\ufeff" + stream.getvalue(), encoding="utf-8", newline="")
    read = [row.values for row in read_rows(path, Problems("rows"))]
    assert [(v["question"], v["answer"]) for v in read] == [tuple(row) for row in rows]
    start = (
        len("image,question,answer") if quoting == csv.QUOTE_MINIMAL else len('"image","question","answer"')
    )
    quotes = [n for n, letter in enumerate(stream.getvalue()) if letter == '"' and n >= start]
    if not quotes:
        return
    lost = quotes[damage % len(quotes)]
    path.write_text(stream.getvalue()[:lost] + stream.getvalue()[lost + 1 :], encoding="utf-8", newline="")
    try:
        images = {str(row.values["image"]).strip('"') for row in read_rows(path, Problems("rows"))}
        assert images >= {f"{n}.png" for n in range(len(rows))}
    except DataError as error:
        assert f"q.{ending}" in str(error)


# Spreadsheets


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("ending", "separator"), [("csv", ";"), ("tsv", "\t"), ("csv", "\t"), ("tsv", ",")])
def test_what_spreadsheets_write(root: Path, encoding: str, end: str, ending: str, separator: str) -> None:
    lines = ["", *table(separator).split("\n")[:5], "", separator * 2, *table(separator).split("\n")[5:]]
    read = samples(root / f"q.{ending}", end.join(lines).encode(encoding))
    assert [Path(str(s.image)).name for s in read] == [f"{n}.png" for n in range(20)]


def test_cells_that_are_too_many_or_too_few_are_named(root: Path) -> None:
    fix = 'Put cells that contain a separator in "quotes"'
    refused(root / "q.csv", table(",", "8.png,Which, tree?,oak"), "q.csv:10: 4 cells", "names 3 columns", fix)
    refused(root / "q.csv", table(";", "8.png;oak"), "q.csv:10: 2 cells", "names 3 columns")
    refused(root / "q.csv", "image,label,label\n0.png,oak,elm\n", "two columns 'label'")
    refused(
        root / "q.csv", "0.png,oak\n1.png,elm\n", "q.csv:1: the first line must name the columns", "'0.png'"
    )
    refused(root / "q.csv", "sep=;\nimage;label\n0.png;oak\n", "q.csv:1: remove the line 'sep=;'")
    index = samples(
        root / "q.csv", ",image,label,\n0,0.png,oak,\n1,1.png,elm,\n"
    )  # as pandas writes its index
    assert [s.label for s in index] == ["oak", "elm"]


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("q.csv", "image,label\n0.png,chêne\n".encode("cp1252"), ("q.csv:2: ", "UTF-8", "'CSV UTF-8'")),
        ("q.csv", "image,label\n0.png,oak\n".encode("utf-16-le"), ("q.csv:1: a NUL", "UTF-8")),
        ("q.csv", b"image,label\n0.png,o\0ak\n", ("q.csv:2: a NUL",)),
        ("q.jsonl", b'{"image": "0.png",\0 "label": "oak"}\n', ("q.jsonl:1: a NUL",)),
        ("q.csv", "image,label\n0.png,木".encode()[:-1], ("q.csv:2: ", "cut short", "Copy it again")),
        ("q.csv", "image,label\n0.png,oak".encode("utf-16")[:-1], ("q.csv:2: ", "UTF-16", "cut short")),
        ("q.csv", gzip.compress(b"image,label\n", mtime=0), ("q.csv", "gzip", "gunzip")),
        ("q.csv", b"PK\x03\x04 workbook", ("q.csv", "Excel workbook", "CSV UTF-8")),
        (
            "q.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            ("q.jsonl", "git lfs pull"),
        ),
        ("q.jsonl", b"PAR1....", ("q.jsonl", "parquet", ".parquet")),
    ],
)
def test_what_is_no_text_is_named(root: Path, name: str, content: bytes, facts: tuple[str, ...]) -> None:
    refused(root / name, content, *facts)


@pytest.mark.parametrize("name", ["q.jsonl.gz", "q.csv.gz", "q.txt", "q.xlsx"])
def test_a_table_by_another_ending(root: Path, name: str) -> None:
    contents = {"gz": gzip.compress(b"{}", mtime=0), "txt": b"image\n", "xlsx": b"PK\x03\x04"}
    (root / name).write_bytes(contents[name.rpartition(".")[2]])
    with pytest.raises(DataError, match=r"gunzip|CSV UTF-8|Let the name of a table end"):
        read_data(root / name)


# JSON


ROW = '{"image": "0.png", "question": "Which tree?", "answer": "oak"}'


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.ndjson"])
def test_a_last_line_that_is_cut_is_named(root: Path, name: str) -> None:
    for length in (5, 20, 40, len(ROW) - 1):
        refused(root / name, f"{ROW}\n{ROW}\n{ROW[:length]}", f"{name}:3", "not valid JSON", "cut short")
    assert len(samples(root / name, f"{ROW}\n{ROW}\n{ROW}")) == 3
    with pytest.raises(DataError, match=rf"{name}:3: .*cut short"):
        (root / name).write_text(f"{ROW}\n{ROW}\n{ROW[:-2]}")
        read_conversations([root / name])


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (f"{ROW},\n{ROW},\n", ("2 of 2 rows", ":1: not valid JSON", "comma at the end of the line")),
        (ROW[:-1] + ",}", (":1: not valid JSON", "comma before it")),
        (ROW.replace('"', "'"), (":1: not valid JSON", "json.dumps")),
        (ROW.replace('"question"', '"answer"'), (":1: not valid JSON", "'0.png'", "the key 'answer' twice")),
        (f"[{ROW}, {ROW[:-1]}]", ("not valid JSON",)),
        (json.dumps(json.loads(ROW), indent=1)[:-4], (":4: not valid JSON", "cut short")),
        (
            json.dumps(json.loads(ROW), indent=1) + "\n" + json.dumps(json.loads(ROW), indent=1),
            (":1", "jq -c"),
        ),
    ],
)
def test_json_that_cannot_be_read(root: Path, content: str, facts: tuple[str, ...]) -> None:
    refused(root / "q.jsonl", content, *facts)


def test_json_by_any_layout_is_read(root: Path) -> None:
    row = json.loads(ROW)
    contents = {
        1: [ROW, f"\n{ROW}\n\n", json.dumps(row, indent=2)],
        2: [
            f"{ROW}\n\n{ROW}",
            f"{ROW}\r\n{ROW}\r\n",
            json.dumps([row, row], indent=2),
            f"\ufeff[{ROW},{ROW}]",
        ],
    }
    for count, layouts in contents.items():
        for content in layouts:
            for name in ("q.json", "q.jsonl"):
                assert len(samples(root / name, content)) == count


@pytest.mark.parametrize(
    ("value", "facts"),
    [
        ({"image": ["0.png", "1.png"], "label": ["oak", "elm"]}, ("table by columns", "orient='records'")),
        ({"image": {"0": "0.png"}, "label": {"0": "oak"}}, ("table by columns", "orient='records'")),
        ({"columns": ["image"], "index": [0], "data": [["0.png"]]}, ("table by columns",)),
        (
            {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [], "categories": [{"id": 1}]},
            ("COCO", "one row for each picture"),
        ),
        ({"data": [json.loads(ROW)]}, ("its rows are in 'data'", "jq -c '.\"data\"[]'")),
        ({"version": 2, "questions": [json.loads(ROW)]}, ("its rows are in 'questions'",)),
        ({"train": [json.loads(ROW)], "test": [json.loads(ROW)]}, ("'train', 'test'",)),
        ({"a1": json.loads(ROW), "a2": json.loads(ROW)}, ("a row under each of its keys", "jq -c '.[]'")),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_that_is_no_row(
    root: Path, value: dict, facts: tuple[str, ...], indent: int | None
) -> None:
    for name in ("q.json", "q.jsonl"):
        refused(root / name, json.dumps(value, indent=indent), f"{name} is ", *facts)


# Tags


@pytest.mark.parametrize(
    "question",
    [
        "<image>\nWhich tree?",
        "Which tree?<image>",
        "<image 1> Which tree?",
        "<|image_1|>\nWhich tree?",
        "<IMAGE>Which tree?",
    ],
)
def test_the_tag_in_a_flat_question_stands_for_the_image(root: Path, question: str) -> None:
    assert sample(root, {"question": question}).prompt().startswith("Which tree?\n")
    labelled = {"question": question, "answer": None, "label": "oak"}
    assert sample(root, labelled).question == "Which tree?"
    (root / "c.jsonl").write_text(
        json.dumps({"image": "0.png", "question": question, "answer": "oak"})
        + '\n{"question": "a", "answer": "b"}'
    )
    assert read_conversations([root / "c.jsonl"])[0].turns == (("Which tree?", "oak"),)


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"question": "<image><image>Which tree?"}, "2 <image> tags for 1 image"),
        ({"question": "<image 1> or <image 2>?"}, "2 <image> tags for 1 image"),
        ({"question": "<image>\n"}, "'question' is the <image> tag alone"),
        (
            {"question": "Picture 1: <img>0.png</img>\nWhich?"},
            "names an image in its text ('<img>0.png</img>')",
        ),
        ({"question": 'See <img src="0.png"> Which?'}, "names an image in its text"),
        ({"answer": "<image>oak"}, "the <image> tag is in 'answer'"),
        ({"choices": ["oak", "<image 2>"]}, "the <image 2> tag is in 'choices'"),
        ({"captions": ["<image> an oak"]}, "the <image> tag is in 'captions'"),
        ({"text": "<image> This is an oak."}, "the <image> tag is in 'text'"),
    ],
)
def test_other_tags_are_refused(root: Path, fields: dict, facts: str) -> None:
    row = {"image": "0.png", "question": QUESTION, "answer": "oak"} | fields
    refused(root / "q.jsonl", json.dumps(row), "q.jsonl:1: ", facts)


def test_tags_in_texts_and_in_questions_without_an_image(root: Path) -> None:
    (root / "t.jsonl").write_text('{"id": "a", "captions": ["<image> an oak"]}')
    with pytest.raises(DataError, match=r"t\.jsonl:1: the <image> tag is in 'captions'"):
        with_texts([Sample("a", png(1), "q", "a")], root / "t.jsonl")
    (root / "c.jsonl").write_text('{"question": "<image>What?", "answer": "b"}')
    with pytest.raises(DataError, match=r"c\.jsonl:1: 1 <image> tags for no image"):
        read_conversations([root / "c.jsonl"])


# Other trainers' rows


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"query": "<image>Which?", "response": "oak", "images": ["0.png"]}, [("Which?", "oak")]),
        ({"query": "Which?", "response": "oak", "images": ["0.png"]}, [("Which?", "oak")]),
        (
            {"query": "And?", "response": "elm", "history": [["<image>Which?", "oak"]], "images": ["0.png"]},
            [("Which?", "oak"), ("And?", "elm")],
        ),
        (
            {"instruction": "<image>Name it.", "input": "In a word.", "output": "oak", "images": "0.png"},
            [("Name it.\nIn a word.", "oak")],
        ),
        ({"instruction": "Name it.", "input": "", "output": "oak", "image": "0.png"}, [("Name it.", "oak")]),
        (
            {
                "messages": [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "oak"}],
                "images": ["0.png"],
            },
            [("Which?", "oak")],
        ),
        (
            {
                "conversations": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": "W?"}],
                    },
                    {"role": "assistant", "content": "oak"},
                ]
            },
            [("W?", "oak")],
        ),
    ],
)
def test_rows_of_other_trainers(root: Path, row: dict, turns: list[tuple[str, str]]) -> None:
    read = samples(root / "q.jsonl", json.dumps(row))
    assert [(s.question, s.answer) for s in read] == turns
    assert {s.image for s in read} == {str(root / "0.png")} and read[0].prompt() == turns[0][0]
    assert read_conversations([root / "q.jsonl"])[0].turns == tuple(turns)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"query": "<image>Which?", "response": "oak", "images": ["0.png", "1.png"]}, "2 images"),
        ({"query": "<image>Which?", "response": "oak", "images": []}, "0 images"),
        (
            {"query": "<image><image>Which?", "response": "oak", "images": ["0.png"]},
            "2 <image> tags for 1 image",
        ),
        (
            {"query": "Which?", "response": None, "images": ["0.png"]},
            "entry 2 of 'query' must be a text, not None",
        ),
        ({"query": "A?", "response": "b", "history": ["x"], "images": ["0.png"]}, "'history' must hold"),
        ({"question": "Which?", "answer": "oak", "images": ["0.png", "1.png"]}, "2 images"),
        ({"question": "Which?", "answer": "oak", "images": []}, "0 images"),
        ({"question": "Which?", "answer": "oak", "image": "0.png", "images": ["1.png"]}, "2 images"),
    ],
)
def test_rows_of_other_trainers_that_cannot_be_used(root: Path, row: dict, facts: str) -> None:
    refused(root / "q.jsonl", json.dumps(row), "q.jsonl:1: ", facts)


def test_a_list_of_one_image_is_an_image(root: Path) -> None:
    for fields in ({"images": ["0.png"]}, {"image": ["0.png"]}, {"images": "0.png"}, {"file_name": "0.png"}):
        for row in ({"question": QUESTION, "answer": "oak"}, {"label": "oak"}):
            (read,) = samples(root / "q.jsonl", json.dumps(fields | row))
            assert read.image == str(root / "0.png")
    rows = [{"images": ["0.png"], "question": "Which?", "answer": "oak"}, {"question": "a", "answer": "b"}]
    (root / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [c.image for c in read_conversations([root / "c.jsonl"])] == [str(root / "0.png"), None]


# Images


def test_images_by_address(root: Path) -> None:
    paint(root / "a b#1%.png", 1)
    for address in (f"file://{root}/0.png", f"file://localhost{root}/0.png", f"file:{root}/0.png"):
        assert sample(root, {"image": address}).image == str(root / "0.png")
    assert sample(root, {"image": f"file://{root}/a%20b%231%25.png"}).image == str(root / "a b#1%.png")
    assert sample(root, {"image": f"file://{root}/a b#1%.png"}).image == str(root / "a b#1%.png")
    for address in (
        "s3://bucket/0.png",
        "gs://b/0.png",
        "file://server/share/0.png",
        "hf://datasets/a/b.png",
    ):
        row = json.dumps({"image": address, "question": "a", "answer": "b"})
        refused(root / "q.jsonl", row, "q.jsonl:1: CRAFT does not read images from", address)


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        "\n".join(BASE64[n : n + 76] for n in range(0, len(BASE64), 76)),
        base64.urlsafe_b64encode(png(3)).decode(),
        "data:image/png;base64," + BASE64,
        "DATA:image/png;BASE64," + BASE64,
    ],
)
def test_images_in_base64(root: Path, text: str) -> None:
    assert sample(root, {"image": text}).image == png(3)
    assert sample(root, {"image": [text]}).image == png(3)


def test_images_of_mmbench(root: Path) -> None:
    """VLMEvalKit's TSV: base64 and options in columns of letters."""
    lines = ["index\timage\tquestion\thint\tA\tB\tC\tD\tanswer"]
    lines += [f"{n}\t{BASE64}\tWhich?\t\toak\telm\t\t\t{'AB'[n % 2]}" for n in range(3)]
    lines += [f"3\t{BASE64}\tWhich?\tIt is old.\toak\telm\tash, or fir\tyew\tC"]
    read = samples(root / "mmbench.tsv", "\n".join(lines))
    assert [s.answer for s in read] == ["oak", "elm", "oak", "ash, or fir"]
    assert read[0].choices == ("oak", "elm") and read[3].choices == ("oak", "elm", "ash, or fir", "yew")
    assert all(s.image == png(3) for s in read)
    assert [s.question for s in read[2:]] == ["Which?", "It is old.\nWhich?"]


@pytest.mark.parametrize("value", ["x" * 300 + ".png", "a/" * 3000 + "b.png", "x\\" * 3000])
def test_no_path_is_named_with_its_line_and_not_printed(root: Path, value: str) -> None:
    row = {"image": value, "question": "a", "answer": "b"}
    refused(root / "q.jsonl", f"{ROW}\n{json.dumps(row)}", "q.jsonl:2: ", "'image' is no path")
    (root / "c.jsonl").write_text(json.dumps({"image": value, "caption": "a"}))
    with pytest.raises(DataError, match=r"c\.jsonl:1: 'image' is no path"):
        read_conversations([root / "c.jsonl"])


def test_lists_in_cells(root: Path) -> None:
    """Images and turns as pandas writes lists into a CSV file."""
    turns = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "an 'oak'"}]
    for write in (repr, json.dumps):
        stream = io.StringIO()
        csv.writer(stream).writerows([["images", "conversations"], [write(["0.png"]), write(turns)]])
        (read,) = samples(root / "q.csv", stream.getvalue())
        assert (read.question, read.answer, read.image) == ("Which?", "an 'oak'", str(root / "0.png"))
        assert read_conversations([root / "q.csv"])[0].turns == (("Which?", "an 'oak'"),)
        stream = io.StringIO()
        csv.writer(stream).writerows(
            [["image", "label", "captions"], [write(["0.png"]), "oak", write(["a", "b"])]]
        )
        (read,) = samples(root / "q.csv", stream.getvalue())
        assert (read.image, read.captions) == (str(root / "0.png"), ("a", "b"))


def test_large_values_are_not_printed(root: Path) -> None:
    row = json.loads(ROW) | {"image": BASE64[:-3] + "!!" + BASE64}
    refused(root / "q.jsonl", json.dumps(row), "q.jsonl:1: the image is base64 of", "cannot be read")
    for field in ("image", "question", "answer", "choices"):
        refused(root / "q.jsonl", json.dumps(json.loads(ROW) | {field: {"x": BASE64 * 50}}), f"'{field}'")


def test_a_name_in_the_other_unicode_form_is_found(root: Path) -> None:
    composed, decomposed = "ch\u00eane.png", "che\u0302ne.png"
    paint(root / decomposed, 1)
    assert sample(root, {"image": composed}).image == str(root / decomposed)
    paint(root / composed, 2)
    assert sample(root, {"image": composed}).image == str(root / composed)


def test_what_two_spellings_of_a_class_differ_in(root: Path) -> None:
    for other, how in (
        ("che\u0302ne", "in the encoding of accents alone (Unicode NFC and NFD)"),
        ("ch\u00eane ", ""),
        ("Ch\u00eane", "in letter case"),
        ("petit  ch\u00eane", ""),
    ):
        one = "petit ch\u00eane" if "petit" in other else "ch\u00eane"
        rows = [{"image": f"{n}.png", "label": (one, other)[n % 2]} for n in range(8)]
        (root / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError) as caught:
            load_data(root / "q.jsonl")
        assert how in str(caught.value)
    choices = ["ch\u00eane", "che\u0302ne"]
    row = json.dumps({"image": "0.png", "question": "a", "answer": "A", "choices": choices})
    refused(root / "q.jsonl", row, "names an option twice", "Unicode NFC and NFD")


@pytest.mark.parametrize("data", ["q.jsonl", "trees"])
@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_a_locale_is_not_blamed_on_the_files(root: Path, data: str, locale: str) -> None:
    for n in range(4):
        paint(root / "trees" / ("ch\u00eane", "elm")[n % 2] / f"{n}.png", n)
    (root / "q.jsonl").write_text('{"image": "trees/ch\u00eane/0.png", "label": "oak"}\n', encoding="utf-8")
    code = "import sys; from craft.data import read_data; read_data(sys.argv[1])"
    environment = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code, data],
        cwd=root,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "in this locale, Python takes the names of files for ascii" in run.stderr
    assert "PYTHONUTF8=1" in run.stderr and "Rename" not in run.stderr


# Options and answers


OPTIONS = ("Tomato, leaf mold", "Potato; late|early blight", "oak [young]")


@pytest.mark.parametrize(
    "choices",
    [
        list(OPTIONS),
        json.dumps(OPTIONS),
        repr(list(OPTIONS)),
        dict(zip("ABC", OPTIONS, strict=True)),
        dict(zip("abc", OPTIONS, strict=True)),
        dict(zip("ABCD", (*OPTIONS, None), strict=True)),
    ],
)
@pytest.mark.parametrize("field", ["choices", "options"])
def test_options_in_every_form(root: Path, choices: object, field: str) -> None:
    for answer in (OPTIONS[1], "B", "b", "(B)", "B.", f"B. {OPTIONS[1]}", OPTIONS[1].upper()):
        read = sample(root, {field: choices, "answer": answer})
        assert (read.choices, read.correct) == (OPTIONS, 1)
    if isinstance(choices, str):
        stream = io.StringIO()
        csv.writer(stream).writerows(
            [["image", "question", "answer", field], ["0.png", "W?", OPTIONS[1], choices]]
        )
        assert samples(root / "q.csv", stream.getvalue())[0].choices == OPTIONS


@pytest.mark.parametrize(
    "names", ["ABC", ("option_a", "option_b", "option_c"), ("choice A", "choice B", "choice C")]
)
def test_options_in_columns(root: Path, names: tuple[str, ...]) -> None:
    columns = dict(zip(names, OPTIONS, strict=True)) | {"answer": "C", "D": None, "X": None, "a": "other"}
    assert sample(root, columns).choices == OPTIONS and sample(root, columns).correct == 2


def test_a_class_with_a_comma(root: Path) -> None:
    text = "image,label\n" + "".join(f'{n}.png,"{OPTIONS[n % 3]}"\n' for n in range(18))
    samples(root / "q.csv", text)
    data = load_data(root / "q.csv")
    assert data.classes == tuple(sorted(OPTIONS)) and data.test[0].answer in OPTIONS
    refused(root / "q.csv", "image,label\n0.png,Tomato, leaf mold\n", "q.csv:2: 3 cells", '"quotes"')


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"choices": "['oak' 'elm']"}, "'choices' is a list without commas, as NumPy prints"),
        (
            {"choices": ["oak, elm, ash"]},
            "not 1 ('oak, elm, ash'). Separate them with \"|\", or write a JSON list",
        ),
        ({"choices": {"A": "oak", "C": "elm"}}, "'choices' must be a list of texts"),
        ({"A": "oak", "B": "elm", "D": "fir", "answer": "A"}, "there are options A, B, D. Fill in"),
        (
            {"choices": ["oak", "elm"], "answer": 1},
            "the answer '1' is not one of the choices",
        ),
        ({"choices": ["oak", "elm"], "answer": "B. oak"}, "the answer 'B. oak' is not one"),
        ({"choices": ["oak", "elm"], "answer": "C"}, "the answer 'C' is not one"),
        ({"answer": True}, "'answer' is the boolean True. Write it as text"),
        ({"answer": None}, "'answer' is empty"),
        ({"answer": float("nan")}, "'answer' is empty"),
        ({"answer": float("inf")}, "'answer' must be a non-empty text, not inf"),
    ],
)
def test_options_and_answers_that_cannot_be_used(root: Path, fields: dict, facts: str) -> None:
    row = {"image": "0.png", "question": QUESTION, "answer": "oak"} | fields
    refused(root / "q.jsonl", json.dumps(row), "q.jsonl:1: ", facts)


def test_a_position_is_not_guessed(root: Path) -> None:
    row = {"image": "0.png", "question": QUESTION, "answer": 1, "choices": ["oak", "elm"]}
    refused(root / "q.jsonl", json.dumps(row), "a position", "whether the first is 0 or 1", "its letter")
    assert sample(root, {"answer": 1, "choices": ["1", "0"]}).correct == 0  # the text of an option


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1.0, "1"), ("1.0", "1.0"), (2.5, "2.5"), (-3, "-3")])
def test_numbers_are_texts(root: Path, value: object, text: str) -> None:
    assert sample(root, {"answer": value}).answer == text
    assert sample(root, {"answer": value, "choices": [text, "other"]}).correct == 0
    assert samples(root / "l.jsonl", json.dumps({"image": "0.png", "label": value}))[0].label == text
    (root / "c.jsonl").write_text(json.dumps({"question": "How many?", "answer": value}))
    assert read_conversations([root / "c.jsonl"])[0].turns[0][1] == text


def test_nan_is_no_value(root: Path) -> None:
    """As pandas writes a missing cell, in JSON and in parquet."""
    nan = float("nan")
    read = sample(root, {"question": nan, "answer": nan, "label": "oak", "choices": nan, "split": nan})
    assert (read.label, read.choices, read.split, read.answer) == ("oak", (), "", "")


# Parquet


def test_parquet_that_is_cut_or_has_a_column_twice(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = parquet(
        root / "p.parquet", [{"image": png(n), "label": str(n % 2)} for n in range(8)]
    ).read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 8, 0):
        refused(root / "q.parquet", whole[:length], "q.parquet cannot be read as parquet", "Copy the file")
    refused(root / "q.parquet", b"version https://git-lfs.github.com/spec/v1\n", "q.parquet", "git lfs pull")
    columns = [pa.array(["0.png", "1.png"]), pa.array(["oak", "elm"]), pa.array(["a", "b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "label", "label"]), root / "q.parquet")
    with pytest.raises(DataError, match=r"q\.parquet.*two columns 'label'"):
        read_tables([root / "q.parquet"])


# `craft data prepare` and files that a table names


def prepared(root: Path, rows: list[dict], **wanted: object) -> Path:
    (root / "in").mkdir(exist_ok=True)
    paint(root / "in" / "a.png", 1)
    (root / "in" / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(root / "in" / "q.jsonl", None, root / "m", Wanted(**wanted), progress=False)  # type: ignore[arg-type]
    return root / "m"


INLINE = {"image": "data:image/png;base64," + BASE64, "question": "Which?", "answer": "oak"}


def test_prepare_copies_images_alone(root: Path) -> None:
    (root / "in").mkdir()
    (root / "in" / "secret.txt").write_text("token: 123")
    (root / "in" / "fake.png").write_text("token: 123")
    bad = [{"image": name, "question": "a", "answer": "b"} for name in ("secret.txt", "fake.png")]
    with pytest.raises(
        DataError, match=r"2 of 3 images.*q\.jsonl:2: the image .*secret\.txt is not an image"
    ):
        prepared(root, [INLINE, *bad])
    assert not (root / "m").exists() and not any(b"token" in p.read_bytes() for p in root.glob("m*/**/*"))
    with pytest.raises(DataError, match=r"q\.jsonl:1: the given image bytes"):
        prepared(root, [INLINE | {"image": "data:text/plain;base64," + base64.b64encode(b"token").decode()}])


@pytest.mark.parametrize("others", [[], [INLINE]])
@pytest.mark.parametrize(
    "form", ["{root}/0.png", "../0.png", "x/../../0.png", "file://{root}/0.png", "link.png", "way/0.png"]
)
def test_prepare_stays_in_the_folder_of_the_table(root: Path, form: str, others: list[dict]) -> None:
    (root / "in" / "x").mkdir(parents=True)
    (root / "in" / "link.png").symlink_to(root / "0.png")
    (root / "in" / "way").symlink_to(root)
    rows = [*others, {"image": form.format(root=root), "question": "a", "answer": "b"}]
    rows.append({"image": "a.png", "question": "a", "answer": "c"})
    with pytest.raises(DataError) as caught:
        prepared(root, rows)
    message = str(caught.value)
    assert (
        f"q.jsonl:{1 + len(others)}: the image " in message
        and "--allow-outside" in message
        and "--root" in message
    )
    assert not (root / "m").exists()
    assert len(load_data(prepared(root, rows, allow_outside=True)).all_samples()) == len(rows)
    assert len(read_data(root / "in" / "q.jsonl").samples) == len(rows)  # reading is not sharing


def test_prepare_with_a_root_reads_below_it(root: Path) -> None:
    rows = [{"image": f"{n}.png", "question": "a", "answer": str(n)} for n in range(3)]
    (root / "in").mkdir()
    (root / "in" / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(root / "in" / "q.jsonl", root, root / "m", progress=False)
    assert len(load_data(root / "m").all_samples()) == 3


def test_a_tar_whose_json_names_another_image(root: Path) -> None:
    """Its own image counts, and a name without one must stay in the folder of the tar."""
    for members in (("1.png", "1.json"), ("1.json", "1.png"), ("1.json",)):
        with tarfile.open(root / "q.tar", "w") as tar:
            for name in members:
                row = {"image": "/etc/hostname", "label": "oak"}
                content = png(1) if name.endswith(".png") else json.dumps(row).encode()
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        if len(members) == 2:
            (read,) = read_data(root / "q.tar", reading=Reading(tars=True)).samples
            assert image_bytes(read.image) == png(1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"sample 1: the image /etc/hostname is outside .*--allow-outside"):
        prepare(root / "q.tar", None, root / "m", progress=False)


def test_the_cache_of_the_hub_may_be_prepared(root: Path) -> None:
    """Its files are links into `blobs`."""
    snapshot = root / "datasets--a--b" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    paint(root / "datasets--a--b" / "blobs" / "1.png", 1)
    rows = []
    for n in range(2):
        (snapshot / f"{n}.png").symlink_to("../../blobs/1.png")
        rows.append({"image": f"{n}.png", "question": f"{n}?", "answer": str(n)})
    (snapshot / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert prepare(snapshot, None, root / "m", progress=False).about["images"] == 2
    (snapshot / "0.png").unlink()
    (snapshot / "0.png").symlink_to(root / "0.png")
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*--allow-outside"):
        prepare(snapshot, None, root / "n", progress=False)


def test_a_manifest_by_somebody_else_leads_nowhere(root: Path) -> None:
    """`root` and the paths of a manifest are somebody's text, too."""
    rows = [INLINE, {"image": "0.png", "question": "a", "answer": "b"}]
    for where, place in (("..", "0.png"), (".", "../0.png")):
        folder = root / f"m{len(where)}"
        folder.mkdir()
        rows[1]["image"] = place
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = {"format": 1, "fingerprint": sha256_file(folder / "samples.jsonl"), "root": where}
        about |= {"name": "m", "task": "vqa", "domain": "m", "licence": "", "source": "", "notes": []}
        (folder / "manifest.json").write_text(json.dumps(about))
        with pytest.raises(DataError, match=r"files in|--allow-outside"):
            prepare(folder, None, root / "out", progress=False)
        assert not (root / "out").exists()


@pytest.mark.parametrize(("separator", "opens", "closes"), [(",", 8, 11), ("\t", 3, 4)])
@pytest.mark.parametrize("order", [("image", "question", "answer"), ("answer", "question", "image")])
def test_rows_of_images_without_an_ending_are_not_swallowed(
    root: Path, separator: str, opens: int, closes: int, order: tuple[str, ...]
) -> None:
    """Two quotes with whole rows between them; "9" of "images/9" is all that says that it is an image."""
    rows = [{"image": f"images/{n}", "question": QUESTION, "answer": f"oak {n}"} for n in range(20)]
    rows[opens]["answer"] = f'"{rows[opens]["answer"]}'
    rows[closes]["answer"] += '"'
    lines = [separator.join(order), *(separator.join(row[name] for name in order) for row in rows)]
    name = "q.csv" if separator == "," else "q.tsv"
    refused(root / name, "\n".join(lines) + "\n", f"{name}:{opens + 2}", "does not close")


def test_image_and_images_that_differ_are_two_images(root: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhich tree?"}, {"from": "gpt", "value": "oak"}]
    row = {"image": "0.png", "images": ["1.png"], "conversations": turns}
    refused(root / "q.jsonl", json.dumps(row), "q.jsonl:1", "2 images")
    assert samples(root / "q.jsonl", json.dumps(row | {"images": ["0.png"]}))[0].image.endswith("0.png")


def test_a_tar_sample_with_two_images_is_refused(root: Path) -> None:
    """The second one, perhaps a mask, replaced the first in silence."""
    with tarfile.open(root / "train.tar", "w") as tar:
        for name, file in (("a.cls", ""), ("a.jpg", "0.png"), ("a.png", "1.png")):
            if not file:
                (root / "a.cls").write_text("oak")
            tar.add(root / (file or "a.cls"), name)
    with pytest.raises(DataError, match=r"sample a: two images, a\.jpg and a\.png"):
        read_tables([root / "train.tar"])
