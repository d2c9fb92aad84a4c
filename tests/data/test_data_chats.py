"""The layouts of §8's data sets, ours, and what is wrong with a row that cannot be used."""

import base64
import json

import pytest
from PIL import Image

from craft.core.errors import DataError
from craft.data.chats import ASK_CAPTION, read_conversations


@pytest.fixture
def folder(tmp_path):
    for shade, name in ((9, "a.jpg"), (90, "b.jpg")):
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(tmp_path / name)
    return tmp_path


def write(folder, rows, name="chat.json"):
    path = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(json.dumps(row) for row in rows)
    path.write_text(text)
    return path


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def test_llava_layout(folder):
    rows = [
        {"id": "x", "image": "a.jpg", "conversations": [human("<image>\nWhat?"), gpt(" A cat. ")]},
        {"image": "b.jpg", "conversations": [human("Who?\n<image>"), gpt("He."), human("Why?"), gpt("So.")]},
        {"id": 7, "conversations": [human("Name a colour."), gpt("Red.")]},
    ]
    for name in ("chat.json", "chat.jsonl"):
        first, second, third = read_conversations([write(folder, rows, name)])
        assert (first.id, first.turns, first.image) == ("x", (("What?", "A cat."),), str(folder / "a.jpg"))
        assert (second.id, second.turns) == ("chat:2", (("Who?", "He."), ("Why?", "So.")))
        assert (third.id, third.turns, third.image) == ("7", (("Name a colour.", "Red."),), None)
        assert third.origin.startswith(f"{folder / name}") and third.origin.endswith("3")


def test_captions_messages_and_plain_pairs(folder):
    captions = write(folder, [{"id": "1", "image": "a.jpg", "caption": "a grey square"}], "metadata.json")
    (caption,) = read_conversations([captions])
    assert caption.turns[0][0] in ASK_CAPTION and caption.turns[0][1] == "a grey square"
    assert read_conversations([captions])[0] == caption  # the question is drawn by seed and id
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": content},
                {"role": "assistant", "content": "Grey."},
            ],
            "images": ["b.jpg"],
        },
        {"question": "Two and two?", "answer": "Four"},
    ]
    first, second = read_conversations([write(folder, rows, "m.jsonl")])
    assert (first.turns, first.image) == ((("What?", "Grey."),), str(folder / "b.jpg"))
    assert (second.turns, second.image) == ((("Two and two?", "Four"),), None)


def test_ours_goes_through_load_data(folder):
    rows = [{"image": f"{n}.jpg", "question": "What?", "answer": a} for n, a in zip("ab", "xy", strict=True)]
    found = read_conversations([write(folder, rows * 3, "own.jsonl")])
    assert 1 <= len(found) <= 6 and all(c.image is not None and "What?" in c.turns[0][0] for c in found)
    assert len(read_conversations(["digits"], limit=5)) == 5


@pytest.mark.parametrize("name", ["own.jsonl", "own.json", "own.csv"])
def test_questions_with_and_without_an_image_share_a_table(folder, name):
    rows = [
        {"image": "a.jpg", "question": "What?", "answer": "Grey."},
        {"image": None, "question": "Two and two?", "answer": "Four"},
        {"image": "b.jpg", "question": "Who?", "answer": "He."},
    ]
    for listed in (rows, rows[::-1], rows[1:] + rows[:1]):
        if name.endswith(".csv"):
            path = folder / name
            cells = [[row[key] or "" for key in row] for row in listed]
            path.write_text("\n".join(",".join(row) for row in [list(rows[0]), *cells]) + "\n")
        else:
            path = write(folder, listed, name)
        found = read_conversations([path])
        expected = [row["image"] and str(folder / row["image"]) for row in listed]
        assert [c.image for c in found] == expected
        assert [c.turns for c in found] == [((row["question"], row["answer"]),) for row in listed]


@pytest.mark.parametrize("data", ["hub:some/chats", "chats.tar"])
def test_tars_and_the_hub_must_be_prepared_first(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.tar").write_bytes(b"")
    with pytest.raises(DataError, match=rf"`craft data prepare {data}`.*prepared/chats "):
        read_conversations([data])


def test_of_a_limited_file_the_first_pictures_suffice(folder):
    rows = [{"image": f"{name}.jpg", "caption": "a square"} for name in ("a", "b", "not-downloaded")]
    assert len(read_conversations([write(folder, rows)], limit=2)) == 2


def test_no_picture_is_null_or_empty(folder):
    said = [human("Name a colour."), gpt("Red.")]
    rows = [{"conversations": said, **none} for none in ({}, {"image": None}, {"image": ""}, {"images": []})]
    assert [c.image for c in read_conversations([write(folder, rows)])] == [None] * 4


@pytest.mark.parametrize(
    "row, told",
    [
        ({"image": "a.jpg", "conversations": [human("<image> <image> What?"), gpt("x")]}, "2 <image> tags"),
        ({"conversations": [human("<image>What?"), gpt("x")]}, "1 <image> tags for no image"),
        ({"images": ["a.jpg", "b.jpg"], "conversations": [human("What?"), gpt("x")]}, "2 images"),
        ({"image": "a.jpg", "conversations": [human("<image>What?"), gpt(" ")]}, "is empty"),
        ({"image": "none.jpg", "conversations": [human("<image>What?"), gpt("x")]}, "none.jpg.*root="),
        ({"image": "a.jpg", "conversations": [{"from": "cat", "value": "x"}]}, "'cat' in entry 1"),
        ({"image": "a.jpg", "caption": " "}, "'caption' must be a non-empty text"),
        ({"image": "a.jpg", "caption": None}, "'caption' is empty"),
        ({"image": "a.jpg", "caption": "A smile \ud83d"}, "half a character"),
        ({"picture": "a.jpg"}, "no conversation"),
        ({"image": "a.jpg", "conversations": []}, "'conversations' contains no question and answer"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}]},
            "'messages' contains no question and answer",
        ),
        ({"image": "a.jpg", "conversations": [human("What?"), gpt("<image> x")]}, "tag is in an answer"),
        ({"question": "What?", "answer": "x", "choices": ["x", "y"]}, "1: 'choices' in a table whose rows"),
        ({"image": "a.jpg", "label": "x"}, "1: a labelled image in a table whose rows"),
    ],
)
def test_what_is_wrong_is_named(folder, row, told):
    more = [{"question": "What?", "answer": "x"}] if "label" in row else []
    with pytest.raises(DataError, match=told):
        read_conversations([write(folder, [row, *more])])


def test_pictures_inside_messages(folder):
    uri = "data:image/jpeg;base64," + base64.b64encode((folder / "a.jpg").read_bytes()).decode()
    rows = []
    for url in (uri, "a.jpg"):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        rows.append(
            {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A."}]}
        )
    inline, file = read_conversations([write(folder, rows)])
    assert inline.image == (folder / "a.jpg").read_bytes() and file.image == str(folder / "a.jpg")


def test_lines_that_are_no_rows_count(folder):
    (folder / "x.jsonl").write_text('[1]\n{"image": 1}\n{"question": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match="2 of 3 rows"):
        read_conversations([folder / "x.jsonl"])


def test_not_json(folder):
    (folder / "x.json").write_text("[1, ")
    with pytest.raises(DataError, match="not valid JSON"):
        read_conversations([folder / "x.json"])


def test_rows_of_a_test_split_do_not_train(folder, capsys):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Grey."}]
    rows = [{"image": "a.jpg", "conversations": turns, "split": split} for split in ("train", "test", "val")]
    path = write(folder, [*rows, {"image": "b.jpg", "conversations": turns}], "chat.jsonl")
    assert len(read_conversations([path])) == 2
    assert "left out: 2 rows of" in capsys.readouterr().err
    path = write(folder, [*rows, rows[0] | {"split": "extra"}], "chat.jsonl")
    with pytest.raises(DataError, match=r"chat.jsonl:4: unknown split 'extra'; .*--splits extra=none"):
        read_conversations([path])
    assert len(read_conversations([path], splits=["extra=train"])) == 2
