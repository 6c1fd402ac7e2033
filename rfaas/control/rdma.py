"""Control links over RDMA: a `Carrier` on a stream of `native/_rdma_stream.pyx`.

The descriptors of completions and of connection events are one (epoll), which
asyncio, or a blocking client's poll(2), waits for.  What goes wrong is put into
words here.
"""

from __future__ import annotations

import errno
import select
import time
from typing import TYPE_CHECKING, Any

from rfaas.addresses import Address
from rfaas.control import rdma_errors, sockets
from rfaas.control.carrier import numbers, running_loop
from rfaas.control.rdma_errors import load
from rfaas.errors import ProtocolError, RfaasError, UnavailableError
from rfaas.proto.messages import LIBRARY_LENT_BYTES_MAX
from rfaas.transport import device as devices

if TYPE_CHECKING:
    import asyncio

    from rfaas.control.carrier import Callback
    from rfaas.native._rdma_stream import Stream

CONNECT_TIMEOUT_S = 10.0  # for all of it
STEP_TIMEOUT_MS = 5000  # for the address, and for the route


class RdmaCarrier:
    """A stream over RDMA to, or from, a listener at `host`, "" our end's; owns it.  `Carrier`."""

    passes_fds = False
    lends = True

    def __init__(self, stream: Stream, host: str, port: int) -> None:
        self._stream = stream
        self._listener = (host, port)
        self._readable: Callback | None = None
        self._writable: Callback | None = None
        self._calmed: asyncio.Future[None] | None = None
        self._is_fetching = False
        self._settled: asyncio.Future[None] | None = None
        self._watched = -1  # the descriptor that the running loop watches
        self._waiting = 0  # threads in `wait`: what happens is theirs to take in

    @property
    def local_host(self) -> str:
        return self._stream.local_host

    def reached(self, *, is_ours: bool) -> str:
        host, port = self._listener
        return numbers(host or self._stream.local_host, port)

    @property
    def credits(self) -> tuple[int, int]:
        """How many receives of the peer we may use, and how many of ours it has to be told of."""
        return self._stream.credits

    def fileno(self) -> int:
        return self._stream.fileno()

    def send(self, data: bytes | memoryview, fds: tuple[int, ...] = ()) -> int:
        taken = self._stream.send(data, self._waiting == 0)
        if taken > 0:
            return taken
        if taken < 0:
            raise self._over()
        raise BlockingIOError(errno.EAGAIN, "the peer has no receives left")

    def receive(self, fds_held: int = 0) -> tuple[bytes, list[int]]:
        stream = self._stream
        stream.step()
        if data := stream.receive():
            return data, []
        if stream.state in ("opening", "open"):
            raise BlockingIOError(errno.EAGAIN, "nothing came")
        if stream.state == "ended":
            return b"", []
        raise self._over()

    def wait(self, timeout_s: float | None, *, to_send: bool = False) -> bool:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            fd = self._stream.fileno()
            if fd < 0:  # closed by another thread
                raise OSError(errno.EBADF, "the link is closed")
            self._stream.step()
            if self._is_over() or (self._stream.has_room if to_send else self._stream.readable):
                return True
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._waiting += 1
            try:
                if not poll(fd, left_s):
                    return False
            finally:
                self._waiting -= 1

    def on_readable(self, callback: Callback | None) -> None:
        self._readable = callback
        self._watch()

    def on_writable(self, callback: Callback | None) -> None:
        self._writable = callback
        self._watch()

    def settle(self, timeout_s: float) -> None:
        give_up_at = time.monotonic() + timeout_s
        while self._stream.unsettled:
            if not poll(self._stream.fileno(), max(0.0, give_up_at - time.monotonic())):
                return
            self._stream.step()

    def settling(self) -> asyncio.Future[None] | None:
        if not self._stream.unsettled:
            return None
        if self._settled is None:
            self._settled = running_loop().create_future()
            self._watch()
        return self._settled

    def lose_after(self, silence_s: float) -> None:
        """How long a NIC asks before it gives up is the connection's; it is asked by `probe`."""

    def probe(self) -> None:
        """Have the NIC find out whether the peer is there; if it is not, the link ends."""
        self._stream.probe()

    # The peer's memory

    def lend(self, data: memoryview) -> tuple[int, int]:
        """Let the peer read some memory, until `take_back`: its address and key.

        Raises:
            OSError: it cannot be registered, for lack of lockable memory as a rule.
        """
        return self._stream.lend(data)

    def take_back(self) -> None:
        """Nothing is lent any more."""
        self._stream.take_back()

    async def fetch(self, address: int, key: int, size: int) -> bytes:
        """Read `size` bytes that the peer lends, at most LIBRARY_LENT_BYTES_MAX.

        Raises:
            OSError: memory for them cannot be registered.
            ProtocolError: nothing of that kind is lent, and the link is broken by it.
        """
        if self._is_fetching:
            raise ProtocolError("the peer asks for a second read before the first is done")
        self._is_fetching = True
        try:
            await self._calm()  # what asks for it may come before the connection's own event
            self._stream.fetch(address, key, size, LIBRARY_LENT_BYTES_MAX)
            await self._calm()
        finally:
            self._is_fetching = False
        if self._stream.state != "open":
            why = self._over().strerror
            raise ProtocolError(f"memory that the peer offers cannot be read: {why}")
        return self._stream.fetched()

    async def _calm(self) -> None:
        """Return when the stream is open or over, and no fetch is under way."""
        self._stream.step()
        if self._stream.state == "opening" or self._stream.fetching:
            self._calmed = running_loop().create_future()
            self._watch()
            try:
                await self._calmed
            finally:
                self._calmed = None
                self._watch()

    def forget(self) -> None:
        """Give back the memory that `fetch` registered."""
        self._stream.forget()

    def close(self) -> None:
        waiting = (self._calmed, self._settled)
        self._readable = self._writable = self._settled = self._calmed = None
        self._watch()
        self._stream.close()
        for future in waiting:
            if future is not None:
                resolve(future)

    # Waiting in a loop

    def _watch(self) -> None:
        """Have the loop watch our descriptor while anybody waits for something."""
        wanted = any((self._readable, self._writable, self._calmed, self._settled))
        fd = self._stream.fileno() if wanted else -1
        if fd == self._watched:
            return
        loop = running_loop()
        if self._watched >= 0:
            loop.remove_reader(self._watched)
        if fd >= 0:
            loop.add_reader(fd, self._act)
        self._watched = fd

    def _act(self) -> None:
        """Something has happened: take it in, then tell whom it concerns."""
        stream = self._stream
        stream.step()
        over = self._is_over()
        if self._calmed is not None and stream.state != "opening" and not stream.fetching:
            resolve(self._calmed)
        if self._settled is not None and not stream.unsettled:
            settled, self._settled = self._settled, None
            resolve(settled)
            self._watch()
        if self._readable is not None and (over or stream.readable):
            self._readable()
        if self._writable is not None and (over or stream.has_room):
            self._writable()

    def _is_over(self) -> bool:
        return self._stream.state in ("ended", "broken", "closed")

    def _over(self) -> OSError:
        fault = self._stream.fault
        return OSError(errno.ECONNRESET, rdma_errors.of_fault(fault) if fault else "it closed")


def connect(address: Address, device: str) -> RdmaCarrier:
    """Connect, blocking, from `device` or, where it is "", from the one the route leads over.

    Raises:
        UnavailableError: nobody listens there, or it refused; or RDMA cannot be used.
        ConfigError: there is no such device.
    """
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    found = [numeric(one) for one in sockets.look_up(address)]

    def wait(stream: Stream) -> bool:
        return poll(stream.fileno(), max(0.0, deadline - time.monotonic()))

    fault: RfaasError = UnavailableError(f"nobody answers at {address}")
    for host in found:
        stream = begin(address, device, host)
        try:
            while stream.state == "opening" and wait(stream):
                stream.step()
            return opened(stream, address, host)
        except UnavailableError as error:
            stream.close()
            fault = error
        except BaseException:
            stream.close()
            raise
    raise fault


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def begin(address: Address, device: str, host: str) -> Stream:
    native = load()
    source = devices.choose(device).host if device else ""
    stream: Stream = native.connect(source, host, address.port, STEP_TIMEOUT_MS)
    return stream


def opened(stream: Stream, address: Address, host: str) -> RdmaCarrier:
    if stream.state == "open":
        return RdmaCarrier(stream, host, address.port)
    fault = stream.fault
    if fault is None:
        raise sockets.nobody(address, TimeoutError())
    raise rdma_errors.of_connect(fault, address)


def poll(fd: int, timeout_s: float | None) -> bool:
    """Wait for a descriptor to be readable."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else 1000 * timeout_s))


def numeric(found: tuple[int, tuple[Any, ...]]) -> str:
    _, there = found
    scope = there[3] if len(there) > 3 else 0  # of a link-local address, IPv6
    host: str = there[0]
    return f"{host}%{scope}" if scope and "%" not in host else host
