"""The server, asked by the real `openai` package and by bare HTTP."""

import asyncio
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import craft
from craft.core.errors import CodebookMismatchError
from craft.models.decoding import generate
from craft.serving.routing import typical_score
from craft.serving.settings import Access, Limits
from craft.serving.towers import BASE, Towers
from serving.conftest import save_encoder
from serving.server import leave, message, serving, uri


@pytest.fixture(scope="module")
def server(models, encoders):
    with serving(models["craft-tiny/llama"], encoders) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


LLM = "craft-tiny/llama"


@pytest.mark.parametrize("name", [LLM, pytest.param("craft-tiny/qwen2", marks=pytest.mark.slow)])
def test_answers_are_those_of_the_model_for_every_client(models, encoders, samples, name):
    """Sixteen clients, two encoders and the base tower, streamed or not, in random order: 204 questions."""
    few, lvlm = samples[:34], models[name]
    with serving(lvlm, encoders) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        jobs = list(product((BASE, *encoders), range(len(few)), (False, True)))
        random.Random(1).shuffle(jobs)

        def ask(job):
            tower, number, stream = job
            wanted = {
                "model": name if tower == BASE else f"{name}:{tower}",
                "messages": [message(few[number].prompt(), few[number].image)],
                "max_tokens": 5,
            }
            if not stream:
                return client.chat.completions.create(**wanted).choices[0].message.content
            chunks = client.chat.completions.create(**wanted, stream=True)
            return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, jobs))
        for tower in (BASE, *encoders):
            own = running.towers.get(tower).lvlm
            expected = own.answer([s.image for s in few], [s.prompt() for s in few])
            got = {(n, text) for (which, n, _), text in zip(jobs, answers, strict=True) if which == tower}
            assert got == set(enumerate(expected))


def test_text_only_replies_are_those_of_the_bare_llm(client, models):
    lvlm = models[LLM]
    for question in ("What is a dog?", "repeat: a cat"):
        expected = generate(lvlm.backbone, None, [question], 12)[0]
        reply = client.chat.completions.create(
            model=f"{LLM}:one", messages=[{"role": "user", "content": question}], max_tokens=12
        )
        assert reply.choices[0].message.content == expected
        assert (
            client.completions.create(model=LLM, prompt=question, max_tokens=12).choices[0].text == expected
        )


def test_the_reply_names_the_encoder_and_counts_tokens(client, server, samples):
    raw = client.chat.completions.with_raw_response.create(
        model=f"{LLM}:two", messages=[message("What is shown?", samples[0].image)], max_tokens=3
    )
    weights = server.towers.get("two").hash
    assert raw.headers["x-craft-encoder"] == f"two;{weights}"
    reply = raw.parse()
    assert reply.model_extra["craft"] == {"encoders": [{"name": "two", "weights": weights}]}
    assert reply.usage.prompt_tokens_details.image_tokens == 49
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens <= 3


def test_options_get_probabilities(client, samples):
    sample = samples[0]
    reply = client.chat.completions.create(
        model=f"{LLM}:one",
        messages=[message(sample.prompt(), sample.image)],
        extra_body={"options": list(sample.choices)},
    )
    options = reply.choices[0].model_extra["options"]
    assert {option["text"] for option in options} == set(sample.choices)
    assert sum(option["probability"] for option in options) == pytest.approx(1)
    assert reply.choices[0].message.content == options[0]["text"]
    assert [o["probability"] for o in options] == sorted((o["probability"] for o in options), reverse=True)


def test_several_answers_stops_seeds_and_log_probabilities(client, samples):
    wanted = {"model": LLM, "messages": [message("Describe the image.", samples[0].image)], "max_tokens": 8}
    random_ones = [
        [
            c.message.content
            for c in client.chat.completions.create(**wanted, n=3, temperature=1.5, seed=7).choices
        ]
        for _ in range(2)
    ]
    assert random_ones[0] == random_ones[1] and len(set(random_ones[0])) > 1
    plain = client.chat.completions.create(**wanted, logprobs=True, top_logprobs=2).choices[0]
    words = plain.message.content.split()
    tokens = plain.logprobs.content
    assert len(tokens) >= len(words) and all(token.logprob <= 0 for token in tokens)
    assert tokens[0].top_logprobs[0].token == tokens[0].token and len(tokens[0].top_logprobs) == 2
    stopped = client.chat.completions.create(**wanted, stop=[plain.message.content[2:4]]).choices[0]
    assert stopped.message.content == plain.message.content[:2] and stopped.finish_reason == "stop"
    assert client.chat.completions.create(**(wanted | {"max_tokens": 1})).choices[0].finish_reason == "length"


def test_a_stream_ends_with_its_usage(client, samples):
    chunks = list(
        client.chat.completions.create(
            model=f"{LLM}:one",
            messages=[message("What is shown?", samples[0].image)],
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-1].choices == []
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")


def test_the_asynchronous_client(server, samples):
    wanted = {
        "model": f"{LLM}:one",
        "messages": [message("What is shown?", samples[0].image)],
        "max_tokens": 5,
    }

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(**wanted)
            async with await client.chat.completions.create(**wanted, stream=True) as stream:
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content, "".join(pieces)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed


def test_a_conversation_of_several_turns(client, models, samples):
    turns = [
        message("What is shown?", samples[0].image),
        {"role": "assistant", "content": "a shirt"},
        {"role": "user", "content": "What kind?"},
    ]
    assert (
        client.chat.completions.create(model=f"{LLM}:one", messages=turns, max_tokens=5)
        .choices[0]
        .message.content
        is not None
    )


def test_models_are_listed_with_what_they_are(client, server, encoders):
    listed = {model.id: model.model_extra for model in client.models.list()}
    assert set(listed) == {LLM, f"{LLM}:one", f"{LLM}:two", f"{LLM}:auto"}
    entry = listed[f"{LLM}:one"]
    assert entry["parent"] == LLM and entry["weights"] == server.towers.get("one").hash
    assert entry["codebook"] == server.towers.lvlm.visual.codebook.fingerprint
    assert client.models.retrieve(f"{LLM}:two").id == f"{LLM}:two"


def test_an_unknown_model_is_a_404_that_lists_the_models(client):
    for name in ("gpt-4", f"{LLM}:three", LLM + ":"):
        with pytest.raises(openai.NotFoundError, match=f"{LLM}:one"):
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])


UNSUPPORTED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "frequency_penalty": 0.5,
    "response_format": {"type": "json_object"},
    "logit_bias": {"1": 5},
    "best_of_many": 3,
    "reasoning_effort": "high",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(client, name):
    with pytest.raises(openai.BadRequestError, match=name):
        client.chat.completions.create(
            model=LLM, messages=[{"role": "user", "content": "hi"}], extra_body={name: UNSUPPORTED[name]}
        )


def test_parameters_that_ask_for_nothing_are_taken(client):
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "tools": [],
        "response_format": {"type": "text"},
        "user": "me",
    }
    assert client.chat.completions.create(
        model=LLM, messages=[{"role": "user", "content": "hi"}], max_tokens=2, extra_body=neutral
    )


BAD_IMAGES = {
    "ftp://host/a.png": "data URI",
    "file:///etc/passwd": "data URI",
    "/etc/passwd": "data URI",
    "http://example.com/a.png": "fetches no image",
    "data:image/png;base64,###": "not valid base64",
    "data:image/png,abc": "has the form",
    "data:image/png;base64,AAAA": "image",
    "data:image/png;base64,": "image",
}


@pytest.mark.parametrize("url", BAD_IMAGES)
def test_images_of_every_bad_kind_are_refused(client, url):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    with pytest.raises(openai.BadRequestError, match=BAD_IMAGES[url]) as caught:
        client.chat.completions.create(model=LLM, messages=[{"role": "user", "content": content}])
    assert "passwd" not in str(caught.value)


def test_limits(models, encoders, samples):
    limits = Limits(body=40_000, pixels=1000, images=1, tokens=16, answers=2)
    with serving(models[LLM], encoders, Access(limits=limits)) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)

        def refused(match, *images, **wanted):
            with pytest.raises(openai.APIStatusError, match=match):
                client.chat.completions.create(model=LLM, messages=[message("what?", *images)], **wanted)

        import numpy as np

        refused("at most 16 tokens", max_tokens=17)
        refused("2 answers", n=3)
        refused("2 images", samples[0].image, samples[1].image)
        refused("pixels", np.zeros((40, 40, 3), np.uint8))
        refused("bytes", np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), dtype=np.uint8))
        refused("bytes", np.random.default_rng(0).integers(0, 255, (130, 130, 3), dtype=np.uint8))
        with pytest.raises(openai.BadRequestError, match="reads"):
            client.chat.completions.create(model=LLM, messages=[{"role": "user", "content": "word " * 5000}])
        assert client.chat.completions.create(
            model=LLM, messages=[message("what?", samples[0].image)], max_tokens=2
        )


def test_keys(models, encoders):
    with serving(models[LLM], encoders, Access(keys=("first", "sécond"), admin_key="admin")) as running:
        for key, status in (("first", 200), ("sécond", 200), ("firs", 401), ("admin", 401)):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == status
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert (
            httpx.request(
                "DELETE", f"{running.url}/v1/encoders/one", headers={"Authorization": "Bearer first"}
            ).status_code
            == 401
        )


def test_encoders_come_and_go(models, encoders, samples, tmp_path):
    """A new encoder under an old name never answers from the old one's cache."""
    lvlm = models[LLM]
    with serving(lvlm, {"one": encoders["one"]}, Access(admin_key="k")) as running:
        admin = httpx.Client(base_url=running.url, headers={"Authorization": "Bearer k"}, timeout=60)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)

        def answers():
            return [
                client.chat.completions.create(
                    model=f"{LLM}:one", messages=[message(s.prompt(), s.image)], max_tokens=5
                )
                .choices[0]
                .message.content
                for s in samples[:12]
            ]

        def expected(folder):
            return lvlm.with_encoder(folder).answer(
                [s.image for s in samples[:12]], [s.prompt() for s in samples[:12]]
            )

        assert answers() == expected(encoders["one"]) != expected(encoders["two"])
        added = admin.post("/v1/encoders", json={"name": "one", "folder": str(encoders["two"])})
        assert added.status_code == 200 and added.json()["weights"] == running.towers.get("one").hash
        assert answers() == expected(encoders["two"])
        assert admin.request("DELETE", "/v1/encoders/one").status_code == 200
        assert admin.request("DELETE", "/v1/encoders/one").status_code == 404
        with pytest.raises(openai.NotFoundError):
            answers()
        other = tmp_path / "other"
        shutil.copytree(encoders["one"], other)
        text = (other / "craft.json").read_text().replace(lvlm.visual.codebook.fingerprint, "0" * 64)
        (other / "craft.json").write_text(text)
        wrong = admin.post("/v1/encoders", json={"name": "other", "folder": str(other)})
        assert (
            wrong.status_code == 409
            and "0" * 64 in wrong.text
            and lvlm.visual.codebook.fingerprint in wrong.text
        )
        for name in ("base", "auto", "a:b", "../x", ""):
            assert (
                admin.post("/v1/encoders", json={"name": name, "folder": str(encoders["one"])}).status_code
                == 400
            )
        assert admin.post("/v1/encoders", json={"name": "x"}).status_code == 400
        assert (
            admin.post("/v1/encoders", json={"name": "gone", "folder": str(tmp_path / "gone")}).status_code
            == 400
        )


def test_a_folder_that_is_replaced_answers_with_the_new_weights(models, samples, tmp_path):
    lvlm = models[LLM]
    root = tmp_path / "root"
    save_encoder(lvlm, root / "leaves", 5)
    towers = Towers(lvlm, root=root)
    old = towers.get("leaves")
    assert towers.get("leaves") is old
    save_encoder(lvlm, root / "leaves", 6)
    new = towers.get("leaves")
    assert new.hash != old.hash
    shutil.rmtree(root / "leaves")
    assert towers.get("leaves").hash == new.hash  # in memory, so still right


def test_encoders_beyond_the_limit_are_dropped_and_come_back(models, encoders):
    towers = Towers(models[LLM], encoders, limit=1)
    first = towers.get("one")
    towers.get("two")
    assert list(towers.loaded()) == ["two"]
    assert towers.get("one") is not first and towers.get("one").hash == first.hash


def test_a_wrong_codebook_is_refused_at_the_start(models, encoders, tmp_path):
    shutil.copytree(encoders["one"], tmp_path / "other")
    path, own = tmp_path / "other" / "craft.json", models[LLM].visual.codebook.fingerprint
    path.write_text(path.read_text().replace(own, "f" * 64))
    with pytest.raises(CodebookMismatchError, match="f" * 64):
        Towers(models[LLM], {"other": tmp_path / "other"})


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "no manifest", "broken manifest"])
def test_a_damaged_encoder_fails_alone(models, encoders, samples, tmp_path, damage):
    root = tmp_path / "root"
    for name in ("good", "bad"):
        shutil.copytree(encoders["one"], root / name)
    weights, manifest = root / "bad" / "model.safetensors", root / "bad" / "craft.json"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    with serving(models[LLM], {}, root=root) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        wanted = {"messages": [message("what?", samples[0].image)], "max_tokens": 2}
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=f"{LLM}:bad", **wanted)
        assert caught.value.status_code == (404 if damage == "no manifest" else 503)
        assert client.chat.completions.create(model=f"{LLM}:good", **wanted)
        assert httpx.get(f"{running.url}/v1/models").status_code == 200


def test_a_client_that_leaves_is_cancelled(server, samples):
    body = {
        "model": LLM,
        "messages": [message("Describe the image.", samples[0].image)],
        "max_tokens": 200,
        "stream": True,
    }
    before = server.front.metrics.cancelled._value.get()
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    leave(server.url, body)
    until = time.monotonic() + 20
    while server.front.metrics.cancelled._value.get() < before + 1 and time.monotonic() < until:
        time.sleep(0.05)
    assert server.front.metrics.cancelled._value.get() >= before + 1
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_full_queue_is_a_429(models, encoders, samples):
    with serving(models[LLM], encoders, waiting=1, batch_size=1) as running:
        body = {
            "model": LLM,
            "messages": [message("Describe the image.", samples[0].image)],
            "max_tokens": 60,
        }
        with ThreadPoolExecutor(12) as pool:
            replies = list(
                pool.map(
                    lambda _: httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60),
                    range(12),
                )
            )
        assert {r.status_code for r in replies} == {200, 429}
        assert all(r.headers["retry-after"] for r in replies if r.status_code == 429)


def test_a_time_limit_is_a_504(models, encoders, samples):
    with serving(models[LLM], encoders, Access(timeout=0.001)) as running:
        body = {"model": LLM, "messages": [message("what?", samples[0].image)], "max_tokens": 60}
        assert httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60).status_code == 504
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_metrics_name_every_encoder_also_when_idle(models, encoders):
    with serving(models[LLM], encoders) as running:
        page = httpx.get(f"{running.url}/metrics").text
        for name in (BASE, *encoders):
            assert f'craft_requests_total{{encoder="{name}",status="200"}} 0.0' in page
        assert 'craft_encoder_loaded{encoder="one"} 0.0' in page


def test_nothing_private_is_logged(models, encoders, samples, capfd):
    with serving(models[LLM], encoders, Access(keys=("secret-key",))) as running:
        url = uri(samples[0].image)
        for content in (url, url[:60] + "!"):
            body = {
                "model": LLM,
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": content}}]}
                ],
                "max_tokens": 2,
            }
            httpx.post(
                f"{running.url}/v1/chat/completions",
                json=body,
                headers={"Authorization": "Bearer secret-key"},
                timeout=60,
            )
    out, err = capfd.readouterr()
    assert "secret-key" not in out + err and url[22:60] not in out + err


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]), "content": json_values})
bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from([LLM, f"{LLM}:one", "x"]) | json_values,
        "messages": json_values | st.lists(messages, max_size=3),
        "max_tokens": st.integers(-1, 3) | json_values,
        "temperature": json_values,
        "n": st.integers(-1, 3) | json_values,
        "stop": json_values,
        "options": json_values,
        "stream": st.booleans() | json_values,
        "seed": json_values,
    },
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
def test_malformed_bodies_are_refused_and_the_server_lives(server, body):
    import json

    reply = httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(body), timeout=60)
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000]
)
def test_bodies_that_are_no_json_object(server, content):
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=content, timeout=60)
    assert reply.status_code == 400 and reply.json()["error"]["message"]


def test_other_routes_have_errors_in_the_same_form(server):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        reply = httpx.request(method, f"{server.url}{path}")
        assert reply.status_code == status and reply.json()["error"]["message"]


def test_the_server_answers_while_an_encoder_loads(models, encoders, samples, monkeypatch):
    from craft.serving import towers

    slow = threading.Event()
    load = towers.load_artefact
    monkeypatch.setattr(towers, "load_artefact", lambda path: slow.wait(20) and load(path))
    with serving(models[LLM], encoders) as running, ThreadPoolExecutor(1) as pool:
        body = {"messages": [message("what?", samples[0].image)], "max_tokens": 2}
        url = f"{running.url}/v1/chat/completions"
        waiting = pool.submit(httpx.post, url, json=body | {"model": f"{LLM}:one"}, timeout=60)
        assert httpx.post(url, json=body | {"model": LLM}, timeout=60).status_code == 200
        assert not waiting.done()
        slow.set()
        assert waiting.result().status_code == 200


def test_codes_and_kept_tokens_are_returned_if_wanted(client, server, samples):
    wanted = {"model": f"{LLM}:one", "messages": [message("what?", samples[0].image)], "max_tokens": 2}
    reply = client.chat.completions.create(**wanted, extra_body={"codes": True, "keep_ratio": 0.5})
    (entry,) = reply.model_extra["craft"]["encoders"]
    own = server.towers.get("one").lvlm
    assert entry["codes"] == own.encode([samples[0].image]).codes[0, :, 0].tolist()
    assert len(entry["kept"]) == 25 == reply.usage.prompt_tokens_details.image_tokens
    assert "codes" not in client.chat.completions.create(**wanted).model_extra["craft"]["encoders"][0]


def test_the_page_needs_nothing_from_elsewhere(server):
    page = httpx.get(server.url)
    assert page.headers["content-type"].startswith("text/html") and "<title>CRAFT" in page.text
    assert "http://" not in page.text and "https://" not in page.text and "//cdn" not in page.text


def test_the_model_auto_chooses_the_encoder_by_its_images(models, samples, tmp_path):
    """The encoder whose training images had such codes answers; images of another kind go to the base."""
    import torch

    lvlm = models[LLM]
    codes = lvlm.encode([s.image for s in samples]).codes
    counts = torch.stack(
        [
            torch.bincount(codes[..., n].flatten(), minlength=lvlm.visual.codebook.size)
            for n in range(codes.shape[-1])
        ]
    )
    typical = typical_score(codes, counts)
    clothes = save_encoder(lvlm, tmp_path / "clothes", 3, base_counts=counts, typical_score=typical)
    rolled = counts.roll(7, dims=1)
    other = save_encoder(lvlm, tmp_path / "other", 4, base_counts=rolled, typical_score=typical)
    with serving(lvlm, {"clothes": clothes, "other": other}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)

        def chosen(image):
            wanted = {"model": f"{LLM}:auto", "messages": [message("what?", image)], "max_tokens": 2}
            (entry,) = client.chat.completions.create(**wanted).model_extra["craft"]["encoders"]
            return entry["name"]

        names = [chosen(sample.image) for sample in samples[:20]]
        assert names.count("clothes") >= 15 and "other" not in names
        others = [chosen(sample.image) for sample in craft.data.load_data("scenes").test[:12]]
        assert others.count(BASE) > others.count("clothes") and "other" not in others
        page = httpx.get(f"{running.url}/metrics").text
        assert 'craft_routed_images_total{encoder="clothes"}' in page
