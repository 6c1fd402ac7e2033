"""Two versions of rfaas on one cluster: refused by name, in both directions."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from rfaas import __version__
from rfaas.control import aio, link, sockets
from rfaas.errors import ProtocolError
from rfaas.proto.codec import LENGTH, Framer, decode, encode
from rfaas.proto.messages import PROTOCOL_VERSION, Error, Hello, Welcome
from tests.harness.site import Site

NEWER = PROTOCOL_VERSION + 1
OURS = Hello(version=PROTOCOL_VERSION, role="client", name="ada@n1:7")


def frame(kind: str, **fields: object) -> bytes:
    body: bytes = msgpack.packb((kind, fields))
    return LENGTH.pack(len(body)) + body


def newer(kind: str, role: str, name: str) -> bytes:
    """A greeting of a later version: it says things that we do not know."""
    return frame(
        kind, id=1, version=NEWER, role=role, name=name, program="9.0.0", region="eu", cards=[1]
    )


def answer_to(address: str, data: bytes) -> Error:
    with sockets.connect(address) as sock:
        sock.settimeout(20)
        sock.sendall(data)
        framer, bodies = Framer(), list[bytes]()
        while not bodies:
            received = sock.recv(4096)
            assert received
            bodies = framer.feed(received)
        reply = decode(bodies[0])
    assert isinstance(reply, Error)
    return reply


@pytest.mark.parametrize("role", ["executor", "resource-manager"])
def test_a_role_refuses_a_newer_peer_by_both_names(site: Site, role: str) -> None:
    flags = ("--resource-manager", "none") if role == "executor" else ()
    child = site.start(role, *flags)
    reply = answer_to(site.address(role), newer("Hello", "client", "eve@n9:1"))
    assert (reply.code, reply.id) == ("protocol", 1)
    assert reply.text.startswith(
        f"client eve@n9:1 (rfaas 9.0.0) speaks version {NEWER} of the protocol, {role} "
    )
    assert reply.text.endswith(f"(rfaas {__version__}) speaks {PROTOCOL_VERSION}")
    assert reply.hint == "install the same rfaas on both nodes"
    assert "refused a peer: client eve@n9:1 (rfaas 9.0.0)" in child.stderr


def test_a_newer_peer_that_cannot_even_be_named(site: Site) -> None:
    site.start("resource-manager")
    reply = answer_to(site.address(), frame("Hello", id=1, version=NEWER))
    assert reply.code == "protocol"
    assert "Hello is invalid" in reply.text


def test_an_older_peer_without_a_program(site: Site) -> None:
    """As programs were before greetings carried it."""
    site.start("resource-manager")
    hello = frame("Hello", id=1, version=0, role="executor", name="n2")
    assert answer_to(site.address(), hello).text.startswith(
        "executor n2 (rfaas of unknown version) speaks version 0 of the protocol, "
    )


def test_our_own_version_is_read_strictly() -> None:
    fields = {"version": PROTOCOL_VERSION, "role": "client", "name": "x", "region": "eu"}
    body = msgpack.packb(("Hello", fields))
    with pytest.raises(ProtocolError, match="unknown field `region`"):
        decode(body)
    assert decode(encode(OURS)[LENGTH.size :]) == OURS


@pytest.fixture
def listening(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], str]:
    """Makes a peer that answers one link with some bytes; its address."""

    def make(data: bytes) -> str:
        path: Path = tmp_path_factory.mktemp("peer") / "s"
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()

        def serve() -> None:
            with sock:
                peer, _ = sock.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(data)
                peer.recv(4096)  # until it has gone

        threading.Thread(target=serve).start()
        return f"unix:{path}"

    return make


def connected(address: str, blocking: bool) -> None:
    if blocking:
        link.connect(address, OURS)
    else:
        asyncio.run(aio.connect(address, OURS))


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "asyncio"])
def test_we_refuse_a_newer_one_that_takes_us(
    listening: Callable[[bytes], str], blocking: bool
) -> None:
    address = listening(newer("Welcome", "executor", "n9"))
    with pytest.raises(ProtocolError) as caught:
        connected(address, blocking)
    assert str(caught.value) == (
        f"executor n9 (rfaas 9.0.0) speaks version {NEWER} of the protocol, "
        f"client ada@n1:7 (rfaas {__version__}) speaks {PROTOCOL_VERSION}\n"
        "hint: install the same rfaas on both nodes"
    )
    assert caught.value.exit_status == 76


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "asyncio"])
def test_a_refusal_of_the_whole_link_is_heard(
    listening: Callable[[bytes], str], blocking: bool
) -> None:
    """A peer that could not read our greeting answers no request: its error has no id."""
    refusal = Error(id=0, code="protocol", text="message Hello is invalid", hint="")
    with pytest.raises(ProtocolError, match="message Hello is invalid"):
        connected(listening(encode(refusal)), blocking)


def test_welcome_names_the_program() -> None:
    assert Welcome(version=PROTOCOL_VERSION, role="executor", name="n").program == __version__
