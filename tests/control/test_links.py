"""Control links: the blocking one of clients and workers against the listener of roles."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest
from msgspec.structs import replace

from rfaas import __version__
from rfaas.control import aio, ends, link
from rfaas.control.aio import AsyncLink, Listener
from rfaas.control.link import Link
from rfaas.errors import (
    CapacityError,
    PeerLostError,
    ProtocolError,
    UnavailableError,
)
from rfaas.proto.codec import LENGTH, encode
from rfaas.proto.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Beat,
    Done,
    Error,
    GetStatus,
    ListNodes,
    Message,
    SendLibrary,
)
from tests.control.peers import HELLO, NOTICE, WELCOME, answer, raw, send_all, served


class TestRequests:
    def test_reply(self, address: str) -> None:
        def client() -> None:
            peer = link.connect(address, HELLO)
            assert peer.peer == "executor node7"
            for _ in range(100):
                assert isinstance(peer.request(Beat(node="a")), Done)
            assert not peer.notices
            peer.close()

        served(address, client)

    def test_notices_in_between_and_errors(self, address: str) -> None:
        def client() -> None:
            peer = link.connect(address, HELLO)
            with pytest.raises(CapacityError, match="too much") as refused:
                peer.request(GetStatus())
            assert refused.value.hint == "less"
            assert list(peer.notices) == [NOTICE, NOTICE]
            assert isinstance(peer.request(Beat(node="a")), Done)
            peer.close()

        served(address, client)

    def test_peer_that_goes(self, address: str) -> None:
        def client() -> None:
            peer = link.connect(address, HELLO)
            with pytest.raises(PeerLostError, match="lost executor node7: it closed"):
                peer.request(ListNodes())
            for _ in range(2):
                with pytest.raises(PeerLostError):
                    peer.request(Beat(node="a"))
                with pytest.raises(PeerLostError):
                    peer.poll()
            peer.close()

        served(address, client)

    def test_no_answer_in_time(self, pair: tuple[socket.socket, socket.socket]) -> None:
        peer = Link(pair[0], "a silent peer")
        with pytest.raises(PeerLostError, match=r"no answer from a silent peer to Beat in 0\.01 s"):
            peer.request(Beat(node="a"), timeout_s=0.01)
        with pytest.raises(PeerLostError):
            peer.send(Done())

    def test_answers_to_others_are_skipped(self, pair: tuple[socket.socket, socket.socket]) -> None:
        peer = Link(pair[0], "a peer")
        pair[1].sendall(encode(Done(id=99)) + encode(NOTICE) + encode(Done(id=1)))
        assert peer.request(Beat(node="a")).id == 1
        assert list(peer.notices) == [NOTICE]

    def test_every_message_in_pieces(self, pair: tuple[socket.socket, socket.socket]) -> None:
        peer = Link(pair[0], "a slow peer")
        for byte in encode(NOTICE):
            assert not peer.notices
            pair[1].send(bytes([byte]))
            assert peer.poll()
        assert list(peer.notices) == [NOTICE]

    def test_many_threads_on_one_link(self, address: str) -> None:
        def client() -> None:
            peer = link.connect(address, HELLO)
            answers: list[Message] = []
            threads = [
                threading.Thread(
                    target=lambda: answers.extend(peer.request(Beat(node="a")) for _ in range(50))
                )
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len({answer.id for answer in answers}) == 200
            peer.close()

        served(address, client)

    def test_poll_from_two_threads(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """One polls, the other is told so and does not wait."""
        peer = Link(pair[0], "a peer")
        begun = threading.Event()

        def wait() -> None:
            begun.set()
            assert peer.receive() == NOTICE

        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        while peer.poll():  # until that thread has it
            os.sched_yield()
        pair[1].sendall(encode(NOTICE))
        thread.join()
        assert peer.poll()
        assert not peer.notices

    def test_poll_takes_what_is_there(self, pair: tuple[socket.socket, socket.socket]) -> None:
        peer = Link(pair[0], "a peer")
        assert peer.poll()
        pair[1].sendall(encode(NOTICE) * 3)
        assert peer.poll(60)
        assert len(peer.notices) == 3

    def test_poll_does_not_wait_for_what_is_kept(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        peer = Link(pair[0], "a peer")
        pair[1].sendall(encode(NOTICE))
        peer.poll(60)
        peer.poll(60)
        assert list(peer.notices) == [NOTICE]

    def test_post_while_another_thread_waits_for_a_reply(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """The post is sent at once, and its reply is nobody's."""
        peer, other = Link(pair[0], "a peer"), Link(pair[1], "the other")
        replies: list[Message] = []
        thread = threading.Thread(target=lambda: replies.append(peer.request(GetStatus())))
        thread.start()
        asked = other.receive()
        assert isinstance(asked, GetStatus)
        assert peer.post(Beat(node="a"))
        posted = other.receive()
        assert isinstance(posted, Beat)
        other.send(Done(id=posted.id))
        other.send(Done(id=asked.id))
        thread.join()
        assert replies == [Done(id=asked.id)]
        assert not peer.notices

    def test_posts_to_a_peer_that_does_not_read(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """They are refused once its socket is full, and go on when it reads again."""
        peer, other = Link(pair[0], "a peer"), Link(pair[1], "the other")
        sent = taken = 0
        while peer.post(Beat(node="a")):
            sent += 1
        for _ in range(sent):
            message = other.receive()
            assert isinstance(message, Beat)
            other.send(Done(id=message.id))
            taken += peer.post(GetStatus())  # and takes in what came for earlier ones
        assert taken
        assert not peer.notices
        pair[1].close()
        with pytest.raises(PeerLostError):
            peer.post(Beat(node="a"))

    def test_notices_that_nobody_takes(self, pair: tuple[socket.socket, socket.socket]) -> None:
        peer = Link(pair[0], "a chatty peer")
        frame = encode(NOTICE)
        for _ in range(link.NOTICES_MAX):
            pair[1].sendall(frame)
            peer.poll()
        assert len(peer.notices) == link.NOTICES_MAX
        pair[1].sendall(frame)
        with pytest.raises(ProtocolError, match="a chatty peer sent more than"):
            peer.poll()

    def test_many_at_once(self, address: str) -> None:
        count = 20 if address.startswith("verbs:") else 200  # SoftRoCE takes 50 ms for each

        async def run() -> None:
            listener = await aio.listen(address, WELCOME, answer)
            links = await asyncio.gather(*(aio.connect(address, HELLO) for _ in range(count)))
            replies = await asyncio.gather(*(one.request(Beat(node="a")) for one in links))
            assert [type(reply) for reply in replies] == [Done] * count
            for one in links[::2]:
                await one.close()
            await listener.close()
            for one in links:
                assert await one.receive() is None
                await one.close()

        asyncio.run(run())

    def test_listener_refuses_past_its_bound(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(aio, "LINKS_MAX", 2)

        def client() -> None:
            links = [link.connect(address, HELLO) for _ in range(2)]
            with pytest.raises(UnavailableError):
                link.connect(address, HELLO)
            assert isinstance(links[0].request(Beat(node="a")), Done)
            for one in links:
                one.close()

        served(address, client)


class TestHello:
    def test_other_version(self, address: str) -> None:
        def client() -> None:
            with pytest.raises(ProtocolError) as refused:
                link.connect(address, replace(HELLO, version=PROTOCOL_VERSION + 1))
            text = refused.value.text
            assert (
                f"client tester (rfaas {__version__}) speaks version {PROTOCOL_VERSION + 1}" in text
            )
            assert f"executor node7 (rfaas {__version__}) speaks {PROTOCOL_VERSION}" in text
            assert "install the same rfaas" in refused.value.hint

        served(address, client)

    def test_other_version_of_the_listener(self, pair: tuple[socket.socket, socket.socket]) -> None:
        pair[1].sendall(encode(replace(WELCOME, version=9, id=1)))
        with pytest.raises(ProtocolError, match="9"):
            link.greet(pair[0], "the peer", HELLO)
        assert pair[0].fileno() == -1

    def test_other_version_of_an_asyncio_listener(self, address: str) -> None:
        async def run() -> None:
            listener = await aio.listen(address, replace(WELCOME, version=9), answer)
            with pytest.raises(ProtocolError, match=r"node7 \(.*\) speaks version 9 of"):
                await aio.connect(address, HELLO)
            await listener.close()

        asyncio.run(run())

    def test_an_answer_that_is_no_welcome(self, pair: tuple[socket.socket, socket.socket]) -> None:
        pair[1].sendall(encode(Done(id=1)))
        with pytest.raises(ProtocolError, match="Done"):
            link.greet(pair[0], "the peer", HELLO)
        assert pair[0].fileno() == -1

    def test_a_peer_that_hangs_up(self, pair: tuple[socket.socket, socket.socket]) -> None:
        pair[1].close()
        with pytest.raises(UnavailableError, match="the peer does not answer"):
            link.greet(pair[0], "the peer", HELLO)
        assert pair[0].fileno() == -1

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (encode(Done()), "the first message is Done, not Hello"),
            (LENGTH.pack(FRAME_BYTES_MAX + 1), f"a frame announces {FRAME_BYTES_MAX + 1} bytes"),
            (LENGTH.pack(2**32 - 1), "a frame announces 4294967295 bytes"),
            (b"GET / HTTP/1.1\r\n\r\n", "another program"),
            (LENGTH.pack(4) + b"\xff" * 4, "not msgpack"),
            (encode(HELLO)[:-1] + b"\xc1", "not msgpack"),
        ],
    )
    def test_what_is_none(self, address: str, data: bytes, said: str) -> None:
        def client() -> None:
            (error,) = raw(address, data)
            assert isinstance(error, Error)
            assert (error.id, error.code) == (0, "protocol")
            assert said in error.text + error.hint
            link.connect(address, HELLO).close()  # others are served as before

        served(address, client)

    def test_garbage_after_it(self, address: str) -> None:
        def client() -> None:
            end = ends.connect(address)
            peer = link.greet(end, "the peer", HELLO)
            send_all(end, LENGTH.pack(1) + b"\xc1")
            error = peer.receive()
            assert isinstance(error, Error)
            assert "not msgpack" in error.text
            with pytest.raises(PeerLostError, match="closed"):
                peer.receive()
            peer.close()

        served(address, client)

    def test_nothing_comes(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(aio, "HELLO_TIMEOUT_S", 0.02)

        def client() -> None:
            (error,) = raw(address, encode(HELLO)[:5])
            assert isinstance(error, Error)
            assert "in time" in error.text

        served(address, client)

    def test_a_listener_that_answers_nonsense(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        peer = Link(pair[0], "a peer")
        pair[1].sendall(encode(NOTICE) + LENGTH.pack(1) + b"\xc1" + encode(Done(id=1)))
        with pytest.raises(ProtocolError, match="not msgpack"):
            peer.request(Beat(node="a"))
        with pytest.raises(PeerLostError):  # what follows is not taken for an answer
            peer.request(Beat(node="a"))


class TestFlow:
    def test_a_peer_that_does_not_read_is_given_up(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        async def run() -> None:
            peer = AsyncLink(pair[0], "a sleepy peer")
            part = SendLibrary(
                lease="0" * 32, sha256="0" * 64, size_bytes=1, offset=0, data=bytes(40000)
            )
            sent, size = 0, len(encode(part))
            while sent + size <= aio.OUTGOING_BYTES_MAX:
                peer.send(part)
                sent += size

            def flood() -> None:
                for _ in range(100):  # what the socket itself holds comes on top
                    peer.send(part)

            with pytest.raises(PeerLostError, match="gave up a sleepy peer: it left more than"):
                flood()
            with pytest.raises(PeerLostError):
                peer.send(NOTICE)
            assert await peer.receive() is None
            await peer.drain()
            await peer.close()

        asyncio.run(run())

    def test_all_of_it_arrives_in_order(self, pair: tuple[socket.socket, socket.socket]) -> None:
        received: list[int] = []

        def read() -> None:
            peer = Link(pair[1], "a peer")
            while len(received) < 300:
                message = peer.receive()
                assert message is not None
                received.append(message.id)

        async def run() -> None:
            peer = AsyncLink(pair[0], "a peer")
            for number in range(300):
                peer.send(Error(id=number, code="usage", text="x" * 4000))
            await asyncio.gather(peer.drain(), asyncio.to_thread(read))
            await peer.close()

        asyncio.run(run())
        assert received == list(range(300))

    def test_listener_ends_links_that_wait(self, address: str) -> None:
        async def run() -> None:
            listener = await aio.listen(address, WELCOME, answer)
            one = await aio.connect(address, HELLO)
            await listener.close()
            assert await one.receive() is None
            with pytest.raises(PeerLostError):
                await one.request(Beat(node="a"))
            await one.close()

        asyncio.run(run())

    def test_adopted_link(self, pair: tuple[socket.socket, socket.socket]) -> None:
        async def run() -> None:
            listener = Listener(WELCOME, answer)
            task = listener.adopt(pair[0])

            def client() -> None:
                peer = link.greet(pair[1], "the peer", HELLO)
                assert isinstance(peer.request(Beat(node="a")), Done)
                peer.close()

            await asyncio.to_thread(client)
            await task  # it ends with the link
            await listener.close()

        asyncio.run(run())
