"""Images from URLs, for `craft data prepare --download` and `craft serve`: from public addresses only.

A table or a request may come from anybody, and the machine that reads it may reach servers that nobody
outside can (a router, a cloud's metadata service). So CRAFT resolves every name itself, refuses addresses
that are not public, and connects to the address that it has checked, also after a redirect.
"""

import hashlib
import http.client
import ipaddress
import socket
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from craft.core.errors import DataError
from craft.core.files import atomic_write_bytes
from craft.data.images import open_image

MOST, TIMEOUT = 64 * 2**20, 30.0
"""The most bytes of one downloaded image, and the seconds to wait for its server."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def download(url: str, folder: Path) -> Path:
    """The file with the image of a URL, which is fetched once into the folder.

    Raises:
        DataError: the URL is not http(s), or its server is not public; the server does not answer, refuses,
            or sends too much, too little, or no image.
    """
    path = folder / hashlib.sha256(url.encode("utf-8")).hexdigest()[:32]
    if path.is_file():
        return path
    try:
        content, missing = fetch(url, MOST, TIMEOUT)
    except FAULTS as error:
        raise DataError(f"{url} cannot be downloaded ({error}). Remove it, or try again.") from error
    if len(content) > MOST:
        raise DataError(f"{url} sends more than {MOST // 2**20} MiB; no image is so large.")
    if missing:
        raise DataError(f"{url} was cut short by {missing} bytes. Try again.")
    open_image(content, url)  # an error page is not kept
    atomic_write_bytes(path, content)
    return path


FAULTS = (urllib.error.URLError, http.client.HTTPException, OSError, ValueError)
"""What `fetch` raises if a server does not answer as it should."""


def fetch(url: str, most: int, timeout: float, redirects: bool = True) -> tuple[bytes, int]:
    """The content at a URL, up to `most` + 1 bytes, and how many announced bytes are missing.

    Args:
        url: http or https.
        most: the number of bytes that are allowed.
        timeout: seconds to wait for the server.
        redirects: follow them.

    Raises:
        DataError: the server, or one that it leads to, is not public.
        urllib.error.URLError: or another of `FAULTS`.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "craft"})
    with _opener(redirects).open(request, timeout=timeout) as response:
        return response.read(most + 1), response.length or 0


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Private, loopback, link-local, shared, reserved and multicast addresses are not, and neither are IPv6
    addresses that stand for such an IPv4 address (mapped, compatible, 6to4, Teredo, NAT64).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner is None and (ip in _NAT64 or 1 < int(ip) < 2**32):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def public_addresses(host: str, port: int) -> list[str]:
    """The IP addresses of a host, all of them public.

    Raises:
        DataError: one of them is not.
        OSError: the name cannot be resolved.
    """
    addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if hidden := [address for address in addresses if not is_public(address)]:
        raise DataError(
            f"{host} is {hidden[0]}, an address of this machine or a private network, and CRAFT downloads "
            "from public addresses only. Fetch such images yourself, and name their paths instead of URLs."
        )
    return addresses


def _connect(host: str, port: int, timeout: Any) -> socket.socket:
    """A connection to the first address of the host that answers."""
    failure: OSError = OSError(f"{host} has no address")
    for address in public_addresses(host, port):
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as error:
            failure = error
    raise failure


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _connect(self.host, self.port, self.timeout)


class _SafeConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        plain = _connect(self.host, self.port, self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


class _Handler(urllib.request.HTTPHandler):
    """Connects to public addresses. A proxy, which is the user's, may be anywhere and resolves names itself;
    then CRAFT refuses what it can resolve, too."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        url, safe = urlsplit(req.full_url), req.type == "https"
        if req.host == url.netloc:
            return self.do_open(_SafeConnection if safe else _Connection, req)
        with suppress(OSError):
            public_addresses(str(url.hostname), 0)
        return self.do_open(http.client.HTTPSConnection if safe else http.client.HTTPConnection, req)

    https_open = http_open
    https_request = urllib.request.HTTPHandler.http_request


def _opener(redirects: bool) -> urllib.request.OpenerDirector:
    """Opens http and https alone: urllib's handlers of file:, ftp: and data: are not there."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        *([urllib.request.HTTPRedirectHandler()] if redirects else []),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
        _Handler(),
    ):
        opener.add_handler(handler)
    return opener
