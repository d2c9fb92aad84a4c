"""Faults of clients, images, encoders and engines: the right status each, and the next reply is right."""

import base64
import io
import json
import shutil
import socket
import struct
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from craft.core.errors import DataError
from craft.data.images import open_image
from craft.evaluation.engine import Engine
from craft.serving.settings import Access
from data.damage import DAMAGE, pictures
from scripts.stand_in_engine import stand_in
from serving.conftest import save_encoder
from serving.server import leave, listening, message, serving

LLM = "craft-tiny/llama"
WANTED = {"model": LLM, "max_tokens": 4}


@pytest.fixture(scope="module")
def server(models, encoders):
    with serving(models[LLM], encoders, Access(timeout=30.0)) as running:
        yield running


def post(server, body, **options) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, **options)


def check_next(server, models, samples) -> None:
    """The server lives, and its next reply is right."""
    sample = samples[0]
    reply = post(server, WANTED | {"messages": [message(sample.prompt(), sample.image)]})
    assert reply.status_code == 200
    (expected,) = models[LLM].answer([sample.image], [sample.prompt()], 4)
    assert reply.json()["choices"][0]["message"]["content"] == expected
    assert httpx.get(f"{server.url}/health").status_code == 200


def asked(address, question="what?") -> dict:
    """A body with an image by its address."""
    image = {"type": "image_url", "image_url": {"url": address}}
    return WANTED | {"messages": [{"role": "user", "content": [image, {"type": "text", "text": question}]}]}


def as_uri(content: bytes, kind="png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Images


def saved(kind, **options) -> bytes:
    """A small image in a format."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def changed(content: bytes, at: int, by: bytes) -> bytes:
    return content[:at] + by + content[at + len(by) :]


def tiff(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "TIFF")
    return stream.getvalue()


BROKEN = {
    "cut WebP": saved("WEBP")[:200],
    "cut GIF": saved("GIF")[:700],
    "cut TIFF": saved("TIFF")[:3000],
    "cut BMP": saved("BMP")[:3000],
    "PNG without its end of data": saved("PNG")[:90],
    "PNG of a wrong checksum": changed(saved("PNG"), 29, b"\0\0\0\0"),
    "JPEG that is only a head": saved("JPEG")[:30],
    "BMP of 60000 x 60000": changed(saved("BMP"), 18, struct.pack("<ii", 60000, 60000)),
    "TIFF with a number that is none": tiff(np.full((9, 9), np.nan, np.float32)),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "PDF": b"%PDF-1.4\n",
    "a pickle": b"\x80\x04\x95\x0b\0\0\0",
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_a_400(server, models, samples, kind):
    reply = post(server, asked(as_uri(BROKEN[kind])))
    assert reply.status_code == 400, reply.text
    assert "image" in reply.json()["error"]["message"]
    check_next(server, models, samples)


@pytest.mark.parametrize("kind", [name for name in DAMAGE if hasattr(pictures, name)])
def test_damaged_pictures_of_data_sets_are_a_400(server, models, samples, tmp_path, kind):
    make, _ = DAMAGE[kind]
    make(tmp_path)
    sent = 0
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        try:
            open_image(path)
        except DataError:
            reply = post(server, asked(as_uri(path.read_bytes())))
            assert reply.status_code == 400 and str(tmp_path) not in reply.text
            sent += 1
    assert sent
    check_next(server, models, samples)


def exif(turn: int) -> Image.Exif:
    form = Image.Exif()
    form[0x0112] = turn
    return form


GREY = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
UNUSUAL = {
    "16-bit grey": tiff(GREY.astype(np.uint16)),
    "32-bit grey": tiff(GREY.astype(np.int32)),
    "floating point": tiff((GREY / 65535).astype(np.float32)),
    "turned by EXIF": saved("JPEG", exif=exif(6)),
    "animated": saved("GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]),
}
for mode in ("L", "1", "P", "LA", "RGBA", "CMYK"):
    picture, stream = Image.open(io.BytesIO(saved("PNG"))), io.BytesIO()
    form = "TIFF" if mode == "CMYK" else "PNG"
    (picture.convert("L").convert("LA") if mode == "LA" else picture.convert(mode)).save(stream, form)
    UNUSUAL[mode] = stream.getvalue()


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_image_is_read_as_everywhere(server, models, kind):
    reply = post(server, asked(as_uri(UNUSUAL[kind], "whatever"), "Describe it."))
    (expected,) = models[LLM].answer([UNUSUAL[kind]], ["Describe it."], 4)
    assert reply.json()["choices"][0]["message"]["content"] == expected


# Bodies


REPEATED = {
    "model": f'{{"model": "x", "model": "{LLM}", "messages": [{{"role": "user", "content": "hi"}}]}}',
    "content": f'{{"model": "{LLM}", "messages": [{{"role": "user", "content": "a", "content": "b"}}]}}',
    "max_tokens": f'{{"max_tokens": 1, "model": "{LLM}", "max_tokens": 2, '
    '"messages": [{"role": "user", "content": "hi"}]}',
}


@pytest.mark.parametrize("key", REPEATED)
def test_a_repeated_key_is_refused_by_name(server, key):
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=REPEATED[key], timeout=60)
    assert reply.status_code == 400 and f"'{key}' twice" in reply.json()["error"]["message"]


ODD_TEXTS = ["\ud800", "a\ud83dz", "\0", "\x1b[31m", "<s></s>", "<image>", "🙂" * 5, "\u202e", "\n" * 9]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_are_answered_or_refused(server, models, samples, text):
    body = WANTED | {"messages": [{"role": "user", "content": text}]}
    for other in ({}, {"options": [text + "a", "b"]}, {"stop": text}, {"model": text}):
        content = json.dumps(body | other)
        reply = httpx.post(f"{server.url}/v1/chat/completions", content=content, timeout=60)
        assert reply.status_code in (200, 400, 404), reply.text
        assert reply.status_code == 200 or reply.json()["error"]["message"]
    check_next(server, models, samples)


@contextmanager
def open_request(server, length: int):
    """A connection that has sent the head of a request."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 30) as line:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        line.sendall(head.encode())
        yield line


def test_a_body_that_comes_byte_by_byte_is_read(server, models, samples):
    content = json.dumps(WANTED | {"messages": [{"role": "user", "content": "hi"}]}).encode()
    with open_request(server, len(content)) as line:
        for byte in content:
            line.sendall(bytes([byte]))
        assert line.recv(100).startswith(b"HTTP/1.1 200")
    check_next(server, models, samples)


def test_a_body_that_never_ends_is_a_408(models, encoders, samples):
    with serving(models[LLM], encoders, Access(timeout=1.0)) as running:
        with open_request(running, 100) as line:
            line.sendall(b"{")
            assert line.recv(100).startswith(b"HTTP/1.1 408")
        httpx.post(f"{running.url}/v1/completions", json=WANTED | {"prompt": "hi"}, timeout=60)
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_a_client_that_leaves_within_its_body_costs_nothing(server, models, samples, capfd):
    for part in (b"", b'{"model": "craft'):
        with open_request(server, 1000) as line:
            line.sendall(part)
    time.sleep(0.2)
    check_next(server, models, samples)
    assert "Disconnect" not in capfd.readouterr().err


# Clients


def test_sixty_four_clients_that_all_leave(models, encoders, samples):
    with serving(models[LLM], encoders, waiting=100) as running:
        for number in range(64):
            sample = samples[number]
            body = WANTED | {"messages": [message(sample.prompt(), sample.image)], "max_tokens": 200}
            leave(running.url, body | {"stream": number % 2 == 1, "model": f"{LLM}:one"})
        check_next(running, models, samples)
        assert running.worker.queued == 0


def test_a_stop_text_that_tokens_divide_ends_the_answer(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    wanted = {
        "model": LLM,
        "messages": [{"role": "user", "content": "Describe a dog."}],
        "max_tokens": 24,
        "temperature": 1.0,
        "seed": 3,
    }
    choice = client.chat.completions.create(**wanted, logprobs=True).choices[0]
    whole, tokens = choice.message.content, [entry.token for entry in choice.logprobs.content]
    edge = len("".join(tokens[:4]).lstrip())
    stop = whole[edge - 2 : edge + 2]
    assert len(stop) == 4 and whole.find(stop) >= 0
    expected = whole[: whole.find(stop)]
    reply = client.chat.completions.create(**wanted, stop=stop)
    assert reply.choices[0].message.content == expected and reply.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(**wanted, stop=[stop, "§§"], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected


def test_three_streamed_answers_are_those_of_the_whole_reply(server, samples):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    wanted = {
        "model": f"{LLM}:one",
        "messages": [message("Describe it.", samples[0].image)],
        "max_tokens": 12,
        "temperature": 1.5,
        "seed": 5,
        "n": 3,
    }
    whole = client.chat.completions.create(**wanted)
    texts, ends = ["", "", ""], ["", "", ""]
    for chunk in client.chat.completions.create(**wanted, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices] and len(set(texts)) > 1
    assert ends == [choice.finish_reason for choice in whole.choices]


# Encoders


def test_an_encoder_that_is_copied_while_it_is_asked_for(models, encoders, samples, tmp_path):
    """503 until its last byte is there; then the new weights answer, and never others."""
    root, lvlm = tmp_path / "root", models[LLM]
    (root / "new").mkdir(parents=True)
    names = sorted(path.name for path in encoders["one"].iterdir())
    body = WANTED | {"model": f"{LLM}:new", "messages": [message("what?", samples[0].image)]}
    with serving(lvlm, {}, root=root) as running:
        assert post(running, body).status_code == 404
        for name in names:
            content = (encoders["one"] / name).read_bytes()
            for part in (content[: len(content) // 2], content):
                (root / "new" / name).write_bytes(part)
                reply = post(running, body)
                if (name, part) != (names[-1], content):
                    assert reply.status_code in (404, 503) or name == "README.md", (name, reply.text)
        assert reply.status_code == 200
        assert reply.headers["x-craft-encoder"] == f"new;{running.towers.get('new').hash}"
        (own,) = lvlm.with_encoder(encoders["one"]).answer([samples[0].image], ["what?"], 4)
        assert reply.json()["choices"][0]["message"]["content"] == own


def test_new_weights_under_an_old_manifest_never_answer(models, encoders, samples, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(encoders["one"], folder)
    shutil.copy(encoders["two"] / "model.safetensors", folder)
    body = WANTED | {"model": f"{LLM}:mixed", "messages": [message("what?", samples[0].image)]}
    with serving(models[LLM], {"mixed": folder}) as running:
        assert post(running, body).status_code == 503
        check_next(running, models, samples)


def test_a_folder_that_is_replaced_under_load_answers_with_old_or_new_weights(models, samples, tmp_path):
    lvlm, folder = models[LLM], tmp_path / "leaves"
    hashes = []
    for seed in (5, 6):
        save_encoder(lvlm, tmp_path / f"{seed}", seed)
        hashes.append(json.loads((tmp_path / f"{seed}" / "craft.json").read_text())["tower"])
    shutil.copytree(tmp_path / "5", folder)
    with serving(lvlm, {"leaves": folder}) as running:
        body = WANTED | {"model": f"{LLM}:leaves", "messages": [message("what?", samples[0].image)]}
        replies = [post(running, body)]
        thread = threading.Thread(target=lambda: [replies.append(post(running, body)) for _ in range(20)])
        thread.start()
        shutil.copytree(tmp_path / "6", folder, dirs_exist_ok=True)
        thread.join()
        replies.append(post(running, body))
    answered = [r.headers["x-craft-encoder"].partition(";")[2] for r in replies if r.status_code == 200]
    assert {r.status_code for r in replies} <= {200, 503}
    assert answered == sorted(answered, key=hashes.index)  # old ones, then new ones
    assert answered[0] == hashes[0] and answered[-1] == hashes[1]


# Engines


@contextmanager
def engine_that_dies():
    """The port of an engine that sends two tokens and is gone, with its port."""
    door = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for number in range(3):
            line, _ = door.accept()
            with line:
                asked = line.recv(2**20)
                if number == 0 or b"GET" in asked[:4]:
                    content = json.dumps({"data": [{"id": "the-llm"}]}).encode()
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
                    line.sendall(head.encode() + content)
                    continue
                line.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for text in ("one", " two"):
                    event = f"data: {json.dumps({'choices': [{'index': 0, 'text': text}]})}\n\n".encode()
                    line.sendall(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                time.sleep(0.2)
                door.close()
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield door.getsockname()[1]
    door.close()
    thread.join(10)


def test_an_engine_that_dies_within_a_stream_ends_it_with_an_error(models, encoders, samples):
    with (
        engine_that_dies() as port,
        serving(models[LLM], encoders, engine=Engine(f"http://127.0.0.1:{port}")) as running,
    ):
        body = WANTED | {"messages": [message("what?", samples[0].image)], "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=30) as reply:
            assert reply.status_code == 200
            events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
        assert "cannot be reached" in events[-1]["error"]["message"]
        text = "".join(c["delta"].get("content", "") for e in events[:-1] for c in e["choices"])
        assert text == "one two"
        assert httpx.get(f"{running.url}/ready", timeout=30).status_code == 503
        with listening(stand_in(models[LLM]), port):
            assert httpx.get(f"{running.url}/ready", timeout=30).status_code == 200
            check_next(running, models, samples)
