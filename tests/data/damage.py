"""Kinds of damage to data of one's own: how each is made, and the exact sentence that names it.

`{root}` stands for the folder that holds the data.
"""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from replicas import paint, parquet, pixels, png

Make = Callable[[Path], str | Path]
"""Makes damaged data below a folder and returns what `--data` would be given."""

DAMAGE: dict[str, tuple[Make, str]] = {}
"""Maker and message, by name."""


def damage(message: str) -> Callable[[Make], Make]:
    """Enter a maker under its name."""

    def enter(make: Make) -> Make:
        DAMAGE[make.__name__] = make, message
        return make

    return enter


def row(n: int, **fields: Any) -> dict[str, Any]:
    """A good row, with some fields changed; None leaves one out."""
    whole = {"image": f"img/{n}.png", "question": "What is it?", "answer": f"thing {n % 3}"} | fields
    return {name: value for name, value in whole.items() if value is not None}


def lines(root: Path, *rows: Any, name: str = "q.jsonl", count: int = 6) -> Path:
    """A JSONL whose second row on is `rows`, among good ones, with their pictures."""
    all_rows = [row(0), *rows, *(row(n) for n in range(1 + len(rows), count))]
    for n in range(count):
        paint(root / "img" / f"{n}.png", n)
    path = root / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in all_rows))
    return path


def talk(root: Path, **fields: Any) -> Path:
    """A JSON list of LLaVA conversations, one of them changed."""
    good = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    entries = [{"id": str(n), "image": f"{n}.png", "conversations": good} for n in range(3)]
    entries[1] |= fields
    for n in range(3):
        paint(root / f"{n}.png", n)
    (root / "chat.json").write_text(json.dumps(entries))
    return root / "chat.json"


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Turns in LLaVA's form."""
    return [{"from": who, "value": what} for who, what in turns]


def folder(root: Path, *names: str) -> Path:
    """Class folders of four pictures each."""
    for c, name in enumerate(names):
        for n in range(4):
            paint(root / name / f"{n}.png", 10 * c + n)
    return root


def one_bad(root: Path, content: bytes, ending: str = ".png") -> Path:
    """Class folders in which one file holds this."""
    folder(root, "ash", "elm")
    (root / "ash" / f"0{ending}").write_bytes(content)
    return root


LIKE = 'like {{"image": "a.jpg", "question": "What is this?", "answer": "an oak"}}'

# --- rows


@damage(
    "{root}/q.jsonl:2: not valid JSON (Expecting property name enclosed in double quotes, column 2). "
    f"Every line must be one object, {LIKE}"
)
def bad_json(root: Path) -> Path:
    return lines(root, "{image: a}")


@damage(f"{{root}}/q.jsonl:2: a list, not an object. Every line must be one object, {LIKE}")
def list_for_a_row(root: Path) -> Path:
    return lines(root, ["a"])


@damage(
    "{root}/q.jsonl:2: the field 'answer' is missing. A row needs image, question, answer, or image and label."
)
def no_answer(root: Path) -> Path:
    return lines(root, row(1, answer=None))


@damage(
    "{root}/q.jsonl:2: the field 'image' is missing (did you mean it by 'images'?). "
    "A row needs image, question, answer, or image and label."
)
def misspelled_image(root: Path) -> Path:
    return lines(root, row(1, image=None, images="img/1.png"))


@damage("{root}/q.jsonl:2: unknown field 'caption'; did you mean 'captions'?")
def misspelled_captions(root: Path) -> Path:
    return lines(root, row(1, caption="a tree"))


@damage("{root}/q.jsonl:2: 'answer' must be a text that is not empty, not '  '.")
def empty_answer(root: Path) -> Path:
    return lines(root, row(1, answer="  "))


@damage("{root}/q.jsonl:2: 'question' must be a text that is not empty, not ['?'].")
def question_is_a_list(root: Path) -> Path:
    return lines(root, row(1, question=["?"]))


@damage(
    "{root}/q.jsonl:2: the answer 'thing 1' is not one of the choices ['a', 'b']. Give an option's text, or its letter."
)
def answer_is_no_choice(root: Path) -> Path:
    return lines(root, row(1, choices=["a", "b"]))


@damage("{root}/q.jsonl:2: 'choices' must hold 2 to 26 options, not 1.")
def one_choice(root: Path) -> Path:
    return lines(root, row(1, choices=["thing 1"]))


@damage("{root}/q.jsonl:2: 'choices' names an option twice: ['thing 1', 'Thing 1']. Make them distinct.")
def choice_twice(root: Path) -> Path:
    return lines(root, row(1, choices=["thing 1", "Thing 1"]))


@damage("{root}/q.jsonl:2: 'choices' must be a list of texts, not 'a, b'.")
def choices_in_one_text(root: Path) -> Path:
    return lines(root, row(1, choices="a, b"))


@damage("{root}/q.jsonl:2: unknown split 'dev-set'. Use 'train', 'validation' or 'test'.")
def unknown_split(root: Path) -> Path:
    return lines(root, row(1, split="dev-set"))


@damage(
    "{root}/q.jsonl:3: the id 'x' was already used in {root}/q.jsonl:2. Give every row its own id, or leave ids out."
)
def id_twice(root: Path) -> Path:
    return lines(root, row(1, id="x"), row(2, id="x"))


@damage(
    "1 of the 6 rows name an image that does not exist: {root}/img/9.png ({root}/q.jsonl:2). "
    "Paths are relative to {root}; correct them, or put the files there."
)
def missing_image(root: Path) -> Path:
    return lines(root, row(9))


@damage(
    "{root}/q.jsonl:2: the image is a URL (https://example.org/a.png), and nothing is downloaded unasked. "
    "Run `craft data prepare --download`, and use what it writes."
)
def url_unasked(root: Path) -> Path:
    return lines(root, row(1, image="https://example.org/a.png"))


@damage(
    "6 of 6 rows cannot be used. {root}/q.jsonl:1: the image is a URL (https://example.org/0.png), and nothing is "
    "downloaded unasked. Run `craft data prepare --download`, and use what it writes. (And 5 more rows alike.)"
)
def urls_throughout(root: Path) -> Path:
    path = lines(root)
    rows = (row(n, image=f"https://example.org/{n}.png") for n in range(6))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@damage("{root}/q.jsonl:2: the image is a data URI that cannot be read (not base64).")
def data_uri_without_base64(root: Path) -> Path:
    return lines(root, row(1, image="data:image/png,abc"))


@damage(
    "{root}/q.jsonl:3: a labelled picture without an answer among rows that have one. Give all rows an answer, or none."
)
def labels_among_answers(root: Path) -> Path:
    return lines(root, row(1), {"image": "img/2.png", "label": "elm"})


@damage(
    "3 of 6 rows cannot be used. {root}/q.jsonl:2: 'answer' must be a text that is not empty, not ''. "
    "{root}/q.jsonl:3: unknown split 'x'. Use 'train', 'validation' or 'test'. "
    "{root}/q.jsonl:4: 'question' must be a text that is not empty, not ''."
)
def several_bad_rows(root: Path) -> Path:
    return lines(root, row(1, answer=""), row(2, split="x"), row(3, question=""))


@damage(f"{{root}}/e.jsonl holds no rows. Write one JSON object a line, {LIKE}")
def no_rows(root: Path) -> Path:
    (root / "e.jsonl").write_text("\n\n")
    return root / "e.jsonl"


@damage(
    "{root}/b.jsonl cannot be read as UTF-8 text ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)."
)
def not_utf8(root: Path) -> Path:
    (root / "b.jsonl").write_bytes(b"\xff\xfe{")
    return root / "b.jsonl"


@damage(
    "{root}/q.jsonl: every row has the same answer, 'yes'. Give rows with at least two different answers."
)
def one_answer_for_all(root: Path) -> Path:
    path = lines(root)
    path.write_text("".join(json.dumps(row(n, answer="yes")) + "\n" for n in range(6)))
    return path


@damage(
    "{root}/q.jsonl has a single class, 'oak'. Give at least two classes: a question needs a wrong option too."
)
def one_label_for_all(root: Path) -> Path:
    path = lines(root)
    path.write_text("".join(json.dumps({"image": f"img/{n}.png", "label": "oak"}) + "\n" for n in range(6)))
    return path


# --- tables


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


# --- conversations


@damage("{root}/chat.json, entry 2: 2 <image> tags for 1 image. Put one into the first question.")
def two_tags(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image><image>What?"), ("gpt", "This.")))


@damage("{root}/chat.json, entry 2: 0 <image> tags for 1 image. Put one into the first question.")
def no_tag(root: Path) -> Path:
    return talk(root, conversations=said(("human", "What?"), ("gpt", "This.")))


@damage("{root}/chat.json, entry 2: 2 images. A row must be about exactly one; leave others out.")
def two_images(root: Path) -> Path:
    return talk(root, images=["0.png", "1.png"])


@damage(
    "{root}/chat.json, entry 2: 'conversations' must go from a question to its answer in turns; entry 1 does not."
)
def answer_first(root: Path) -> Path:
    return talk(root, conversations=said(("gpt", "<image>This."), ("human", "What?")))


@damage(
    "{root}/chat.json, entry 2: 'conversations' must go from a question to its answer in turns; entry 3 does not."
)
def question_unanswered(root: Path) -> Path:
    turns = said(("human", "<image>What?"), ("gpt", "This."), ("human", "And?"))
    return talk(root, conversations=turns)


@damage("{root}/chat.json, entry 2: entry 2 of 'conversations' is empty.")
def empty_reply(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("gpt", " ")))


@damage(
    "{root}/chat.json, entry 2: 'robot' in entry 2 of 'conversations' is none of human, user, gpt, assistant."
)
def unknown_speaker(root: Path) -> Path:
    return talk(root, conversations=said(("human", "<image>What?"), ("robot", "This.")))


@damage("{root}/chat.json, entry 2: 'conversations' must be a list of turns, not 'What?'.")
def conversation_is_a_text(root: Path) -> Path:
    return talk(root, conversations="What?")


@damage("{root}/chat.json, entry 2: entry 1 of 'conversations' must have 'from' and 'value'.")
def turn_without_value(root: Path) -> Path:
    return talk(root, conversations=[{"from": "human", "text": "<image>What?"}])


@damage("{root}/m.jsonl:1: a part of type 'audio' in 'messages' is neither text nor image.")
def audio_in_a_message(root: Path) -> Path:
    messages = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]
    (root / "m.jsonl").write_text(json.dumps({"messages": messages}))
    return root / "m.jsonl"


@damage("{root}/m.jsonl:1: 0 images. A row must be about exactly one; leave others out.")
def message_without_image(root: Path) -> Path:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    (root / "m.jsonl").write_text(json.dumps({"messages": messages}))
    return root / "m.jsonl"


@damage("{root}/c.json:1: not valid JSON (Expecting value, column 2).")
def broken_json_list(root: Path) -> Path:
    (root / "c.json").write_text("[nothing")
    return root / "c.json"


@damage("{root}/c.json, entry 1: a int, not an object.")
def number_in_a_json_list(root: Path) -> Path:
    (root / "c.json").write_text("[1]")
    return root / "c.json"


# --- folders and manifests


@damage(
    "the data folder {root} holds no pictures in class folders. Expected FOLDER/<class>/*.jpg, or "
    "FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg."
)
def empty_folder(root: Path) -> Path:
    (root / "ash").mkdir()
    return root


@damage(
    "the data folder {root} has pictures but no class folders. Expected FOLDER/<class>/*.jpg, or "
    "FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg."
)
def loose_pictures(root: Path) -> Path:
    paint(root / "a.png", 1)
    return root


@damage("{root} has a single class, 'ash'. Give at least two classes: a question needs a wrong option too.")
def one_class(root: Path) -> Path:
    return folder(root, "ash")


@damage("the folders red oak and red_oak in {root} are both the class 'red oak'. Merge them, or rename one.")
def class_twice(root: Path) -> Path:
    return folder(root, "red oak", "red_oak")


@damage(
    "{root} has train and beside them other folders: pine. Expected FOLDER/<class>/*.jpg, or "
    "FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg."
)
def classes_beside_train(root: Path) -> Path:
    folder(root / "train", "ash", "elm")
    return folder(root, "pine")


@damage(
    "{root}/a.xlsx is neither a folder of class folders nor a table of questions (.jsonl, .ndjson, .json, .csv, "
    ".tsv, .parquet, .tar)."
)
def unknown_kind_of_file(root: Path) -> Path:
    (root / "a.xlsx").write_text("x")
    return root / "a.xlsx"


@damage(
    "{root}/m/samples.jsonl is not what was prepared: its fingerprint differs from the one in manifest.json. "
    "Run `craft data prepare` again; to use rows that you edited, give the .jsonl itself."
)
def edited_manifest(root: Path) -> Path:
    manifest = _manifest(root)
    with open(manifest / "samples.jsonl", "a") as file:
        file.write("\n")
    return manifest


@damage(
    "the manifest {root}/m is not whole: cannot read {root}/m/samples.jsonl: No such file or directory; check the path."
)
def manifest_without_rows(root: Path) -> Path:
    manifest = _manifest(root)
    (manifest / "samples.jsonl").unlink()
    return manifest


@damage("{root}/m/manifest.json is no manifest of format 1. Run `craft data prepare` again.")
def manifest_of_another_format(root: Path) -> Path:
    manifest = _manifest(root)
    told = json.loads((manifest / "manifest.json").read_text())
    (manifest / "manifest.json").write_text(json.dumps(told | {"format": 99}))
    return manifest


@damage(
    "1 of the 8 rows name an image that does not exist: {root}/pictures/ash/0.png ({root}/m/samples.jsonl:7). "
    "Paths are relative to {root}/pictures; correct them, or put the files there."
)
def manifest_without_a_picture(root: Path) -> Path:
    manifest = _manifest(root)
    (root / "pictures" / "ash" / "0.png").unlink()
    return manifest


def _manifest(root: Path) -> Path:
    from craft.data import Wanted, prepare

    return prepare(folder(root / "pictures", "ash", "elm"), None, root / "m", Wanted(), progress=False).path


# --- pictures


@damage(
    "the image {root}/ash/0.png is not a picture that can be opened (cannot identify image file). "
    "Replace the file, or remove it from the data."
)
def text_for_a_picture(root: Path) -> Path:
    return one_bad(root, b"<html>404</html>")


@damage(
    "the image {root}/ash/0.png is not a picture that can be opened (cannot identify image file). "
    "Replace the file, or remove it from the data."
)
def empty_file(root: Path) -> Path:
    return one_bad(root, b"")


@damage(
    "the image {root}/ash/0.jpg is truncated or corrupt (image file is truncated (17 bytes not processed)). "
    "Replace the file, or remove it from the data."
)
def cut_jpeg(root: Path) -> Path:
    stream = io.BytesIO()
    Image.fromarray(pixels(1, 64)).save(stream, format="JPEG")
    return one_bad(root, stream.getvalue()[: stream.tell() // 2], ".jpg")


@damage(
    "the image {root}/ash/0.png is truncated or corrupt (broken data stream when reading image file). "
    "Replace the file, or remove it from the data."
)
def corrupt_png(root: Path) -> Path:
    whole = png(1)
    place = whole.index(b"IDAT") + 20
    return one_bad(root, whole[:place] + b"\0" * 200)


@damage(
    "the image {root}/ash/0.png is too large to decode safely (Image size (400000000 pixels) exceeds limit of "
    "178956970 pixels, could be decompression bomb DOS attack.). Make it smaller first."
)
def decompression_bomb(root: Path) -> Path:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return one_bad(root, content)


@damage(
    "{root}/q.jsonl:3: the image {root}/img/2.png is not a picture that can be opened (cannot identify image file). "
    "Replace the file, or remove it from the data."
)
def bad_picture_of_a_row(root: Path) -> Path:
    path = lines(root)
    (root / "img" / "2.png").write_bytes(b"nothing")
    return path


@damage(
    "{root}/p.parquet, row 3: the image {root}/p.parquet (image, row 2 of group 0) is not a picture that can be "
    "opened (cannot identify image file). Replace the file, or remove it from the data."
)
def bad_picture_in_parquet(root: Path) -> Path:
    rows = [{"image": png(n) if n != 2 else b"nothing", "label": str(n % 2)} for n in range(4)]
    return parquet(root / "p.parquet", rows)


@damage(
    "{root}/q.jsonl:2: the given image bytes is not a picture that can be opened (cannot identify image file). "
    "Replace the file, or remove it from the data."
)
def bad_data_uri(root: Path) -> Path:
    return lines(root, row(1, image="data:image/png;base64,bm90aGluZw=="))


@damage(
    "2 of 8 images cannot be used. the image {root}/ash/1.png is not a picture that can be opened (cannot identify "
    "image file). Replace the file, or remove it from the data. the image {root}/elm/0.png is not a picture that "
    "can be opened (cannot identify image file). Replace the file, or remove it from the data."
)
def two_bad_pictures(root: Path) -> Path:
    folder(root, "ash", "elm")
    for name in ("ash/1.png", "elm/0.png"):
        (root / name).write_bytes(b"nothing")
    return root
