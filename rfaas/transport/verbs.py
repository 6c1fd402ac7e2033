"""Transport `verbs`: calls as RDMA WRITEs WITH IMM, over InfiniBand, RoCE, or RoCE in software.

The worker listens with rdma_cm at the address of its node's device and tells
port and secret through the executor (`Endpoint`).  The client makes a ring of
its own, registers it, and connects: one connection per lane.  The engine is in
`native/verbs*.c`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.errors import ProtocolError, WorkerCrashedError
from rfaas.native._window import Lane
from rfaas.transport import device as devices
from rfaas.transport import ring, verbs_errors

if TYPE_CHECKING:
    from rfaas.errors import RfaasError
    from rfaas.proto.messages import Endpoint

CONNECT_TIMEOUT_S = 10.0


class Verbs:
    """See the module's docstring."""

    name = "verbs"

    def host(self, device: str) -> str:
        """The address that workers of this node listen at."""
        verbs_errors.load()
        return devices.choose(device).host

    def offer(self, rings_fd: int) -> tuple[int, ...]:
        """Nothing: the rings are the worker's alone, and its NIC's."""
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
        """Connect to each lane of the worker."""
        if endpoint is None or fds:
            raise ProtocolError("the executor does not say where its worker listens")
        source = devices.choose(device).host if device else ""
        return [connect(endpoint, number, slots, slot_bytes, source) for number in range(lanes)]


def connect(endpoint: Endpoint, number: int, slots: int, slot_bytes: int, source: str) -> Lane:
    """One lane to a worker.

    Args:
        source: the address of our device; "": what the kernel's routes say.

    Raises:
        UnavailableError: the worker is not there, or refused.
        SystemCallError: memory, device or queue pair cannot be had.
    """
    native = verbs_errors.load()
    fd = ring.create(1, slots, slot_bytes)
    try:
        lane = Lane(fd, 0)
    finally:
        os.close(fd)
    try:
        native.connect(
            lane,
            number,
            source,
            endpoint.host,
            endpoint.port,
            endpoint.secret,
            CONNECT_TIMEOUT_S,
        )
    except native.Trouble as trouble:
        where = f"{endpoint.host} port {endpoint.port}"
        raise verbs_errors.of_trouble(trouble, f"connect to the worker at {where}") from None
    lane.explain = explain  # without the lane: a cycle would keep its connection open
    return lane


def explain(lane: Lane) -> RfaasError | None:
    """What broke the lane's connection, or None while it works."""
    fault = verbs_errors.load().fault(lane)
    if fault is None:
        return None
    return WorkerCrashedError(
        f"the connection to the worker is broken: {verbs_errors.of_fault(fault)}"
    )


TRANSPORT = Verbs()
