"""What carries calls between a client and the rings of a worker: one interface.

A transport feeds a worker's rings: the executor says at which `host` the worker
is to listen, if it is to, the worker serves (`serve.py`), the executor `offer`s
the rings, what both tell travels with `WorkerStarted`, and the client `accept`s
it as lanes.  Lanes behave the same over every
transport; `tests/transport/contract.py` holds them to it.

Adding one: docs/architecture.md, "add a transport".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rfaas.errors import UsageError

if TYPE_CHECKING:
    from rfaas.native._window import Lane
    from rfaas.proto.messages import Endpoint


class Transport(Protocol):
    """One way to reach rings."""

    name: str

    def host(self, device: str) -> str:
        """The executor's side: where its workers listen, "" where they need not.

        Raises:
            DeviceError, ConfigError: the device cannot be used, or is not there.
        """

    def offer(self, rings_fd: int) -> tuple[int, ...]:
        """The executor's side: descriptors for the client, lent for one message."""

    def accept(
        self,
        lanes: int,
        slots: int,
        slot_bytes: int,
        fds: Sequence[int],
        endpoint: Endpoint | None = None,
        device: str = "",
    ) -> list[Lane]:
        """The client's side: the lanes behind an offer; `fds` stay the caller's.

        Args:
            endpoint: where the worker listens.
            device: the RDMA device to use, "" for any.

        Raises:
            ProtocolError: the offer is not what it should be.
            SystemCallError: the lanes cannot be opened.
            UnavailableError: the worker does not answer.
        """


def fitting(name: str, shares_memory: bool) -> str:
    """What `name` comes to for a client: one that `shares_memory` came by a Unix socket.

    Raises:
        UsageError: it can not be had.
    """
    if shares_memory:
        return name
    if name == "shm":
        raise UsageError(
            "transport shm is for a client and an executor on one machine that meet at a Unix "
            "socket: its memory cannot be passed through a network",
            hint='set lane.transport to "auto" or "verbs"',
        )
    return "verbs" if name == "auto" else name


def transport(name: str) -> Transport:
    """The transport called `name`; "auto" is the best that this machine has."""
    if name == "verbs":
        from rfaas.transport import verbs

        return verbs.TRANSPORT
    from rfaas.transport import shm

    known: dict[str, Transport] = {"auto": shm.TRANSPORT, shm.TRANSPORT.name: shm.TRANSPORT}
    found = known.get(name)
    if found is None:
        raise UsageError(
            f"transport {name!r} is unknown", hint=f"there is {', '.join(known)}, verbs"
        )
    return found
