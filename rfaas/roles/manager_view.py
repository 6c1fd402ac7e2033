"""The resource manager as people see it: reports, figures, and what they may do to it.

Implements `web.view.View`, and answers the messages of `rfaas bills`, `events`
and `top`.  It decides nothing: what changes something goes to the manager's own
methods, as if a message had asked for it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import islice

import msgspec

from rfaas.config import PricesConfig
from rfaas.core.billing import Bill, report
from rfaas.core.book import Totals
from rfaas.core.events import Event
from rfaas.errors import LeaseEndedError, SystemCallError
from rfaas.proto.messages import LeaseReport, Message, NodeReport, StatusReport, Usage
from rfaas.proto.report_messages import (
    Activity,
    Bills,
    EventReport,
    EventsPage,
    GetActivity,
    ListBills,
    ListEvents,
)
from rfaas.roles.manager_leases import Leases
from rfaas.roles.manager_nodes import Nodes
from rfaas.roles.manager_reports import PAGE_MAX, Reports, fitting
from rfaas.roles.manager_state import State
from rfaas.store import Store

SAMPLE_S = 1.0
HOT_NODES_MAX = 1000  # in one message


class View:
    """See the module's docstring."""

    def __init__(
        self,
        state: State,
        nodes: Nodes,
        leases: Leases,
        reports: Reports,
        store: Store,
        prices: PricesConfig,
    ) -> None:
        self.meters = state.meters
        self.prices = prices
        self._state = state
        self._nodes = nodes
        self._leases = leases
        self._reports = reports
        self._store = store
        self._sampled_s = -SAMPLE_S
        state.events.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        if event.kind == "lease-ended":
            self.meters.ended[event.cause] += 1

    def sample(self) -> None:
        """Let time pass; a sample is taken by the second."""
        state, now_s = self._state, self._state.now_s()
        if now_s - self._sampled_s >= SAMPLE_S:
            self._sampled_s = now_s
            self.meters.sample(state.keeper.billing, state.ledger.totals(), now_s, self.wall_s())

    # Messages

    async def answer(self, message: Message) -> Message | None:
        """The reply to a message of those who look on, None to any other."""
        match message:
            case ListBills():
                return await self._list_bills(message)
            case ListEvents():
                return self._list_events(message)
            case GetActivity():
                young = [one for one in self.meters.samples if one.at_s > message.after_s]
                return Activity(
                    samples=tuple(young), hot=dict(islice(self.meters.hot.items(), HOT_NODES_MAX))
                )
        return None

    async def _list_bills(self, asked: ListBills) -> Bills:
        after = (asked.after_day, asked.after_lease)
        bills = await self.bills(asked.since, asked.until, asked.client, after, PAGE_MAX + 1)
        found = [report(bill, self.prices) for bill in bills]
        page = found[: fitting(found)]
        return Bills(bills=tuple(page), more=len(page) < len(found))

    def _list_events(self, asked: ListEvents) -> EventsPage:
        found = self.events_after(asked.after)
        page = found[: fitting(found)]
        return EventsPage(events=tuple(page), more=len(page) < len(found))

    # Reports

    def nodes(self, after: str = "", most: int | None = None) -> list[NodeReport]:
        return self._state.ledger.nodes(self._state.now_s(), after, most)

    def node(self, node: str) -> NodeReport:
        return self._state.ledger.node_report(node, self._state.now_s())

    def totals(self) -> Totals:
        return self._state.ledger.totals()

    def lease_states(self) -> dict[str, int]:
        return self._state.ledger.lease_states() | {"waiting": self._state.ledger.waiting}

    def leases(
        self, ended: bool = False, after: str = "", most: int | None = None
    ) -> list[LeaseReport]:
        found = self._state.ledger.leases(self._state.now_s(), ended, after, most)
        return list(map(self._state.told, found))

    def lease(self, lease: str) -> LeaseReport:
        found = self._state.ledger.find(lease)
        if found is None:
            raise LeaseEndedError(
                f"lease {lease} is unknown", hint="`rfaas leases --all` lists them"
            )
        return self._state.told(found.report(self._state.now_s()))

    async def bills(
        self, since: str, until: str, client: str, after: tuple[str, str], most: int
    ) -> list[Bill]:
        with suppress(SystemCallError):  # then without what came since the last save
            await self._state.commits.committed()
        read = partial(self._store.bills, since, until, client, after, most)
        return await self._state.commits.read(read)

    def events_after(self, number: int) -> list[EventReport]:
        found = self._state.events.since(max(number, 0))
        if number < 0:
            found = found[number:]
        return [EventReport(**msgspec.structs.asdict(event)) for event in found]

    def status(self) -> StatusReport:
        return self._reports.status()

    def unready(self) -> str:
        return "the store fails: no lease can be granted" if self._state.keeper.fails else ""

    def used(self) -> Usage:
        return self._state.keeper.billing.total

    def wall_s(self) -> float:
        return self._state.clock.wall_s()

    # What people may do

    async def add(self, node: str) -> None:
        self._nodes.add(node)
        await self._kept(f"node {node} may join")

    async def drain(self, node: str) -> None:
        self._nodes.drain(node)
        await self._kept(f"node {node} drains")

    async def undrain(self, node: str) -> None:
        self._nodes.drain(node, False)
        await self._kept(f"node {node} drains no more")

    async def remove(self, node: str) -> None:
        self._nodes.remove(node)
        await self._kept(f"node {node} is removed")

    async def revoke(self, lease: str) -> None:
        self._leases.revoke(lease)
        await self._kept(f"lease {lease[:8]} is being ended")

    async def _kept(self, done: str) -> None:
        """Return when what was `done` would outlive a power cut: who is told relies on it."""
        try:
            await self._state.commits.committed()
        except SystemCallError as error:
            raise SystemCallError(
                f"{done}, but a restart would forget it: {error.text}",
                hint="it is kept as soon as the store can be written again",
            ) from None
