"""Who gets which processors, on machines that were recorded."""

from __future__ import annotations

import pytest

from rfaas.core.seats import Seats
from rfaas.core.topology import UNKNOWN, Facts, Topology, lent
from tests.core.machines import ADJACENT, FAR, IN_TURN, NIC_ON_0, TWO_NODES


def node(facts: Facts, cpus: int, oversubscribe: int = 1) -> Seats:
    """A node that lends all of its processors: places are processors."""
    return Seats(cpus, oversubscribe, Topology(range(cpus), facts))


class TestPhysicalCores:
    def test_a_lease_has_distinct_ones(self) -> None:
        assert node(FAR, 8).take(4, 0) == (7, 6, 5, 4)
        assert node(ADJACENT, 8).take(4, 0) == (7, 5, 3, 1)

    def test_then_the_siblings(self) -> None:
        assert node(FAR, 8).take(8, 0) == (7, 6, 5, 4, 3, 2, 1, 0)
        assert node(ADJACENT, 8).take(8, 0) == (7, 5, 3, 1, 6, 4, 2, 0)

    def test_a_sibling_of_somebody_elses_comes_last(self) -> None:
        seats = node(ADJACENT, 8)
        assert [seats.take(1, 0) for _ in range(8)] == [
            (7,),
            (5,),
            (3,),
            (1,),
            (6,),
            (4,),
            (2,),
            (0,),
        ]

    def test_siblings_of_its_own_before_one_of_somebody_elses(self) -> None:
        """Who came first keeps what it had."""
        seats = node(ADJACENT, 4)
        assert seats.take(1, 0) == (3,)
        assert seats.take(2, 0) == (1, 0)
        assert seats.take(1, 0) == (2,)

    def test_a_core_that_was_given_back_is_whole_again(self) -> None:
        seats = node(ADJACENT, 4)
        first, second = seats.take(1, 0), seats.take(1, 0)
        assert (first, second) == ((3,), (1,))
        seats.give(first, 0)  # type: ignore[arg-type]
        assert seats.take(2, 0) == (3, 2)

    def test_with_four_threads_the_emptiest_first(self) -> None:
        facts = Facts({cpu: cpu // 4 for cpu in range(8)})
        seats = node(facts, 8)
        assert seats.take(3, 0) == (7, 3, 6)
        assert seats.take(3, 0) == (2, 1, 0)  # beside one of the other's, not beside two
        assert seats.take(2, 0) == (5, 4)


class TestNumaNodes:
    def test_the_nics_is_preferred(self) -> None:
        assert node(TWO_NODES, 16).take(2, 0) == (15, 14)
        assert node(NIC_ON_0, 16).take(2, 0) == (11, 10)

    def test_a_lease_is_on_one_where_it_fits(self) -> None:
        seats = node(NIC_ON_0, 16)
        assert seats.take(3, 0) == (11, 10, 9)
        assert seats.take(2, 0) == (15, 14)  # one whole core is left on the NIC's
        assert seats.take(1, 0) == (8,)

    def test_without_a_nic(self) -> None:
        seats = node(IN_TURN, 8)
        assert seats.take(3, 0) == (7, 5, 3)
        assert seats.take(2, 0) == (6, 4)
        assert seats.take(3, 0) == (2, 0, 1)  # first what is near each other

    def test_a_core_of_its_own_counts_more(self) -> None:
        assert node(TWO_NODES, 16).take(6, 0) == (15, 14, 13, 12, 11, 10)
        seats = node(TWO_NODES, 16)
        assert seats.take(4, 0) == (15, 14, 13, 12)
        assert seats.take(1, 0) == (11,)  # not beside one of the first lease's

    def test_the_whole_machine(self) -> None:
        taken = node(TWO_NODES, 16).take(16, 0)
        assert taken == (15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)


class TestShared:
    def test_lanes_open_cores_as_owners_do(self) -> None:
        seats = node(ADJACENT, 8, oversubscribe=2)
        assert seats.take(3, 8) == (7, 5, 3)
        assert seats.take(1, 0) == (1,)

    def test_a_seat_that_is_not_beside_its_own(self) -> None:
        seats = node(ADJACENT, 4, oversubscribe=2)
        assert seats.take(4, 4) == (3, 1, 2, 0)
        assert seats.take(2, 4) == (3, 1)  # 2 has as few lanes and is 3's sibling


class TestUnknown:
    """As ever: from the last, and what came back first."""

    @pytest.mark.parametrize("facts", [UNKNOWN, Facts(nic=1), Facts({0: 0, 1: 1, 2: 2, 3: 3})])
    def test_from_the_last(self, facts: Facts) -> None:
        seats = node(facts, 4)
        assert seats.take(2, 0) == (3, 2)
        seats.give((3, 2), 0)
        assert seats.take(3, 0) == (3, 2, 1)
        seats.give((3, 2, 1), 0)
        assert seats.take(1, 0) == (3,)

    def test_lanes_that_are_not_pinned(self) -> None:
        topology = Topology([-1] * 4, FAR)
        assert topology.choose(4, range(4)) == [3, 2, 1, 0]
        assert topology.text == ""

    def test_one_processor(self) -> None:
        seats = node(UNKNOWN, 1)
        assert seats.take(1, 0) == (0,)
        assert seats.take(1, 0) is None

    def test_nothing_free_and_nothing_wanted(self) -> None:
        assert Topology(()).choose(0, ()) == []


class TestLent:
    """Of the processors that the executor may use, those that it lends."""

    def test_whole_cores_first(self) -> None:
        assert lent(2, range(8), ADJACENT).cpus == (5, 7)
        assert lent(5, range(8), ADJACENT).cpus == (1, 3, 5, 6, 7)

    def test_on_the_nics_node(self) -> None:
        assert lent(3, range(16), NIC_ON_0).cpus == (9, 10, 11)

    def test_the_last_where_nothing_is_known(self) -> None:
        assert lent(2, [4, 6, 0, 2], UNKNOWN).cpus == (0, 2)
        assert lent(4, [4, 6, 0, 2], UNKNOWN).cpus == (4, 6, 0, 2)


class TestPartners:
    """What is not lent, for endpoints."""

    def partners(self, cpus: list[int], spare: set[int], facts: Facts) -> dict[int, int]:
        return Topology(cpus, facts).partners(spare)

    def test_a_core_without_a_lane(self) -> None:
        assert self.partners([7], {0, 1, 2, 3, 4, 5, 6}, ADJACENT) == {7: 5}
        assert self.partners([5, 7], {0, 1, 2, 3, 4, 6}, ADJACENT) == {7: 3, 5: 1}

    def test_then_beside_another_partner_then_beside_another_lane(self) -> None:
        assert self.partners([3, 5, 7], {0, 1, 2, 4, 6}, ADJACENT) == {7: 1, 5: 0, 3: 6}

    def test_its_own_sibling_only_where_nothing_else_is_left(self) -> None:
        assert self.partners([7], {6}, ADJACENT) == {7: 6}
        assert self.partners([5, 7], {4, 6}, ADJACENT) == {7: 4, 5: 6}
        assert self.partners([3, 5, 7], {2, 4, 6}, ADJACENT) == {7: 2, 5: 6, 3: 4}

    def test_on_the_same_node(self) -> None:
        found = self.partners(
            [3, 7], {0, 1, 2, 4, 5, 6}, IN_TURN._replace(nodes={**IN_TURN.nodes, 3: 0})
        )
        assert found == {7: 5, 3: 6}

    def test_the_first_to_be_handed_out_have_them(self) -> None:
        assert self.partners([1, 3, 5, 7], {0, 2}, ADJACENT) == {7: 2, 5: 0}

    def test_without_facts(self) -> None:
        assert self.partners([2, 3], {0, 1}, UNKNOWN) == {3: 1, 2: 0}
        assert self.partners([1, 2, 3], {0}, UNKNOWN) == {3: 0}
        assert self.partners([-1, -1], {0}, UNKNOWN) == {}
        assert self.partners([0, 1], set(), UNKNOWN) == {}


@pytest.mark.parametrize(
    ("cpus", "facts", "text"),
    [
        (range(8), FAR, "8 on 4 physical cores"),
        (range(4), FAR, ""),
        ((0, 4), FAR, "2 on 1 physical core"),
        (range(8), IN_TURN, "8 on 8 physical cores of 2 NUMA nodes"),
        ((1, 3), IN_TURN, ""),
        (range(16), TWO_NODES, "16 on 8 physical cores of 2 NUMA nodes, the NIC on node 1"),
        (range(4), UNKNOWN, ""),
        ((0,), UNKNOWN, ""),
    ],
)
def test_what_people_are_told(cpus: range, facts: Facts, text: str) -> None:
    assert Topology(cpus, facts).text == text
