"""A blocking control link: what clients, workers and the zygote use.

Thread-safe: one request at a time, and beside it what is posted.  Notices that
arrive meanwhile are kept in `notices`, in order, for whoever cares.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rfaas.control import carrier as carriers
from rfaas.control import ends
from rfaas.errors import PeerLostError, ProtocolError, UnavailableError, from_wire
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

if TYPE_CHECKING:
    import socket

    from rfaas.control.carrier import Carrier
    from rfaas.control.cluster_key import Introduction
    from rfaas.proto.guard import Guard

NOTICES_MAX = 4096
SLICE_S = 0.5  # a signal that comes just before a wait is seen after it, so waits are short

Reply = TypeVar("Reply", bound=Message)


class Link:
    """A connection to `peer` (a name for messages); owns `end`, a socket or another carrier."""

    def __init__(self, end: socket.socket | Carrier, peer: str) -> None:
        self.peer = peer
        self.notices: deque[Message] = deque()
        self.heard: Callable[[Message], bool] | None = None  # takes a notice at once, or does not
        self._carrier = carriers.of(end)
        self._framer = Framer()
        self._inbox: deque[Message] = deque()
        self._fds: list[int] = []
        self._lock = threading.RLock()
        self._sending = threading.Lock()  # taken after _lock, or alone
        self._rest = memoryview(b"")  # of a frame that was posted to a full connection
        self._ids = count(1)
        self.nonce = b""  # what proofs on this link are made over, `proto.proof`
        self._guard: Guard | None = None
        self._lost = False

    @property
    def carrier(self) -> Carrier:
        """What carries it."""
        return self._carrier

    @property
    def passes_fds(self) -> bool:
        """Whether descriptors can travel beside messages: the peer is on this machine."""
        return self._carrier.passes_fds

    def fileno(self) -> int:
        return self._carrier.fileno()

    def request(
        self, message: Message, fds: tuple[int, ...] = (), *, timeout_s: float = 30.0
    ) -> Message:
        """Send a request and return its reply; descriptors stay the caller's.

        Raises:
            PeerLostError: the link is gone, or no reply came in `timeout_s`.
            RfaasError: the peer answered with an error.
        """
        with self._lock:
            return self.finish(self.begin(message, fds), timeout_s=timeout_s)

    def begin(self, message: Message, fds: tuple[int, ...] = ()) -> Message:
        """Send a request and return it for `finish`; until then, nobody else receives here."""
        asked = msgspec.structs.replace(message, id=next(self._ids))
        self.send(asked, fds)
        return asked

    def finish(self, asked: Message, *, timeout_s: float = 30.0) -> Message:
        """The reply to what was begun; raises as `request`."""
        with self._lock:
            deadline = time.monotonic() + timeout_s
            while True:
                reply = self.receive(deadline)
                if reply is None:
                    self.close()
                    raise PeerLostError(
                        f"no answer from {self.peer} to {type(asked).__name__} in {timeout_s:g} s"
                    )
                if reply.id == asked.id or (reply.id == 0 and isinstance(reply, Error)):
                    break  # an error without a request's id refuses the link
                self._keep(reply)
        if isinstance(reply, Error):
            raise from_wire(reply.code, reply.text, reply.hint)
        return reply

    def ask(self, message: Message, kind: type[Reply], *, timeout_s: float = 30.0) -> Reply:
        """As `request`, for an answer of one kind; ProtocolError for any other."""
        reply = self.request(message, timeout_s=timeout_s)
        if not isinstance(reply, kind):
            raise ProtocolError(
                f"{self.peer} answered {type(reply).__name__} to {type(message).__name__}"
            )
        return reply

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Send a message as it is; blocks while the peer does not read."""
        carriers.check(self._carrier, fds, self.peer)
        with self._lock, self._sending:
            self._send_all(self._encode(message), fds)

    def post(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Send a request whose reply nobody needs, also while another thread waits for one.

        Returns False where the peer does not read and nothing was sent: try again later.
        Never waits for a reply; for a frame that another thread sends, SLICE_S at most.

        Raises:
            PeerLostError: the link is gone.
        """
        message = msgspec.structs.replace(message, id=next(self._ids))
        if not self._sending.acquire(timeout=SLICE_S):
            return False
        try:
            self._push()
            if self._rest or not self._post(self._encode(message), fds):
                return False
        except OSError as error:
            raise self._gone(error.strerror) from None
        finally:
            self._sending.release()
        self.poll()  # replies of earlier posts must not fill the socket
        return True

    def protect(self, guard: Guard) -> None:
        """Guard all that is sent and comes from here on.

        Raises:
            ProtocolError: the peer has sent more than it was asked for.
        """
        with self._lock:
            if self._inbox or self._framer.pending:
                raise ProtocolError(f"{self.peer} sent more than its answer")
            self._guard = guard
            self._framer.frame_bytes_max = FRAME_BYTES_MAX + guard.tag_bytes

    def receive(self, deadline_s: float | None = None) -> Message | None:
        """The next message of any kind; None when `deadline_s` (monotonic) passes first.

        A deadline in the past (0.0) takes what is there and does not wait.
        """
        with self._lock:
            while not self._inbox:
                if self._lost:
                    raise self._gone("end of stream")
                left_s = 0.0
                if deadline_s is not None:
                    left_s = max(0.0, deadline_s - time.monotonic())
                try:
                    if self._take(None if deadline_s is None else min(left_s, SLICE_S)):
                        continue
                except ProtocolError:
                    self._lost = True  # where the next message begins is anybody's guess
                    raise
                if deadline_s is not None and left_s <= SLICE_S:
                    return None
            return self._inbox.popleft()

    def poll(self, wait_s: float = 0.0) -> bool:
        """Move notices that have arrived to `notices`; False if another thread is at it.

        Waits up to `wait_s` for the first.  Raises PeerLostError when the peer is gone.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            wait = wait_s and not self.notices  # another thread may have kept what is awaited
            message = self.receive(time.monotonic() + wait_s if wait else 0.0)
            while message is not None:
                self._keep(message)
                message = self.receive(0.0)
            return True
        finally:
            self._lock.release()

    def take_fds(self) -> list[int]:
        """The descriptors that came with the messages so far; the caller's to close."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        if not self._lost:
            self._carrier.settle(carriers.LINGER_S)
        self._lost = True
        self._carrier.close()
        for fd in self.take_fds():
            os.close(fd)

    def _send_all(self, data: bytes, fds: tuple[int, ...]) -> None:
        """Send a frame after what is left of an earlier one; waits while there is no room."""
        first, self._rest = self._rest, memoryview(b"")
        try:
            self._send_part(first, ())
            self._send_part(memoryview(data), fds)
        except OSError as error:
            raise self._gone(error.strerror) from None

    def _send_part(self, left: memoryview, fds: tuple[int, ...]) -> None:
        while left:
            try:
                left = left[self._carrier.send(left, fds) :]
                fds = ()
            except BlockingIOError:
                self._carrier.wait(None, to_send=True)

    def _push(self) -> None:
        """Send of what was posted what there is room for."""
        with suppress(BlockingIOError):
            while self._rest:
                self._rest = self._rest[self._carrier.send(self._rest) :]

    def _take(self, timeout_s: float | None) -> bool:
        """Take in what has come; wait for it where nothing has.  False: nothing in time."""
        try:
            if self._rest and self._sending.acquire(blocking=False):
                try:
                    self._push()
                finally:
                    self._sending.release()
            try:
                data, fds = self._carrier.receive(len(self._fds))
            except BlockingIOError:
                if self._rest and timeout_s is None:
                    timeout_s = SLICE_S
                if timeout_s == 0.0 or not self._carrier.wait(timeout_s):
                    return False
                data, fds = self._carrier.receive(len(self._fds))
        except BlockingIOError:
            return True  # what came was nothing for us: look again
        except OSError as error:
            raise self._gone(error.strerror) from None
        self._fds += fds
        if not data:
            raise self._gone("it closed the connection")
        open_ = decode if self._guard is None else self._guard.decode
        self._inbox.extend(open_(body) for body in self._framer.feed(data))
        return True

    def _encode(self, message: Message) -> bytes:
        """The frame of what is sent next; `_sending` is held."""
        return encode(message) if self._guard is None else self._guard.encode(message)

    def _post(self, data: bytes, fds: tuple[int, ...]) -> bool:
        """Send a frame, or its beginning, without waiting; False: there was no room."""
        sent = 0
        with suppress(BlockingIOError):
            sent = self._carrier.send(data, fds)
        if not sent:
            if self._guard is not None:
                self._guard.unsent()
            return False
        self._rest = memoryview(data)[sent:]
        return True

    def _keep(self, notice: Message) -> None:
        if notice.id:
            return  # a reply that nobody waits for
        if self.heard is not None and self.heard(notice):
            return
        if len(self.notices) >= NOTICES_MAX:
            raise ProtocolError(f"{self.peer} sent more than {NOTICES_MAX} notices unasked")
        self.notices.append(notice)

    def _gone(self, why: str | None) -> PeerLostError:
        self._lost = True
        return PeerLostError(f"lost {self.peer}: {why or 'the system does not say why'}")


class Greeting:
    """Hello is said on a new connection, and the peer may take its time to answer.

    With a `key`, the cluster's, both sides prove that they have it.
    """

    def __init__(
        self, end: socket.socket | Carrier, peer: str, hello: Hello, key: bytes = b""
    ) -> None:
        self._link = link = Link(end, peer)
        self._hello = hello
        self._introduction: Introduction | None = None
        first = hello
        if key:
            from rfaas.control.cluster_key import Introduction

            self._introduction = Introduction(key, hello, link.carrier)
            first = self._introduction.hello
        try:
            self._asked = link.begin(first)
        except PeerLostError as error:
            raise self._unanswered(error) from None
        except BaseException:
            link.close()
            raise

    def link(self) -> Link:
        """The link, once the peer has answered in our version."""
        link, hello = self._link, self._hello
        try:
            welcome = link.finish(self._asked)
            if self._introduction is not None:
                answer, guard = self._introduction.answer(welcome, link.peer)
                link.protect(guard)
                welcome = link.request(answer)
            link.peer = welcomed(welcome, link.peer, f"{hello.role} {hello.name}")
            if isinstance(welcome, Welcome):
                link.nonce = welcome.nonce
        except PeerLostError as error:
            raise self._unanswered(error) from None
        except BaseException:
            link.close()
            raise
        return link

    def close(self) -> None:
        """Do without the link."""
        self._link.close()

    def _unanswered(self, error: PeerLostError) -> UnavailableError:
        self._link.close()
        return UnavailableError(f"{self._link.peer} does not answer: {error.text}")


def welcomed(reply: Message, peer: str, ours: str) -> str:
    """The name of `peer`, from its answer to our Hello; ProtocolError unless it speaks ours."""
    if not isinstance(reply, Welcome):
        raise ProtocolError(f"{peer} answered with {type(reply).__name__}, no welcome")
    if reply.version != PROTOCOL_VERSION:
        text, hint = version_fault(reply, ours)
        raise ProtocolError(text, hint=hint)
    return f"{reply.role} {reply.name}"


def greet(end: socket.socket | Carrier, peer: str, hello: Hello, key: bytes = b"") -> Link:
    """Say hello on a new connection; the link, once the peer has answered."""
    return Greeting(end, peer, hello, key).link()


def dial(address: str, hello: Hello, device: str = "", key: bytes = b"") -> Greeting:
    """Greet whoever listens at `address`; over RDMA from `device`, "": the route's."""
    return Greeting(ends.connect(address, device), f"the peer at {address}", hello, key)


def connect(address: str, hello: Hello, device: str = "", key: bytes = b"") -> Link:
    """The same; the link, once it has answered."""
    return dial(address, hello, device, key).link()
