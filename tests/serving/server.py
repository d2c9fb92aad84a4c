"""A real server on loopback, in a thread of the test's process."""

import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from craft.data.images import open_image
from craft.serving.app import make_app
from craft.serving.settings import Access
from craft.serving.towers import Towers
from craft.serving.worker import Worker


@contextmanager
def serving(lvlm, encoders, settings=None, engine=None, root=None, limit=8, **worker):
    """The address of a server with `front` and `worker` as attributes of what is yielded."""
    towers = Towers(lvlm, encoders, root, limit)
    thread = Worker(towers.base, **worker).start()
    app = make_app(towers, thread, settings or Access(), engine)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    runner = threading.Thread(target=server.run, daemon=True)
    runner.start()
    while not server.started:
        time.sleep(0.01)
    server.url = f"http://127.0.0.1:{port}"
    server.front, server.worker, server.towers = app.state.front, thread, towers
    try:
        yield server
    finally:
        server.should_exit = True
        runner.join(30)
        thread.stop()


@contextmanager
def listening(app, port=0):
    """The port at which an application answers."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)


def leave(url, body) -> None:
    """Ask a question and close the connection without reading the answer."""
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as line:
        line.sendall(head.encode() + content)


def uri(image) -> str:
    """An image as a data URI."""
    stream = io.BytesIO()
    open_image(image).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def message(question, *images):
    """A user's message with images."""
    parts = [{"type": "image_url", "image_url": {"url": uri(image)}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
