"""What the web asks the resource manager, and the records that it answers with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from rfaas.config import PricesConfig
from rfaas.core.billing import Bill
from rfaas.core.book import Totals
from rfaas.core.meters import Meters
from rfaas.proto.messages import LeaseReport, Name, NodeReport, StatusReport, Usage
from rfaas.proto.report_messages import BillReport, EventReport, Sample


class View(Protocol):
    """The resource manager as its web server sees it.

    All answer at once, none fails but with an RfaasError; lists are paged by `after` and
    `most`, so that nothing holds the loop for long.
    """

    meters: Meters
    prices: PricesConfig

    def nodes(self, after: str = "", most: int | None = None) -> list[NodeReport]:
        """Nodes in order of name."""

    def node(self, node: str) -> NodeReport:
        """One of them; UnavailableError: there is none of that name."""

    def leases(
        self, ended: bool = False, after: str = "", most: int | None = None
    ) -> list[LeaseReport]:
        """Live leases in order of id, or with `ended` all that are still known."""

    def lease(self, lease: str) -> LeaseReport:
        """One of them; LeaseEndedError: unknown."""

    def totals(self) -> Totals:
        """All nodes in a few numbers."""

    def lease_states(self) -> dict[str, int]:
        """How many leases are live, terminating and waiting."""

    def used(self) -> Usage:
        """What all leases have used since this process began."""

    def events_after(self, number: int) -> list[EventReport]:
        """The events after a number, the oldest first; negative: so many of the last."""

    async def bills(
        self, since: str, until: str, client: str, after: tuple[str, str], most: int
    ) -> list[Bill]:
        """Bills in order of (day, lease), as `store.Store.bills`."""

    async def add(self, node: str) -> None:
        """A node that was removed may join again."""

    async def drain(self, node: str) -> None:
        """No new leases there; those that are live go on."""

    async def undrain(self, node: str) -> None:
        """New leases may go there again."""

    async def remove(self, node: str) -> None:
        """End its leases, forget it, and do not let it join again."""

    async def revoke(self, lease: str) -> None:
        """End a lease, with the notice that is configured."""

    def status(self) -> StatusReport:
        """What `rfaas status` prints."""

    def unready(self) -> str:
        """Why no lease can be granted now; "" where one can."""

    def wall_s(self) -> float:
        """Now, in seconds since 1970."""


class NodePage(Struct, frozen=True):
    """Nodes in order of name; `next` is the `after` of the page that follows, "" at the end."""

    nodes: Sequence[NodeReport]
    next: str = ""


class LeasePage(Struct, frozen=True):
    """Leases in order of id; `next` as in NodePage."""

    leases: Sequence[LeaseReport]
    next: str = ""


class BillPage(Struct, frozen=True):
    """Bills; `next` as in NodePage, and always "" where they are summed."""

    bills: Sequence[BillReport]
    next: str = ""


class EventPage(Struct, frozen=True):
    """Events, the oldest first; `next` is the number to ask after for those that follow."""

    events: Sequence[EventReport]
    next: int = 0


class Done(Struct, frozen=True):
    """It was done, and what was asked for is so."""

    done: str


class Health(Struct, frozen=True):
    """Whether the resource manager works; `why` it does not."""

    ok: bool
    why: str = ""


class Fault(Struct, frozen=True):
    """What is wrong, and what to do about it; `code` as in `rfaas.errors`."""

    code: str
    text: str
    hint: str = ""


class NewNode(Struct, frozen=True, forbid_unknown_fields=True):
    """The node to add."""

    node: Name


class Picture(Struct, frozen=True, kw_only=True):
    """What the dashboard shows, once a second: the first nodes and leases, and all sums."""

    at_s: float
    status: StatusReport
    nodes: Sequence[NodeReport]
    hot: dict[str, float]
    leases: Sequence[LeaseReport]
    nodes_more: int
    leases_more: int
    samples: Sequence[Sample]
    events: Sequence[EventReport]
