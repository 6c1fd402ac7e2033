"""A lease as the ledger has it, what a client asks for, and what the ledger says of both.

Apart from the ledger so that a store and a role can name these records without
the book that keeps them.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from rfaas.errors import RfaasError
from rfaas.proto.messages import LeaseReport, Usage

CAUSES = frozenset({"released", "expired", "revoked", "client-lost", "node-lost"})
LIVE = "live"  # the state of a lease that has not ended; then it is the cause
UNUSED = Usage()

Placement = Literal["pack", "spread", "node"]  # see core.placement


class Ask(Struct, frozen=True, kw_only=True, gc=False):
    """What a client asks for; `cores` or `memory_bytes` 0 are all of a node.

    `lease` is the id of the lease to be, and of the request as long as it waits.
    `account` is who answers for the client: quotas and fair shares are an account's.
    """

    lease: str
    client: str
    account: str
    cores: int
    memory_bytes: int
    duration_s: float
    isolation: str
    placement: Placement = "pack"
    image: str = ""  # for level `container`
    gpus: int = 0
    wait_s: float = 0.0  # how long it may stand in the queue; 0: not at all
    shared: bool = False  # its lanes never spin, and may share processors


class Ended(Struct, frozen=True):
    """A lease that ended without being asked to."""

    lease: str
    node: str
    cause: str


class Settled(Struct, frozen=True):
    """A request that waited does so no more: `granted`, or `error` says why not."""

    ask: Ask
    granted: Lease | None
    error: RfaasError | None


class Lease(Struct, gc=False):
    """A lease; the ledger alone writes to it, so what was read may change with the next call.

    `fence` grows with each grant and renewal, over all leases.  `bundle` is "", or the id of
    the first of the leases that were granted together and end together.
    """

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
    bundle: str = ""
    account: str = ""
    ending: str = ""  # the cause that was given notice of: it cannot be renewed
    state: str = LIVE
    usage: Usage = UNUSED
    image: str = ""  # not kept in a store: the node knows it from the first token
    gpus: int = 0
    shared: int = 0  # processors that its node had for leases that share when it was granted

    def over(self, now_s: float) -> str:
        """Why the lease is over, "" where it is not; a deadline counts before its tick."""
        if self.state != LIVE:
            return self.state
        return (self.ending or "expired") if self.ends_at_s <= now_s else ""

    def report(self, now_s: float) -> LeaseReport:
        until_s = now_s if self.state == LIVE else self.ends_at_s
        state = "terminating" if self.ending and self.state == LIVE else self.state
        return LeaseReport(
            lease=self.lease,
            client=self.client,
            node=self.node,
            cores=self.cores,
            memory_bytes=self.memory_bytes,
            isolation=self.isolation,
            state=state,
            age_s=until_s - self.granted_at_s,
            remaining_s=max(0.0, self.ends_at_s - until_s),
            usage=self.usage,
            gpus=self.gpus,
            shared=self.shared > 0,
        )
