"""The ledger under random histories: hypothesis plays manager, nodes, clients and time.

A model beside the ledger holds what was granted and not yet reported as ended;
after every step the two must agree.
"""

from __future__ import annotations

from collections import Counter
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from rfaas.core.lease import CAUSES, LIVE, Ended, Lease
from rfaas.core.ledger import Ledger
from rfaas.errors import CapacityError, LeaseEndedError, UnavailableError
from rfaas.proto.messages import Usage

HEARTBEAT_S = 1.0
MISSED_BEATS_MAX = 3
NODES = {"a": (4, 8), "b": (8, 4), "c": (1, 1)}  # cores, bytes of memory
DURATION_MAX_S = 100.0

names = st.sampled_from(sorted(NODES))


class LedgerMachine(RuleBasedStateMachine):
    granted = Bundle("granted")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(HEARTBEAT_S, MISSED_BEATS_MAX, DURATION_MAX_S)
        self.now_s = 0.0
        self.numbers = count(1)
        self.incarnation: dict[str, str] = {}
        self.node_of: dict[str, str] = {}  # each lease ever granted
        self.ends: Counter[str] = Counter()  # how often each was said to be over
        self.fence = 0

    # Steps

    @rule(node=names, again=st.booleans(), live=st.sets(granted, max_size=4))
    def join(self, node: str, again: bool, live: set[str]) -> None:
        if not again or node not in self.incarnation:
            self.incarnation[node] = f"{next(self.numbers):032x}"
        cores, memory_bytes = NODES[node]
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
        )
        self.note(self.ledger.tick(self.now_s))
        for lease in claimed:
            serves = lease in self.live() and self.node_of[lease] == node
            assert (lease in revoked) != serves

    @rule(node=names)
    def beat(self, node: str) -> None:
        self.note(self.ledger.tick(self.now_s))
        up = [one.node for one in self.ledger.nodes(self.now_s) if one.state == "up"]
        try:
            self.ledger.beat(node, {}, self.now_s)
        except UnavailableError:
            assert node not in up
        else:
            assert node in up

    @rule(node=names, forget=st.booleans())
    def lose(self, node: str, forget: bool) -> None:
        gone = self.ledger.leave if forget else self.ledger.lose
        ended = gone(node, self.now_s)
        assert all(one.node == node and one.cause == "node-lost" for one in ended)
        self.note(ended)

    @rule(
        target=granted,
        cores=st.integers(1, 9),
        memory_bytes=st.integers(1, 9),
        duration_s=st.floats(0.1, DURATION_MAX_S),
    )
    def request(self, cores: int, memory_bytes: int, duration_s: float) -> object:
        self.note(self.ledger.tick(self.now_s))
        room = [
            one
            for one in self.ledger.nodes(self.now_s)
            if one.state == "up"
            and one.cores_free >= cores
            and one.memory_free_bytes >= memory_bytes
        ]
        lease = f"{next(self.numbers):032x}"
        try:
            grant = self.ledger.request(
                "tester", cores, memory_bytes, duration_s, "process", lease, self.now_s
            )
        except CapacityError:
            assert not room
            return multiple()
        assert grant.node in [one.node for one in room]
        self.check_fence(grant.fence)
        self.node_of[lease] = grant.node
        return lease

    @rule(lease=granted, duration_s=st.floats(0.1, DURATION_MAX_S))
    def renew(self, lease: str, duration_s: float) -> None:
        self.note(self.ledger.tick(self.now_s))
        try:
            grant = self.ledger.renew(lease, duration_s, self.now_s)
        except LeaseEndedError:
            assert self.ends[lease] == 1
        else:
            assert self.ends[lease] == 0
            assert grant.node == self.node_of[lease]
            self.check_fence(grant.fence)

    @rule(lease=granted, cause=st.sampled_from(sorted(CAUSES)))
    def end(self, lease: str, cause: str) -> None:
        if self.ledger.end(lease, cause, self.now_s, Usage(calls=1)):
            self.ends[lease] += 1

    @rule(lease=consumes(granted))
    def end_twice(self, lease: str) -> None:
        self.end(lease, "released")
        assert not self.ledger.end(lease, "released", self.now_s)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.note(self.ledger.tick(self.now_s))
        assert all(one.remaining_s > 0 for one in self.ledger.leases(self.now_s))

    @rule()
    def restart(self) -> None:
        """What a store brings back is the same book, but that no node is up."""
        self.note(self.ledger.tick(self.now_s))
        old, self.ledger = self.ledger, Ledger(HEARTBEAT_S, MISSED_BEATS_MAX, DURATION_MAX_S)
        for node in old.nodes(self.now_s):
            self.ledger.restore_node(
                node.node,
                node.address,
                self.incarnation[node.node],
                node.cores,
                node.memory_bytes,
                ("process",),
                self.now_s,
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
            assert after.state == "lost"

    # What must hold

    @invariant()
    def live_leases_are_those_that_have_not_ended(self) -> None:
        assert self.live() == {lease for lease in self.node_of if not self.ends[lease]}

    @invariant()
    def every_lease_ends_once(self) -> None:
        assert all(times == 1 for times in self.ends.values() if times)
        over = [one for one in self.ledger.leases(self.now_s, all=True) if one.state != LIVE]
        assert {one.lease for one in over} == {lease for lease in self.ends if self.ends[lease]}

    @invariant()
    def no_node_is_overcommitted(self) -> None:
        live = self.ledger.leases(self.now_s)
        for node in self.ledger.nodes(self.now_s):
            here = [lease for lease in live if lease.node == node.node]
            assert node.leases == len(here)
            assert node.cores_free == node.cores - sum(lease.cores for lease in here) >= 0
            assert (
                node.memory_free_bytes
                == node.memory_bytes - sum(lease.memory_bytes for lease in here)
                >= 0
            )

    @invariant()
    def a_lease_stays_on_its_node(self) -> None:
        for lease in self.ledger.leases(self.now_s):
            assert lease.node == self.node_of[lease.lease]

    def teardown(self) -> None:
        for lease in self.live():
            self.end(lease, "released")
        for node in self.ledger.nodes(self.now_s):
            assert (node.cores_free, node.memory_free_bytes) == NODES[node.node]

    # Helpers

    def live(self) -> set[str]:
        return {lease.lease for lease in self.ledger.leases(self.now_s)}

    def note(self, ended: list[Ended]) -> None:
        for one in ended:
            assert one.node == self.node_of[one.lease]
            self.ends[one.lease] += 1

    def check_fence(self, fence: int) -> None:
        assert fence > self.fence
        self.fence = fence


LedgerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, print_blob=True
)
TestLedger = LedgerMachine.TestCase
