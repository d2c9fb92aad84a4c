"""The drawn domain `scenes`: what is asked is in the picture, and held-out things are nowhere in training."""

from collections import Counter

import numpy as np
import pytest

from craft.data import load_data
from craft.data.domains import scenes
from craft.data.domains.scenes import KINDS, NUMBERS, SIZE, draw_scenes, scene_words
from craft.data.images import image_bytes_hash

TEST = draw_scenes(160, split="test")


def kind(sample) -> str:
    """The kind of a sample's question, which its id ends with."""
    return sample.id.rpartition("/")[2]


def test_a_seed_gives_the_same_bytes_and_another_one_does_not():
    again = draw_scenes(20, split="test")
    assert again == TEST[:20]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, TEST, strict=False))
    assert not np.array_equal(draw_scenes(1, seed=1, split="test")[0].image, TEST[0].image)
    # The bytes themselves: the same on every machine, whatever its versions.
    digests = {sample.id: image_bytes_hash(sample.image)[:12] for sample in TEST[:4]}
    assert digests == {
        "scenes/test/00000/count": "f09681e372a3",
        "scenes/test/00001/most": "1220d25a4c70",
        "scenes/test/00002/number": "e746dc1ff479",
        "scenes/test/00003/ring": "feadb9f72ec4",
    }


def test_every_question_has_four_options_and_one_answer():
    for sample in TEST:
        image = sample.image
        assert isinstance(image, np.ndarray) and image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert len(set(sample.choices)) == 4 and sample.answer_text == sample.answer
        assert (sample.question.endswith("?") and sample.label in (sample.answer, None)) or kind(
            sample
        ) == "count"
    shares = Counter(kind(sample) for sample in TEST)
    assert [sum(shares[k] for k in kinds) for kinds in KINDS.values()] == [40] * 4
    assert len(shares) == sum(map(len, KINDS.values()))
    places = Counter(sample.choices.index(sample.answer) for sample in TEST)
    assert all(25 <= places[place] <= 55 for place in range(4))


def test_answers_are_true_of_what_is_drawn(monkeypatch):
    drawn = []
    put, write = scenes._Scene.put, scenes._Scene.write
    monkeypatch.setattr(scenes._Scene, "put", lambda self, *thing: drawn.append(thing) or put(self, *thing))
    monkeypatch.setattr(
        scenes._Scene,
        "write",
        lambda self, glyphs, *at: drawn.append(len(glyphs)) or write(self, glyphs, *at),
    )
    for number in range(120):
        drawn.clear()
        sample = scenes._one("test", number, 0, list(scene_words()))
        things = [thing for thing in drawn if isinstance(thing, tuple)]
        counts = Counter(word for word, *_ in things)
        name = kind(sample)
        if name == "count":
            assert NUMBERS[counts[sample.label]] == sample.answer
        elif name == "most":
            assert counts.most_common(1)[0][0] == sample.answer
            assert len(counts) == 2 and len(set(counts.values())) == 2
        elif name == "largest":
            assert max(things, key=lambda thing: thing[1])[0] == sample.answer
            assert sorted(size for _, size, *_ in things)[-2:] != [44, 44]
        elif name == "corner":
            x, y = next(thing[2:] for thing in things if thing[0] == sample.answer)
            corner = f"{'bottom' if y > SIZE / 2 else 'top'} {'right' if x > SIZE / 2 else 'left'}"
            assert corner in sample.question
        elif name == "word":
            assert len(sample.answer) in drawn and sample.answer not in counts


def test_training_without_the_held_out_things():
    held = scene_words()[:8]
    for sample in draw_scenes(200, without=held):
        assert not set(held) & {*sample.choices, sample.label}
        assert not any(word in sample.question.split() for word in held)


def test_as_a_data_set():
    one, two = load_data("scenes", seed=1, answer_with="letter"), load_data("scenes", seed=2)
    assert one.task == "vqa" and len(one.held_out) == 8 and one.held_out != two.held_out
    assert [s.id for s in one.test] == [s.id for s in two.test]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one.test[:50], two.test[:50], strict=True))
    held = set(one.held_out)
    for sample in [*one.train, *one.validation]:
        assert sample.seen and not held & {*sample.choices, sample.label}
    assert all(sample.seen == (sample.label not in held) for sample in one.test)
    unseen = sum(not sample.seen for sample in one.test) / len(one.test)
    assert 0.1 < unseen < 0.25  # a fifth of all but the digits
    assert {s.answer for s in one.test} == set("ABCD")
    assert all(sample.answer_text == sample.choices["ABCD".index(sample.answer)] for sample in one.test)
    pictures = [{image_bytes_hash(s.image) for s in part} for part in (one.train, one.validation, one.test)]
    assert sum(map(len, pictures)) == len(set().union(*pictures)) == 1800


@pytest.mark.parametrize("question", ["count", "most", "largest", "number", "word", "ring", "corner"])
def test_labels_say_what_is_asked_about(question):
    for sample in (s for s in TEST if kind(s) == question):
        if question == "count":
            assert sample.label is not None and sample.answer in NUMBERS
        elif question == "number":
            assert sample.label is None and sample.answer in NUMBERS
        else:
            assert sample.label == sample.answer and sample.answer in scene_words()
