"""HTTP/1.1 over asyncio, for a role that has better things to do.

h11 knows the protocol; here are sockets, deadlines and bounds.  Whoever sends
slowly, much, often or nonsense is answered if it costs nothing, and dropped:

    bound                           when it is reached
    connections, and of one peer    503 (over TLS: closed), before anything is read
    head of a request: size, time   431, 408
    body: size, time                413 before it is read, 408
    an answer that nobody reads     closed
    share of the loop               requests are answered one after the other, with
                                    pauses in which leases are served

A connection is served by one task; `close` ends them all.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TypeVar

import h11
from msgspec import Struct

from rfaas.errors import AddressInUseError, SystemCallError
from rfaas.paths import system_text

CONNECTIONS_MAX = 256
CONNECTIONS_PER_PEER_MAX = 64
STREAMS_MAX = 32  # answers without an end
HEAD_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 64 * 1024
HEAD_S = 5.0  # for the first byte of a connection and for a whole head
IDLE_S = 30.0  # between two requests
BODY_S = 10.0
WRITE_S = 10.0  # for one piece of an answer to be taken
LINGER_S = 1.0  # to hear out who was refused, so that it hears us
LINGER_BYTES_MAX = 1 << 20
ACCEPT_PAUSE_S = 0.1  # after a connection that the system would not give us
REST = 3  # the loop is left to others for so many times what an answer took, if another waits
READ_BYTES = 16 * 1024

log = logging.getLogger("rfaas.http")

Value = TypeVar("Value")


class Request(Struct, frozen=True):
    """A request that was read whole; `target` is path and query as they were sent."""

    method: str
    target: str
    headers: dict[str, str]  # by name in lower case; of one that is repeated, the last
    body: bytes
    peer: str


class Response(Struct, frozen=True):
    """An answer; `body` may be a stream, which is sent piece by piece."""

    status: int
    headers: Mapping[str, str]
    body: bytes | AsyncIterator[bytes]


Handle = Callable[[Request], Awaitable[Response]]


class RefusalError(Exception):
    """A request that is answered without being looked at; the connection is closed then."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Traffic:
    """What was asked, counted.

    Attributes:
        requests: answers, by status.
        denied: requests that their key did not allow, by why.
        open: connections, now.
        dropped: connections that were closed before they were read.
    """

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.denied: Counter[str] = Counter()
        self.open = 0
        self.dropped = 0


class Server:
    """See the module's docstring.

    Args:
        handle: answers a request; one at a time, unless its answer is a stream.
        refused: makes the answer for a status and a text.
    """

    def __init__(
        self,
        handle: Handle,
        refused: Callable[[int, str], Response],
        tls: ssl.SSLContext | None,
        traffic: Traffic,
    ) -> None:
        self._handle = handle
        self._refused = refused
        self._tls = tls
        self._sock: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._peers: Counter[str] = Counter()
        self._turn = asyncio.Lock()
        self._rest_until = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._traffic = traffic

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Bind, and accept from now on; returns address and port, where 0 is any that is free.

        Raises:
            AddressInUseError, SystemCallError: it cannot be had.
        """
        shown = f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"
        try:
            family, form, number, _, address = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, form, number)
        except OSError as error:
            text = error.strerror or str(error)
            raise SystemCallError(f"cannot listen on {shown}: {text}") from None
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(128)
        except OSError as error:
            sock.close()
            kind = AddressInUseError if error.errno == errno.EADDRINUSE else SystemCallError
            raise kind(
                f"cannot listen on {shown}: {system_text(error)}",
                hint="set http.address to another port, or to none",
            ) from None
        sock.setblocking(False)
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._accept)
        found = sock.getsockname()
        return str(found[0]), int(found[1])

    async def close(self) -> None:
        """Stop listening and end every connection.  Can be called twice."""
        if self._pause is not None:
            self._pause.cancel()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Connections

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            sock, address = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # as control/aio.py: out of descriptors, we would spin
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock)
            if self._pause is None:
                log.warning("cannot accept connections: %s; trying again", error.strerror)
            self._pause = loop.call_later(ACCEPT_PAUSE_S, loop.add_reader, self._sock, self._accept)
            return
        self._pause = None
        sock.setblocking(False)
        peer = str(address[0])
        if len(self._tasks) >= CONNECTIONS_MAX or self._peers[peer] >= CONNECTIONS_PER_PEER_MAX:
            self._turn_away(sock)
            return
        self._peers[peer] += 1
        self._traffic.open += 1
        task = asyncio.get_running_loop().create_task(self._serve(sock, peer))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._over(task, peer))

    def _turn_away(self, sock: socket.socket) -> None:
        self._traffic.dropped += 1
        if self._tls is None:
            with suppress(OSError):
                sock.send(_BUSY)
        sock.close()

    def _over(self, task: asyncio.Task[None], peer: str) -> None:
        self._tasks.discard(task)
        self._traffic.open -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("connection of %s failed: %r", peer, error)

    async def _serve(self, sock: socket.socket, peer: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(READ_BYTES, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=HEAD_S if self._tls else None,
            )
        except (OSError, ConnectionError, asyncio.TimeoutError):  # no TLS, or none in time
            self._traffic.dropped += 1
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await Connection(self, reader, writer, peer).run()
        except (OSError, asyncio.TimeoutError, h11.RemoteProtocolError, h11.LocalProtocolError):
            pass  # it went, or did not take what it asked for
        else:
            with suppress(OSError, asyncio.TimeoutError):
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), WRITE_S)
        finally:
            transport.abort()

    # Requests

    async def answer(self, request: Request) -> Response:
        """The answer to a request; never fails."""
        async with self._its_turn():
            response = await self._handle(request)
        self._traffic.requests[response.status] += 1
        return response

    def refuse(self, refusal: RefusalError) -> Response:
        """The answer to what is no request."""
        self._traffic.requests[refusal.status] += 1
        return self._refused(refusal.status, refusal.text)

    @asynccontextmanager
    async def _its_turn(self) -> AsyncIterator[None]:
        async with self._turn:
            if (rest_s := self._rest_until - time.perf_counter()) > 0:
                await asyncio.sleep(rest_s)
            began = time.perf_counter()
            yield
            ended = time.perf_counter()
            self._rest_until = ended + REST * (ended - began)


class Connection:
    """One connection, from its first byte to its end."""

    def __init__(
        self,
        server: Server,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: str,
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def run(self) -> None:
        """Answer requests, one after the other, until either side has enough."""
        patience_s = HEAD_S
        while True:
            try:
                request = await self._read(patience_s)
            except RefusalError as refusal:
                await self._send(self._server.refuse(refusal), "GET", last=True)
                await self._linger()
                return
            if request is None:
                return
            await self._send(await self._server.answer(request), request.method)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            patience_s = IDLE_S

    async def _read(self, patience_s: float) -> Request | None:
        """The next request, None where the peer has had enough."""
        try:
            if not self._http.trailing_data[0]:
                data = await asyncio.wait_for(self._reader.read(READ_BYTES), patience_s)
                if not data:
                    return None
                self._http.receive_data(data)
        except asyncio.TimeoutError:
            return None  # it never said anything
        head = await self._within(self._head(), HEAD_S, "the head of the request")
        if head is None:
            return None
        if head.http_version not in (b"1.0", b"1.1"):
            raise RefusalError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        announced = headers.get("content-length", "0")
        if len(announced) > 18 or int(announced) > BODY_BYTES_MAX:  # h11 let digits through alone
            raise RefusalError(
                413, f"a body has at most {BODY_BYTES_MAX} bytes, not {announced:.20}"
            )
        if self._http.they_are_waiting_for_100_continue:
            answer = h11.InformationalResponse(status_code=100, headers=[])
            self._writer.write(self._http.send(answer) or b"")
        body = await self._within(self._body(), BODY_S, "the body of the request")
        return Request(
            head.method.decode("latin-1"), head.target.decode("latin-1"), headers, body, self._peer
        )

    async def _head(self) -> h11.Request | None:
        event = await self._event()
        if isinstance(event, h11.Request):
            return event
        return None  # the end of the connection

    async def _body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                raise RefusalError(413, f"a body has at most {BODY_BYTES_MAX} bytes")
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError
        return bytes(body)

    async def _event(self) -> object:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise RefusalError(error.error_status_hint, f"this is not HTTP: {error}") from None
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._reader.read(READ_BYTES))

    async def _within(self, reading: Awaitable[Value], seconds: float, what: str) -> Value:
        try:
            return await asyncio.wait_for(reading, seconds)
        except asyncio.TimeoutError:
            raise RefusalError(408, f"{what} took longer than {seconds:g} s") from None

    async def _send(self, response: Response, method: str, *, last: bool = False) -> None:
        headers = [*response.headers.items()]
        if isinstance(response.body, bytes):
            headers.append(("Content-Length", str(len(response.body))))
        if last:
            headers.append(("Connection", "close"))
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        reason = HTTPStatus(response.status).phrase
        head = h11.Response(status_code=response.status, headers=headers, reason=reason)
        self._writer.write(self._http.send(head) or b"")
        if isinstance(response.body, bytes):
            if method != "HEAD":
                self._writer.write(self._http.send(h11.Data(data=response.body)) or b"")
        elif method != "HEAD":
            await self._stream(response.body)
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
        await asyncio.wait_for(self._writer.drain(), WRITE_S)

    async def _stream(self, pieces: AsyncIterator[bytes]) -> None:
        """Send piece by piece; ends when the peer goes, or sends anything more."""
        sending = asyncio.ensure_future(self._pieces(pieces))
        gone = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                raise ConnectionResetError
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _pieces(self, pieces: AsyncIterator[bytes]) -> None:
        async for piece in pieces:
            self._writer.write(self._http.send(h11.Data(data=piece)) or b"")
            await asyncio.wait_for(self._writer.drain(), WRITE_S)

    async def _linger(self) -> None:
        """Hear the rest of what was refused for a moment: a reset would take our answer along."""
        with suppress(OSError, NotImplementedError, asyncio.TimeoutError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            await asyncio.wait_for(self._discard(), LINGER_S)

    async def _discard(self) -> None:
        left = LINGER_BYTES_MAX
        while left > 0 and (data := await self._reader.read(READ_BYTES)):
            left -= len(data)


_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 62\r\n\r\n{"code":"capacity","text":"too many connections","hint":""}   '
)
