"""Which processors a lease gets: what a machine says of them, and what follows from it.

`Facts` are read elsewhere (diagnose/processors.py) and are a record here.  What a lane pays for
where it runs, the dearest first, and so what is avoided first:

    a sibling of somebody else's   two processors of one physical core share what it computes
                                   with: a neighbour would get less than it had
    a sibling of its own lease's   the same, among the lanes of one lease
    two NUMA nodes                 what the lanes of a lease share crosses between them
    a node without the NIC         so does each payload

Among equals the last ones go first, as the first ones serve interrupts on most machines.
Where nothing is known, that alone counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple


class Facts(NamedTuple):
    """What is known of a machine's processors; what is not known is left out."""

    cores: Mapping[int, int] = {}  # of each its physical core, any number from 0 on
    nodes: Mapping[int, int] = {}  # of each its NUMA node
    nic: int | None = None  # the NUMA node of the NIC that serves, if it has one


UNKNOWN = Facts()


class Topology:
    """The processors that a node lends.  A *place* is the index of one of them.

    Args:
        cpus: their numbers; -1 where a lane is not pinned.
    """

    def __init__(self, cpus: Sequence[int], facts: Facts = UNKNOWN) -> None:
        self.cpus = tuple(cpus)
        self.facts = facts
        # One of which nothing is known has a core to itself: a number below 0, as none has.
        self._cores = [facts.cores.get(cpu, ~place) for place, cpu in enumerate(self.cpus)]
        self._nodes = [facts.nodes.get(cpu, -1) for cpu in self.cpus]
        self._threads = Counter(self._cores)

    def choose(self, count: int, free: Sequence[int]) -> list[int]:
        """Places for the lanes of a lease, that of its first lane first.

        Args:
            count: how many, at most as many as are free.
            free: the places that nobody has; the last one goes first among equals.
        """
        if not count:
            return []
        pools: dict[int, list[int]] = {}  # by NUMA node
        for place in reversed(free):
            pools.setdefault(self._nodes[place], []).append(place)
        ordered = sorted(pools.values(), key=lambda pool: self._nodes[pool[0]] != self.facts.nic)
        candidates = [pool for pool in ordered if len(pool) >= count]
        if len(ordered) > 1:  # all of them, last: on one node where that costs nothing dearer
            candidates.append([place for pool in ordered for place in pool])
        others = self._threads - Counter(self._cores[place] for place in free)
        ranked = [_ranked(one, self._cores.__getitem__, others)[:count] for one in candidates]
        best = min(ranked, key=lambda one: (sum(r[0] for r in one), sum(r[1] for r in one)))
        return [place for *_, place in best]

    def is_sibling(self, place: int, places: Iterable[int]) -> bool:
        """Whether one of `places` is another processor of the same physical core."""
        return any(self._cores[one] == self._cores[place] and one != place for one in places)

    def partners(self, spare: Iterable[int]) -> dict[int, int]:
        """For as many of the processors as there are: one that is not lent, for an endpoint.

        It spins while the lane that it feeds does: so on that lane's core only where there is
        nothing else.  Apart from that it is on the lane's node, which each call would have to
        leave twice; there, if possible, on a core without a lane, and without another of these.

        Args:
            spare: processors that this process may use and does not lend.
        """
        places = self.choose(len(self.cpus), range(len(self.cpus)))
        lent = [self.cpus[place] for place in places if self.cpus[place] >= 0]
        core, node = self._core_of, self.facts.nodes.get
        order = sorted(spare, reverse=True)
        left = [cpu for *_, cpu in _ranked(order, core, Counter(map(core, lent)))]
        found: dict[int, int] = {}
        for cpu in lent[: len(left)]:
            partner = min(left, key=lambda one: (core(one) == core(cpu), node(one) != node(cpu)))
            left.remove(partner)
            if core(partner) == core(cpu):  # nothing else is left: another lane's may do instead
                for other, its in found.items():
                    if core(its) != core(cpu) != core(other) and node(other) == node(cpu):
                        found[other], partner = partner, its
                        break
            found[cpu] = partner
        return found

    @property
    def text(self) -> str:
        """On how many cores and nodes they are; "" where each is a core of the only node."""
        pinned = [place for place, cpu in enumerate(self.cpus) if cpu >= 0]
        cores = len({self._cores[place] for place in pinned})
        nodes = len({self._nodes[place] for place in pinned})
        if cores == len(pinned) and nodes < 2:
            return ""
        text = f"{len(pinned)} on {cores} physical {'cores' if cores > 1 else 'core'}"
        if nodes > 1:
            text += f" of {nodes} NUMA nodes"
            if self.facts.nic is not None:
                text += f", the NIC on node {self.facts.nic}"
        return text

    def _core_of(self, cpu: int) -> int:
        return self.facts.cores.get(cpu, ~cpu)


def lent(count: int, cpus: Sequence[int], facts: Facts) -> Topology:
    """Of the processors that a process may use, those that it lends where it lends not all.

    They are those that it would hand out first, in the order that they had.
    """
    chosen = Topology(cpus, facts).choose(count, range(len(cpus)))
    return Topology([cpus[place] for place in sorted(chosen)], facts)


def _ranked(
    ones: Iterable[int], core: Callable[[int], int], others: Mapping[int, int]
) -> list[tuple[int, int, int]]:
    """The best first: of each, how many of its core others have, and how many came before it."""
    before: dict[int, int] = {}
    ranks = []
    for one in ones:
        its = core(one)
        rank = before.get(its, 0)
        before[its] = rank + 1
        ranks.append((others.get(its, 0), rank, one))
    ranks.sort(key=lambda rank: rank[:2])
    return ranks
