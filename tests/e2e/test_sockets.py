"""Addresses that are taken, and peers that do not speak our protocol."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgpack
import pytest

from rfaas.control import aio
from rfaas.errors import UnavailableError
from rfaas.proto.codec import LENGTH, Framer, decode, encode
from rfaas.proto.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Error,
    GetStatus,
    Hello,
    Message,
    StatusReport,
    Welcome,
)
from tests.harness.processes import PATIENCE_S, until
from tests.harness.site import Site

ROLES = ["resource-manager", "executor"]
ALONE = {"resource-manager": (), "executor": ("--resource-manager", "none")}


def refused(site: Site, role: str) -> tuple[int, str]:
    """How a role that cannot listen ends."""
    child = site.start_unready(role, *ALONE[role])
    assert child.lines.next() is None  # not a word of being ready
    return child.wait(), child.stderr


@pytest.mark.parametrize("role", ROLES)
def test_address_of_a_live_listener(site: Site, role: str, shipped: Path) -> None:
    first = site.start(role, *ALONE[role])
    if role == "resource-manager":
        site.environ["RFAAS_RESOURCE_MANAGER_STORE"] = str(site.state / "other.sqlite")
    status, text = refused(site, role)
    assert status == 69
    assert text.endswith(
        f"rfaas: somebody listens at {site.address(role)} already\n"
        "hint: stop that process, or give this one another address\n"
    )
    assert first.process.poll() is None
    done = site.run("status", f"--{role}", site.address(role), "--json")
    assert b'"pid":%d,' % first.pid in done.stdout  # it was not disturbed


def test_second_manager_with_the_same_store(site: Site) -> None:
    site.start("resource-manager")
    other = f"unix:{site.runtime}/other.sock"
    child = site.start_unready("resource-manager", "--address", other)
    assert child.lines.next() is None
    assert child.wait() == 71
    assert "database is locked" in child.stderr
    assert "hint: is another resource manager using it?" in child.stderr


@pytest.mark.parametrize("role", ROLES)
def test_stale_socket_is_replaced(site: Site, role: str) -> None:
    site.runtime.mkdir(0o700)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(site.socket(role)))
    stale.close()
    child = site.start(role, *ALONE[role])
    assert stat.S_IMODE(site.socket(role).stat().st_mode) == 0o600
    child.signal(15)
    assert child.wait() == 0
    assert not site.socket(role).exists()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_something_else_at_the_address(site: Site, role: str, kind: str) -> None:
    site.runtime.mkdir(0o700)
    file, target = site.socket(role), site.path / "precious"
    target.write_text("precious")
    if kind == "file":
        file.write_text("precious")
    elif kind == "directory":
        file.mkdir()
    else:
        file.symlink_to(target)
    status, text = refused(site, role)
    assert status == 69
    assert text.endswith(
        f"rfaas: cannot listen at {site.address(role)}: a file that is no socket stands there\n"
        "hint: move it away, or choose another address\n"
    )
    assert target.read_text() == "precious"
    if kind == "file":
        assert file.read_text() == "precious"
        file.unlink()
    elif kind == "directory":
        file.rmdir()
    else:
        file.unlink()


def test_directory_that_others_may_write_to(site: Site) -> None:
    site.runtime.mkdir()
    site.runtime.chmod(0o777)
    status, text = refused(site, "executor")
    assert status == 78
    assert f"directory {site.runtime} is not safe to use: others may write to it" in text


def test_directory_that_we_may_not_write_to(site: Site) -> None:
    site.runtime.mkdir(0o500)
    if os.access(site.runtime, os.W_OK):
        pytest.skip("root may write anywhere: run the tests as another user")
    status, text = refused(site, "executor")
    assert status == 71
    assert "Permission denied" in text


# Peers


class Peer:
    """A raw connection to a role."""

    def __init__(self, site: Site, role: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(site.socket(role)))
        self._framer = Framer()

    def send(self, *parts: bytes | Message) -> None:
        for part in parts:
            self.sock.sendall(encode(part) if isinstance(part, Message) else part)

    def next(self) -> Message | None:
        """The next message, None at the end of the stream."""
        while True:
            try:
                data = self.sock.recv(1)
            except ConnectionResetError:
                return None
            if not data:
                return None
            for body in self._framer.feed(data):
                return decode(body)

    def hello(self) -> None:
        self.send(Hello(id=1, version=PROTOCOL_VERSION, role="client", name="raw"))
        assert isinstance(self.next(), Welcome)

    def asks(self) -> bool:
        """Whether it is served."""
        self.send(GetStatus(id=2))
        return isinstance(self.next(), StatusReport)


@contextmanager
def peer(site: Site, role: str) -> Iterator[Peer]:
    made = Peer(site, role)
    try:
        yield made
    finally:
        made.sock.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both roles, for all tests of peers: what one sends must not matter to the next."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.start("all")
    yield site
    site.close()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 2**62, -1])
def test_other_version(both: Site, role: str, version: int) -> None:
    with peer(both, role) as other:
        other.send(Hello(id=7, version=version, role="client", name="old"))
        error = other.next()
        assert isinstance(error, Error)
        assert (error.id, error.code) == (7, "protocol")
        assert f"client old speaks version {version} of the protocol, {role} " in error.text
        assert error.text.endswith(f" speaks {PROTOCOL_VERSION}")
        assert error.hint == "install the same rfaas on both nodes"
        assert other.next() is None


GARBAGE = {
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "a frame announces 542393671 bytes"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a frame announces"),
    "too long": (LENGTH.pack(FRAME_BYTES_MAX + 1), "at most 65536 are allowed"),
    "4 GiB": (b"\xff" * 64, "a frame announces 4294967295 bytes, at most 65536 are allowed"),
    "not msgpack": (LENGTH.pack(3) + b"\xc1\xc1\xc1", "a frame of 3 bytes is not msgpack"),
    "empty": (LENGTH.pack(0), "a frame of 0 bytes is not msgpack"),
    "no message": (LENGTH.pack(1) + b"\x07", "a frame of 1 bytes holds no message"),
    "deep": (LENGTH.pack(60000) + b"\x91" * 60000, "is not msgpack"),
    "other first": (encode(GetStatus(id=1)), "the first message is GetStatus, not Hello"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", list(GARBAGE))
def test_garbage(both: Site, role: str, what: str) -> None:
    data, words = GARBAGE[what]
    with peer(both, role) as other, peer(both, role) as served:
        served.hello()
        other.send(data)
        error = other.next()
        assert isinstance(error, Error)
        assert error.code == "protocol"
        assert words in error.text
        assert other.next() is None
        assert served.asks()
    with both.session() as session:
        assert [node.state for node in session.nodes()] == ["up"]


def _frame(name: str, **fields: object) -> bytes:
    body: bytes = msgpack.packb((name, fields))
    return LENGTH.pack(len(body)) + body


LEASE = {"id": 2, "client": "c", "cores": 1, "memory_bytes": 1, "duration_s": 1.0}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (_frame("Nonsense", id=2), "message 'Nonsense' is unknown"),
        (_frame("GetStatus", id=2, extra=1), "message GetStatus is invalid: "),
        (_frame("GetStatus", id="2"), "message GetStatus is invalid: "),
        (_frame("RequestLease", **(LEASE | {"cores": 0})), "message RequestLease is invalid: "),
        (_frame("RequestLease", **(LEASE | {"cores": -1})), "message RequestLease is invalid: "),
        (_frame("RequestLease", **(LEASE | {"cores": 2**63})), "RequestLease is invalid: "),
        (_frame("RequestLease", **(LEASE | {"memory_bytes": -1})), "RequestLease is invalid: "),
        (
            _frame("RequestLease", **(LEASE | {"duration_s": float("nan")})),
            "RequestLease is invalid: ",
        ),
    ],
)
def test_invalid_message_after_a_good_hello(
    both: Site, role: str, frame: bytes, words: str
) -> None:
    """It ends that link, with a word, and no other."""
    with peer(both, role) as other, peer(both, role) as served:
        served.hello()
        other.hello()
        other.send(frame)
        error = other.next()
        assert isinstance(error, Error)
        assert error.code == "protocol"
        assert words in error.text
        assert other.next() is None
        assert served.asks()


def test_half_a_frame_and_silence(both: Site, shipped: Path) -> None:
    """Before and after a hello; meanwhile others are served, and the silent are let go."""
    hello = encode(Hello(id=1, version=PROTOCOL_VERSION, role="client", name="slow"))
    rest = encode(GetStatus(id=9))
    silent = [Peer(both, role) for role in ROLES for _ in range(25)]
    known = [Peer(both, role) for role in ROLES]
    try:
        for number, one in enumerate(silent):
            one.send(hello[: number % len(hello)])
        for one in known:
            one.hello()
            one.send(rest[:5])
        done = both.run("call", shipped, "echo", "-", stdin=b"served")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"served", b"")
        # Those that never said hello are sent away; a known peer may take its time.
        for one in silent:
            error = one.next()
            assert isinstance(error, Error)
            assert error.text == "no message came in time"
            assert one.next() is None
        for one in known:
            one.send(rest[5:])
            assert isinstance(one.next(), StatusReport)
    finally:
        for one in silent + known:
            one.sock.close()
    assert aio.HELLO_TIMEOUT_S < PATIENCE_S


@pytest.mark.parametrize("role", ROLES)
def test_hello_byte_by_byte(both: Site, role: str) -> None:
    with peer(both, role) as other:
        for byte in encode(Hello(id=1, version=PROTOCOL_VERSION, role="client", name="slow")):
            other.send(bytes([byte]))
        assert isinstance(other.next(), Welcome)
        assert other.asks()


@pytest.mark.parametrize("role", ROLES)
def test_peer_that_sends_and_never_reads(both: Site, role: str, shipped: Path) -> None:
    """It fills its own buffers and no others'; the role stays small and serves."""
    with peer(both, role) as flood:
        flood.hello()
        flood.sock.settimeout(0.2)
        question = encode(GetStatus(id=1)) * 100
        try:
            for _ in range(2000):
                flood.send(question)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass  # it was stopped, or sent away
        done = both.run("call", shipped, "echo", "-", stdin=b"served")
        assert (done.returncode, done.stdout) == (0, b"served")


def test_descriptors_that_nobody_asked_for(both: Site) -> None:
    """Whoever sends many is sent away, and what came is closed with the link."""
    pid = both.children[0].pid

    def opened() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    before = opened()
    for role in ROLES:
        with peer(both, role) as other:
            other.hello()
            replies: list[Message | None] = []
            while not replies or isinstance(replies[-1], StatusReport):
                assert len(replies) < 100
                with suppress(BrokenPipeError):
                    socket.send_fds(other.sock, [encode(GetStatus(id=3))], [0, 1, 2])
                replies.append(other.next())
            reply = replies[-1]
            assert isinstance(reply, Error)
            assert (reply.code, reply.id) == ("protocol", 0)
            assert "descriptors that nobody asked for" in reply.text
            assert other.next() is None
    until(lambda: opened() <= before, "the end of what was sent")


def test_client_meets_a_listener_of_another_kind(site: Site, shipped: Path) -> None:
    """Another program listens at the manager's address: refused, and not mistaken for nobody."""
    site.runtime.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(site.socket()))
        listener.listen()
        call = site.command("call", shipped, "echo", "/dev/null")
        found, _ = listener.accept()
        with found:
            found.sendall(b"220 mail.example.org ESMTP\r\n")
            assert call.wait() == 76
        assert "rfaas: a frame announces" in call.stderr
        assert "hint: is the peer an rfaas of another kind, or another program?" in call.stderr

        call = site.command("call", shipped, "echo", "/dev/null")
        found, _ = listener.accept()
        with found:
            hello = decode(Framer().feed(found.recv(65536))[0])
            found.sendall(encode(Welcome(id=hello.id, version=99, role="old", name="old")))
            assert call.wait() == 76
        assert "speaks version 99 of the protocol" in call.stderr
    site.socket().unlink()


def test_listener_that_closes_at_once(site: Site) -> None:
    site.runtime.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(site.socket()))
        listener.listen()
        nodes = site.command("nodes")
        found, _ = listener.accept()
        found.close()
        assert nodes.wait() == 69
        assert "rfaas: no resource manager: the peer at unix:" in nodes.stderr
    site.socket().unlink()
    with pytest.raises(UnavailableError):
        site.session(client__resource_manager=site.address())
