"""What happened to nodes and leases, in order: a stream that others listen to.

The ledger decides and says nothing; who owns it emits.  A page, a journal and `--watch`
subscribe.  It is pure: the time is handed in, and who listens is called at once.

    node     node-joined, node-lost, node-drained, node-undrained, node-removed
    lease    lease-queued, lease-granted, lease-renewed, lease-terminating, lease-ended
             lease-refused
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import Struct

EVENTS_KEPT_MAX = 4096  # for who subscribes late; the oldest go first

Listener = Callable[["Event"], None]


class Event(Struct, frozen=True, kw_only=True):
    """One thing that happened; what does not apply is "" or 0.

    `number` grows by one with each event of this process; `at_s` is wall seconds since 1970;
    `cause` is one of `core.lease.CAUSES`, or of a refusal the error's code.
    """

    number: int
    at_s: float
    kind: str
    node: str = ""
    lease: str = ""
    client: str = ""
    cores: int = 0
    cause: str = ""


class Events:
    """The stream; bounded, so that a manager that lives for months stays as small."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)
        self._listeners: list[Listener] = []
        self._number = 0

    def emit(
        self,
        kind: str,
        at_s: float,
        *,
        node: str = "",
        lease: str = "",
        client: str = "",
        cores: int = 0,
        cause: str = "",
    ) -> None:
        """Keep an event and tell who listens, in the order in which they came."""
        self._number += 1
        event = Event(
            number=self._number,
            at_s=at_s,
            kind=kind,
            node=node,
            lease=lease,
            client=client,
            cores=cores,
            cause=cause,
        )
        self._kept.append(event)
        for listener in tuple(self._listeners):
            listener(event)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` called with each event from now on; call the result to end that.

        It is called from the middle of a decision: it must not fail, wait or ask the ledger
        for changes.
        """
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    def since(self, number: int) -> list[Event]:
        """The kept events after that number."""
        return [event for event in self._kept if event.number > number]
