"""The book of nodes and leases: entering and crossing out, and what time does to both.

The lower half of `core.ledger`, which says what the words mean and decides who gets what;
here is what both halves must never get wrong: what a node has free, what an account holds,
and that a lease ends once and its whole bundle with it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, KeysView, Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from rfaas.core.lease import LIVE, Ended, Lease
from rfaas.core.node import Node
from rfaas.core.placement import Index
from rfaas.errors import CapacityError, UnavailableError, UsageError
from rfaas.proto.messages import LeaseReport, NodeReport, Usage

CORES_MAX = 65536
MEMORY_BYTES_MAX = 2**60
GPUS_MAX = 4096
OVERSUBSCRIBE_MAX = 64
NODES_MAX = 16384  # joining past it makes the node go that has been lost longest
ENDED_MAX = 4096  # ended leases kept for display; the oldest go first
STALE_MAX = 4096  # deadlines of leases that have ended, before they are swept


class Totals(NamedTuple):
    """The state of all nodes in a few numbers; a lost one's cores are nobody's."""

    cores: int
    cores_free: int
    up: int
    lost: int
    gpus: int = 0
    gpus_free: int = 0


class Book:
    """See the module's docstring; made as a `Ledger`."""

    def __init__(self, heartbeat_s: float, missed_beats_max: int) -> None:
        self._silence_max_s = heartbeat_s * missed_beats_max
        self._nodes: dict[str, Node] = {}
        self._index = Index()
        self._twins = Index()  # of nodes that oversubscribe, for leases that share
        self._live: dict[str, Lease] = {}
        self._bundles: dict[str, list[Lease]] = {}  # live, by the first one's id
        self._torn: set[str] = set()  # bundles of which a part had ended before a restart
        self._held: dict[str, list[int]] = {}  # of an account: cores, leases as asked for, GPUs
        self._ended: dict[str, Lease] = {}
        self._ended_order: deque[str] = deque()
        self._news: list[Ended] = []  # for the next tick
        self.silent: list[str] = []  # nodes that `tick` has found lost; who reads it clears it
        self._freed = False  # since requests that wait were last tried
        self._fence = 0
        # No later than its deadline, for each lease and node; those that have ended are swept.
        self._deadlines: list[tuple[float, str]] = []
        self._silences: list[tuple[float, str]] = []
        self._watched: set[str] = set()  # nodes that have one: one each, however often they join
        self._sweep_at = STALE_MAX
        self._ticked_s = math.inf  # when `tick` last ran
        self.away_s = self._silence_max_s / 2  # between two ticks, past which we were away

    # Nodes

    def join(  # noqa: PLR0913, PLR0917 - what a node offers
        self,
        node: str,
        address: str,
        incarnation: str,
        cores: int,
        memory_bytes: int,
        isolation: tuple[str, ...],
        live: Collection[str],
        now_s: float,
        gpus: int = 0,
        oversubscribe: int = 1,
    ) -> list[str]:
        """A node offers itself, for the first time or again; it still serves `live`.

        Returns those of `live` that it must no longer serve: unknown here,
        ended, of another node, or more than it has room for.  Of the leases
        that the book has on this node, all stay for the same incarnation (one
        may be granted and not opened yet); for a new one those in `live` stay
        and the next `tick` reports the others as node-lost.
        """
        check_amounts(cores, memory_bytes, gpus)
        if not 1 <= oversubscribe <= OVERSUBSCRIBE_MAX:
            raise UsageError(
                f"node {node} cannot oversubscribe by {oversubscribe}, "
                f"1 to {OVERSUBSCRIBE_MAX} are allowed"
            )
        known = self._nodes.get(node)
        if known is None and len(self._nodes) >= NODES_MAX:
            self._forget_lost(node)
        held = [self._live[lease] for lease in known.leases] if known else []
        joined = self._add_node(
            node, address, incarnation, cores, memory_bytes, isolation, now_s, gpus, oversubscribe
        )
        joined.state = "up"
        joined.draining = known is not None and known.draining
        for lease in sorted(held, key=lambda lease: lease.fence):
            if lease.lease not in self._live:  # it ended with another one of its bundle
                continue
            stays = lease.lease in live or (known and known.incarnation == incarnation)
            if stays and _take_again(joined, lease):
                continue
            self._news.append(self._close(lease, "node-lost", now_s))
        if not joined.draining:
            self._list(joined)
        self._freed = True
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
        return self._lose(node, "node-lost", now_s)

    def leave(self, node: str, now_s: float) -> list[Ended]:
        """A node is gone for good: its leases end and it is forgotten."""
        ended = self._lose(node, "node-lost", now_s)
        self._nodes.pop(node, None)
        return ended

    def remove(self, node: str, now_s: float) -> list[Ended]:
        """Somebody wants a node gone: its leases are revoked and it is forgotten."""
        ended = self._lose(node, "revoked", now_s)
        self._nodes.pop(node, None)
        return ended

    def drain(self, node: str, draining: bool = True) -> None:
        """Lease no more of a node, or again; what it has goes on, also over a restart of it.

        Raises:
            UnavailableError: there is no such node.
        """
        known = self._nodes.get(node)
        if known is None:
            raise UnavailableError(f"node {node} is unknown", hint="`rfaas nodes` lists them")
        known.draining = draining
        if draining:
            self._unlist(known)
        elif known.state == "up":
            self._list(known)
            self._freed = True

    # Time

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
        deadlines, silences = self._deadlines, self._silences
        while deadlines and deadlines[0][0] <= now_s:
            lease = self._live.get(heappop(deadlines)[1])
            if lease is None:
                continue
            if lease.ends_at_s <= now_s:
                self._news.append(self._close(lease, lease.ending or "expired", now_s))
            else:
                heappush(deadlines, (lease.ends_at_s, lease.lease))
        while silences and silences[0][0] <= now_s:
            name = heappop(silences)[1]
            silent = self._nodes.get(name)
            if silent is None or silent.silent_until_s == math.inf:
                self._watched.discard(name)
                continue
            if silent.silent_until_s <= now_s:
                self._watched.discard(name)
                self.silent.append(silent.node)
                self._news += self.lose(silent.node, now_s)
            else:
                heappush(silences, (silent.silent_until_s, silent.node))
        if not self._news:
            return []
        news, self._news = self._news, []
        return news

    # Restart

    def restore_node(  # noqa: PLR0913, PLR0917 - as `join`
        self,
        node: str,
        address: str,
        incarnation: str,
        cores: int,
        memory_bytes: int,
        isolation: tuple[str, ...],
        now_s: float,
        draining: bool = False,
        gpus: int = 0,
        oversubscribe: int = 1,
    ) -> None:
        """Enter a node from a store: lost until it joins, its leases kept so long."""
        added = self._add_node(
            node, address, incarnation, cores, memory_bytes, isolation, now_s, gpus, oversubscribe
        )
        added.draining = draining

    def restore_lease(self, lease: Lease, now_s: float) -> None:
        """Enter a lease from a store, live or ended, after its node.

        One that its node has no room for ends: the next `tick` reports it.
        """
        self._fence = max(self._fence, lease.fence)
        if lease.state != LIVE:
            self._keep_ended(lease)
            if lease.bundle:
                self._torn.add(lease.bundle)
                for part in self._bundles.get(lease.bundle, [])[:1]:  # the others end with it
                    self._news.append(self._close(part, lease.state, now_s))
            return
        self._enter(lease)
        node = self._nodes.get(lease.node)
        whole = not lease.bundle or lease.bundle not in self._torn
        if not (whole and node is not None and _take_again(node, lease)):
            self._torn.add(lease.bundle)
            self._news.append(self._close(lease, "node-lost", now_s))

    def restore_fence(self, fence: int) -> None:
        """Fences of grants to come are greater than this one."""
        self._fence = max(self._fence, fence)

    # Reports

    def find(self, lease: str) -> Lease | None:
        """The lease, live or lately ended."""
        return self._live.get(lease) or self._ended.get(lease)

    def parts(self, lease: Lease) -> list[Lease]:
        """The live leases of a lease's bundle, the first one first; itself where it has none."""
        return self._bundles.get(lease.bundle, [lease]) if lease.bundle else [lease]

    def address(self, node: str) -> str:
        """Where the executor of a known node listens."""
        return self._nodes[node].address

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

    def node_report(self, node: str, now_s: float) -> NodeReport:
        """One node.

        Raises:
            UnavailableError: there is no such node.
        """
        known = self._nodes.get(node)
        if known is None:
            raise UnavailableError(f"node {node} is unknown", hint="`rfaas nodes` lists them")
        return known.report(now_s)

    def totals(self) -> Totals:
        """All nodes in a few numbers."""
        here = [node for node in self._nodes.values() if node.state == "up"]
        return Totals(
            cores=sum(node.cores for node in here),
            cores_free=sum(node.cores_free for node in here),
            up=len(here),
            lost=len(self._nodes) - len(here),
            gpus=sum(node.gpus for node in here),
            gpus_free=sum(node.gpus_free for node in here),
        )

    def lease_states(self) -> dict[str, int]:
        """How many leases there are that have not ended, by state."""
        ending = sum(bool(lease.ending) for lease in self._live.values())
        return {LIVE: len(self._live) - ending, "terminating": ending}

    # Private

    def _enter(self, lease: Lease) -> None:
        held = self._held.get(lease.account)
        if held is None:
            self._held[lease.account] = [lease.cores, _asked(lease), lease.gpus]
        else:
            held[0] += lease.cores
            held[1] += _asked(lease)
            held[2] += lease.gpus
        if lease.bundle:
            self._bundles.setdefault(lease.bundle, []).append(lease)
        self._push_deadline(lease.ends_at_s, lease.lease)
        self._live[lease.lease] = lease  # last: what can be ended has been counted

    def _push_deadline(self, at_s: float, lease: str) -> None:
        heappush(self._deadlines, (at_s, lease))
        if len(self._deadlines) > self._sweep_at:
            self._deadlines = [(one.ends_at_s, one.lease) for one in self._live.values()]
            heapify(self._deadlines)
            self._sweep_at = 2 * len(self._deadlines) + STALE_MAX

    def _list(self, node: Node) -> None:
        """It can be leased from."""
        self._index.add(node)
        if node.twin is not None:
            self._twins.add(node.twin)

    def _unlist(self, node: Node) -> None:
        self._index.remove(node)
        if node.twin is not None:
            self._twins.remove(node.twin)

    def _forget_lost(self, joining: str) -> None:
        lost = [node for node in self._nodes.values() if node.state == "lost" and not node.leases]
        if not lost:
            raise CapacityError(f"node {joining} cannot join: {NODES_MAX} nodes are the most")
        del self._nodes[min(lost, key=lambda node: node.beat_at_s).node]

    def _add_node(  # noqa: PLR0913, PLR0917 - as `join`
        self,
        node: str,
        address: str,
        incarnation: str,
        cores: int,
        memory_bytes: int,
        isolation: tuple[str, ...],
        now_s: float,
        gpus: int,
        oversubscribe: int,
    ) -> Node:
        if (known := self._nodes.get(node)) is not None:
            self._unlist(known)
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
            gpus=gpus,
            gpus_free=gpus,
            oversubscribe=oversubscribe,
        )
        self._nodes[node] = added
        if added.silent_until_s < math.inf and node not in self._watched:
            self._watched.add(node)
            heappush(self._silences, (added.silent_until_s, node))
        return added

    def _lose(self, node: str, cause: str, now_s: float) -> list[Ended]:
        known = self._nodes.get(node)
        if known is None:
            return []
        self._unlist(known)
        known.state = "lost"
        known.silent_until_s = math.inf
        return [
            self._close(held, cause, now_s)
            for lease in sorted(known.leases)  # one may end with another of its bundle
            if (held := self._live.get(lease)) is not None
        ]

    def _close(self, lease: Lease, cause: str, now_s: float) -> Ended:
        del self._live[lease.lease]
        node = self._nodes.get(lease.node)
        if node is not None:
            shares = lease.shared > 0
            node.give(lease.lease, lease.cores, lease.memory_bytes, lease.gpus, shares=shares)
        held = self._held[lease.account]
        if held[0] == lease.cores:  # each has one at least: it was the last
            del self._held[lease.account]
        else:
            held[0] -= lease.cores
            held[1] -= _asked(lease)
            held[2] -= lease.gpus
        lease.state = cause
        lease.ends_at_s = min(lease.ends_at_s, now_s)
        self._keep_ended(lease)
        self._freed = True
        if lease.bundle:
            for part in self._bundles.pop(lease.bundle, ()):
                if part is not lease and part.state == LIVE:
                    self._news.append(self._close(part, cause, now_s))
        return Ended(lease.lease, lease.node, cause)

    def _keep_ended(self, lease: Lease) -> None:
        self._ended[lease.lease] = lease
        self._ended_order.append(lease.lease)
        if len(self._ended_order) > ENDED_MAX:
            del self._ended[self._ended_order.popleft()]

    def _move_deadline(self, lease: Lease, ends_at_s: float) -> None:
        earlier = ends_at_s < lease.ends_at_s
        lease.ends_at_s = ends_at_s
        if earlier:  # a later one is seen when the earlier has passed
            self._push_deadline(ends_at_s, lease.lease)


def _take_again(node: Node, lease: Lease) -> bool:
    """Whether a node that has come back, or is restored, has room for a lease that it had."""
    amounts, shares = (lease.cores, lease.memory_bytes, lease.gpus), lease.shared > 0
    if not node.holds(*amounts, shares=shares):
        return False
    node.take(lease.lease, *amounts, shares=shares)
    return True


def _asked(lease: Lease) -> int:
    """As how many leases it counts: a bundle is one, for which its first part stands."""
    return lease.bundle in ("", lease.lease)


def check_amounts(cores: int, memory_bytes: int, gpus: int = 0) -> None:
    for what, value, least, most in (
        ("cores", cores, 1, CORES_MAX),
        ("bytes of memory", memory_bytes, 1, MEMORY_BYTES_MAX),
        ("GPUs", gpus, 0, GPUS_MAX),
    ):
        if not least <= value <= most:
            raise UsageError(f"{value} {what} cannot be, {least} to {most} are allowed")
