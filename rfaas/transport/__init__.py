"""What carries calls between a client and the rings of a worker: one interface.

A worker knows its rings and nothing else.  A transport feeds them: the executor
`offer`s the rings of a new worker, what it offers travels with `WorkerStarted`,
and the client `accept`s it as lanes.  Lanes behave the same over every
transport; `tests/transport/contract.py` holds them to it.

Adding one: docs/architecture.md, "add a transport".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rfaas.errors import UsageError

if TYPE_CHECKING:
    from rfaas.native._window import Lane


class Transport(Protocol):
    """One way to reach rings."""

    name: str

    def offer(self, rings_fd: int) -> tuple[int, ...]:
        """The executor's side: descriptors for the client, lent for one message."""

    def accept(self, lanes: int, slots: int, slot_bytes: int, fds: Sequence[int]) -> list[Lane]:
        """The client's side: the lanes behind an offer; `fds` stay the caller's.

        Raises:
            ProtocolError: the offer is not what it should be.
            SystemCallError: the lanes cannot be opened.
        """


def transport(name: str) -> Transport:
    """The transport called `name`; "auto" is the best that this machine has."""
    from rfaas.transport import shm

    known: dict[str, Transport] = {"auto": shm.TRANSPORT, shm.TRANSPORT.name: shm.TRANSPORT}
    found = known.get(name)
    if found is None:
        raise UsageError(f"transport {name!r} is unknown", hint=f"there is {', '.join(known)}")
    return found
