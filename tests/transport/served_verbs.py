"""A worker that serves over RDMA, for the contract of transports: `Served`, but for the way."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rfaas.native._worker import Library
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.proto.worker_messages import LoadLibrary
from rfaas.transport import verbs
from rfaas.transport.serve import serve
from tests.transport.served import Served

if TYPE_CHECKING:
    from rfaas.native._window import Lane
    from tests.harness.rdma import End


class VerbsServed(Served):
    """The worker listens at the second end, the client connects from the first."""

    def __init__(self, ends: tuple[End, End], library: Path | None, **options: Any) -> None:
        self._client, self._server = ends
        self.endpoint: Endpoint | None = None
        self._connects = options.pop("connects", True)
        super().__init__(_Carrier(self), library, **options)

    def connect(self) -> None:
        """Have the client connect to all lanes, which it has not with `connects=False`."""
        self._connects = True
        lanes = self.accept(self._lanes, self.slots, self.slot_bytes)
        self.calls._install(lanes, self.calls.functions)

    def accept(self, lanes: int, slots: int, slot_bytes: int) -> list[Lane]:
        """The client's side."""
        if not self._connects:
            return []
        return verbs.TRANSPORT.accept(
            lanes, slots, slot_bytes, (), self.endpoint, self._client.device
        )

    def _began(self, said: bytes) -> None:
        self.endpoint = msgspec.msgpack.decode(said, type=Endpoint)

    def _run(self, library: Library, hot_timeout_ms: int, say: int) -> None:
        task = LoadLibrary(
            ring_bytes=self._stride,
            cpus=(-1,) * self._lanes,
            hot_timeout_ms=hot_timeout_ms,
            isolation="none",
            transport="verbs",
            host=self._server.address,
        )
        running = serve(task, library, self.rings_fd, self._account_fd)
        os.write(say, msgspec.msgpack.encode(running.endpoint))
        os.close(say)
        poller = select.poll()
        for fd in running.filenos():
            poller.register(fd, select.POLLIN)
        while True:
            poller.poll()
            running.step()

    def header(self, field: int) -> int:
        """As of `Served`, but the client sleeps in memory of its own."""
        if field == wire.HEADER_CLIENT_SLEEPS:
            return int(self.lane.client_sleeps)
        return super().header(field)


class _Carrier:
    """What `Served` asks its transport for, with what only this one needs."""

    name = "verbs"

    def __init__(self, served: VerbsServed) -> None:
        self._served = served

    def host(self, device: str) -> str:
        raise NotImplementedError

    def offer(self, rings_fd: int) -> tuple[int, ...]:
        return ()

    def accept(
        self,
        lanes: int,
        slots: int,
        slot_bytes: int,
        fds: Sequence[int],
        endpoint: Endpoint | None = None,
        device: str = "",
    ) -> list[Lane]:
        return self._served.accept(lanes, slots, slot_bytes)


def open_devices(end: End) -> None:
    """Have librdmacm open what it keeps open for the life of a process, so that no test leaks."""
    from rfaas.errors import RfaasError

    nobody = Endpoint(host=end.address, port=1, secret=bytes(wire.SECRET_BYTES))
    try:
        verbs.connect(nobody, 0, 1, wire.PAGE_BYTES, end.address)
    except RfaasError:
        return
    raise AssertionError("somebody listens at port 1")


__all__ = ["VerbsServed", "open_devices"]
