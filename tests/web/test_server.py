"""HTTP's bounds, each over a real socket: whoever is slow, large, many or wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rfaas.web import server
from rfaas.web.server import Request, Response, Server, Traffic

PATIENCE_S = 20.0


def refused(status: int, text: str) -> Response:
    return Response(status, {"Content-Type": "text/plain"}, text.encode())


async def echo(request: Request) -> Response:
    body = f"{request.method} {request.target} {len(request.body)}".encode()
    return Response(200, {"Content-Type": "text/plain"}, body)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 40))


class Running:
    """A server in this loop, and connections to it."""

    def __init__(self, made: Server, traffic: Traffic, address: tuple[str, int]) -> None:
        self.server = made
        self.traffic = traffic
        self.address = address

    @asynccontextmanager
    async def connected(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield reader, writer
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass  # it was reset

    async def send(self, data: bytes) -> bytes:
        """All that comes back, until the server closes."""
        async with self.connected() as (reader, writer):
            writer.write(data)
            return await rest(reader)


async def rest(reader: asyncio.StreamReader) -> bytes:
    found = b""
    try:
        while data := await asyncio.wait_for(reader.read(65536), PATIENCE_S):
            found += data
    except ConnectionResetError:
        pass
    return found


@asynccontextmanager
async def running(
    handle: Callable[[Request], Awaitable[Response]] = echo,
) -> AsyncIterator[Running]:
    traffic = Traffic()
    made = Server(handle, refused, None, traffic)
    try:
        yield Running(made, traffic, made.listen("127.0.0.1", 0))
    finally:
        await made.close()


async def open_connections(run: Running, count: int) -> None:
    """Return when so many are open."""
    while run.traffic.open != count:  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.005)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_requests_on_one_connection() -> None:
    async def scene() -> None:
        async with running() as run:
            answer = await run.send(
                b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
                b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
                b"GET /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            assert answer.count(b"HTTP/1.1 200") == 3
            assert b"GET /a 0" in answer
            assert b"POST /b 3" in answer
            assert b"GET /c 0" in answer
            assert run.traffic.requests == {200: 3}

    play(scene())


def test_head_has_no_body() -> None:
    async def scene() -> None:
        async with running() as run:
            answer = await run.send(b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"Content-Length: 9" in head
            assert body == b""

    play(scene())


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
        b"\x00\x00\x00\x10" + bytes(64) + b"\r\n\r\n",  # a control link's frame
        b"GET\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x10\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_http(sent: bytes) -> None:
    async def scene() -> None:
        async with running() as run:
            answer = await run.send(sent)
            assert 400 <= status(answer) < 600
            assert status(answer) != 500
            assert b"Connection: close" in answer
            assert status(await run.send(CLOSING)) == 200  # and others are served

    play(scene())


CLOSING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_row_14_slow_loris_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 sockets that never end their head: each is answered 408, others are served."""
    monkeypatch.setattr(server, "HEAD_S", 0.5)
    monkeypatch.setattr(server, "CONNECTIONS_PER_PEER_MAX", 100)

    async def scene() -> None:
        async with running() as run:
            slow = [await asyncio.open_connection(*run.address) for _ in range(200)]
            for _, writer in slow:
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            answers = await asyncio.gather(*(rest(reader) for reader, _ in slow))
            found = [status(answer) for answer in answers if answer]
            assert set(found) <= {408, 503}
            assert found.count(408) == 100
            assert run.traffic.dropped == 100
            for _, writer in slow:
                writer.close()
            await open_connections(run, 0)
            assert status(await run.send(CLOSING)) == 200

    play(scene())


def test_row_14_slow_loris_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not lengthen the deadline."""
    monkeypatch.setattr(server, "HEAD_S", 0.4)

    async def scene() -> None:
        async with running() as run, run.connected() as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")

            async def drip() -> None:
                while True:
                    writer.write(b"a: b\r\n")
                    await asyncio.sleep(0.05)

            dripping = asyncio.ensure_future(drip())
            assert status(await rest(reader)) == 408
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)

    play(scene())


def test_slow_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_S", 0.3)

    async def scene() -> None:
        async with running() as run:
            answer = await run.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            assert status(answer) == 408
            assert b"the body of the request took longer" in answer

    play(scene())


def test_silence_is_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.2)

    async def scene() -> None:
        async with running() as run:
            assert await run.send(b"") == b""

    play(scene())


def test_row_15_body_of_a_gigabyte() -> None:
    """Refused by its announcement, before a byte of it is read."""

    async def scene() -> None:
        async with running() as run:
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
            answer = await run.send(head)
            assert status(answer) == 413
            assert b"at most 65536 bytes, not 1073741824" in answer
            huge = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 100 + b"\r\n\r\n"
            assert status(await run.send(huge)) in (400, 413)

    play(scene())


def test_row_15_body_that_is_sent_anyway() -> None:
    """Who sends on hears the refusal, and is cut off long before the end."""

    async def scene() -> None:
        async with running() as run, run.connected() as (reader, writer):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 30}\r\n\r\n"
            writer.write(head.encode())
            sent = 0

            async def flood() -> None:
                nonlocal sent
                while sent < 1 << 30:
                    writer.write(bytes(65536))
                    await writer.drain()
                    sent += 65536

            flooding = asyncio.ensure_future(flood())
            assert status(await rest(reader)) == 413
            await asyncio.wait([flooding], timeout=PATIENCE_S)
            assert flooding.done()
            assert isinstance(flooding.exception(), ConnectionError)
            assert sent < 64 << 20

    play(scene())


def test_row_15_chunks_without_an_announcement() -> None:
    async def scene() -> None:
        async with running() as run:
            chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
            answer = await run.send(
                b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + 5 * chunk
            )
            assert status(answer) == 413

    play(scene())


@pytest.mark.parametrize(("size_bytes", "expected"), [(65536, 200), (65537, 413)])
def test_body_bound(size_bytes: int, expected: int) -> None:
    async def scene() -> None:
        async with running() as run:
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size_bytes}\r\n"
            answer = await run.send(
                head.encode() + b"Connection: close\r\n\r\n" + bytes(size_bytes)
            )
            assert status(answer) == expected

    play(scene())


def test_head_bound() -> None:
    async def scene() -> None:
        async with running() as run:
            fields = b"".join(b"x-%d: y\r\n" % n for n in range(10000))
            answer = await run.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
            assert status(answer) == 431
            answer = await run.send(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")
            assert status(answer) == 431

    play(scene())


def test_row_20_connections_of_one_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap is of a peer: who has used it up is turned away, and nobody else."""
    monkeypatch.setattr(server, "CONNECTIONS_PER_PEER_MAX", 8)

    async def scene() -> None:
        async with running() as run:
            held = [await asyncio.open_connection(*run.address) for _ in range(8)]
            await open_connections(run, 8)
            assert status(await run.send(b"")) == 503
            # 127.0.0.2 is another peer.
            reader, writer = await asyncio.open_connection(
                *run.address, local_addr=("127.0.0.2", 0)
            )
            writer.write(CLOSING)
            assert status(await rest(reader)) == 200
            writer.close()
            for _, one in held:
                one.close()
                await one.wait_closed()
            await open_connections(run, 0)
            assert status(await run.send(CLOSING)) == 200

    play(scene())


def test_a_stream_ends_with_its_reader() -> None:
    ended = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async def handle(request: Request) -> Response:
        return Response(200, {"Content-Type": "text/event-stream"}, pieces())

    async def scene() -> None:
        async with running(handle) as run:
            async with run.connected() as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"data: x")
            await asyncio.wait_for(ended.wait(), PATIENCE_S)
            assert status(await run.send(CLOSING.replace(b"GET", b"HEAD"))) == 200

    play(scene())


def test_who_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_S", 0.3)

    async def handle(request: Request) -> Response:
        return Response(200, {"Content-Type": "text/plain"}, bytes(64 << 20))

    async def scene() -> None:
        async with running(handle) as run, run.connected() as (_, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await open_connections(run, 1)
            await open_connections(run, 0)

    play(scene())


def test_the_loop_is_left_to_others() -> None:
    """However many ask, HTTP takes a quarter of the loop."""

    async def handle(request: Request) -> Response:
        end = asyncio.get_running_loop().time() + 0.002
        while asyncio.get_running_loop().time() < end:
            pass
        return Response(200, {"Content-Type": "text/plain"}, b"")

    async def scene() -> None:
        async with running(handle) as run:

            async def hammer() -> None:
                async with run.connected() as (reader, writer):
                    for _ in range(10):
                        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                        await reader.readuntil(b"\r\n\r\n")

            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(hammer() for _ in range(20)))
            took_s = asyncio.get_running_loop().time() - began
            assert took_s >= 199 * 0.002 * (1 + server.REST)  # never sooner, however fast it is

    play(scene())


def test_an_address_that_is_taken() -> None:
    from rfaas.errors import AddressInUseError

    async def scene() -> None:
        async with running() as run:
            other = Server(echo, refused, None, Traffic())
            with pytest.raises(AddressInUseError, match=r"cannot listen on 127.0.0.1:\d+: EADDR"):
                other.listen(*run.address)
            await other.close()

    play(scene())
