"""Keeps a ledger and a store in step, for the role that owns both.

Between the pure ledger, which counts monotonic seconds and cannot fail, and a
store, which counts wall seconds and can: the disk is full, and an hour later it
is not.  What changed is marked and stays marked until a save succeeds, so a
store that fails loses nothing but what a crash takes before it recovers.  When
to save is another's decision: store/committer.py.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import NamedTuple

import msgspec

from rfaas.clock import Clock
from rfaas.core.billing import Bill, Billing
from rfaas.core.book import ENDED_MAX
from rfaas.core.lease import LIVE, Lease
from rfaas.core.ledger import Ledger
from rfaas.errors import SystemCallError
from rfaas.store import LeaseRecord, NodeRecord, Store

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Records that are saved together."""

    nodes: list[NodeRecord]
    leases: list[LeaseRecord]
    forgotten: list[str]
    bills: list[Bill]
    barred: dict[str, bool]


class Keeper:
    """Restores `ledger` from `store`, and saves what is marked as changed."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._nodes: dict[str, NodeRecord] = {}
        self._unsaved_nodes: set[str] = set()
        self._unsaved_leases: set[str] = set()
        self.billing = Billing()
        self.barred: set[str] = set()  # nodes that were removed and may not join
        self._unsaved_barred: set[str] = set()
        self._forget_at = 4 * ENDED_MAX  # leases that are billed, of which some are long over
        self.fails = False  # the last save failed

    def restore(self) -> None:
        """Fill the empty ledger; live leases have what the wall clock says they have left."""
        stored = self._store.load()
        self.barred = set(stored.barred)
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
                gpus=node.gpus,
                oversubscribe=node.oversubscribe,
            )
        for lease in sorted(stored.leases, key=lambda lease: lease.ends_at_s):
            self.billing.restore(lease.lease, lease.usage)
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

    def mark_draining(self, node: str, draining: bool) -> None:
        self._nodes[node] = msgspec.structs.replace(self._nodes[node], draining=draining)
        self._unsaved_nodes.add(node)

    def mark_gone(self, node: str) -> None:
        """The ledger has forgotten a node."""
        self._unsaved_nodes.add(node)

    def bar(self, node: str, barred: bool) -> None:
        """A node may not join any more, or again; saved with what is marked."""
        (self.barred.add if barred else self.barred.discard)(node)
        self._unsaved_barred.add(node)

    def mark_leases(self, *leases: str) -> None:
        self._unsaved_leases.update(leases)

    @property
    def marked(self) -> bool:
        """Whether there is anything to save."""
        return bool(self._unsaved_nodes or self._unsaved_leases or self._unsaved_barred)

    def begin(self) -> Batch | None:
        """Take what is marked, as it is now; None: nothing is.  `write` it, then `finish`."""
        leases = [lease for lease in map(self._ledger.find, self._unsaved_leases) if lease]
        # What the ledger has dropped is dropped here, so that the marks are bounded, too.
        self._unsaved_leases = set()
        nodes, self._unsaved_nodes = self._unsaved_nodes, set()
        barred, self._unsaved_barred = self._unsaved_barred, set()
        if not (nodes or leases or barred):
            return None
        forgotten = nodes - self._ledger.names
        wall_s = self._clock.wall_s()
        since_1970_s = wall_s - self._clock.monotonic_s()
        return Batch(
            nodes=[self._nodes[node] for node in nodes - forgotten],
            leases=[_record(lease, since_1970_s) for lease in leases],
            forgotten=sorted(forgotten),
            bills=self.billing.due(leases, wall_s),
            barred={node: node in self.barred for node in barred},
        )

    def write(self, batch: Batch) -> None:
        """Save a batch with one commit; may run in another thread, one at a time.

        Raises:
            SystemCallError: the store took nothing.
        """
        self._store.save(
            nodes=batch.nodes,
            leases=batch.leases,
            forgotten=batch.forgotten,
            bills=batch.bills,
            barred=batch.barred,
        )

    def finish(self, batch: Batch, error: Exception | None) -> None:
        """A batch is saved, or stays marked because of `error`."""
        if error is not None:
            self._unsaved_nodes.update(node.node for node in batch.nodes)
            self._unsaved_nodes.update(batch.forgotten)
            self._unsaved_leases.update(lease.lease for lease in batch.leases)
            self._unsaved_barred.update(batch.barred)
            if not self.fails:
                log.warning("no lease can be granted: %s", error)
            self.fails = True
            return
        self.billing.settle(batch.bills)
        if len(self.billing) > self._forget_at:
            self.billing.forget(self._ledger.find, self._ledger.names.__contains__)
            self._forget_at = max(4 * ENDED_MAX, 2 * len(self.billing))
        for node in batch.forgotten:
            if node not in self._ledger.names:  # it has not joined again meanwhile
                self._nodes.pop(node, None)
        if self.fails:
            log.warning("the store saves again")
        self.fails = False

    def save(self) -> None:
        """Save all that is marked, with one commit, while no batch is under way.

        Raises:
            SystemCallError: the store took nothing; all stays marked.
        """
        batch = self.begin()
        if batch is None:
            return
        try:
            self.write(batch)
        except SystemCallError as error:
            self.finish(batch, error)
            raise
        self.finish(batch, None)

    def prune(self) -> None:
        """Keep no more ended leases than the ledger does; may run in another thread."""
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
        gpus=lease.gpus,
        shared=lease.shared,
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
        gpus=record.gpus,
        shared=record.shared,
    )
