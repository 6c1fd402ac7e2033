"""The ledger under random histories: hypothesis plays manager, nodes, clients and time.

A model beside the ledger holds what was granted and not yet reported as ended;
after every step the two must agree.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from math import gcd
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from rfaas.core.lease import CAUSES, LIVE, Ask, Ended, Lease, Placement
from rfaas.core.ledger import Ledger, Quota
from rfaas.core.placement import ALL
from rfaas.errors import CapacityError, LeaseEndedError, UnavailableError
from rfaas.proto.messages import NodeReport, Usage

HEARTBEAT_S = 1.0
MISSED_BEATS_MAX = 3
NODES = {  # cores, bytes of memory, GPUs
    "a": (4, 8, 2),
    "b": (8, 4, 0),
    "c": (1, 1, 1),
    "d": (2, 9, 1),
}
OVERSUBSCRIBE = {"a": 1, "b": 2, "c": 1, "d": 3}
DURATION_MAX_S = 100.0
QUOTA = Quota(cores_max=9, leases_max=4, gpus_max=2)

names = st.sampled_from(sorted(NODES))
rarely = st.sampled_from([False, False, False, True])


class LedgerMachine(RuleBasedStateMachine):
    granted = Bundle("granted")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.make()
        self.now_s = 0.0
        self.numbers = count(1)
        self.incarnation: dict[str, str] = {}
        self.node_of: dict[str, str] = {}  # each lease ever granted
        self.ends: Counter[str] = Counter()  # how often each was said to be over
        self.fence = 0
        self.bundle_of: dict[str, set[str]] = {}
        self.waiting: dict[str, Ask] = {}
        self.draining: set[str] = set()

    def make(self) -> Ledger:
        return Ledger(
            HEARTBEAT_S,
            MISSED_BEATS_MAX,
            DURATION_MAX_S,
            quota=QUOTA,
            new_id=lambda: f"{next(self.numbers):032x}",
        )

    # Steps

    @initialize(target=granted)
    def open_site(self) -> object:
        """All nodes are up and some leases are there, or most histories would hold nothing."""
        for node in sorted(NODES):
            self.join(node, again=False, live=set())
        first = self.ask("ann", 3, 2, DURATION_MAX_S, "spread", 0.0, 0)
        second = self.ask("bob", 2, 2, DURATION_MAX_S, "pack", 0.0, 1)
        return multiple(*first.values, *second.values)

    @rule(node=names, again=st.booleans(), live=st.sets(granted, max_size=4))
    def join(self, node: str, again: bool, live: set[str]) -> None:
        if not again or node not in self.incarnation:
            self.incarnation[node] = f"{next(self.numbers):032x}"
        cores, memory_bytes, gpus = NODES[node]
        claimed = tuple(sorted(live))
        revoked = self.ledger.join(
            node,
            f"unix:/{node}",
            self.incarnation[node],
            cores,
            memory_bytes,
            ("process",),
            claimed,
            self.now_s,
            gpus,
            OVERSUBSCRIBE[node],
        )
        self.note(self.ledger.tick(self.now_s))
        for lease in claimed:
            serves = lease in self.live() and self.node_of[lease] == node
            assert (lease in revoked) != serves

    @rule(node=names)
    def beat(self, node: str) -> None:
        self.note(self.ledger.tick(self.now_s))
        up = [one.node for one in self.ledger.nodes(self.now_s) if one.state != "lost"]
        try:
            self.ledger.beat(node, {}, self.now_s)
        except UnavailableError:
            assert node not in up
        else:
            assert node in up

    @rule(node=names, forget=st.booleans(), really=rarely)
    def lose(self, node: str, forget: bool, really: bool) -> None:
        if not really:
            return
        gone = self.ledger.leave if forget else self.ledger.lose
        ended = gone(node, self.now_s)
        if forget:
            self.draining.discard(node)
        assert all(one.node == node and one.cause == "node-lost" for one in ended)
        self.note(ended)

    @rule(node=names, really=rarely)
    def remove(self, node: str, really: bool) -> None:
        if not really:
            return
        ended = self.ledger.remove(node, self.now_s)
        assert all(one.node == node and one.cause == "revoked" for one in ended)
        self.draining.discard(node)
        self.note(ended)

    @rule(node=names, draining=st.booleans())
    def drain(self, node: str, draining: bool) -> None:
        try:
            self.ledger.drain(node, draining)
        except UnavailableError:
            assert node not in self.ledger.names
        else:
            (self.draining.add if draining else self.draining.discard)(node)

    @rule(
        target=granted,
        account=st.sampled_from(["ann", "bob", "cem"]),
        cores=st.one_of(st.integers(1, 5), st.integers(0, 12)),
        memory_bytes=st.one_of(st.integers(1, 4), st.integers(0, 12)),
        duration_s=st.floats(1.0, DURATION_MAX_S),
        placement=st.sampled_from(["pack", "spread", "node"]),
        wait_s=st.sampled_from([0.0, 0.0, 3.0, 50.0]),
        gpus=st.sampled_from([0, 0, 0, 1, 1, 2, 3]),
        shared=st.booleans(),
    )
    def ask(
        self,
        account: str,
        cores: int,
        memory_bytes: int,
        duration_s: float,
        placement: Placement,
        wait_s: float,
        gpus: int,
        shared: bool = False,
    ) -> Any:
        self.note(self.ledger.tick(self.now_s))
        ask = Ask(
            lease=f"{next(self.numbers):032x}",
            client="tester",
            account=account,
            cores=cores,
            memory_bytes=memory_bytes,
            duration_s=duration_s,
            isolation="process",
            placement=placement,
            wait_s=wait_s,
            gpus=0 if shared else gpus,
            shared=shared and ALL not in (cores, memory_bytes),
        )
        gpus = ask.gpus
        others_wait = self.ledger.waiting > 0
        room = self.has_room(ask)
        try:
            lease = self.ledger.ask(ask, self.now_s)
        except CapacityError:
            assert others_wait or not room
            assert wait_s == 0 or cores > QUOTA.cores_max or gpus > QUOTA.gpus_max
            return multiple()
        if lease is None:
            assert wait_s > 0
            assert others_wait or not room
            self.waiting[ask.lease] = ask
            return multiple()
        assert room
        return multiple(*self.enter(ask, lease))

    @rule(target=granted)
    def settle(self) -> object:
        self.note(self.ledger.tick(self.now_s))
        entered: list[str] = []
        for settled in self.ledger.settle(self.now_s):
            ask = self.waiting.pop(settled.ask.lease)
            assert (settled.granted is None) == (settled.error is not None)
            if settled.granted is not None:
                entered += self.enter(ask, settled.granted)
        assert self.ledger.waiting == len(self.waiting)
        # Nobody waits for what is there: whoever is first in turn does not fit.
        held = Counter[str]()
        for report in self.ledger.leases(self.now_s):
            held[self.account(report.lease)] += report.cores
        if self.waiting:
            first = min(self.waiting.values(), key=lambda ask: (held[ask.account], ask.lease))
            assert not self.has_room(first)
        return multiple(*entered)

    @rule(number=st.integers(0, 99))
    def cancel(self, number: int) -> None:
        if self.waiting:
            lease = sorted(self.waiting)[number % len(self.waiting)]
            del self.waiting[lease]
            assert self.ledger.cancel(lease)
            assert not self.ledger.cancel(lease)

    @rule(lease=granted, notice_s=st.sampled_from([0.0, 1.0, 30.0]))
    def revoke(self, lease: str, notice_s: float) -> None:
        self.note(self.ledger.tick(self.now_s))
        for part in self.ledger.revoke(lease, notice_s, self.now_s):
            assert self.ends[part.lease] == 0
            assert part.ends_at_s <= self.now_s + notice_s
        if not self.ends[lease]:
            try:
                self.ledger.renew(lease, 1.0, self.now_s)
            except LeaseEndedError:
                pass
            else:
                raise AssertionError("a lease that is revoked was renewed")
        self.note(self.ledger.tick(self.now_s))

    @rule(lease=granted, duration_s=st.floats(0.1, DURATION_MAX_S))
    def renew(self, lease: str, duration_s: float) -> None:
        self.note(self.ledger.tick(self.now_s))
        try:
            grant = self.ledger.renew(lease, duration_s, self.now_s)
        except LeaseEndedError:
            assert self.ends[lease] == 1 or self.lease(lease).ending
        else:
            assert self.ends[lease] == 0
            assert grant.node == self.node_of[lease]
            for part in self.ledger.parts(grant):
                self.check_fence(part.fence)

    @rule(lease=granted, cause=st.sampled_from(sorted(CAUSES)))
    def end(self, lease: str, cause: str) -> None:
        if self.ledger.end(lease, cause, self.now_s, Usage(calls=1)):
            self.ends[lease] += 1
        self.note(self.ledger.tick(self.now_s))

    @rule(lease=consumes(granted))
    def end_twice(self, lease: str) -> None:
        self.end(lease, "released")
        assert not self.ledger.end(lease, "released", self.now_s)

    @rule(seconds=st.floats(0, 5), silent=rarely)
    def wait(self, seconds: float, silent: bool) -> None:
        if not silent:
            for node in self.ledger.nodes(self.now_s):
                if node.state != "lost":
                    self.ledger.beat(node.node, {}, self.now_s + seconds)
        self.now_s += seconds
        self.note(self.ledger.tick(self.now_s))
        assert all(one.remaining_s > 0 for one in self.ledger.leases(self.now_s))

    @rule()
    def restart(self) -> None:
        """What a store brings back is the same book, but that no node is up."""
        self.note(self.ledger.tick(self.now_s))
        old, self.ledger = self.ledger, self.make()
        self.waiting.clear()  # their links ended with the manager
        for node in old.nodes(self.now_s):
            self.ledger.restore_node(
                node.node,
                node.address,
                self.incarnation[node.node],
                node.cores,
                node.memory_bytes,
                ("process",),
                self.now_s,
                node.node in self.draining,
                node.gpus,
                OVERSUBSCRIBE[node.node],
            )
        for report in old.leases(self.now_s, all=True):
            lease = old.find(report.lease)
            assert isinstance(lease, Lease)
            self.ledger.restore_lease(lease, self.now_s)
        self.ledger.restore_fence(self.fence)
        assert self.ledger.tick(self.now_s) == []
        assert self.ledger.leases(self.now_s, all=True) == old.leases(self.now_s, all=True)
        for before, after in zip(old.nodes(self.now_s), self.ledger.nodes(self.now_s), strict=True):
            assert (before.cores_free, before.leases) == (after.cores_free, after.leases)
            assert (before.gpus, before.gpus_free) == (after.gpus, after.gpus_free)
            assert (before.shared, before.shared_free) == (after.shared, after.shared_free)
            assert after.state == "lost"

    # What must hold

    @invariant()
    def live_leases_are_those_that_have_not_ended(self) -> None:
        assert self.live() == {lease for lease in self.node_of if not self.ends[lease]}

    @invariant()
    def every_lease_ends_once(self) -> None:
        assert all(times == 1 for times in self.ends.values() if times)
        over = [
            one
            for one in self.ledger.leases(self.now_s, all=True)
            if one.state not in (LIVE, "terminating")
        ]
        assert {one.lease for one in over} == {lease for lease in self.ends if self.ends[lease]}

    @invariant()
    def no_node_is_overcommitted(self) -> None:
        live = self.ledger.leases(self.now_s)
        for node in self.ledger.nodes(self.now_s):
            here = [lease for lease in live if lease.node == node.node]
            assert node.leases == len(here)
            held = sum(lease.cores for lease in here if not lease.shared)
            shared = sum(lease.cores for lease in here if lease.shared)
            room = OVERSUBSCRIBE[node.node] * (node.cores - held) - shared
            assert node.cores_free == max(0, node.cores - held - shared)
            assert held <= node.cores
            assert room >= 0
            assert node.shared == shared
            if OVERSUBSCRIBE[node.node] > 1:
                assert node.shared_free == room
            else:
                assert (node.shared, node.shared_free) == (0, 0)
            assert (
                node.memory_free_bytes
                == node.memory_bytes - sum(lease.memory_bytes for lease in here)
                >= 0
            )
            assert node.gpus_free == node.gpus - sum(lease.gpus for lease in here) >= 0

    @invariant()
    def no_account_holds_more_than_its_quota(self) -> None:
        cores, gpus, leases = Counter[str](), Counter[str](), Counter[str]()
        for report in self.ledger.leases(self.now_s):
            lease = self.lease(report.lease)
            cores[lease.account] += report.cores
            gpus[lease.account] += report.gpus
            leases[lease.account] += lease.bundle in ("", lease.lease)
        assert all(held <= QUOTA.cores_max for held in cores.values())
        assert all(held <= QUOTA.gpus_max for held in gpus.values())
        assert all(held <= QUOTA.leases_max for held in leases.values())

    @invariant()
    def a_bundle_is_live_as_a_whole_or_not_at_all(self) -> None:
        self.note(self.ledger.tick(self.now_s))
        for lease in self.live():
            parts = self.ledger.parts(self.lease(lease))
            assert {part.lease for part in parts} == self.bundle_of[lease]
            assert len({part.node for part in parts}) == len(parts)

    @invariant()
    def a_lease_stays_on_its_node(self) -> None:
        for lease in self.ledger.leases(self.now_s):
            assert lease.node == self.node_of[lease.lease]

    def teardown(self) -> None:
        for lease in self.live():
            self.end(lease, "released")
        for node in self.ledger.nodes(self.now_s):
            free = (node.cores_free, node.memory_free_bytes, node.gpus_free)
            assert free == NODES[node.node]
            factor = OVERSUBSCRIBE[node.node]
            assert node.shared_free == (factor * node.cores if factor > 1 else 0)

    # Helpers

    def live(self) -> set[str]:
        return {lease.lease for lease in self.ledger.leases(self.now_s)}

    def lease(self, lease: str) -> Lease:
        found = self.ledger.find(lease)
        assert found is not None
        return found

    def account(self, lease: str) -> str:
        return self.lease(lease).account

    def open_nodes(self) -> list[NodeReport]:
        found = [one for one in self.ledger.nodes(self.now_s) if one.state == "up"]
        assert not self.draining & {one.node for one in found}
        return found

    def has_room(self, ask: Ask) -> bool:
        """Whether the nodes that can be leased from, and the quota, leave room for that."""
        live = [self.lease(one) for one in self.live()]
        mine = [one for one in live if one.account == ask.account]
        if sum(one.bundle in ("", one.lease) for one in mine) >= QUOTA.leases_max:
            return False
        cores_left = QUOTA.cores_max - sum(one.cores for one in mine)
        if ask.gpus and ask.gpus > QUOTA.gpus_max - sum(one.gpus for one in mine):
            return False
        nodes = self.open_nodes()
        if ALL in (ask.cores, ask.memory_bytes):
            return any(
                one.leases == 0
                and one.cores >= ask.cores
                and one.memory_bytes >= ask.memory_bytes
                and one.gpus >= ask.gpus
                and (ask.cores or one.cores) <= cores_left
                for one in nodes
            )
        if ask.cores > cores_left:
            return False
        free = [(one.cores_free, one.memory_free_bytes, one.gpus_free) for one in nodes]
        seats = [
            (one.shared_free, one.memory_free_bytes, 0)
            for one in nodes
            if OVERSUBSCRIBE[one.node] > 1
        ]
        return fits(ask, free) or (ask.shared and fits(ask, seats))

    def enter(self, ask: Ask, lease: Lease) -> list[str]:
        """Note a grant: all of its parts."""
        parts = self.ledger.parts(lease)
        ids = [part.lease for part in parts]
        assert ids[0] == ask.lease
        if ask.cores:
            assert sum(part.cores for part in parts) == ask.cores
        assert sum(part.gpus for part in parts) == ask.gpus
        shares = {(part.cores * ask.gpus, part.gpus * ask.cores) for part in parts if ask.cores}
        assert all(one == other for one, other in shares)  # they go by cores
        for part in parts:
            self.check_fence(part.fence)
            self.node_of[part.lease] = part.node
            self.bundle_of[part.lease] = set(ids)
        return ids

    def note(self, ended: list[Ended]) -> None:
        for one in ended:
            assert one.node == self.node_of[one.lease]
            self.ends[one.lease] += 1

    def check_fence(self, fence: int) -> None:
        assert fence > self.fence
        self.fence = fence


def fits(ask: Ask, nodes: list[tuple[int, int, int]]) -> bool:
    """Whether nodes with so many free cores, bytes and GPUs have room for that."""
    wanted = (ask.cores, ask.memory_bytes, ask.gpus)
    if ask.placement != "spread" and any(
        all(has >= needs for has, needs in zip(one, wanted, strict=True)) for one in nodes
    ):
        return True
    units = gcd(ask.cores, ask.gpus)
    unit_cores, unit_gpus = ask.cores // units, ask.gpus // units
    unit_bytes = -(-ask.memory_bytes // ask.cores) * unit_cores
    rooms = [
        min(cores // unit_cores, free // unit_bytes, gpus // unit_gpus if unit_gpus else units)
        for cores, free, gpus in nodes
    ]
    return ask.placement != "node" and sum(rooms) >= units


LedgerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, print_blob=True
)
TestLedger = LedgerMachine.TestCase
