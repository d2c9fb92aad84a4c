"""Rows of a JSONL that cannot be used."""

import json
from pathlib import Path

from data.damage.making import LIKE, damage, lines, row


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
