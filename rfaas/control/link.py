"""A blocking control link: what clients, workers and the zygote use.

Thread-safe: one request at a time, and beside it what is posted.  Notices that
arrive meanwhile are kept in `notices`, in order, for whoever cares.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import TypeVar

import msgspec

from rfaas.control import sockets
from rfaas.errors import PeerLostError, ProtocolError, UnavailableError, from_wire
from rfaas.proto.codec import Framer, decode, encode
from rfaas.proto.messages import (
    PROTOCOL_VERSION,
    Error,
    Hello,
    Message,
    Welcome,
    version_fault,
)

NOTICES_MAX = 4096
SLICE_S = 0.5  # a signal that comes just before a wait is seen after it, so waits are short

Reply = TypeVar("Reply", bound=Message)


class Link:
    """A connection to `peer` (a name for messages); owns `sock`."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self.notices: deque[Message] = deque()
        self.heard: Callable[[Message], bool] | None = None  # takes a notice at once, or does not
        self._sock = sock
        self._framer = Framer()
        self._inbox: deque[Message] = deque()
        self._fds: list[int] = []
        self._lock = threading.RLock()
        self._sending = threading.Lock()  # taken after _lock, or alone
        self._ids = count(1)
        self._lost = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def request(
        self, message: Message, fds: tuple[int, ...] = (), *, timeout_s: float = 30.0
    ) -> Message:
        """Send a request and return its reply; descriptors stay the caller's.

        Raises:
            PeerLostError: the link is gone, or no reply came in `timeout_s`.
            RfaasError: the peer answered with an error.
        """
        with self._lock:
            wanted = next(self._ids)
            self.send(msgspec.structs.replace(message, id=wanted), fds)
            deadline = time.monotonic() + timeout_s
            while True:
                reply = self.receive(deadline)
                if reply is None:
                    self.close()
                    raise PeerLostError(
                        f"no answer from {self.peer} to {type(message).__name__} in {timeout_s:g} s"
                    )
                if reply.id == wanted or (reply.id == 0 and isinstance(reply, Error)):
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
        data = encode(message)
        with self._lock, self._sending:
            try:
                sent = sockets.send(self._sock, data, fds)
                if sent < len(data):
                    self._sock.sendall(data[sent:])
            except OSError as error:
                raise self._gone(error.strerror) from None

    def post(self, message: Message) -> bool:
        """Send a request whose reply nobody needs, also while another thread waits for one.

        Returns False where the peer does not read and nothing was sent: try again later.
        Never waits for a reply; for a frame that another thread sends, SLICE_S at most.

        Raises:
            PeerLostError: the link is gone.
        """
        data = encode(msgspec.structs.replace(message, id=next(self._ids)))
        if not self._sending.acquire(timeout=SLICE_S):
            return False
        try:
            sent = self._sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            if sent < len(data):
                self._sock.sendall(data[sent:])
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise self._gone(error.strerror) from None
        finally:
            self._sending.release()
        self.poll()  # replies of earlier posts must not fill the socket
        return True

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
                    self._take(None if deadline_s is None else min(left_s, SLICE_S))
                except TimeoutError:
                    if left_s <= SLICE_S:
                        return None
                except ProtocolError:
                    self._lost = True  # where the next message begins is anybody's guess
                    raise
                finally:
                    with suppress(OSError):  # another thread has closed the link
                        self._sock.settimeout(None)
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
        self._lost = True
        self._sock.close()
        for fd in self.take_fds():
            os.close(fd)

    def _take(self, timeout_s: float | None) -> None:
        try:
            self._sock.settimeout(timeout_s)
            data, fds = sockets.receive(self._sock, len(self._fds))
        except (TimeoutError, BlockingIOError):
            raise TimeoutError from None
        except OSError as error:
            raise self._gone(error.strerror) from None
        self._fds += fds
        if not data:
            raise self._gone("it closed the connection")
        self._inbox.extend(decode(body) for body in self._framer.feed(data))

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


def greet(sock: socket.socket, peer: str, hello: Hello) -> Link:
    """Say hello on a new socket; the link, once the peer has answered in our version."""
    link = Link(sock, peer)
    try:
        ours = f"{hello.role} {hello.name}"
        link.peer = welcomed(link.request(hello), peer, ours)
    except PeerLostError as error:
        link.close()
        raise UnavailableError(f"{peer} does not answer: {error.text}") from None
    except BaseException:
        link.close()
        raise
    return link


def welcomed(reply: Message, peer: str, ours: str) -> str:
    """The name of `peer`, from its answer to our Hello; ProtocolError unless it speaks ours."""
    if not isinstance(reply, Welcome):
        raise ProtocolError(f"{peer} answered with {type(reply).__name__}, no welcome")
    if reply.version != PROTOCOL_VERSION:
        text, hint = version_fault(reply, ours)
        raise ProtocolError(text, hint=hint)
    return f"{reply.role} {reply.name}"


def connect(address: str, hello: Hello) -> Link:
    """A link to whoever listens at `address`."""
    return greet(sockets.connect(address), f"the peer at {address}", hello)
