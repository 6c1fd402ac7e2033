"""What tests of control links stand on: each carrier that this machine has by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.rdma import End
from tests.transport.served_verbs import open_devices

Ends = tuple[End, End]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["unix", "tcp", pytest.param("verbs", marks=pytest.mark.rdma)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nobody listens yet; over each carrier."""
    if request.param == "unix":
        return f"unix:{tmp_path}/sock"
    if request.param == "verbs":
        address: str = request.getfixturevalue("verbs_address")
        return address
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp:127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="session", autouse=True)
def rdma_is_open(request: pytest.FixtureRequest) -> None:
    """What librdmacm opens it keeps open for the life of a process: that is no test's leak."""
    if "RFAAS_GUEST" in os.environ or request.config.getoption("--rdma-device"):
        for end in request.getfixturevalue("rdma_ends"):
            open_devices(end)


@pytest.fixture
def verbs_address(rdma_ends: Ends) -> str:
    """The same over RDMA, at the second device."""
    from rfaas.native._rdma_stream import Listener

    host = rdma_ends[1].address
    free = Listener(host, 0, 1)
    port = free.port
    free.close()
    return f"verbs:{host}:{port}"


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both ends of a connection over sockets."""
    is_tcp = request.param == "tcp"
    one, other = tcp_pair() if is_tcp else socket.socketpair(socket.AF_UNIX)
    with one, other:
        yield one, other


def tcp_pair() -> Pair:
    """The same over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
        return one, other
