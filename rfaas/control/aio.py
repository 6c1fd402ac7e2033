"""Control links for roles that serve many: asyncio.

A link reads only when somebody asks it for a message, so a peer that floods
fills its own socket and nothing else; what we have to say is kept up to
OUTGOING_BYTES_MAX, and a peer that does not read that much is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from rfaas.control import carrier as carriers
from rfaas.control import ends
from rfaas.control.link import welcomed
from rfaas.errors import (
    PeerLostError,
    ProtocolError,
    RfaasError,
    SystemCallError,
    from_wire,
)
from rfaas.proto.codec import Framer, decode, encode
from rfaas.proto.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Error,
    Hello,
    Message,
    Welcome,
    version_fault,
)
from rfaas.proto.proof import NONCE_BYTES

if TYPE_CHECKING:
    import socket

    from rfaas.control.carrier import Acceptor, Carrier
    from rfaas.proto.guard import Guard

OUTGOING_BYTES_MAX = 4 * 1024 * 1024
HELLO_TIMEOUT_S = 5.0
REFUSAL_TIMEOUT_S = 1.0
REQUEST_TIMEOUT_S = 30.0
LINKS_MAX = 4096  # per listener
ACCEPT_PAUSE_S = 0.1  # after a connection that the system would not give us

_LATE = "no message came in time"

log = logging.getLogger("rfaas.control")


class AsyncLink:
    """A connection to `peer` (a name for logs); owns `end`, a socket or what else carries it."""

    def __init__(self, end: socket.socket | Carrier, peer: str) -> None:
        self.peer = peer
        self._carrier = carriers.of(end)
        self._framer = Framer()
        self._inbox: deque[Message] = deque()
        self._fds: list[int] = []
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._outgoing_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._closed = False
        self._broken = ""  # what broke the connection, in the system's words
        self._next_id = 0
        self.user = ""  # who is at the other end, where links are authenticated
        self.nonce = b""  # what proofs on this link are made over, `proto.proof`
        self.asked = 0  # the request that Welcome is the answer to
        self._guard: Guard | None = None

    @property
    def carrier(self) -> Carrier:
        """What carries it."""
        return self._carrier

    @property
    def passes_fds(self) -> bool:
        """Whether descriptors can travel beside messages: the peer is on this machine."""
        return self._carrier.passes_fds

    @property
    def local_host(self) -> str:
        """The address of our end, "" where it has none."""
        return self._carrier.local_host

    @property
    def drained(self) -> bool:
        """Whether all that was sent has left us."""
        return self._drained.is_set()

    @property
    def is_over(self) -> bool:
        """Whether the peer, which has nothing to say yet, is known to be gone, or says it."""
        try:
            return self._closed or bool(self._inbox) or self._carrier.wait(0.0)
        except OSError:
            return True

    def lose_after(self, silence_s: float) -> None:
        """End with a peer whose machine is silent for so long: it was cut off, or lost power."""
        with contextlib.suppress(OSError):  # it has ended already
            self._carrier.lose_after(silence_s)

    async def receive(self) -> Message | None:
        """The next message, or None at the end of the stream.  One task at a time.

        Raises:
            ProtocolError: the peer sent what is no message; close the link.
        """
        while not self._inbox:
            if self._closed:
                return None
            try:
                data, fds = self._carrier.receive(len(self._fds))
            except (BlockingIOError, InterruptedError):
                await self._readable()
                continue
            except OSError as error:
                self._broken = error.strerror or ""
                return None
            self._fds += fds
            if not data:
                return None
            open_ = decode if self._guard is None else self._guard.decode
            self._inbox.extend(open_(body) for body in self._framer.feed(data))
        return self._inbox.popleft()

    def protect(self, guard: Guard) -> None:
        """Guard all that is sent and comes from here on.

        Raises:
            ProtocolError: the peer has sent more than it was asked for.
        """
        if self._inbox or self._framer.pending:
            raise ProtocolError(f"{self.peer} sent more than it was asked for")
        self._guard = guard
        self._framer.frame_bytes_max = FRAME_BYTES_MAX + guard.tag_bytes

    async def request(self, message: Message, fds: Sequence[int] = ()) -> Message:
        """Send a request and return the next message that answers it.

        For links on which the peer sends nothing of its own while it is asked; raises what
        the peer answered with, or PeerLostError.
        """
        self._next_id += 1
        self.send(msgspec.structs.replace(message, id=self._next_id), fds)
        try:
            return await asyncio.wait_for(self._reply(self._next_id), REQUEST_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise PeerLostError(f"no answer from {self.peer} in {REQUEST_TIMEOUT_S:g} s") from None

    async def _reply(self, wanted: int) -> Message:
        while True:
            reply = await self.receive()
            if reply is None:
                why = self._broken or "it closed the connection"
                raise PeerLostError(f"lost {self.peer}: {why}")
            # 0: it refuses the link, and with it whatever was asked
            if isinstance(reply, Error) and reply.id in (0, wanted):
                raise from_wire(reply.code, reply.text, reply.hint)
            if reply.id == wanted:
                return reply

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, or queue; `fds` are duplicated where they have to wait.

        Raises:
            PeerLostError: the link is closed, or the peer reads too slowly.
            SystemCallError: `fds` cannot be duplicated; nothing is sent.
        """
        if self._closed:
            raise PeerLostError(f"lost {self.peer}: the link is closed")
        carriers.check(self._carrier, fds, self.peer)
        copies = _duplicates(fds)
        try:
            data = encode(message) if self._guard is None else self._guard.encode(message)
        except ProtocolError:
            _close(copies)
            raise
        if self._outgoing_bytes + len(data) > OUTGOING_BYTES_MAX:
            _close(copies)
            self._abort()
            raise PeerLostError(
                f"gave up {self.peer}: it left more than {OUTGOING_BYTES_MAX} bytes unread"
            )
        self._outgoing.append((data, copies))
        self._outgoing_bytes += len(data)
        if self._drained.is_set():
            self._flush()

    def take_fds(self) -> list[int]:
        """The descriptors that came with the messages so far; the caller's to close."""
        fds, self._fds = self._fds, []
        return fds

    async def drain(self) -> None:
        """Return when all that was queued is sent, or the link is closed."""
        await self._drained.wait()

    async def close(self) -> None:
        """Close; `drain` first to have queued messages sent.  Can be called twice."""
        try:
            if not self._closed and (settling := self._carrier.settling()) is not None:
                await asyncio.wait_for(settling, carriers.LINGER_S)
        except asyncio.TimeoutError:
            pass
        finally:
            self._abort()

    def _flush(self) -> None:
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                sent = self._carrier.send(data, fds)
            except (BlockingIOError, InterruptedError):
                self._drained.clear()
                self._carrier.on_writable(self._flush)
                return
            except OSError:
                self._abort()
                return
            _close(fds)
            self._outgoing_bytes -= sent
            if sent < len(data):
                self._outgoing[0] = (data[sent:], ())
            else:
                self._outgoing.popleft()
        if not self._drained.is_set():
            self._carrier.on_writable(None)
            self._drained.set()

    async def _readable(self) -> None:
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self._carrier.on_readable(lambda: _wake(waiter))
        try:
            await waiter
        finally:
            self._waiter = None
            if not self._closed:
                self._carrier.on_readable(None)

    def _abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._carrier.on_readable(None)
        self._carrier.on_writable(None)
        self._carrier.close()
        _close(self.take_fds())
        for _, fds in self._outgoing:
            _close(fds)
        self._outgoing.clear()
        self._drained.set()
        if self._waiter is not None:
            _wake(self._waiter)


def _duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    made: list[int] = []
    try:
        made.extend(os.dup(fd) for fd in fds)  # one by one: those before a failure are in
    except OSError as error:
        _close(made)
        raise SystemCallError(f"cannot send a descriptor: {error.strerror}") from None
    return tuple(made)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def connect(address: str, hello: Hello, device: str = "", key: bytes = b"") -> AsyncLink:
    """A link to whoever listens at `address`; over RDMA from `device`, "": the route's.

    Args:
        key: the cluster's; b"": links are not authenticated by one.

    Raises:
        UnavailableError: nobody does.
        ProtocolError: it speaks another version.
        NotPermittedError: it does not have the key.
    """
    link = AsyncLink(await ends.connect_soon(address, device), f"the peer at {address}")
    try:
        ours = f"{hello.role} {hello.name}"
        if key:
            from rfaas.control.cluster_key import Introduction

            introduction = Introduction(key, hello, link.carrier)
            challenge = await link.request(introduction.hello)
            answer, guard = introduction.answer(challenge, link.peer)
            link.protect(guard)
            welcome = await link.request(answer)
        else:
            welcome = await link.request(hello)
        link.peer = welcomed(welcome, link.peer, ours)
        if isinstance(welcome, Welcome):
            link.nonce = welcome.nonce
    except BaseException:
        await link.close()
        raise
    return link


Serve = Callable[[AsyncLink, Hello], Awaitable[None]]
# The name of the user, "" for what it calls itself; raises who may not connect.
Admit = Callable[[Hello, AsyncLink, Welcome], Awaitable[str]]


class Listener:
    """Accepts links and serves each in a task of its own."""

    def __init__(
        self,
        welcome: Welcome,
        serve: Serve,
        acceptor: Acceptor | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._welcome = welcome
        self._admit = admit
        self._serve = serve
        self._acceptor = acceptor
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None  # no connection could be had lately
        if acceptor is not None:
            asyncio.get_running_loop().add_reader(acceptor.fileno(), self._accept)

    @property
    def address(self) -> str:
        """Where it listens, with the port that it got where none was asked for."""
        return self._acceptor.address if self._acceptor is not None else ""

    def adopt(self, end: socket.socket | Carrier) -> asyncio.Task[None]:
        """Serve who has connected; returns the task, which ends with the link."""
        task = asyncio.get_running_loop().create_task(self._run(AsyncLink(end, "a new peer")))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop listening, end all links, wait for their tasks.  Can be called twice."""
        if self._pause is not None:
            self._pause.cancel()
        if self._acceptor is not None:
            asyncio.get_running_loop().remove_reader(self._acceptor.fileno())
            self._acceptor.close()
            self._acceptor = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        assert self._acceptor is not None
        try:
            end = self._acceptor.accept()
        except OSError as error:
            # It waits in the queue, so the socket stays readable: out of descriptors, say,
            # we would spin.
            loop = asyncio.get_running_loop()
            fd = self._acceptor.fileno()
            loop.remove_reader(fd)
            if self._pause is None:
                log.warning("cannot accept connections: %s; trying again", error.strerror)
            self._pause = loop.call_later(ACCEPT_PAUSE_S, loop.add_reader, fd, self._accept)
            return
        if end is None:
            return
        self._pause = None
        if len(self._tasks) >= LINKS_MAX:
            log.warning("refused a connection: %d are open", LINKS_MAX)
            end.close()
            return
        self.adopt(end)

    async def _run(self, link: AsyncLink) -> None:
        try:
            hello = await self._handshake(link)
            if hello is not None:
                await self._serve(link, hello)
        except (RfaasError, asyncio.TimeoutError) as error:
            log.warning("%s: %s", link.peer, error if isinstance(error, RfaasError) else _LATE)
            await refuse(link, 0, error)
        finally:
            await link.close()

    async def _handshake(self, link: AsyncLink) -> Hello | None:
        hello = await asyncio.wait_for(link.receive(), HELLO_TIMEOUT_S)
        if hello is None:
            return None
        if not isinstance(hello, Hello):
            raise ProtocolError(f"the first message is {type(hello).__name__}, not Hello")
        if hello.version != PROTOCOL_VERSION:
            own = f"{self._welcome.role} {self._welcome.name}"
            text, hint = version_fault(hello, own)
            log.warning("refused a peer: %s", text)
            await refuse(link, hello.id, ProtocolError(text, hint=hint))
            return None
        link.peer = f"{hello.role} {hello.name}"
        link.asked = hello.id
        if self._admit is not None:
            admitted = self._admit(hello, link, self._welcome)
            link.user = await asyncio.wait_for(admitted, HELLO_TIMEOUT_S)
        link.nonce = secrets.token_bytes(NONCE_BYTES)
        link.send(msgspec.structs.replace(self._welcome, id=link.asked, nonce=link.nonce))
        return hello


@contextlib.contextmanager
def no_silent_end(what: str, lost: Callable[[str], None]) -> Iterator[None]:
    """For a task that a role cannot do without and nobody waits for: a fault ends the role.

    The traceback is logged, and `lost` hears in a sentence what failed.
    """
    try:
        yield
    except Exception as error:
        log.exception("%s failed", what)
        lost(f"{what} failed: {type(error).__name__}: {error}")


async def refuse(link: AsyncLink, request_id: int, error: Exception) -> None:
    """Answer a request with an error, as far as the peer still listens."""
    if isinstance(error, RfaasError):
        reply = Error(
            id=request_id, code=error.code, text=error.text[:4096], hint=error.hint[:4096]
        )
    else:
        reply = Error(id=request_id, code="peer-lost", text=_LATE)
    try:
        link.send(reply)
    except PeerLostError:
        return
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(link.drain(), REFUSAL_TIMEOUT_S)


async def listen(
    address: str,
    welcome: Welcome,
    serve: Serve,
    device: str = "",
    admit: Admit | None = None,
) -> Listener:
    """Listen at `address`, over RDMA by `device`, and serve each link that says hello.

    Raises:
        AddressInUseError, SystemCallError, UnavailableError: the address cannot be had.
    """
    acceptor = ends.listen(address, device, is_trusted=admit is not None)
    return Listener(welcome, serve, acceptor, admit)
