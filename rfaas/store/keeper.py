"""Keeps a ledger and a store in step, for the role that owns both.

Between the pure ledger, which counts monotonic seconds and cannot fail, and a
store, which counts wall seconds and can: the disk is full, and an hour later it
is not.  What changed is marked and stays marked until a save succeeds, so a
store that fails loses nothing but what a crash takes before it recovers.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from rfaas.clock import Clock
from rfaas.core.book import ENDED_MAX
from rfaas.core.lease import LIVE, Lease
from rfaas.core.ledger import Ledger
from rfaas.errors import SystemCallError
from rfaas.store import LeaseRecord, NodeRecord, Store

log = logging.getLogger(__name__)


class Keeper:
    """Restores `ledger` from `store`, and saves what is marked as changed."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._nodes: dict[str, NodeRecord] = {}
        self._unsaved_nodes: set[str] = set()
        self._unsaved_leases: set[str] = set()
        self.fails = False  # the last save failed

    def restore(self) -> None:
        """Fill the empty ledger; live leases have what the wall clock says they have left."""
        stored = self._store.load()
        now_s = self._clock.monotonic_s()
        since_1970_s = self._clock.wall_s() - now_s
        for node in stored.nodes:
            self._nodes[node.node] = node
            self._ledger.restore_node(
                node=node.node,
                address=node.address,
                incarnation=node.incarnation,
                cores=node.cores,
                memory_bytes=node.memory_bytes,
                isolation=node.isolation,
                now_s=now_s,
                draining=node.draining,
            )
        for lease in sorted(stored.leases, key=lambda lease: lease.ends_at_s):
            self._ledger.restore_lease(_lease(lease, since_1970_s, now_s), now_s)
        self._ledger.restore_fence(stored.fence)
        live = sum(lease.state == LIVE for lease in stored.leases)
        log.info("restored %d nodes and %d live leases", len(stored.nodes), live)

    def node(self, node: str) -> NodeRecord | None:
        """The node as it last joined, in this manager's time or before."""
        return self._nodes.get(node)

    def mark_node(self, node: NodeRecord) -> None:
        """A node has joined; one that the ledger has forgotten for it is marked as well."""
        self._nodes[node.node] = node
        self._unsaved_nodes.add(node.node)
        if len(self._nodes) > len(self._ledger.names):
            self._unsaved_nodes |= self._nodes.keys() - self._ledger.names

    def mark_leases(self, *leases: str) -> None:
        self._unsaved_leases.update(leases)

    def save(self) -> None:
        """Save all that is marked, with one commit.

        Raises:
            SystemCallError: the store took nothing; all stays marked.
        """
        leases = [lease for lease in map(self._ledger.find, self._unsaved_leases) if lease]
        # What the ledger has dropped is dropped here, so that the marks are bounded, too.
        self._unsaved_leases = {lease.lease for lease in leases}
        forgotten = self._unsaved_nodes - self._ledger.names
        if not (self._unsaved_nodes or leases):
            return
        since_1970_s = self._clock.wall_s() - self._clock.monotonic_s()
        try:
            self._store.save(
                nodes=[self._nodes[node] for node in self._unsaved_nodes - forgotten],
                leases=[_record(lease, since_1970_s) for lease in leases],
                forgotten=sorted(forgotten),
            )
        except SystemCallError as error:
            if not self.fails:
                log.warning("no lease can be granted: %s", error)
            self.fails = True
            raise
        for node in forgotten:
            del self._nodes[node]
        self._unsaved_nodes.clear()
        self._unsaved_leases.clear()
        if self.fails:
            log.warning("the store saves again")
        self.fails = False

    def save_soon(self) -> bool:
        """Save all that is marked, now or, where the store fails, with a later call."""
        try:
            self.save()
        except SystemCallError:  # save has logged it, and nobody waits for this
            return False
        return True

    def housekeep(self) -> None:
        """Save, and keep no more ended leases than the ledger does; for once a second."""
        if self.save_soon():
            with suppress(SystemCallError):  # a disk as full as that has time until the next
                self._store.prune(ENDED_MAX)


def _record(lease: Lease, since_1970_s: float) -> LeaseRecord:
    return LeaseRecord(
        lease=lease.lease,
        client=lease.client,
        node=lease.node,
        cores=lease.cores,
        memory_bytes=lease.memory_bytes,
        isolation=lease.isolation,
        duration_s=lease.duration_s,
        granted_at_s=lease.granted_at_s + since_1970_s,
        ends_at_s=lease.ends_at_s + since_1970_s,
        fence=lease.fence,
        bundle=lease.bundle,
        account=lease.account,
        ending=lease.ending,
        state=lease.state,
        usage=lease.usage,
    )


def _lease(record: LeaseRecord, since_1970_s: float, now_s: float) -> Lease:
    ends_at_s = record.ends_at_s - since_1970_s
    if record.state == LIVE:  # a wall clock that went back must not lengthen it
        ends_at_s = min(ends_at_s, now_s + record.duration_s)
    return Lease(
        lease=record.lease,
        client=record.client,
        node=record.node,
        cores=record.cores,
        memory_bytes=record.memory_bytes,
        isolation=record.isolation,
        duration_s=record.duration_s,
        granted_at_s=record.granted_at_s - since_1970_s,
        ends_at_s=ends_at_s,
        fence=record.fence,
        bundle=record.bundle,
        account=record.account or record.client,
        ending=record.ending,
        state=record.state,
        usage=record.usage,
    )
