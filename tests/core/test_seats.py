"""Leases that share processors: the ledger's promise and the node's seats, held together.

hypothesis plays clients of one node.  What the ledger grants is opened there in the same order,
and must always find its cores.
"""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rfaas.core.lease import Ask, Lease
from rfaas.core.ledger import Ledger
from rfaas.core.seats import Seats
from rfaas.core.supervisor import Supervisor
from rfaas.core.tokens import Claims
from rfaas.errors import CapacityError, UsageError
from rfaas.proto.messages import NodeReport

DURATION_S = 100.0


def ledger(cores: int, oversubscribe: int, *nodes: str) -> Ledger:
    made = Ledger(float("inf"), 1, 1000.0, new_id=map("{:032x}".format, count(1000)).__next__)
    for node in nodes or ("node",):
        made.join(
            node, "unix:/n", "1" * 32, cores, 1 << 30, ("process",), (), 0.0, 0, oversubscribe
        )
    return made


numbers = count(1)


def ask(cores: int, shared: bool = True, *, wait_s: float = 0.0, gpus: int = 0) -> Ask:
    return Ask(
        lease=f"{next(numbers):032x}",
        client="tester",
        account="tester",
        cores=cores,
        memory_bytes=1,
        duration_s=DURATION_S,
        isolation="process",
        wait_s=wait_s,
        shared=shared,
        gpus=gpus,
    )


def granted(book: Ledger, wanted: Ask) -> Lease:
    lease = book.ask(wanted, 0.0)
    assert lease is not None
    return lease


def report(book: Ledger) -> NodeReport:
    return book.node_report("node", 0.0)


class NodeMachine(RuleBasedStateMachine):
    @initialize(cores=st.integers(1, 5), oversubscribe=st.integers(1, 4))
    def open_node(self, cores: int, oversubscribe: int) -> None:
        self.cores, self.oversubscribe = cores, oversubscribe
        self.ledger = ledger(cores, oversubscribe)
        self.supervisor = Supervisor(range(100, 100 + cores), 1, (), oversubscribe)
        self.live: list[str] = []

    @rule(cores=st.integers(1, 4), shared=st.booleans())
    def lease(self, cores: int, shared: bool) -> None:
        try:
            lease = granted(self.ledger, ask(cores, shared))
        except CapacityError:
            return
        assert (lease.shared > 0) == (shared and self.oversubscribe > 1)
        claims = Claims(
            lease=lease.lease,
            client="tester",
            node="node",
            cores=cores,
            memory_bytes=1,
            isolation="process",
            shared=lease.shared,
            duration_s=DURATION_S,
            issued_at_s=0.0,
            not_after_s=DURATION_S,
            fence=lease.fence,
        )
        opened = self.supervisor.open(claims, 0.0, 0.0)
        assert len(opened.cpus) == cores
        self.live.append(lease.lease)

    @rule(number=st.integers(0, 99))
    def end(self, number: int) -> None:
        if self.live:
            lease = self.live.pop(number % len(self.live))
            assert self.ledger.end(lease, "released", 0.0)
            self.supervisor.close(lease, "released", 0.0)

    @invariant()
    def owned_cores_are_alone_and_shared_ones_not_overfull(self) -> None:
        if not hasattr(self, "live"):
            return
        lanes = Counter[int]()
        for lease in self.supervisor.leases.values():
            lanes.update(lease.cpus)
        for lease in self.supervisor.leases.values():
            most = self.oversubscribe if lease.claims.shared else 1
            assert all(lanes[cpu] <= most for cpu in lease.cpus)

    @invariant()
    def both_count_the_same(self) -> None:
        if not hasattr(self, "live"):
            return
        leases = self.supervisor.leases.values()
        shared = sum(len(one.cpus) for one in leases if one.claims.shared)
        held = sum(len(one.cpus) for one in leases if not one.claims.shared)
        assert held <= self.cores
        assert shared <= self.oversubscribe * (self.cores - held)
        assert report(self.ledger).shared == shared
        assert report(self.ledger).cores_free == max(0, self.cores - held - shared)


NodeMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, print_blob=True
)
TestNode = NodeMachine.TestCase


def test_a_factor_of_one_is_today() -> None:
    book = ledger(1, 1)
    assert granted(book, ask(1)).shared == 0
    with pytest.raises(CapacityError, match="has 0 of 1 core"):
        book.ask(ask(1), 0.0)


def test_shared_leases_double_up_where_processors_have_run_out() -> None:
    book = ledger(2, 2)
    owner = granted(book, ask(1, shared=False))
    assert granted(book, ask(1)).shared == 1
    assert granted(book, ask(1)).shared == 1
    with pytest.raises(
        CapacityError, match="0 of 4 cores and 1 GiB of 1 GiB free, for leases that share"
    ):
        book.ask(ask(1), 0.0)
    with pytest.raises(CapacityError):
        book.ask(ask(1, shared=False), 0.0)
    book.end(owner.lease, "released", 0.0)
    found = report(book)
    assert (found.cores_free, found.shared, found.shared_free) == (0, 2, 2)


def test_who_owns_cores_gets_none_that_is_shared() -> None:
    book = ledger(2, 4)
    granted(book, ask(1))
    granted(book, ask(1))
    with pytest.raises(CapacityError):
        book.ask(ask(1, shared=False), 0.0)


def test_who_waits_for_a_shared_core_gets_it() -> None:
    book = ledger(1, 2)
    first = granted(book, ask(1))
    granted(book, ask(1))
    waits = ask(1, wait_s=10.0)
    assert book.ask(waits, 0.0) is None
    book.end(first.lease, "released", 1.0)
    (settled,) = book.settle(1.0)
    assert settled.granted is not None
    assert settled.granted.lease == waits.lease


def test_a_shared_lease_spans_nodes() -> None:
    book = ledger(1, 2, "a", "b")
    parts = book.parts(granted(book, ask(4)))
    assert sorted((part.node, part.cores) for part in parts) == [("a", 2), ("b", 2)]


def test_a_draining_node_takes_no_shared_lease() -> None:
    book = ledger(1, 2)
    book.drain("node")
    with pytest.raises(CapacityError, match="no node is up"):
        book.ask(ask(1), 0.0)
    book.drain("node", False)
    granted(book, ask(1))


def test_a_node_that_comes_back_keeps_its_leases_in_any_order() -> None:
    book = ledger(2, 2)
    owner = granted(book, ask(1, shared=False))
    shared = [granted(book, ask(1)) for _ in range(2)]
    book.renew(owner.lease, DURATION_S, 1.0)  # the last fence: it is entered last
    book.join("node", "unix:/n", "1" * 32, 2, 1 << 30, ("process",), (), 2.0, 0, 2)
    assert book.tick(2.0) == []
    assert {one.lease for one in book.leases(2.0)} == {owner.lease, *(one.lease for one in shared)}


def test_a_node_that_comes_back_with_a_smaller_factor_ends_what_has_no_room() -> None:
    book = ledger(1, 3)
    kept, *others = [granted(book, ask(1)) for _ in range(3)]
    book.join("node", "unix:/n", "1" * 32, 1, 1 << 30, ("process",), (), 2.0, 0, 1)
    assert [(one.lease, one.cause) for one in book.tick(2.0)] == [
        (one.lease, "node-lost") for one in others
    ]
    book.end(kept.lease, "released", 2.0)
    assert report(book).cores_free == 1


@pytest.mark.parametrize(("cores", "gpus"), [(0, 0), (1, 1), (129, 0)])
def test_what_cannot_be_shared(cores: int, gpus: int) -> None:
    with pytest.raises(UsageError):
        ledger(200, 2).ask(ask(cores, gpus=gpus), 0.0)


@pytest.mark.parametrize("oversubscribe", [0, 65])
def test_limits_of_the_factor(oversubscribe: int) -> None:
    with pytest.raises(UsageError, match=f"oversubscribe by {oversubscribe}, 1 to 64 are allowed"):
        ledger(1, oversubscribe)


def test_a_node_lends_what_others_were_promised_last() -> None:
    """A token that is shown before that of an earlier lease takes no core from it."""
    seats = Seats(2, 2)
    assert seats.take(1, 1) == (1,)
    assert seats.take(1, 1) == (1,)
    assert seats.take(1, 0) == (0,)
    assert seats.take(1, 1) is None
    assert "0 of 2 are free and 1 shared, with room for 0 more lanes" in seats.free_text()


def test_lanes_of_one_lease_share_a_core_only_where_nothing_else_is_left() -> None:
    seats = Seats(3, 3)
    assert seats.take(3, 3) == (2, 1, 0)
    assert seats.take(2, 3) == (2, 1)
    assert seats.take(3, 3) == (0, 2, 1)
    assert seats.take(1, 3) == (0,)
    assert seats.take(1, 3) is None
    seats.give((2, 1, 0), 3)
    assert sorted(seats.take(3, 3) or ()) == [0, 1, 2]
