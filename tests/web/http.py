"""HTTP as tests speak it: over a real socket, byte by byte where they want to."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.harness.processes import PATIENCE_S, Child
from tests.harness.site import Site


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """What a fault says."""
        return str(self.json["text"])


class Web:
    """The web of a resource manager that runs as a process."""

    def __init__(self, site: Site, manager: Child, url: str) -> None:
        self.site = site
        self.manager = manager
        self.url = url
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.address = (parts.hostname, parts.port)

    def key(self, role: str) -> str:
        """The key of that role."""
        lines = (self.site.state / "http-keys").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(f"{role} "))

    def ask(
        self, path: str, method: str = "GET", role: str = "read", body: bytes | None = None
    ) -> Answer:
        """One request with the key of a role, "" for none."""
        headers = {"Authorization": f"Bearer {self.key(role)}"} if role else {}
        return self.send(method, path, headers, body)

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> Answer:
        """One request as it is given."""
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    @contextmanager
    def socket(self) -> Iterator[socket.socket]:
        """A connection for bytes of one's own."""
        with socket.create_connection(self.address, PATIENCE_S) as sock:
            yield sock

    @contextmanager
    def tls(self, certificate: Path) -> Iterator[ssl.SSLSocket]:
        """The same over TLS, trusting that certificate alone."""
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False
        with self.socket() as sock, context.wrap_socket(sock) as wrapped:
            yield wrapped


def serve(site: Site, role: str = "resource-manager", *flags: str) -> Web:
    """Start a manager with its web at a free port."""
    site.set(http__address="127.0.0.1:0")
    child = site.start_unready(role, *flags)
    line = child.lines.until("resource manager ready")
    if role == "all":
        child.lines.until("executor ")
    url = next(word for word in line.split() if word.startswith("http"))
    return Web(site, child, url)


def read_all(sock: socket.socket) -> bytes:
    """What comes until the other side ends it, also by a reset."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found
