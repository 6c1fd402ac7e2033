"""What carries the bytes of a control link: one interface over sockets and RDMA connections.

Nothing here blocks but `wait`; frames, messages, requests and replies are the
business of `link` and `aio`, which are the same over every carrier.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from rfaas.control import sockets
from rfaas.errors import InternalError

if TYPE_CHECKING:
    import asyncio

LINGER_S = 1.0  # for what was sent to arrive, before a close

Callback = Callable[[], object]


class Carrier(Protocol):
    """A connection that moves bytes in order; the end of one side is the end of both."""

    passes_fds: bool  # descriptors can travel beside bytes: a Unix socket
    lends: bool  # the peer can read our memory: see `lending`

    @property
    def local_host(self) -> str:
        """The address of our end; "" where it has none."""

    def reached(self, *, is_ours: bool) -> str:
        """The end of who listens, HOST PORT in numbers, as we who listen (`is_ours`), or who
        connected, know it; "" where no network is between.
        """

    def fileno(self) -> int:
        """A descriptor that is readable when something came; -1 once closed."""

    def send(self, data: bytes | memoryview, fds: tuple[int, ...] = ()) -> int:
        """Take what there is room for, with `fds` on the first byte; the number of bytes taken.

        Raises:
            BlockingIOError: there is no room; `on_writable` or `wait` for it.
            OSError: the connection is over.
        """

    def receive(self, fds_held: int = 0) -> tuple[bytes, list[int]]:
        """Some bytes that came, with the descriptors that came along; b"" at the end.

        Raises:
            BlockingIOError: nothing is there; `on_readable` or `wait` for it.
            OSError: the connection broke.
            ProtocolError: with the `fds_held` that nobody took, they are too many.
        """

    def wait(self, timeout_s: float | None, *, to_send: bool = False) -> bool:
        """Block until `receive` (or `send`) may have something to do; False: not in time.

        Raises:
            OSError: the connection is closed.
        """

    def on_readable(self, callback: Callback | None) -> None:
        """Call back in the running loop while `receive` may have something; None: no more."""

    def on_writable(self, callback: Callback | None) -> None:
        """Call back in the running loop while `send` may have room; None: no more."""

    def settle(self, timeout_s: float) -> None:
        """Block until what was sent has arrived: `close` may lose what has not."""

    def settling(self) -> asyncio.Future[None] | None:
        """In the running loop: done when it has arrived; None: nothing is on its way."""

    def lose_after(self, silence_s: float) -> None:
        """From here on the link ends when the peer's machine is silent for so long.

        What is counted are the answers of its kernel or NIC, not what its program says.
        """

    def close(self) -> None:
        """End the connection.  Can be called twice."""


class Acceptor(Protocol):
    """What connections come in by; owned by the listener of a role."""

    address: str  # where it listens: a port that was left open is known by now

    def fileno(self) -> int:
        """A descriptor that is readable when somebody may have connected."""

    def accept(self) -> Carrier | None:
        """Who has connected, None if nobody has; OSError as of accept(2)."""

    def close(self) -> None:
        """Listen no more.  Can be called twice."""


class SocketCarrier:
    """A Unix or TCP socket, which it owns; `Carrier`.

    Args:
        fds_max: descriptors that may wait to be taken.
    """

    lends = False

    def __init__(self, sock: socket.socket, fds_max: int = sockets.FDS_MAX) -> None:
        self._sock = sock
        self._fds_max = fds_max
        self.passes_fds = sock.family == socket.AF_UNIX

    @property
    def local_host(self) -> str:
        return "" if self.passes_fds else self._sock.getsockname()[0]

    def reached(self, *, is_ours: bool) -> str:
        if self.passes_fds:
            return ""
        there = self._sock.getsockname() if is_ours else self._sock.getpeername()
        return numbers(there[0], there[1])

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, data: bytes | memoryview, fds: tuple[int, ...] = ()) -> int:
        return sockets.send(self._sock, data, fds)

    def receive(self, fds_held: int = 0) -> tuple[bytes, list[int]]:
        return sockets.receive(self._sock, fds_held, self._fds_max)

    def wait(self, timeout_s: float | None, *, to_send: bool = False) -> bool:
        fd = self._sock.fileno()
        if fd < 0:  # by another thread
            raise OSError(errno.EBADF, "the link is closed")
        poller = select.poll()
        poller.register(fd, select.POLLOUT if to_send else select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else 1000 * max(timeout_s, 0.0)))

    def on_readable(self, callback: Callback | None) -> None:
        loop = running_loop()
        if callback is None:
            loop.remove_reader(self._sock)
        else:
            loop.add_reader(self._sock, callback)

    def on_writable(self, callback: Callback | None) -> None:
        loop = running_loop()
        if callback is None:
            loop.remove_writer(self._sock)
        else:
            loop.add_writer(self._sock, callback)

    def settle(self, timeout_s: float) -> None:
        pass  # the kernel sends on

    def settling(self) -> None:
        return None

    def lose_after(self, silence_s: float) -> None:
        if not self.passes_fds and self._sock.fileno() >= 0:
            sockets.lose_after(self._sock, silence_s)

    def close(self) -> None:
        self._sock.close()


class SocketAcceptor:
    """A listening socket, which it owns with its file; `Acceptor`."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self._sock = sock
        self.address = address

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> SocketCarrier | None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        try:
            if sock.family != socket.AF_UNIX:
                sockets.tune(sock)
            return SocketCarrier(sock)
        except OSError:  # it has gone meanwhile
            sock.close()
            return None

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        path = self._sock.getsockname() if self._sock.family == socket.AF_UNIX else ""
        self._sock.close()
        if path and os.path.exists(path):
            os.unlink(path)


def numbers(host: str, port: int) -> str:
    """An end of a network connection, the same text for the same address on both sides."""
    import ipaddress  # where links are authenticated alone

    address = ipaddress.ip_address(host.partition("%")[0])  # a zone is its machine's own name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return f"{mapped or address} {port}"


def of(end: socket.socket | Carrier) -> Carrier:
    """The carrier over a socket; a carrier is one."""
    return SocketCarrier(end) if isinstance(end, socket.socket) else end


def check(carrier: Carrier, fds: Sequence[int], peer: str) -> None:
    """InternalError where descriptors were to go to a peer that they cannot reach."""
    if fds and not carrier.passes_fds:
        raise InternalError(f"no descriptor can be passed to {peer}: a network is between")


def running_loop() -> asyncio.AbstractEventLoop:
    import asyncio  # clients and workers have no use for it

    return asyncio.get_running_loop()
