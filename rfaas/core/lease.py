"""A lease as the ledger has it, and what the ledger says about one.

Apart from the ledger so that a store and a role can name these records without
the book that keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from rfaas.proto.messages import LeaseReport, Usage

CAUSES = frozenset({"released", "expired", "revoked", "client-lost", "node-lost"})
LIVE = "live"  # the state of a lease that has not ended; then it is the cause
UNUSED = Usage()


class Grant(Struct, frozen=True, kw_only=True):
    """A lease as granted or renewed; `fence` grows with each, over all leases."""

    lease: str
    client: str
    node: str
    address: str
    cores: int
    memory_bytes: int
    isolation: str
    duration_s: float
    fence: int


class Ended(Struct, frozen=True):
    """A lease that ended without being asked to."""

    lease: str
    node: str
    cause: str


@dataclass(slots=True)
class Lease:
    """A lease; the ledger alone writes to it."""

    lease: str
    client: str
    node: str
    cores: int
    memory_bytes: int
    isolation: str
    duration_s: float
    granted_at_s: float
    ends_at_s: float  # its deadline; once it has ended, when it did
    fence: int
    state: str = LIVE
    usage: Usage = UNUSED

    def over(self, now_s: float) -> str:
        """Why the lease is over, "" where it is not; a deadline counts before its tick."""
        if self.state != LIVE:
            return self.state
        return "expired" if self.ends_at_s <= now_s else ""

    def grant(self, address: str) -> Grant:
        return Grant(
            lease=self.lease,
            client=self.client,
            node=self.node,
            address=address,
            cores=self.cores,
            memory_bytes=self.memory_bytes,
            isolation=self.isolation,
            duration_s=self.duration_s,
            fence=self.fence,
        )

    def report(self, now_s: float) -> LeaseReport:
        until_s = now_s if self.state == LIVE else self.ends_at_s
        return LeaseReport(
            lease=self.lease,
            client=self.client,
            node=self.node,
            cores=self.cores,
            memory_bytes=self.memory_bytes,
            isolation=self.isolation,
            state=self.state,
            age_s=until_s - self.granted_at_s,
            remaining_s=max(0.0, self.ends_at_s - until_s),
            usage=self.usage,
        )
