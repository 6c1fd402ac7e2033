"""Links over TCP: what only a network has, and what only a Unix socket can."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from rfaas.control import aio, ends, link, sockets
from rfaas.control.aio import AsyncLink
from rfaas.control.link import Link
from rfaas.errors import (
    AddressInUseError,
    InternalError,
    PeerLostError,
    SystemCallError,
    UnavailableError,
)
from rfaas.proto.messages import AdoptLink, Beat, Done
from tests.control.conftest import tcp_pair
from tests.control.peers import HELLO, WELCOME, answer


def exchange(at: str, *, to: str = "") -> str:
    """Listen at an address and be asked by both kinds of link; where it listened."""

    async def run() -> str:
        listener = await aio.listen(at, WELCOME, answer)
        there = to.format(port=listener.address.rpartition(":")[2]) or listener.address
        one = await aio.connect(there, HELLO)
        assert isinstance(await one.request(Beat(node="a")), Done)
        await one.close()

        def client() -> None:
            peer = link.connect(there, HELLO)
            assert isinstance(peer.request(Beat(node="a")), Done)
            peer.close()

        await asyncio.to_thread(client)
        address = listener.address
        await listener.close()
        return address

    return asyncio.run(run())


def test_a_port_that_is_free() -> None:
    address = exchange("tcp:127.0.0.1:0")
    assert address.startswith("tcp:127.0.0.1:")
    assert not address.endswith(":0")


def test_ipv6() -> None:
    try:
        assert exchange("tcp:[::1]:0").startswith("tcp:[::1]:")
    except SystemCallError as error:
        pytest.skip(f"no IPv6 here: {error.text}")


@pytest.mark.parametrize("to", ["tcp:127.0.0.1:{port}", "tcp:localhost:{port}"])
def test_every_address_of_the_machine(to: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert exchange("tcp:*:0", to=to).startswith("tcp:*:")
    assert "links are not authenticated; for trusted networks only" in caplog.text
    assert 'hint: control.auth = "key"' in caplog.text


def test_loopback_is_no_network(caplog: pytest.LogCaptureFixture) -> None:
    exchange("tcp:localhost:0")
    assert caplog.text == ""


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"tcp:127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(UnavailableError, match=f"nobody answers at {address}: Connection refused"):
        link.connect(address, HELLO)
    with pytest.raises(UnavailableError, match=f"nobody answers at {address}: .*refused|Connect"):
        asyncio.run(aio.connect(address, HELLO))


def test_a_host_that_nobody_knows() -> None:
    for attempt in (
        lambda: link.connect("tcp:no-such-host.invalid:1", HELLO),
        lambda: asyncio.run(aio.connect("tcp:no-such-host.invalid:1", HELLO)),
    ):
        with pytest.raises(UnavailableError, match=r"no host no-such-host\.invalid is known"):
            attempt()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp:127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(AddressInUseError, match=f"somebody listens at {address}") as refused:
            ends.listen(address)
        assert "another port" in refused.value.hint


def test_an_address_of_another_machine() -> None:
    with pytest.raises(SystemCallError, match=r"cannot listen at tcp:192\.0\.2\.1:1") as refused:
        ends.listen("tcp:192.0.2.1:1")  # TEST-NET-1, RFC 5737
    assert "is 192.0.2.1 an address of this machine?" in refused.value.hint


def test_a_peer_that_vanishes_is_found_out() -> None:
    """The kernel probes an idle connection, and does not wait for ever for an answer."""
    one, other = tcp_pair()
    with one, other:
        sockets.tune(one)
        for silence_s, (every_s, end_ms) in {
            None: (3, 10_000),
            0.01: (1, 2000),
            3.0: (1, 3000),
            3.1: (1, 4000),
            3600.0 * 1000: (32767, 2**31 - 1),
        }.items():
            if silence_s is not None:
                sockets.lose_after(one, silence_s)
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == every_s
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == every_s
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == end_ms


def test_a_link_that_is_cut() -> None:
    """A reset, as of a machine that has started anew."""
    one, other = tcp_pair()
    peer = Link(one, "a peer")
    assert not peer.passes_fds
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    other.close()
    with pytest.raises(PeerLostError, match="lost a peer: Connection reset by peer"):
        peer.request(Beat(node="a"))
    peer.close()


def test_descriptors_do_not_travel() -> None:
    one, other = tcp_pair()
    two, another = tcp_pair()
    blocking = Link(one, "a peer")
    with pytest.raises(InternalError, match="no descriptor can be passed to a peer: a network"):
        blocking.send(AdoptLink(), (0,))
    blocking.close()

    async def run() -> None:
        peer = AsyncLink(two, "a peer")
        assert (peer.passes_fds, peer.local_host) == (False, "127.0.0.1")
        with pytest.raises(InternalError, match="no descriptor"):
            peer.send(AdoptLink(), (0,))
        await peer.close()

    asyncio.run(run())
    other.close()
    another.close()
