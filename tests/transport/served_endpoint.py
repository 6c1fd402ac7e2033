"""A worker behind an endpoint, for the contract of transports: `VerbsServed` in two processes.

The test forks both, as an executor has its zygote do; it kills the worker, and the
endpoint is told of it by the ring, as by an executor.
"""

from __future__ import annotations

import os
import select
import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rfaas.native._worker import Library, die_with_parent
from rfaas.proto.messages import Endpoint
from rfaas.proto.worker_messages import ServeRings
from rfaas.transport import ring
from rfaas.transport.endpoint import EndpointLanes
from tests.transport.served import Served
from tests.transport.served_verbs import VerbsServed

if TYPE_CHECKING:
    from tests.harness.rdma import End

NONSENSE = 74  # what the endpoint's process ends with here, as in launch/endpoint.py


class EndpointServed(VerbsServed):
    """With no library, the test plays the worker: on the ring, behind the endpoint."""

    def __init__(
        self, ends: tuple[End, End], library: Path | None, *, shares: bool, **options: Any
    ) -> None:
        self._shares = shares
        self.endpoint_pid = 0
        self._hot_timeout_ms: int = options.get("hot_timeout_ms", 2)
        super().__init__(ends, library, **options)

    def accept(self, lanes: int, slots: int, slot_bytes: int) -> Any:
        """The client's side."""
        if not self.endpoint_pid:
            self._start_endpoint()
        return super().accept(lanes, slots, slot_bytes)

    def _start_endpoint(self) -> None:
        ready, say = os.pipe()
        self.endpoint_pid = os.fork()
        if not self.endpoint_pid:
            try:
                die_with_parent(signal.SIGKILL, "rfaas-test")
                os._exit(self._feed(say))
            except BaseException:  # noqa: BLE001 - or the fork would go on as a second pytest
                traceback.print_exc()
            finally:
                os._exit(70)
        os.close(say)
        with open(ready, "rb") as pipe:
            said = pipe.read()
        assert said, "the endpoint did not start"
        self.endpoint = msgspec.msgpack.decode(said, type=Endpoint)

    def _feed(self, say: int) -> int:
        """In the endpoint: serve until it is killed, or does not believe the worker."""
        task = ServeRings(
            ring_bytes=self._stride,
            cpus=(-1,) * self._lanes,
            hot_timeout_ms=self._hot_timeout_ms,
            host=self._server.address,
            shares=self._shares,
        )
        lanes = EndpointLanes(task, self.rings_fd, self._account_fd)
        os.write(say, msgspec.msgpack.encode(lanes.endpoint))
        os.close(say)
        poller = select.poll()
        for fd in lanes.filenos():
            poller.register(fd, select.POLLIN)
        while True:
            poller.poll()
            if not lanes.step():
                lanes.stop()
                return NONSENSE

    def _began(self, said: bytes) -> None:
        """The worker says nothing that a client must know."""

    def _run(self, library: Library, hot_timeout_ms: int, say: int) -> None:
        # What it counts on a page of its own, nobody reads.
        self._account_fd = ring.create_account(self._lanes)
        Served._run(self, library, 0 if self._shares else hot_timeout_ms, say)

    def reap_endpoint(self) -> int:
        """Wait until the endpoint has ended by itself; its wait status."""
        _, status = os.waitpid(self.endpoint_pid, 0)
        self.endpoint_pid = 0
        return status

    def close(self) -> None:
        """The worker, then the endpoint."""
        super().close()
        if self.endpoint_pid:
            os.kill(self.endpoint_pid, signal.SIGKILL)
            self.reap_endpoint()
