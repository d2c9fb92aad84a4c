"""Rows of a JSONL that cannot be used."""

import json
from pathlib import Path

from data.damage.making import damage, lines, row


@damage(
    "{root}/q.jsonl:2",
    "not valid JSON (Expecting property name enclosed in double quotes, column 2)",
    'one object, like {"image": "a.jpg", "question": "What is this?", "answer": "an oak"}',
)
def bad_json(root: Path) -> Path:
    return lines(root, "{image: a}")


@damage(
    "{root}/q.jsonl:2",
    "a list, not an object",
    'one object, like {"image": "a.jpg", "question": "What is this?", "answer": "an oak"}',
)
def list_for_a_row(root: Path) -> Path:
    return lines(root, ["a"])


@damage("{root}/q.jsonl:2", "'answer' is missing", "image, question, answer, or image and label")
def no_answer(root: Path) -> Path:
    return lines(root, row(1, answer=None))


@damage("{root}/q.jsonl:2", "'image' is missing", "'imgae'", "image, question, answer, or image and label")
def misspelled_image(root: Path) -> Path:
    return lines(root, row(1, image=None, imgae="img/1.png"))


@damage("{root}/q.jsonl:2", "'caption'", "did you mean 'captions'?")
def misspelled_captions(root: Path) -> Path:
    return lines(root, row(1, caption="a tree"))


@damage("{root}/q.jsonl:2", "'answer'", "'  '")
def empty_answer(root: Path) -> Path:
    return lines(root, row(1, answer="  "))


@damage("{root}/q.jsonl:2", "'question'", "['?']")
def question_is_a_list(root: Path) -> Path:
    return lines(root, row(1, question=["?"]))


@damage("{root}/q.jsonl:2", "'thing 1'", "['a', 'b']", "letter")
def answer_is_no_choice(root: Path) -> Path:
    return lines(root, row(1, choices=["a", "b"]))


@damage("{root}/q.jsonl:2", "'choices'", "2 to 26 options, not 1")
def one_choice(root: Path) -> Path:
    return lines(root, row(1, choices=["thing 1"]))


@damage("{root}/q.jsonl:2", "'choices'", "twice", "['thing 1', 'Thing 1']", "distinct")
def choice_twice(root: Path) -> Path:
    return lines(root, row(1, choices=["thing 1", "Thing 1"]))


@damage("{root}/q.jsonl:2", "'choices'", "list", "'a, b'")
def choices_in_one_text(root: Path) -> Path:
    return lines(root, row(1, choices="a, b"))


@damage("{root}/q.jsonl:2", "'dev-set'", "'train', 'validation' or 'test'")
def unknown_split(root: Path) -> Path:
    return lines(root, row(1, split="dev-set"))


@damage("{root}/q.jsonl:3", "'x'", "{root}/q.jsonl:2", "leave ids out")
def id_twice(root: Path) -> Path:
    return lines(root, row(1, id="x"), row(2, id="x"))


@damage("1 of the 6 rows", "{root}/img/9.png ({root}/q.jsonl:2)", "relative to {root};")
def missing_image(root: Path) -> Path:
    return lines(root, row(9))


@damage("{root}/q.jsonl:2", "https://example.org/a.png", "`craft data prepare --download`")
def url_unasked(root: Path) -> Path:
    return lines(root, row(1, image="https://example.org/a.png"))


@damage(
    "6 of 6 rows",
    "{root}/q.jsonl:1",
    "https://example.org/0.png",
    "`craft data prepare --download`",
    "5 more rows",
)
def urls_throughout(root: Path) -> Path:
    path = lines(root)
    rows = (row(n, image=f"https://example.org/{n}.png") for n in range(6))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@damage("{root}/q.jsonl:2", "data URI", "not base64")
def data_uri_without_base64(root: Path) -> Path:
    return lines(root, row(1, image="data:image/png,abc"))


@damage("{root}/q.jsonl:3", "labelled image without an answer", "all rows an answer, or none")
def labels_among_answers(root: Path) -> Path:
    return lines(root, row(1), {"image": "img/2.png", "label": "elm"})


@damage(
    "3 of 6 rows", "{root}/q.jsonl:2: 'answer'", "{root}/q.jsonl:3", "'x'", "{root}/q.jsonl:4: 'question'"
)
def several_bad_rows(root: Path) -> Path:
    return lines(root, row(1, answer=""), row(2, split="x"), row(3, question=""))


@damage(
    "{root}/e.jsonl", "no rows", 'like {"image": "a.jpg", "question": "What is this?", "answer": "an oak"}'
)
def no_rows(root: Path) -> Path:
    (root / "e.jsonl").write_text("\n\n")
    return root / "e.jsonl"


@damage("{root}/b.jsonl:1", "UTF-8", "byte 0xff in position 0", "Save it as UTF-8")
def not_utf8(root: Path) -> Path:
    (root / "b.jsonl").write_bytes(b"\xff{")
    return root / "b.jsonl"


@damage("{root}/q.jsonl", "same answer, 'yes'", "at least two")
def one_answer_for_all(root: Path) -> Path:
    path = lines(root)
    path.write_text("".join(json.dumps(row(n, answer="yes")) + "\n" for n in range(6)))
    return path


@damage("{root}/q.jsonl", "single class, 'oak'", "at least two")
def one_label_for_all(root: Path) -> Path:
    path = lines(root)
    path.write_text("".join(json.dumps({"image": f"img/{n}.png", "label": "oak"}) + "\n" for n in range(6)))
    return path
