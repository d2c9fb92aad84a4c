"""The worker: answers are those of `LVLM.answer`, whoever asks, in whatever batch, cached or not."""

import queue
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from craft.data.images import image_bytes_hash, open_image
from craft.models.conversation import Turn, build_conversation
from craft.models.sampling import End, Piece, Sampling
from craft.serving.codes import BoundedCodes
from craft.serving.towers import BASE, Towers
from craft.serving.worker import Chosen, Failed, Request, Scores, Worker


def request_for(lvlm, tower, sample, **settings):
    """A request, and the queue of its events."""
    events: queue.Queue = queue.Queue()
    image = open_image(sample.image)
    pieces = build_conversation(
        lvlm.backbone.prompt, lvlm.backbone.tokenizer, [Turn("user", sample.prompt(), 1)]
    )
    settings = {"samplings": [Sampling(max_new_tokens=5)], "towers": [tower]} | settings
    return Request(pieces, [(image_bytes_hash(image), image)], send=events.put, **settings), events


def result(events, answers=1):
    """The texts of a request's answers."""
    texts, ended = [""] * answers, 0
    while ended < answers:
        event = events.get(timeout=60)
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Piece):
            texts[event.index] += event.text
        ended += isinstance(event, End)
    return texts


@pytest.mark.parametrize(
    "name", ["craft-tiny/llama", pytest.param("craft-tiny/qwen2", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("batch_size, count, threads", [(1, 6, 1), (32, 50, 1), (8, 30, 2)])
def test_many_clients_get_the_answers_of_the_model(
    models, encoders, samples, name, batch_size, count, threads
):
    """Sixteen clients ask behind three towers in random order, twice: the second time from the cache."""
    lvlm, few = models[name], samples[:count]
    towers = Towers(lvlm, encoders)
    worker = Worker(towers.base, batch_size=batch_size, threads=threads).start()
    jobs = [(tower, number) for tower in (BASE, *encoders) for number in range(count)] * 2
    random.Random(0).shuffle(jobs)

    def client(part):
        answers = []
        for tower, number in part:
            request, events = request_for(lvlm, towers.get(tower), few[number])
            worker.submit(request)
            answers.append((tower, number, *result(events)))
        return answers

    with ThreadPoolExecutor(16) as pool:
        answers = [answer for part in pool.map(client, [jobs[n::16] for n in range(16)]) for answer in part]
    worker.stop()
    assert len(answers) == len(jobs)
    for tower in (BASE, *encoders):
        expected = towers.get(tower).lvlm.answer([s.image for s in few], [s.prompt() for s in few])
        assert {(n, text) for which, n, text in answers if which == tower} == set(enumerate(expected))
    distinct = 3 * len({image_bytes_hash(open_image(s.image)) for s in few})
    assert worker.encoded == distinct or (threads > 1 and worker.encoded > distinct)
    assert not worker.alive


def test_options_are_scored_as_in_an_evaluation(models, encoders, samples):
    from craft.evaluation.ask import ask
    from craft.formats.code_cache import CodeCache

    lvlm = models["craft-tiny/qwen2"]
    towers = Towers(lvlm, encoders)
    tower, few = towers.get("one"), samples[:8]
    worker = Worker(towers.base).start()
    codes = CodeCache().encode(tower.lvlm.visual, [s.image for s in few], progress=False)
    prompts, options = [s.prompt() for s in few], [list(s.choices) for s in few]
    expected = ask(tower.lvlm, codes, prompts, options, max_new_tokens=0, progress=False).scores
    waiting = [request_for(lvlm, tower, s, question=s.prompt(), options=s.choices) for s in few]
    for request, _ in waiting:
        worker.submit(request)
    for (_, events), wanted in zip(waiting, expected, strict=True):
        assert isinstance(events.get(timeout=60), Chosen)
        scores = events.get(timeout=60)
        assert isinstance(scores, Scores)
        assert scores.values == pytest.approx(wanted, abs=2e-4)
    worker.stop()


def test_a_full_queue_refuses_and_a_client_that_left_costs_nothing(models, encoders, samples):
    towers = Towers(models["craft-tiny/llama"], encoders)
    worker = Worker(towers.base, waiting=2)
    requests = [request_for(worker.lvlm, towers.base, samples[0]) for _ in range(3)]
    worker.submit(requests[0][0])
    worker.submit(requests[1][0])
    with pytest.raises(queue.Full):
        worker.submit(requests[2][0])
    requests[0][0].cancelled.set()
    worker.start()
    assert result(requests[1][1])
    worker.stop()
    assert requests[0][1].empty()


def test_a_request_that_fails_leaves_the_others(models, encoders, samples):
    towers = Towers(models["craft-tiny/llama"], encoders)
    worker = Worker(towers.base)
    bad, bad_events = request_for(worker.lvlm, towers.base, samples[0], keep_ratio=3.0)
    good, good_events = request_for(worker.lvlm, towers.base, samples[1])
    worker.submit(bad)
    worker.submit(good)
    worker.start()
    with pytest.raises(Exception, match="keep_ratio"):
        result(bad_events)
    assert result(good_events)
    worker.stop()


def test_the_cache_is_bounded_and_keyed_by_weights(models, encoders, samples):
    towers = Towers(models["craft-tiny/llama"], encoders)
    codes = BoundedCodes(limit=4000)
    worker = Worker(towers.base, codes).start()
    for sample in samples[:6]:
        request, events = request_for(worker.lvlm, towers.get("one"), sample)
        worker.submit(request)
        result(events)
    worker.stop()
    assert codes.bytes <= 4000 and 0 < len(codes) < 6
    assert {key[0] for key in codes._entries} == {towers.get("one").hash}
