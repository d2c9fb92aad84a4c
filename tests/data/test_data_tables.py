"""Your own data in every form that CRAFT reads: JSONL, JSON, CSV, parquet, conversations, messages, tars."""

import base64
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from craft.core.errors import DataError
from craft.data import Wanted, load_data, prepare, read_data, verify_images
from craft.data.images import image_bytes
from craft.data.load import Reading
from craft.data.readers.tables import read_tables
from replicas import paint, parquet, png

QUESTIONS = [
    {"image": f"img/{n}.png", "question": f"What is it, {n}?", "answer": ("an oak", "an elm", "a fir")[n % 3]}
    for n in range(9)
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in range(9):
        paint(tmp_path / "img" / f"{n}.png", n)
    return tmp_path


def answers(path: Path, **options: object) -> list[tuple[str, str]]:
    raw = read_tables([path], **options)  # type: ignore[arg-type]
    return [(sample.question, sample.answer) for sample in raw.samples]


WANTED = [(row["question"], row["answer"]) for row in QUESTIONS]


def test_csv_and_tsv_and_their_lists(root: Path) -> None:
    text = "image,question,answer,choices,captions\n"
    for row in QUESTIONS:
        lists = 'an oak|an elm|a fir,"[""a tree"", ""green""]"'
        text += f'{row["image"]},"{row["question"]}",{row["answer"]},{lists}\n'
    (root / "q.csv").write_text("\ufeff" + text)
    assert answers(root / "q.csv") == WANTED
    data = load_data(root / "q.csv", answer_with="letter")
    assert {s.answer for s in data.all_samples()} == {"A", "B", "C"}
    assert data.train[0].captions == ("a tree", "green")
    (root / "q.tsv").write_text(
        "image\tquestion\tanswer\n" + "\n".join("\t".join(r.values()) for r in QUESTIONS)
    )
    assert answers(root / "q.tsv") == WANTED


def test_every_list_may_stand_in_a_cell_under_any_name(root: Path) -> None:
    text = "image,question,answer,options,notes\n"
    text += "".join(
        f'{r["image"]},"{r["question"]}",{r["answer"]},an oak|an elm|a fir,"[""a tree""]"\n'
        for r in QUESTIONS
    )
    (root / "q.csv").write_text(text)
    columns = {"choices": "options", "captions": "notes"}
    for sample in read_tables([root / "q.csv"], columns=columns).samples:
        assert sample.choices == ("an oak", "an elm", "a fir") and sample.captions == ("a tree",)
    (root / "d.csv").write_text("image,label,distractors\nimg/0.png,oak,elm|fir\nimg/1.png,elm,\n")
    samples = read_tables([root / "d.csv"]).samples
    assert [s.distractors for s in samples] == [("elm", "fir"), ()]
    (root / "q.jsonl").write_text(json.dumps(QUESTIONS[0] | {"options": "an oak|an elm"}))
    with pytest.raises(DataError, match="'choices' must be a list of texts"):  # it has lists of its own
        read_tables([root / "q.jsonl"], columns={"choices": "options"})


def test_what_else_ends_a_line_is_part_of_a_cell(root: Path) -> None:
    strange = "What\u2028is\u0085it\x0c?"
    uri = "data:image/png;base64," + base64.b64encode(png(1) * 500).decode()
    text = f'image,question,answer\nimg/0.png,{strange},an oak\n"{uri}",what,an elm\n'
    (root / "q.csv").write_text(text, encoding="utf-8")
    first, second = read_tables([root / "q.csv"]).samples
    assert first.question == strange and second.image == png(1) * 500


def test_two_columns_of_one_name_are_refused(root: Path) -> None:
    (root / "q.csv").write_text("image,label, label,\nimg/0.png,oak,elm,\n")
    with pytest.raises(DataError, match=r"q\.csv: its first line names two columns 'label'"):
        read_tables([root / "q.csv"])
    (root / "q.csv").write_text("image,label,,\nimg/0.png,oak,,\n")  # as spreadsheets write empty columns
    assert [sample.label for sample in read_tables([root / "q.csv"]).samples] == ["oak"]


def test_one_column_may_be_two_fields_and_cells_may_be_empty(root: Path) -> None:
    lines = ("photo,kind,part", "img/0.png,oak,train", "img/1.png,elm,", "img/2.png,fir,test")
    (root / "q.csv").write_text("\n".join(lines))
    columns = {"image": "photo", "label": "kind", "text": "kind", "split": "part"}
    samples = read_tables([root / "q.csv"], columns=columns).samples
    assert [(s.label, s.text, s.split) for s in samples] == [
        ("oak", "oak", "train"),
        ("elm", "elm", ""),
        ("fir", "fir", "test"),
    ]
    (root / "q.jsonl").write_text('{"image": "img/0.png", "question": null, "answer": null, "label": "oak"}')
    assert read_tables([root / "q.jsonl"]).task == "classification"


def test_columns_by_other_names(root: Path) -> None:
    rows = [
        {"jpg": r["image"], "q": r["question"], "caption_text": r["answer"], "extra": 1} for r in QUESTIONS
    ]
    (root / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"image": "jpg", "question": "q", "answer": "caption_text"}
    assert answers(root / "q.jsonl", columns=columns) == WANTED
    assert len(load_data(root / "q.jsonl", columns=columns).all_samples()) == 9


def test_labelled_pictures_become_four_options(root: Path) -> None:
    text = "file_name,label\n" + "".join(f"img/{n}.png,kind {n % 3}\n" for n in range(9))
    (root / "metadata.csv").write_text(text)
    for data in (load_data(root, domain="tree"), load_data(root / "metadata.csv", domain="tree")):
        assert data.task == "classification" and data.classes == ("kind 0", "kind 1", "kind 2")
        sample = data.test[0]
        assert sample.question.startswith("Which of these") and sample.answer == sample.label
        assert sample.texts() == (f"An image of a tree, specifically a {sample.label}.",)


def test_files_called_like_splits(root: Path) -> None:
    for split, rows in (("train", QUESTIONS[:5]), ("val", QUESTIONS[5:7]), ("test", QUESTIONS[7:])):
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_data(root)
    assert (data.name, len(data.train), len(data.validation), len(data.test)) == (root.name, 5, 2, 2)
    for name in ("val.jsonl", "test.jsonl"):
        (root / name).unlink()
    (root / "train.jsonl").rename(root / "metadata.jsonl")
    assert load_data(root).name == root.name  # not "metadata"


def test_a_hub_data_set_with_its_own_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hub:OWNER/NAME` from the local cache, without a network, columns mapped."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "datasets--some--trees" / "snapshots" / ("0" * 40)
    refs = tmp_path / "datasets--some--trees" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0" * 40)
    rows = [{"photo": png(n), "q": "What is it?", "a": ("oak", "elm")[n % 2]} for n in range(8)]
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows[:6])
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows[6:])
    columns = {"image": "photo", "question": "q", "answer": "a"}
    with pytest.raises(DataError) as caught:
        load_data("hub:some/trees", columns=columns)
    command = "craft data prepare hub:some/trees --column image=photo --column question=q --column answer=a"
    assert f"`{command}`" in str(caught.value) and "prepared/trees" in str(caught.value)
    prepare("hub:some/trees", None, tmp_path / "m", Wanted(columns=columns), progress=False)
    data = load_data(tmp_path / "m")
    assert [s.answer for s in data.test] == ["oak", "elm"] and verify_images(data, progress=False) == 8


def test_pictures_of_every_kind_are_fetched_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["ash/1.JPG", "ash/2.bmp", "elm/3.tif", "elm/4.png", "elm/notes.docx"]

    def download(*_: object, allow_patterns: list[str], **__: object) -> str:
        for n, file in enumerate(filter_repo_objects(files, allow_patterns=allow_patterns)):
            paint(tmp_path / file, n)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    prepare("hub:some/trees", None, tmp_path / "m", progress=False)
    assert {sample.id for sample in read_data(tmp_path / "m").samples} == set(files[:4])


def test_pictures_that_cannot_be_read_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    files = ["ash/1.jpg", "elm/2.heic", "README.md", "logo.svg", ".x/3.heic"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(DataError, match=r"1 of 2 images in the hub data set some/trees.*elm/2\.heic"):
        prepare("hub:some/trees", None, tmp_path / "m", progress=False)


def test_a_shard_with_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "q.tar", "w") as tar:
        for name in ("1.heic", "1.cls", "2.png", "2.heic", "2.cls", "3.heic", "3.jfif", "3.cls"):
            stem, ending = name.split(".")
            content = f"kind {stem}".encode() if ending == "cls" else png(int(stem))
            info = tarfile.TarInfo(name)
            info.size = len(content) if ending != "heic" else 3
            tar.addfile(info, io.BytesIO(content))
    samples = read_data(tmp_path / "q.tar", reading=Reading(tars=True)).samples
    assert sorted(str(s.image).rpartition("/")[2] for s in samples) == ["1.heic", "2.png", "3.jfif"]
    with pytest.raises(DataError, match=r"q\.tar, sample 1: .*1\.heic.* is not an image that can be opened"):
        prepare(tmp_path / "q.tar", None, tmp_path / "m", progress=False)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("place", ["test", "dev/birds", "home/Test"])
def test_where_the_users_data_lie_says_no_split(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    for n in range(9):
        paint(folder / "img" / f"{n}.png", n)
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    pictures = [{"image": png(n), "label": ("oak", "elm")[n % 2]} for n in range(8)]
    parquet(folder / "all" / "0000.parquet", pictures)
    parquet(folder / "split" / "validation" / "0000.parquet", pictures[:2])
    parquet(folder / "split" / "train" / "0000.parquet", pictures[2:])
    for source in (folder / "q.jsonl", folder / "all", folder / "all" / "0000.parquet"):
        assert {sample.split for sample in read_data(source).samples} == {""}
    inside = Counter(sample.split for sample in read_data(folder / "split").samples)
    assert inside == {"validation": 2, "train": 6}  # folders of the data set itself do


def test_parquet_leaves_pictures_in_the_file(tmp_path: Path) -> None:
    rows = [{"image": png(n), "label": n % 3, "id": f"x{n}"} for n in range(10)]
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows, {"label": ["oak", "elm", "fir"]})
    data = load_data(tmp_path)
    assert data.classes == ("elm", "fir", "oak") and len(data.all_samples()) == 10
    assert verify_images(data, progress=False) == 10
    by_id = {sample.id: sample for sample in data.all_samples()}
    assert by_id["x7"].image.read() == png(7)  # type: ignore[union-attr]
    plain = [{"image": png(n), "question": "q?", "answer": str(n % 3)} for n in range(4)]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "plain.parquet")  # pictures as bare bytes
    assert verify_images(load_data(tmp_path / "plain.parquet"), progress=False) == 4


def test_minus_one_is_no_class(tmp_path: Path) -> None:
    """What `datasets` writes for a picture without a label, as in the test splits of competitions."""
    rows = [{"image": png(n), "label": n % 3} for n in range(9)]
    names = {"label": ["oak", "elm", "fir"]}
    parquet(tmp_path / "train.parquet", rows, names)
    parquet(tmp_path / "test.parquet", [{**row, "label": -1} for row in rows], names)
    with pytest.raises(
        DataError, match=r"9 of 18 rows.*test\.parquet, row 1: the label is missing.*-1.*8 more"
    ):
        load_data(tmp_path)
    asked = [{**row, "label": -1, "question": f"{n}?", "answer": "ab"[n % 2]} for n, row in enumerate(rows)]
    parquet(tmp_path / "asked" / "0.parquet", asked, names)
    assert {sample.label for sample in load_data(tmp_path / "asked").all_samples()} == {None}


def test_files_of_one_name_in_folders_of_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"image": png(n), "label": ("oak", "elm")[n % 2]} for n in range(4)]
        parquet(tmp_path / "default" / split / "0000.parquet", rows)
    data = load_data(tmp_path)
    assert sorted(s.id for s in data.test) == [f"test/0000.parquet, row {n}" for n in (1, 2, 3, 4)]
    assert len(data.train) == 4


def test_llava_conversations(root: Path) -> None:
    entries = [
        {
            "id": str(n),
            "image": f"img/{n}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": f"A tree, number {n}."},
                {"from": "human", "value": "What colour is the leaf?"},
                {"from": "gpt", "value": "Green" if n % 2 else "Brown"},
            ],
        }
        for n in range(5)
    ]
    (root / "chat.json").write_text(json.dumps(entries))
    raw = read_tables([root / "chat.json"])
    assert [s.id for s in raw.samples[:3]] == ["0#1", "0#2", "1#1"] and raw.task == "vqa"
    assert (
        raw.samples[1].question == "What colour is the leaf?" and raw.samples[1].text == "The leaf is brown."
    )
    assert raw.samples[0].prompt() == "What is it?"  # such data brings its own directive, or none
    data = load_data(root / "chat.json")
    assert len(data.test) == 2  # one picture: its questions stay together
    assert not {s.image for s in data.test} & {s.image for s in data.train}


def test_what_a_conversation_may_have_besides(root: Path) -> None:
    """A system turn, null in a column that other rows have, and a path as Windows writes it."""
    turns = [("system", "Be kind."), ("human", "<image>\nWhat is it?"), ("gpt", "An oak.")]
    said = [{"from": who, "value": what} for who, what in turns]
    row = {"id": "a", "image": "img\\0.png", "images": None, "conversations": said}
    (root / "chat.json").write_text(json.dumps([row]))
    (sample,) = read_tables([root / "chat.json"]).samples
    assert (sample.question, sample.answer) == ("What is it?", "An oak.")
    assert sample.image == str(root / "img/0.png")
    (root / "img\\0.png").write_bytes(png(1))  # where there is a file of that very name, it is meant
    assert read_tables([root / "chat.json"]).samples[0].image == str(root / "img\\0.png")


def test_openai_messages(root: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    inside = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What is it?"}]
    reply = {"role": "assistant", "content": "An oak."}
    rows = [
        {"messages": [{"role": "user", "content": "<image>What is it?"}, reply], "images": ["img/0.png"]},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": inside}, reply]},
        {
            "images": ["img/2.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "An elm."}]},
            ],
        },
    ]
    (root / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert answers(root / "m.jsonl") == [("What is it?", text) for text in ("An oak.", "An oak.", "An elm.")]
    raw = read_tables([root / "m.jsonl"])
    assert raw.samples[1].image == png(1) and raw.samples[0].image == str(root / "img/0.png")


def test_questions_on_one_inline_picture_stay_together(tmp_path: Path) -> None:
    rows = []
    for n in range(20):
        uri = "data:image/png;base64," + base64.b64encode(png(n % 4)).decode()
        rows.append({"image": uri, "question": f"q{n}?", "answer": f"a{n % 3}"})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_data(tmp_path / "q.jsonl")
    parts = [{s.image for s in part} for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [2, 1, 1] and len(set[object]().union(*parts)) == 4


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def test_webdataset_shards(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:04d}.tar", "w") as tar:
            for n in range(6):
                add(tar, f"{shard}{n}.png", png(10 * shard + n))
                add(tar, f"{shard}{n}.cls", ("oak", "elm", "fir")[n % 3].encode())
                add(tar, f"{shard}{n}.txt", b"a tree on a hill")
    with pytest.raises(DataError, match=rf"`craft data prepare {tmp_path}`.*prepared/{tmp_path.name} "):
        load_data(tmp_path)
    prepare(tmp_path, None, tmp_path / "m", progress=False)
    data = load_data(tmp_path / "m")
    assert Counter(s.label for s in data.all_samples()) == {"oak": 4, "elm": 4, "fir": 4}
    assert verify_images(data, progress=False) == 12
    sample = next(s for s in data.all_samples() if s.id == "train-0001.tar, sample 13")
    assert image_bytes(sample.image) == png(13)  # type: ignore[arg-type]
    with tarfile.open(tmp_path / "q.tar", "w") as tar:
        for n in range(4):
            add(tar, f"d/{n}.jpg", png(n))
            add(tar, f"d/{n}.json", json.dumps({"question": "q?", "answer": f"a{n % 2}"}).encode())
    assert answers(tmp_path / "q.tar") == [("q?", f"a{n % 2}") for n in range(4)]
    with tarfile.open(tmp_path / "dot.tar", "w") as tar:  # as `tar cf dot.tar .` has it
        for name in ("./7", "./d/8"):
            add(tar, f"{name}.png", png(7))
            add(tar, f"{name}.cls", b"oak")
    ids = [sample.id for sample in read_tables([tmp_path / "dot.tar"]).samples]
    assert ids == ["dot.tar, sample 7", "dot.tar, sample d/8"]  # the same wherever the file is


@pytest.mark.parametrize("damage", ["compressed", "cut", "json"])
def test_a_damaged_tar_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w:gz" if damage == "compressed" else "w") as tar:
        for n in range(4):
            add(tar, f"{n}.png", png(n))
            add(tar, f"{n}.json", b"nothing" if damage == "json" else b'{"label": "oak"}')
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: 512 * 3])
    problem = {
        "compressed": r"uncompressed tar \(invalid header\).*Unpack",
        "cut": r"uncompressed tar \(unexpected end of data\).*copy it again",
        "json": r"member 0\.json cannot be read \(Expecting value: line 1 column 1",
    }[damage]
    with pytest.raises(DataError, match=rf"s\.tar.*{problem}"):
        prepare(path, None, tmp_path / "m", progress=False)
    assert not (tmp_path / "m").exists()
