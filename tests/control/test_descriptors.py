"""Descriptors that travel over control links, and addresses: none leaks, none is stolen."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.control import link, sockets
from rfaas.control.aio import AsyncLink
from rfaas.control.link import Link
from rfaas.errors import (
    AddressInUseError,
    ConfigError,
    PeerLostError,
    ProtocolError,
    RfaasError,
    SystemCallError,
    UnavailableError,
)
from rfaas.paths import socket_path
from rfaas.proto.codec import encode
from rfaas.proto.messages import (
    AdoptLink,
    SendLibrary,
)
from tests.control.conftest import Pair
from tests.control.peers import HELLO, NOTICE, served


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Descriptors travel through Unix sockets alone."""
    return f"unix:{tmp_path}/sock"


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The same for both ends of a connection."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        yield one, other


class TestDescriptors:
    def test_there_and_back(self, address: str, tmp_path: Path) -> None:
        def client() -> None:
            peer = link.connect(address, HELLO)
            (tmp_path / "file").write_text("what it holds")
            with open(tmp_path / "file") as file:
                for _ in range(20):
                    peer.request(AdoptLink(), (file.fileno(),) * 3)
                    fds = peer.take_fds()
                    assert len(fds) == 3
                    assert not any(map(os.get_inheritable, fds))
                    assert os.pread(fds[2], 100, 0) == b"what it holds"
                    for fd in fds:
                        os.close(fd)
            assert peer.take_fds() == []
            peer.close()

        served(address, client)

    def test_closed_with_a_link_that_did_not_take_them(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        reader, writer = os.pipe()
        peer = Link(pair[0], "a peer")
        sockets.send(pair[1], encode(NOTICE), (writer, writer))
        os.close(writer)
        assert peer.poll()
        peer.close()
        peer.close()
        assert os.read(reader, 1) == b""  # nobody has the other end any more
        os.close(reader)

    def test_queued_ones_are_closed_when_the_peer_goes(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        reader, writer = os.pipe()

        async def run() -> None:
            peer = AsyncLink(pair[0], "a peer")
            part = SendLibrary(
                lease="0" * 32, sha256="0" * 64, size_bytes=1, offset=0, data=bytes(40000)
            )
            for _ in range(20):
                peer.send(part, [writer])
            pair[1].close()
            await peer.drain()
            await peer.close()
            await peer.close()
            with pytest.raises(PeerLostError, match="closed"):
                peer.send(NOTICE, [writer])

        asyncio.run(run())
        os.close(writer)
        assert os.read(reader, 1) == b""
        os.close(reader)

    def test_more_than_anybody_needs(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """A peer cannot fill our table with what nobody takes."""
        reader, writer = os.pipe()
        peer = Link(pair[0], "a peer")
        for _ in range(sockets.FDS_MAX):
            sockets.send(pair[1], encode(NOTICE), (writer,))
            peer.poll()
        sockets.send(pair[1], encode(NOTICE), (writer,))
        with pytest.raises(ProtocolError, match=f"more than {sockets.FDS_MAX} descriptors"):
            peer.poll()
        assert len(peer.notices) == sockets.FDS_MAX
        peer.close()
        os.close(writer)
        assert os.read(reader, 1) == b""
        os.close(reader)

    def test_many_in_one_message(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """The kernel closes those that there is no room for."""
        reader, writer = os.pipe()
        peer = Link(pair[0], "a peer")
        sockets.send(pair[1], encode(NOTICE), (writer,) * 50)
        try:
            peer.poll()
        except ProtocolError:
            pass
        peer.close()
        os.close(writer)
        assert os.read(reader, 1) == b""
        os.close(reader)


class TestAddresses:
    def test_socket_is_the_owners_alone(self, address: str) -> None:
        path = socket_path(address)

        def client() -> None:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

        served(address, client)
        assert not os.path.exists(path)

    def test_a_stale_socket_is_replaced(self, address: str) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(socket_path(address))
        served(address, lambda: link.connect(address, HELLO).close())

    def test_a_live_one_is_refused(self, address: str) -> None:
        def client() -> None:
            with pytest.raises(AddressInUseError, match="somebody listens") as refused:
                sockets.listen(address)
            assert refused.value.hint
            link.connect(address, HELLO).close()  # it lives on

        served(address, client)

    def test_a_file_is_left_alone(self, address: str) -> None:
        path = Path(socket_path(address))
        path.write_text("a user's")
        with pytest.raises(AddressInUseError, match="no socket"):
            sockets.listen(address)
        assert path.read_text() == "a user's"
        path.unlink()
        path.mkdir()
        with pytest.raises(RfaasError):
            sockets.listen(address)
        assert path.is_dir()

    def test_nobody_there(self, address: str) -> None:
        with pytest.raises(UnavailableError, match=f"nobody answers at {address}"):
            sockets.connect(address)

    def test_no_such_folder(self, address: str) -> None:
        with pytest.raises(SystemCallError, match="cannot listen at"):
            sockets.listen(address.replace("/sock", "/none/sock"))

    def test_too_long(self, tmp_path: Path) -> None:
        """108 bytes are what a socket's address holds, unix(7)."""
        long = f"unix:{tmp_path}/{'x' * 200}"
        with pytest.raises(ConfigError, match="too long"):
            sockets.listen(long)
        with pytest.raises(ConfigError, match="too long"):
            sockets.connect(long)
