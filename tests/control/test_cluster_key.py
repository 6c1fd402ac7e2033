"""`control.auth = "key"`: both sides of a link prove that they have the cluster's key."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.config import ControlConfig
from rfaas.control import aio, cluster_key, ends, link
from rfaas.control.aio import AsyncLink
from rfaas.control.carrier import Carrier, numbers
from rfaas.control.cluster_key import Introduction, admit_by
from rfaas.errors import (
    CapacityError,
    ConfigError,
    NotPermittedError,
    PeerLostError,
    ProtocolError,
    RfaasError,
)
from rfaas.proto.codec import Framer, decode, encode
from rfaas.proto.guard import Meeting, proof
from rfaas.proto.guard_messages import Answer, Challenge
from rfaas.proto.messages import Beat, Done, Error, GetStatus, Hello, Message, Welcome
from tests.control.peers import HELLO, WELCOME, answer

KEY, OTHER = b"k" * 32, b"o" * 32
NOT_OURS = "another cluster's key, or none"


def served(address: str, client: Callable[[], None], key: bytes = KEY) -> None:
    """Run a blocking client at a listener that asks for a key (b"": for none)."""

    async def run() -> None:
        admit = admit_by(key) if key else None
        listener = await aio.listen(address, WELCOME, answer, admit=admit)
        try:
            await asyncio.to_thread(client)
        finally:
            await listener.close()

    asyncio.run(run())


def refused(
    address: str, key: bytes, said: str, kind: type[RfaasError] = NotPermittedError
) -> None:
    """Neither kind of link can be had."""
    with pytest.raises(kind, match=said):
        link.connect(address, HELLO, key=key)

    async def soon() -> None:
        await aio.connect(address, HELLO, key=key)

    with pytest.raises(kind, match=said):
        asyncio.run(soon())


def test_both_have_it(address: str) -> None:
    def client() -> None:
        peer = link.connect(address, HELLO, key=KEY)
        assert peer.peer == "executor node7"
        for _ in range(3):
            assert isinstance(peer.request(Beat(node="a")), Done)
            assert peer.post(Beat(node="a"))
        with pytest.raises(CapacityError, match="too much"):
            peer.request(GetStatus())
        assert len(peer.notices) == 2
        peer.close()

        async def soon() -> None:
            peer = await aio.connect(address, HELLO, key=KEY)
            for _ in range(3):
                assert isinstance(await peer.request(Beat(node="a")), Done)
            await peer.close()

        asyncio.run(soon())

    served(address, client)


def test_wrong_key(address: str) -> None:
    served(address, lambda: refused(address, OTHER, f"the peer at .* has {NOT_OURS}"))


def test_no_key(address: str) -> None:
    served(address, lambda: refused(address, b"", "does not say that it has the cluster's key"))


def test_a_listener_without(address: str) -> None:
    """An older one, or one where auth is none: it takes our Hello, and we do not take it."""
    served(address, lambda: refused(address, KEY, "does not show that it has the cluster's"), b"")


def test_a_listener_that_refuses_says_why(address: str) -> None:
    async def no(hello: Hello, _link: AsyncLink, _welcome: Welcome) -> str:
        raise NotPermittedError(f"{hello.role} is not wanted")

    async def run() -> None:
        listener = await aio.listen(address, WELCOME, answer, admit=no)
        await asyncio.to_thread(refused, address, KEY, "client is not wanted")
        await listener.close()

    asyncio.run(run())


class Stranger:
    """Somebody without the key at a listener that asks for it, frame by frame."""

    def __init__(self, address: str) -> None:
        self.carrier: Carrier = ends.connect(address)
        self._framer = Framer()
        self._bodies: list[bytes] = []

    def tell(self, *frames: bytes) -> None:
        left = memoryview(b"".join(frames))
        while left:
            try:
                left = left[self.carrier.send(left) :]
            except BlockingIOError:
                self.carrier.wait(None, to_send=True)

    def told(self) -> bytes:
        """The body of the next frame, b"" at the end."""
        while not self._bodies:
            try:
                data, _ = self.carrier.receive()
            except BlockingIOError:
                self.carrier.wait(None)
                continue
            except OSError:
                return b""
            if not data:
                return b""
            self._bodies += self._framer.feed(data)
        return self._bodies.pop(0)

    def challenged(self, hello: Hello) -> Challenge:
        self.tell(encode(hello))
        challenge = decode(self.told())
        assert isinstance(challenge, Challenge)
        return challenge

    def is_shut_out(self) -> bool:
        """Nothing more comes than a refusal under a key that it does not have."""
        while body := self.told():
            with suppress(ProtocolError):
                assert isinstance(decode(body), Error)
        return True


def tagged(message: Message, tag: bytes = bytes(32)) -> bytes:
    body = encode(message)[4:] + tag
    return struct.pack("<I", len(body)) + body


def introduced(stranger: Stranger, key: bytes = OTHER) -> Introduction:
    return Introduction(key, replace(HELLO, id=1), stranger.carrier)


def test_reflection(address: str) -> None:
    """The listener's own proof, or nonce, is no answer to it."""

    def client() -> None:
        answers: tuple[Callable[[Challenge], bytes], ...] = (
            lambda it: tagged(Answer(id=2, proof=it.proof)),
            lambda it: tagged(Answer(id=2, proof=it.proof), it.proof),
            lambda it: encode(Answer(id=2, proof=it.proof)),
            lambda it: tagged(Answer(id=2, proof=it.nonce), it.nonce),
        )
        for send in answers:
            stranger = Stranger(address)
            challenge = stranger.challenged(introduced(stranger).hello)
            stranger.tell(send(challenge), encode(Beat(id=3, node="a")))
            assert stranger.is_shut_out()
            stranger.carrier.close()
        stranger = Stranger(address)
        first = stranger.challenged(introduced(stranger).hello)
        other = Stranger(address)  # challenged with what it is to answer itself
        words = introduced(other).hello.credential.split(" ")
        words[1] = first.nonce.hex()
        second = other.challenged(replace(HELLO, id=1, credential=" ".join(words)))
        stranger.tell(tagged(Answer(id=2, proof=second.proof), second.proof))
        assert stranger.is_shut_out()
        other.carrier.close()
        stranger.carrier.close()

    served(address, client)


def test_replay(address: str) -> None:
    """All that an honest client said, again: the listener draws another nonce."""

    class Recorder:
        def __init__(self, carrier: Carrier) -> None:
            self._carrier = carrier
            self.sent: list[bytes] = []

        def __getattr__(self, name: str) -> object:
            return getattr(self._carrier, name)

        def send(self, data: bytes | memoryview, fds: tuple[int, ...] = ()) -> int:
            taken = self._carrier.send(data, fds)
            self.sent.append(bytes(data[:taken]))
            return taken

    def client() -> None:
        recorder = Recorder(ends.connect(address))
        honest = link.greet(recorder, "it", HELLO, KEY)  # type: ignore[arg-type]
        assert isinstance(honest.request(Beat(node="a")), Done)
        honest.close()
        stranger = Stranger(address)
        stranger.tell(recorder.sent[0])
        assert isinstance(decode(stranger.told()), Challenge)
        stranger.tell(*recorder.sent[1:])
        assert stranger.is_shut_out()
        stranger.carrier.close()

    served(address, client)


def test_more_than_was_asked_for(address: str) -> None:
    """What comes before the key is shown is not taken for what comes after."""

    def client() -> None:
        stranger = Stranger(address)
        hello = introduced(stranger).hello
        stranger.tell(encode(hello) + encode(Beat(id=2, node="a")))
        assert isinstance(decode(stranger.told()), Challenge)
        assert stranger.is_shut_out()
        stranger.carrier.close()

    served(address, client)


def test_an_altered_frame_ends_the_link(address: str) -> None:
    def client() -> None:
        peer = link.connect(address, HELLO, key=KEY)
        peer.carrier.send(encode(Beat(id=2, node="a")))  # bare, as if put in on the way
        with pytest.raises((ProtocolError, PeerLostError), match=r"not what the other side|lost"):
            peer.request(Beat(node="a"))
        peer.close()
        link.connect(address, HELLO, key=KEY).close()  # others are served as before

    served(address, client)


def test_a_detour(address: str) -> None:
    """Who is between both sides has an address of its own, and shows it."""
    if address.startswith("unix:"):
        pytest.skip("no network is between the ends of a Unix socket")

    def client() -> None:
        stranger = Stranger(address)
        words = introduced(stranger).hello.credential.split(" ", 2)
        words[2] = "192.0.2.1 7471"  # TEST-NET-1, RFC 5737
        stranger.tell(encode(replace(HELLO, id=1, credential=" ".join(words))))
        reply = decode(stranger.told())
        assert isinstance(reply, Error)
        assert "called 192.0.2.1 7471 and reached" in reply.text
        stranger.carrier.close()

    served(address, client)


def test_a_client_tells_a_stranger_only_who_it_is(address: str) -> None:
    """A listener that has learnt all but the key, and answers what it can."""
    heard: list[Message | None] = []

    async def guess(hello: Hello, peer: AsyncLink, welcome: Welcome) -> str:
        meeting = Meeting(
            hello.role, hello.name, welcome.role, welcome.name, "", b"n" * 32, b"m" * 32
        )
        wrong = proof(OTHER, meeting, listens=True)
        peer.send(
            Challenge(
                id=hello.id, role=welcome.role, name=welcome.name, nonce=b"m" * 32, proof=wrong
            )
        )
        heard.append(await peer.receive())
        return ""

    async def run() -> None:
        listener = await aio.listen(address, WELCOME, answer, admit=guess)
        await asyncio.to_thread(refused, address, KEY, NOT_OURS)
        await listener.close()

    asyncio.run(run())
    assert heard == [None, None]


@pytest.mark.parametrize(
    ("credential", "said"),
    [
        ("", "does not say that it has"),
        ("MUNGE:AwQ=:", "does not say that it has"),
        ("key", "0 bytes, not 32"),
        ("key zz 127.0.0.1 1", "0 bytes, not 32"),
        (f"key {'00' * 31} 127.0.0.1 1", "31 bytes, not 32"),
    ],
)
def test_a_wrong_introduction(tmp_path: Path, credential: str, said: str) -> None:
    address = f"unix:{tmp_path}/sock"

    def client() -> None:
        with pytest.raises(RfaasError, match=said):
            link.connect(address, replace(HELLO, credential=credential))

    served(address, client)


@pytest.mark.parametrize(
    ("one", "other"),
    [("::ffff:10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80:0::1"), ("::1", "::1%3")],
)
def test_addresses_have_one_form(one: str, other: str) -> None:
    assert numbers(one, 7) == numbers(other, 7) != numbers(one, 8)


# The file ---------------------------------------------------------------


def key_file(path: Path, text: str = "0f" * 32 + "\n", mode: int = 0o600) -> ControlConfig:
    path.write_text(text)
    path.chmod(mode)
    return ControlConfig(auth="key", key_file=str(path))


def test_the_file(tmp_path: Path) -> None:
    assert cluster_key.read(key_file(tmp_path / "key")) == b"\x0f" * 32
    assert cluster_key.read(ControlConfig()) == b""
    assert cluster_key.read(ControlConfig(key_file="/nowhere")) == b""


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_others_can_read_the_file(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"others may read it .mode {mode:04o}") as fault:
        cluster_key.read(key_file(tmp_path / "key", mode=mode))
    assert "chmod 600" in fault.value.hint


def test_the_file_of_somebody_else(tmp_path: Path) -> None:
    config = key_file(tmp_path / "key")
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    os.chown(tmp_path / "key", 65534, 65534)
    with pytest.raises(ConfigError, match=r"belongs to another user \(uid 65534\)"):
        cluster_key.read(config)


@pytest.mark.parametrize("text", ["", "0f" * 31, "0f" * 33, "0f" * 32 + "\n# ours", "g" * 64])
def test_what_is_no_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="holds no key: 64 hexadecimal digits") as fault:
        cluster_key.read(key_file(tmp_path / "key", text))
    assert "openssl rand -hex 32" in fault.value.hint


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"control\.key_file names no file"):
        cluster_key.read(ControlConfig(auth="key"))
    with pytest.raises(ConfigError, match=r"cannot read the cluster's key, .*No such file"):
        cluster_key.read(ControlConfig(auth="key", key_file=str(tmp_path / "none")))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="holds no key"):
        cluster_key.read(ControlConfig(auth="key", key_file=str(tmp_path / "pipe")))
