"""What tests of control links stand on: each carrier that this machine has by itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["unix", "tcp"])
def scheme(request: pytest.FixtureRequest) -> str:
    """What carries the links of a test."""
    name: str = request.param
    return name


@pytest.fixture
def address(scheme: str, tmp_path: Path) -> str:
    """Where nobody listens yet."""
    if scheme == "unix":
        return f"unix:{tmp_path}/sock"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp:127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def pair(scheme: str) -> Iterator[Pair]:
    """Both ends of a connection."""
    one, other = tcp_pair() if scheme == "tcp" else socket.socketpair(socket.AF_UNIX)
    with one, other:
        yield one, other


def tcp_pair() -> Pair:
    """The same over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
        return one, other
