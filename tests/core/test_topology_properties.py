"""Processors under random histories: hypothesis plays leases that own theirs, or share them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rfaas.core.seats import Seats
from rfaas.core.topology import UNKNOWN, Facts, Topology
from tests.core import machines


@st.composite
def any_machine(draw: st.DrawFn) -> tuple[int, Facts]:
    """A recorded one, or one that nobody has built yet."""
    if draw(st.booleans()):
        return machines.ALL[draw(st.sampled_from(sorted(machines.ALL)))]
    cpus = draw(st.integers(1, 12))
    cores = [draw(st.integers(0, 5)) for _ in range(cpus)]
    nodes = [draw(st.integers(0, 2)) for _ in range(6)]  # of each core: none is on two of them
    known = draw(st.sets(st.integers(0, cpus - 1)))
    return cpus, Facts(
        {cpu: cores[cpu] for cpu in known},
        {cpu: nodes[cores[cpu]] for cpu in known},
        draw(st.sampled_from([None, 0, 1, 7])),
    )


class SeatsMachine(RuleBasedStateMachine):
    @initialize(machine=any_machine(), oversubscribe=st.integers(1, 3))
    def open_node(self, machine: tuple[int, Facts], oversubscribe: int) -> None:
        self.cpus, facts = machine
        self.core = {cpu: facts.cores.get(cpu, ~cpu) for cpu in range(self.cpus)}
        self.node = {cpu: facts.nodes.get(cpu, -1) for cpu in range(self.cpus)}
        self.nic, self.most = facts.nic, oversubscribe
        self.seats = Seats(self.cpus, oversubscribe, Topology(range(self.cpus), facts))
        self.again = Seats(self.cpus, oversubscribe, Topology(range(self.cpus), facts))
        self.owned: list[tuple[int, ...]] = []
        self.shared: list[tuple[int, ...]] = []

    def in_use(self) -> set[int]:
        return {cpu for lease in [*self.owned, *self.shared] for cpu in lease}

    @rule(lanes=st.integers(1, 13))
    def own(self, lanes: int) -> None:
        used = self.in_use()
        free = set(range(self.cpus)) - used
        taken = self.seats.take(lanes, 0)
        assert self.again.take(lanes, 0) == taken, "it depends on something else"
        if taken is None:
            assert lanes > len(free)
            return
        self.owned.append(taken)
        assert len(set(taken)) == lanes
        assert set(taken) <= free
        busy = {self.core[cpu] for cpu in used}
        mine = Counter(self.core[cpu] for cpu in taken)
        whole = {self.core[cpu] for cpu in free} - busy
        if len(mine) < lanes:
            assert whole <= set(mine), "siblings in one lease, and a physical core is free"
        if set(mine) & busy:
            left = {self.core[cpu] for cpu in free.difference(taken)}
            assert not left & whole, "beside somebody else, and a whole core has room"
        rooms = Counter[int | None](
            {self.core[cpu]: self.node[cpu] for cpu in free if self.core[cpu] in whole}.values()
        )
        nodes = {self.node[cpu] for cpu in taken}
        if lanes <= len(whole) and max(rooms.values()) >= lanes:
            assert len(nodes) == 1, "a node has as many whole cores"
            assert rooms[self.nic] < lanes or nodes == {self.nic}, "and so has the NIC's"

    @rule(lanes=st.integers(1, 8))
    def share(self, lanes: int) -> None:
        if self.most == 1:
            return
        owned = sum(map(len, self.owned))
        taken = self.seats.take(lanes, self.cpus - owned)
        assert self.again.take(lanes, self.cpus - owned) == taken
        if taken is not None:
            self.shared.append(taken)

    @rule(number=st.integers(0, 99), shares=st.booleans())
    def end(self, number: int, shares: bool) -> None:
        leases = self.shared if shares else self.owned
        if leases:
            lease = leases.pop(number % len(leases))
            self.seats.give(lease, int(shares))
            self.again.give(lease, int(shares))

    @invariant()
    def nobody_has_what_somebody_owns(self) -> None:
        if not hasattr(self, "seats"):
            return
        owned = [cpu for lease in self.owned for cpu in lease]
        lanes = Counter(cpu for lease in self.shared for cpu in lease)
        assert len(owned) == len(set(owned))
        assert not set(owned) & set(lanes)
        assert max(lanes.values(), default=0) <= self.most

    def teardown(self) -> None:
        """All of it comes back, and can be had again."""
        if not hasattr(self, "seats"):
            return
        for lease in self.owned:
            self.seats.give(lease, 0)
        for lease in self.shared:
            self.seats.give(lease, 1)
        taken = self.seats.take(self.cpus, 0)
        assert sorted(taken or ()) == list(range(self.cpus))


TestSeatsMachine = SeatsMachine.TestCase


@given(st.integers(1, 8), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_without_facts_it_is_a_pile(cores: int, history: list[tuple[bool, int]]) -> None:
    """The last on it is the next to go, whoever knows nothing more."""
    seats, pile, live = Seats(cores, 1, Topology(range(cores), UNKNOWN)), list(range(cores)), []
    for takes, number in history:
        if takes and 0 < number <= len(pile):
            taken = tuple(pile.pop() for _ in range(number))
            assert seats.take(number, 0) == taken
            live.append(taken)
        elif live:
            given_back = live.pop(number % len(live))
            seats.give(given_back, 0)
            pile += reversed(given_back)


@given(any_machine(), st.data())
def test_partners(machine: tuple[int, Facts], data: st.DataObject) -> None:
    cpus, facts = machine
    lent = data.draw(st.sets(st.integers(0, cpus - 1), min_size=1))
    spare = set(range(cpus)) - lent
    found = Topology(sorted(lent), facts).partners(spare)
    assert len(found) == min(len(lent), len(spare))
    assert len(set(found.values())) == len(found)
    assert set(found) <= lent
    assert set(found.values()) <= spare

    def core(cpu: int) -> int:
        return facts.cores.get(cpu, ~cpu)

    own = [cpu for cpu, partner in found.items() if core(cpu) == core(partner)]
    idle = {cpu for cpu in spare if core(cpu) not in map(core, lent)}
    if own:
        assert idle <= set(found.values()), "a core without a lane is left"
