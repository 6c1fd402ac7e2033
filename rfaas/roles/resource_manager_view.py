"""The resource manager as people see it: reports, figures, and what they may do to it.

Implements `web.view.View`, and answers the messages of `rfaas bills`, `events`
and `top`.  It decides nothing: what changes something goes to the manager's own
methods, as if a message had asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import msgspec

from rfaas.clock import Clock
from rfaas.config import PricesConfig
from rfaas.core.billing import Bill, report
from rfaas.core.book import Totals
from rfaas.core.events import Event, Events
from rfaas.core.ledger import Ledger
from rfaas.core.meters import Meters
from rfaas.errors import LeaseEndedError
from rfaas.proto.messages import (
    FRAME_BYTES_MAX,
    LeaseReport,
    Message,
    NodeReport,
    StatusReport,
    Usage,
)
from rfaas.proto.report_messages import (
    Activity,
    Bills,
    EventReport,
    EventsPage,
    GetActivity,
    ListBills,
    ListEvents,
)
from rfaas.store import Store
from rfaas.store.keeper import Keeper

SAMPLE_S = 1.0
PAGE_MAX = 256
PAGE_BYTES_MAX = FRAME_BYTES_MAX - 1024  # leaves room for the frame's other fields


class Manager(Protocol):
    """What people may ask the manager to do."""

    def add_node(self, node: str) -> None: ...
    def drain_node(self, node: str, draining: bool) -> None: ...
    def remove_node(self, node: str) -> None: ...
    def revoke_lease(self, lease: str) -> None: ...
    def status(self) -> StatusReport: ...


class ManagerView:
    """See the module's docstring."""

    def __init__(
        self,
        manager: Manager,
        ledger: Ledger,
        keeper: Keeper,
        store: Store,
        clock: Clock,
        events: Events,
        prices: PricesConfig,
    ) -> None:
        self.meters = Meters()
        self.events = events
        self.prices = prices
        self._manager = manager
        self._ledger = ledger
        self._keeper = keeper
        self._store = store
        self._clock = clock
        self._sampled_s = 0.0
        events.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        if event.kind == "lease-ended":
            self.meters.ended[event.cause] += 1

    def sample(self) -> None:
        """Let time pass; a sample is taken by the second."""
        now_s = self._clock.monotonic_s()
        if now_s - self._sampled_s >= SAMPLE_S:
            self._sampled_s = now_s
            totals = self._ledger.totals()
            self.meters.sample(self._keeper.billing, totals, now_s, self.wall_s())

    # Messages

    def answer(self, message: Message) -> Message | None:
        """The reply to a message of those who look on, None to any other."""
        match message:
            case ListBills():
                return self._list_bills(message)
            case ListEvents():
                return self._list_events(message)
            case GetActivity():
                young = [one for one in self.meters.samples if one.at_s > message.after_s]
                return Activity(
                    samples=tuple(young), hot=dict(islice(self.meters.hot.items(), 1000))
                )
        return None

    def _list_bills(self, asked: ListBills) -> Bills:
        after = (asked.after_day, asked.after_lease)
        found = [
            report(bill, self.prices)
            for bill in self.bills(asked.since, asked.until, asked.client, after, PAGE_MAX + 1)
        ]
        page = found[: fitting(found)]
        return Bills(bills=tuple(page), more=len(page) < len(found))

    def _list_events(self, asked: ListEvents) -> EventsPage:
        found = self.events_after(asked.after)
        page = found[: fitting(found)]
        return EventsPage(events=tuple(page), more=len(page) < len(found))

    # Reports

    def nodes(self, after: str = "", most: int | None = None) -> list[NodeReport]:
        return self._ledger.nodes(self._clock.monotonic_s(), after, most)

    def node(self, node: str) -> NodeReport:
        return self._ledger.node_report(node, self._clock.monotonic_s())

    def totals(self) -> Totals:
        return self._ledger.totals()

    def lease_states(self) -> dict[str, int]:
        return self._ledger.lease_states() | {"waiting": self._ledger.waiting}

    def leases(
        self, ended: bool = False, after: str = "", most: int | None = None
    ) -> list[LeaseReport]:
        return self._ledger.leases(self._clock.monotonic_s(), ended, after, most)

    def lease(self, lease: str) -> LeaseReport:
        found = self._ledger.find(lease)
        if found is None:
            raise LeaseEndedError(
                f"lease {lease} is unknown", hint="`rfaas leases --all` lists them"
            )
        return found.report(self._clock.monotonic_s())

    def bills(
        self, since: str, until: str, client: str, after: tuple[str, str], most: int
    ) -> list[Bill]:
        self._keeper.save_soon()  # with what came since the last save
        return self._store.bills(since, until, client, after, most)

    def events_after(self, number: int) -> list[EventReport]:
        found = self.events.since(max(number, 0))
        if number < 0:
            found = found[number:]
        return [EventReport(**msgspec.structs.asdict(event)) for event in found]

    def status(self) -> StatusReport:
        return self._manager.status()

    def unready(self) -> str:
        return "the store fails: no lease can be granted" if self._keeper.fails else ""

    def used(self) -> Usage:
        return self._keeper.billing.total

    def wall_s(self) -> float:
        return self._clock.wall_s()

    # What people may do

    def add(self, node: str) -> None:
        self._manager.add_node(node)

    def drain(self, node: str) -> None:
        self._manager.drain_node(node, True)

    def undrain(self, node: str) -> None:
        self._manager.drain_node(node, False)

    def remove(self, node: str) -> None:
        self._manager.remove_node(node)

    def revoke(self, lease: str) -> None:
        self.lease(lease)  # that it is known
        self._manager.revoke_lease(lease)


def fitting(reports: Sequence[msgspec.Struct]) -> int:
    """How many of the reports fit into one page."""
    room = PAGE_BYTES_MAX
    for count, one in enumerate(reports[:PAGE_MAX]):
        room -= len(msgspec.msgpack.encode(one))
        if room < 0:
            return count
    return min(len(reports), PAGE_MAX)
