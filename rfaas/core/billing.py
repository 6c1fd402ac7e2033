"""Bills: what each lease used on each day, and what that costs.

A node reports what a lease has used in all; a bill is what was added since the
last report, on the day (UTC) it was reported.  Reports come twice a second, so
a second after midnight is the most that lands on the wrong day.  A share that
was computed is not counted before it is kept: `due` says what to keep, `settle`
that it was.

Pure: the store keeps bills, `store.keeper` brings both together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta, timezone

from msgspec import Struct
from msgspec.structs import astuple

from rfaas.config import PricesConfig
from rfaas.core.lease import UNUSED, Lease
from rfaas.errors import UsageError
from rfaas.proto.messages import Usage
from rfaas.proto.report_messages import BillReport

HOUR_NS = 3600 * 10**9
GROUPS = ("lease", "client", "day")  # what bills can be summed by


class Bill(Struct, frozen=True, kw_only=True):
    """What a lease used on a day, or more of either where bills were summed: those are ""."""

    day: str  # 2026-11-23, UTC
    client: str
    lease: str
    node: str
    usage: Usage


class Billing:
    """What of each lease was billed, and the sums since this began.

    Attributes:
        total: of all leases.
        nodes: of each node's leases.
    """

    def __init__(self) -> None:
        self.total = UNUSED
        self.nodes: dict[str, Usage] = {}
        self._billed: dict[str, Usage] = {}

    def restore(self, lease: str, usage: Usage) -> None:
        """That much of a lease was billed before this began."""
        self._billed[lease] = usage

    def due(self, leases: Iterable[Lease], wall_s: float) -> list[Bill]:
        """What those leases have used beyond what was billed; counts only once it is settled."""
        day = day_of(wall_s)
        found = []
        for lease in leases:
            more = _beyond(lease.usage, self._billed.get(lease.lease, UNUSED))
            if more != UNUSED:
                found.append(
                    Bill(
                        day=day, client=lease.client, lease=lease.lease, node=lease.node, usage=more
                    )
                )
        return found

    def settle(self, bills: Iterable[Bill]) -> None:
        """Bills that `due` gave are kept."""
        for bill in bills:
            self._billed[bill.lease] = added(self._billed.get(bill.lease, UNUSED), bill.usage)
            self.nodes[bill.node] = added(self.nodes.get(bill.node, UNUSED), bill.usage)
            self.total = added(self.total, bill.usage)

    def forget(self, is_lease: Callable[[str], object], is_node: Callable[[str], bool]) -> None:
        """Drop the leases of which no report can come any more, and nodes that are forgotten."""
        for lease in [one for one in self._billed if not is_lease(one)]:
            del self._billed[lease]
        for node in [one for one in self.nodes if not is_node(one)]:
            del self.nodes[node]

    def __len__(self) -> int:
        return len(self._billed)


def cost(usage: Usage, prices: PricesConfig) -> float:
    """What a usage costs; what is allocated is charged, and polling and executing on top of it."""
    hours = (
        usage.allocated_ns * prices.allocated_core_hour
        + usage.polling_ns * prices.polling_core_hour
        + usage.executing_ns * prices.executing_core_hour
        + usage.gpu_ns * prices.gpu_hour
    )
    return hours / HOUR_NS + usage.calls * prices.million_calls / 1e6


def added(one: Usage, other: Usage) -> Usage:
    """The sum of two usages."""
    return Usage(**{f: getattr(one, f) + getattr(other, f) for f in Usage.__struct_fields__})


def summed(bills: Iterable[Bill], by: str) -> list[Bill]:
    """Bills put together by one of GROUPS, in its order; what differs within a sum is ""."""
    if by not in GROUPS:
        raise UsageError(f"bills cannot be summed by {by!r}, only by {', '.join(GROUPS)}")
    sums: dict[str, Bill] = {}
    for bill in bills:
        key = getattr(bill, by)
        known = sums.get(key)
        sums[key] = bill if known is None else _together(known, bill)
    return [sums[key] for key in sorted(sums)]


def report(bill: Bill, prices: PricesConfig) -> BillReport:
    """A bill for people: core-seconds, GPU-seconds, and what it costs."""
    usage = bill.usage
    return BillReport(
        day=bill.day,
        client=bill.client,
        lease=bill.lease,
        node=bill.node,
        allocated_s=usage.allocated_ns / 1e9,
        polling_s=usage.polling_ns / 1e9,
        executing_s=usage.executing_ns / 1e9,
        calls=usage.calls,
        failed=usage.failed,
        cost=cost(usage, prices),
        currency=prices.currency,
        gpu_s=usage.gpu_ns / 1e9,
    )


def day_of(wall_s: float) -> str:
    """The day of a time, in UTC: 2026-11-23."""
    return datetime.fromtimestamp(wall_s, timezone.utc).date().isoformat()


def parse_day(text: str, wall_s: float) -> str:
    """A day as people write it: 2026-11-23, "today", "yesterday", or "7d" for a week ago.

    Raises:
        UsageError: none of these.
    """
    today = date.fromisoformat(day_of(wall_s))
    if text in ("today", "yesterday"):
        return (today - timedelta(days=text == "yesterday")).isoformat()
    if text.endswith("d") and text[:-1].isascii() and text[:-1].isdecimal() and len(text) < 6:
        return (today - timedelta(days=int(text[:-1]))).isoformat()
    try:
        if len(text) != len("2026-11-23"):  # later Pythons read other forms as well
            raise ValueError
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(
            f"{text[:40]!r} is no day", hint='write 2026-11-23, "today", "yesterday", or "7d"'
        ) from None


def _beyond(usage: Usage, before: Usage) -> Usage:
    """What was added; a report that went back adds nothing."""
    more = (max(0, a - b) for a, b in zip(astuple(usage), astuple(before), strict=True))
    return Usage(**dict(zip(Usage.__struct_fields__, more, strict=True)))


def _together(one: Bill, other: Bill) -> Bill:
    def same(field: str) -> str:
        value: str = getattr(one, field)
        return value if value == getattr(other, field) else ""

    return Bill(
        day=same("day"),
        client=same("client"),
        lease=same("lease"),
        node=same("node"),
        usage=added(one.usage, other.usage),
    )
