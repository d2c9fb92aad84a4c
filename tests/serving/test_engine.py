"""An engine that answers embedded prompts: a small server in vLLM's protocol stands in for vLLM."""

import base64
import io

import httpx
import openai
import pytest
import torch

from craft.core.errors import CraftError
from craft.evaluation.engine import Engine, packed
from scripts.stand_in_engine import stand_in
from serving.server import listening, message, serving

LLM = "craft-tiny/llama"


def test_answers_behind_an_engine_are_those_of_the_model(models, encoders, samples):
    lvlm, seen = models[LLM], []
    with (
        listening(stand_in(lvlm, seen)) as port,
        serving(lvlm, encoders, engine=Engine(f"http://127.0.0.1:{port}/v1")) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for tower in encoders:
            own = running.towers.get(tower).lvlm
            for sample in samples[:10]:
                wanted = {
                    "model": f"{LLM}:{tower}",
                    "messages": [message(sample.prompt(), sample.image)],
                    "max_tokens": 5,
                }
                expected = own.answer([sample.image], [sample.prompt()])[0]
                reply = client.chat.completions.create(**wanted)
                assert reply.choices[0].message.content == expected
                chunks = client.chat.completions.create(**wanted, stream=True)
                pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
                assert "".join(pieces) == expected
        assert reply.usage.completion_tokens >= 1
        with pytest.raises(openai.BadRequestError, match="embedded engine"):
            client.chat.completions.create(**wanted, extra_body={"options": ["a", "b"]})
    assert {body["model"] for body in seen} == {"the-llm"}
    assert all("prompt" not in body and "messages" not in body for body in seen)


def test_an_engine_that_is_gone_is_a_502_and_comes_back(models, encoders, samples):
    lvlm, seen = models[LLM], []
    with listening(stand_in(lvlm, seen)) as port:
        pass
    with serving(lvlm, encoders, engine=Engine(f"http://127.0.0.1:{port}")) as running:
        body = {"model": LLM, "messages": [message("what?", samples[0].image)], "max_tokens": 2}
        url = f"{running.url}/v1/chat/completions"
        gone = httpx.post(url, json=body, timeout=30)
        assert gone.status_code == 502 and "cannot be reached" in gone.json()["error"]["message"]
        assert httpx.get(f"{running.url}/ready").status_code == 503
        with listening(stand_in(lvlm, seen), port):
            assert httpx.post(url, json=body, timeout=30).status_code == 200
            assert httpx.get(f"{running.url}/ready").status_code == 200


def test_the_words_of_an_engine_that_refuses_are_passed_on(models, encoders, samples):
    lvlm = models[LLM]
    with (
        listening(stand_in(lvlm, [])) as port,
        serving(lvlm, encoders, engine=Engine(f"http://127.0.0.1:{port}", "another")) as running,
    ):
        body = {"model": LLM, "messages": [message("what?", samples[0].image)], "max_tokens": 2}
        reply = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=30)
        assert reply.status_code == 502 and "no model another" in reply.json()["error"]["message"]


def test_a_packed_prompt_holds_the_prompt_alone():
    """A view must not carry the storage of the whole batch to the engine."""
    large = torch.randn(64, 8)
    content = base64.b64decode(packed(large[:2]))
    assert torch.equal(torch.load(io.BytesIO(content), weights_only=True), large[:2])
    assert len(content) < 2048


def test_an_evaluation_and_craft_ask_use_the_engine_too(models, samples, tmp_path):
    from craft.data.images import open_image
    from craft.evaluation.run import evaluate_lvlm
    from craft.recipes.ask import ask

    lvlm, few = models[LLM], samples[:12]
    pictures = []
    for number, sample in enumerate(few[:4]):
        pictures.append(str(tmp_path / f"{number}.png"))
        open_image(sample.image).save(pictures[-1])
    own = evaluate_lvlm(lvlm, few, progress=False)
    written = ask(lvlm, pictures, question="What is shown?", max_new_tokens=6).rows
    with listening(stand_in(lvlm, [])) as port:
        url = f"http://127.0.0.1:{port}"
        report = evaluate_lvlm(lvlm, few, progress=False, engine=url)
        assert [r["prediction"] for r in report.samples] == [r["prediction"] for r in own.samples]
        assert ask(lvlm, pictures, question="What is shown?", max_new_tokens=6, engine=url).rows == written
        with pytest.raises(CraftError, match="scores no options"):
            evaluate_lvlm(lvlm, few, progress=False, engine=url, protocol="options")
    with pytest.raises(CraftError, match="cannot be reached"):
        evaluate_lvlm(lvlm, few, progress=False, engine=url)
