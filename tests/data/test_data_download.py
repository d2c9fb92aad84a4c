"""`--download` and the server connect to public addresses alone."""

import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from craft.core.errors import CraftError, DataError
from craft.data import Wanted, prepare
from craft.data.download import download, is_public
from craft.serving.pictures import read_image
from craft.serving.settings import Limits
from replicas import png

PUBLIC, CONTENT = "93.184.215.14", png(7)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.1",
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:192.168.0.1",
        "::127.0.0.1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "64:ff9b::10.0.0.1",
        "2001:db8::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.fixture
def server() -> Iterator[tuple[int, list[str]]]:
    """A server on this machine, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
            else:
                self.send_response(200)
            content = b"" if self.path.startswith("/to/") else CONTENT if "png" in self.path else b"secret"
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd.server_port, asked
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name -> address; without proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    addresses: dict[str, str] = {}
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: object, **options: object) -> list:
        return resolve(addresses.get(host, host), port, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return addresses


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "user@127.0.0.1",
        "inside.example",
    ],
)
def test_private_hosts_are_refused_before_anything_is_sent(
    tmp_path: Path, server: tuple[int, list[str]], names: dict[str, str], host: str
) -> None:
    port, asked = server
    names["inside.example"] = "127.0.0.1"
    with pytest.raises(DataError, match=r"public addresses only|cannot be downloaded"):
        download(f"http://{host}:{port}/a.png", tmp_path)
    assert asked == [] and list(tmp_path.iterdir()) == []


def test_a_row_with_a_private_url_is_named(tmp_path: Path, server: tuple[int, list[str]]) -> None:
    row = {"image": f"http://127.0.0.1:{server[0]}/a.png", "question": "What?", "answer": "a"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"q\.jsonl:1: 127\.0\.0\.1 .*private network.*name their paths"):
        prepare(tmp_path / "q.jsonl", None, tmp_path / "m", Wanted(download=True), progress=False)
    assert server[1] == []


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, names: dict[str, str], server: tuple[int, list[str]]) -> str:
    """A URL of the server as if it had a public address, which other names of it do not have."""
    connect = socket.create_connection
    names["outside.example"] = PUBLIC

    def create_connection(address: tuple[str, int], *args: object) -> socket.socket:
        host, port = address
        return connect(("127.0.0.1" if host == PUBLIC else host, port), *args)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", create_connection)
    return f"http://outside.example:{server[0]}"


def test_public_hosts_are_read(tmp_path: Path, outside: str) -> None:
    assert download(f"{outside}/a.png", tmp_path).read_bytes() == CONTENT
    assert download(f"{outside}/to/{outside}/b.png", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{port}/x", "http://[::1]:{port}/x", "http://localhost:{port}/x", "https://10.0.0.1/x"],
)
def test_redirects_to_private_hosts_are_refused(
    tmp_path: Path, outside: str, server: tuple[int, list[str]], target: str
) -> None:
    target = target.format(port=server[0])
    with pytest.raises(DataError, match="public addresses only"):
        download(f"{outside}/to/{target}", tmp_path)
    assert server[1] == [f"/to/{target}"]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://outside.example/a", "data:,a", "gopher://a/b"]
)
def test_other_schemes_are_refused(tmp_path: Path, outside: str, target: str) -> None:
    for url in (target, f"{outside}/to/{target}"):
        with pytest.raises(DataError, match="cannot be downloaded"):
            download(url, tmp_path)


def test_what_is_no_image_is_not_kept(tmp_path: Path, outside: str) -> None:
    with pytest.raises(DataError, match=r"outside\.example.*/secret.* is not an image"):
        download(f"{outside}/secret", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_resolved_once(tmp_path: Path, outside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it cannot be public when it is checked and private when it is used."""
    resolve, asked = socket.getaddrinfo, list[str]()

    def getaddrinfo(host: str, *args: object, **options: object) -> list:
        asked.append(host)
        return resolve(host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    download(f"{outside}/a.png", tmp_path)
    assert asked.count("outside.example") == 1


def test_behind_a_proxy_private_urls_are_refused_too(
    tmp_path: Path, server: tuple[int, list[str]], names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server[0]}")
    names["outside.example"] = PUBLIC
    assert download("http://outside.example/a.png", tmp_path).read_bytes() == CONTENT
    assert server[1] == ["http://outside.example/a.png"]
    with pytest.raises(DataError, match="public addresses only"):
        download("http://10.0.0.1/a.png", tmp_path)


# `craft serve --allow-url`


def test_the_server_reads_images_of_allowed_hosts(outside: str) -> None:
    _, image = read_image(f"{outside}/a.png", Limits(), {"outside.example"})
    assert image.size == Image.open(io.BytesIO(CONTENT)).size
    with pytest.raises(CraftError, match=r"fetches no image from 'outside\.example' \(allowed hosts: other"):
        read_image(f"{outside}/a.png", Limits(), {"other.example"})
    with pytest.raises(CraftError, match=r"more than 10 bytes"):
        read_image(f"{outside}/a.png", Limits(body=10), {"outside.example"})


def test_the_server_follows_no_redirect(outside: str, server: tuple[int, list[str]]) -> None:
    with pytest.raises(CraftError, match="answered with status 302"):
        read_image(f"{outside}/to/{outside}/b.png", Limits(), {"outside.example"})
    assert server[1] == [f"/to/{outside}/b.png"]


def test_a_host_that_turns_private_is_not_reached(
    outside: str, server: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name is public when it is checked, and this machine when it is used."""
    resolve, asked = socket.getaddrinfo, list[str]()

    def getaddrinfo(host: str, *args: object, **options: object) -> list:
        asked.append(host)
        again = asked.count("outside.example") > 1
        return resolve("127.0.0.1" if again else host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", _refused_if_public)
    with pytest.raises(CraftError, match=r"outside\.example cannot be fetched"):
        read_image(f"{outside}/a.png", Limits(), {"outside.example"})
    assert asked == ["outside.example"] and server[1] == []


def _refused_if_public(address: tuple[str, int], *_: object) -> socket.socket:
    assert address[0] == PUBLIC, "the second address was used"
    raise ConnectionRefusedError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "inside.example"])
def test_a_private_host_is_refused_even_if_it_is_allowed(
    server: tuple[int, list[str]], names: dict[str, str], host: str
) -> None:
    names["inside.example"] = "10.0.0.1"
    with pytest.raises(CraftError, match="private address"):
        read_image(f"http://{host}:{server[0]}/a.png", Limits(), {host})
    assert server[1] == []
