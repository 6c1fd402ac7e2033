"""Who has cores and who leases them: the book of nodes and leases.

A resource manager keeps one for many nodes; an executor that grants leases by
itself keeps one for the node that it is.  The book knows no links, stores or
clocks: each call says when it happens, in monotonic seconds, and `tick` says
what ended because time passed.

    node     join -> up -> silent too long, or lose -> lost -> join -> up
             restore_node -> lost, but its leases stay for as long as an up
             node may be silent; leave -> forgotten
    lease    request -> live -> end, once, with one of lease.CAUSES

Invariants, held by tests/core/test_ledger_properties.py: the cores and memory
of a node's live leases never exceed what it has, and all is free again when
all have ended; a lease is on one node; it ends once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, KeysView, Mapping
from itertools import chain

from rfaas.core.lease import CAUSES, LIVE, Ended, Grant, Lease
from rfaas.core.placement import Node, place
from rfaas.errors import CapacityError, LeaseEndedError, UnavailableError, UsageError
from rfaas.proto.messages import LeaseReport, NodeReport, Usage

CORES_MAX = 65536
MEMORY_BYTES_MAX = 2**60
NODES_MAX = 16384  # joining past it makes the node go that has been lost longest
ENDED_MAX = 1024  # ended leases kept for display; the oldest go first


class Ledger:
    """See the module's docstring.

    `heartbeat_s * missed_beats_max` is the silence after which a node is lost;
    an infinite heartbeat suits an executor, which cannot lose itself.
    """

    def __init__(self, heartbeat_s: float, missed_beats_max: int, duration_max_s: float) -> None:
        self._silence_max_s = heartbeat_s * missed_beats_max
        self._duration_max_s = duration_max_s
        self._nodes: dict[str, Node] = {}
        self._live: dict[str, Lease] = {}
        self._ended: dict[str, Lease] = {}  # in order of ending
        self._news: list[Ended] = []  # for the next tick
        self._fence = 0
        self._due_s = math.inf  # no later than the first deadline; renewals may leave it early
        self._ticked_s = math.inf  # when `tick` last ran
        self.away_s = self._silence_max_s / 2  # between two ticks, past which we were away

    # Nodes

    def join(
        self,
        node: str,
        address: str,
        incarnation: str,
        cores: int,
        memory_bytes: int,
        isolation: tuple[str, ...],
        live: Collection[str],
        now_s: float,
    ) -> list[str]:
        """A node offers itself, for the first time or again; it still serves `live`.

        Returns those of `live` that it must no longer serve: unknown here,
        ended, of another node, or more than it has room for.  Of the leases
        that the book has on this node, all stay for the same incarnation (one
        may be granted and not opened yet); for a new one those in `live` stay
        and the next `tick` reports the others as node-lost.
        """
        _check_amounts(cores, memory_bytes)
        known = self._nodes.get(node)
        if known is None and len(self._nodes) >= NODES_MAX:
            self._forget_lost(node)
        joined = self._add_node(node, address, incarnation, cores, memory_bytes, isolation, now_s)
        joined.state = "up"
        held = [self._live[lease] for lease in known.leases] if known else []
        for lease in sorted(held, key=lambda lease: lease.fence):
            stays = lease.lease in live or (known and known.incarnation == incarnation)
            if stays and joined.fits(lease.cores, lease.memory_bytes):
                joined.take(lease.lease, lease.cores, lease.memory_bytes)
            else:
                self._news.append(self._close(lease, "node-lost", now_s))
        return [lease for lease in live if lease not in joined.leases]

    def beat(self, node: str, usage: Mapping[str, Usage], now_s: float) -> None:
        """A node lives, and its leases have used this much so far.

        Raises:
            UnavailableError: the node has not joined, or was lost since.
        """
        known = self._nodes.get(node)
        if known is None or known.state != "up":
            raise UnavailableError(
                f"node {node} is not up here, its leases have ended", hint="join again"
            )
        known.beat_at_s = now_s
        known.silent_until_s = now_s + self._silence_max_s
        for lease, used in usage.items():
            found = self.find(lease)
            if found is not None and found.node == node:
                found.usage = used

    def lose(self, node: str, now_s: float) -> list[Ended]:
        """A node is gone but may come back: its leases end, it stays listed as lost."""
        known = self._nodes.get(node)
        if known is None:
            return []
        known.state = "lost"
        known.silent_until_s = math.inf
        held = [self._live[lease] for lease in sorted(known.leases)]
        return [self._close(lease, "node-lost", now_s) for lease in held]

    def leave(self, node: str, now_s: float) -> list[Ended]:
        """A node is gone for good: its leases end and it is forgotten."""
        ended = self.lose(node, now_s)
        self._nodes.pop(node, None)
        return ended

    # Leases

    def request(
        self,
        client: str,
        cores: int,
        memory_bytes: int,
        duration_s: float,
        isolation: str,
        lease_id: str,
        now_s: float,
    ) -> Grant:
        """Lease cores and memory of one node; call `tick` before, to free what is over.

        Raises:
            UsageError: an amount that no node could ever have.
            CapacityError: no node has that now, or none has it at all.
        """
        _check_amounts(cores, memory_bytes)
        self._check_duration(duration_s)
        if self.find(lease_id) is not None:
            raise UsageError(f"lease {lease_id[:8]} exists already")
        node = place(self._nodes.values(), cores, memory_bytes, isolation)
        node.take(lease_id, cores, memory_bytes)
        lease = Lease(
            lease=lease_id,
            client=client,
            node=node.node,
            cores=cores,
            memory_bytes=memory_bytes,
            isolation=isolation,
            duration_s=duration_s,
            granted_at_s=now_s,
            ends_at_s=now_s + duration_s,
            fence=self._next_fence(),
        )
        self._live[lease_id] = lease
        self._due_s = min(self._due_s, lease.ends_at_s)
        return lease.grant(node.address)

    def renew(self, lease: str, duration_s: float, now_s: float) -> Grant:
        """Let a lease end `duration_s` from now instead.

        Raises:
            LeaseEndedError: it is over, or unknown.
        """
        self._check_duration(duration_s)
        found = self.find(lease)
        if found is None:
            raise LeaseEndedError(f"lease {lease[:8]} is unknown", hint="request a new one")
        if over := found.over(now_s):
            raise LeaseEndedError(
                f"lease {lease[:8]} on {found.node} is over: {over} "
                f"{now_s - found.ends_at_s:.1f} s ago",
                hint="request a new one",
            )
        found.duration_s = duration_s
        found.ends_at_s = now_s + duration_s
        found.fence = self._next_fence()
        self._due_s = min(self._due_s, found.ends_at_s)
        return found.grant(self._nodes[found.node].address)

    def end(self, lease: str, cause: str, now_s: float, usage: Usage | None = None) -> bool:
        """End a lease; True the first time, False where it is over or unknown.

        `usage` counts even when the lease is over: a node sends its last word
        after the manager's.
        """
        if cause not in CAUSES:
            raise UsageError(f"{cause!r} ends no lease, one of {', '.join(sorted(CAUSES))} does")
        found = self.find(lease)
        if found is None:
            return False
        if usage is not None:
            found.usage = usage
        if found.state != LIVE:
            return False
        self._close(found, cause, now_s)
        return True

    def tick(self, now_s: float) -> list[Ended]:
        """What has ended by `now_s`: leases past their deadline, leases of silent nodes.

        Cheap while nothing is due, so call it before every event, and more often
        than each `away_s`.

        Who ticks later than that was away itself (stopped, swapped out, on a paused
        machine), and the beats of meanwhile wait unread: each node may then be silent
        for as long again.  Leases get no such grace, though renewals may wait as well:
        the node of a lease ends it by the deadline in its token, whether anybody is
        here or not, and takes no later token for it.  What the book kept longer would
        be a lease that nobody serves.
        """
        if now_s - self._ticked_s > self.away_s:
            for node in self._nodes.values():
                if node.silent_until_s < math.inf:  # up, or restored and about to join
                    node.silent_until_s = now_s + self._silence_max_s
        self._ticked_s = now_s
        if now_s >= self._due_s:
            for lease in [one for one in self._live.values() if one.ends_at_s <= now_s]:
                self._news.append(self._close(lease, "expired", now_s))
            for node in [one for one in self._nodes.values() if one.silent_until_s <= now_s]:
                self._news += self.lose(node.node, now_s)
            deadlines = chain(
                (lease.ends_at_s for lease in self._live.values()),
                (node.silent_until_s for node in self._nodes.values()),
            )
            self._due_s = min(deadlines, default=math.inf)
        news, self._news = self._news, []
        return news

    # Restart

    def restore_node(
        self,
        node: str,
        address: str,
        incarnation: str,
        cores: int,
        memory_bytes: int,
        isolation: tuple[str, ...],
        now_s: float,
    ) -> None:
        """Enter a node from a store: lost until it joins, its leases kept so long."""
        self._add_node(node, address, incarnation, cores, memory_bytes, isolation, now_s)

    def restore_lease(self, lease: Lease, now_s: float) -> None:
        """Enter a lease from a store, live or ended, after its node.

        One that its node has no room for ends: the next `tick` reports it.
        """
        self._fence = max(self._fence, lease.fence)
        if lease.state != LIVE:
            self._keep_ended(lease)
            return
        self._live[lease.lease] = lease
        self._due_s = min(self._due_s, lease.ends_at_s)
        node = self._nodes.get(lease.node)
        if node is not None and node.fits(lease.cores, lease.memory_bytes):
            node.take(lease.lease, lease.cores, lease.memory_bytes)
        else:
            self._news.append(self._close(lease, "node-lost", now_s))

    def restore_fence(self, fence: int) -> None:
        """Fences of grants to come are greater than this one."""
        self._fence = max(self._fence, fence)

    # Reports

    def find(self, lease: str) -> Lease | None:
        """The lease, live or lately ended."""
        return self._live.get(lease) or self._ended.get(lease)

    @property
    def names(self) -> KeysView[str]:
        """The nodes that are known, up or lost."""
        return self._nodes.keys()

    def nodes(self, now_s: float, after: str = "", most: int | None = None) -> list[NodeReport]:
        """The nodes in order of name; a page of them is the `most` that follow `after`."""
        names = sorted(name for name in self._nodes if name > after)[:most]
        return [self._nodes[name].report(now_s) for name in names]

    def leases(
        self,
        now_s: float,
        all: bool = False,  # noqa: A002 - the word of ListLeases
        after: str = "",
        most: int | None = None,
    ) -> list[LeaseReport]:
        """The live leases, or `all` that are still known, in order of id; paged as `nodes`."""
        shown = self._live | self._ended if all else self._live
        ids = sorted(lease for lease in shown if lease > after)[:most]
        return [shown[lease].report(now_s) for lease in ids]

    # Private

    def _forget_lost(self, joining: str) -> None:
        lost = [node for node in self._nodes.values() if node.state == "lost" and not node.leases]
        if not lost:
            raise CapacityError(f"node {joining} cannot join: {NODES_MAX} nodes are the most")
        del self._nodes[min(lost, key=lambda node: node.beat_at_s).node]

    def _add_node(
        self,
        node: str,
        address: str,
        incarnation: str,
        cores: int,
        memory_bytes: int,
        isolation: tuple[str, ...],
        now_s: float,
    ) -> Node:
        added = Node(
            node=node,
            address=address,
            incarnation=incarnation,
            cores=cores,
            memory_bytes=memory_bytes,
            isolation=isolation,
            state="lost",
            beat_at_s=now_s,
            silent_until_s=now_s + self._silence_max_s,
            cores_free=cores,
            memory_free_bytes=memory_bytes,
        )
        self._nodes[node] = added
        self._due_s = min(self._due_s, added.silent_until_s)
        return added

    def _close(self, lease: Lease, cause: str, now_s: float) -> Ended:
        del self._live[lease.lease]
        node = self._nodes.get(lease.node)
        if node is not None:
            node.give(lease.lease, lease.cores, lease.memory_bytes)
        lease.state = cause
        lease.ends_at_s = min(lease.ends_at_s, now_s)
        self._keep_ended(lease)
        return Ended(lease.lease, lease.node, cause)

    def _keep_ended(self, lease: Lease) -> None:
        self._ended[lease.lease] = lease
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def _next_fence(self) -> int:
        self._fence += 1
        return self._fence

    def _check_duration(self, duration_s: float) -> None:
        if not 0 < duration_s <= self._duration_max_s:  # refuses NaN, too
            raise UsageError(
                f"a lease cannot last {duration_s:g} s, more than 0 and at most "
                f"{self._duration_max_s:g} s are allowed",
                hint="a lease can be renewed as often as you like",
            )


def _check_amounts(cores: int, memory_bytes: int) -> None:
    for what, value, most in (
        ("cores", cores, CORES_MAX),
        ("bytes of memory", memory_bytes, MEMORY_BYTES_MAX),
    ):
        if not 1 <= value <= most:
            raise UsageError(f"{value} {what} cannot be, 1 to {most} are allowed")
