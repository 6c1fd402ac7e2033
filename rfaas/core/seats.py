"""Which of a node's cores a lease has: each to itself, or with others that share.

A lease that owns its cores has each alone.  One that shares (its workers never spin) may
have them with as many others as the node oversubscribes, and has two lanes on one core only
where no other has a seat left.  How many cores may be shared, its token says: what the others
are promised are no cores to be shared, though their tokens may be shown later.

Which of the free ones a lease gets, `core.topology` says.
"""

from __future__ import annotations

from collections.abc import Sequence

from rfaas.core.topology import Topology


class Seats:
    """See the module's docstring.

    Args:
        cores: how many; handed out from the last where `topology` knows nothing of them.
        oversubscribe: lanes that may share a core.
        topology: what is known of their processors.
    """

    def __init__(self, cores: int, oversubscribe: int, topology: Topology | None = None) -> None:
        self._cores = cores
        self._most = oversubscribe
        self._topology = topology or Topology([-1] * cores)
        self._free = list(range(cores))
        self._lanes: dict[int, int] = {}  # on each core that is shared

    def take(self, cores: int, shared: int) -> tuple[int, ...] | None:
        """A core for each lane, or None where they cannot be had.

        Args:
            shared: 0: they are to be its own; else how many may be shared in all.
        """
        if not shared:
            if cores > len(self._free):
                return None
            return tuple(self._take_free(cores))
        if self._room() + self._most * len(self._free) < cores:
            return None
        opens = self._opens(cores, shared)
        free = iter(self._take_free(sum(opens)))
        taken: list[int] = []
        for is_opened in opens:
            place = next(free) if is_opened else self._seat(taken)
            self._lanes[place] = self._lanes.get(place, 0) + 1
            taken.append(place)
        return tuple(taken)

    def give(self, places: Sequence[int], shared: int) -> None:
        """Undo `take`."""
        if not shared:
            self._free += reversed(places)
            return
        for place in reversed(places):
            self._lanes[place] -= 1
            if not self._lanes[place]:
                del self._lanes[place]
                self._free.append(place)

    def free_text(self) -> str:
        """What is free, in words."""
        text = f"{len(self._free)} of {self._cores} are free"
        if self._lanes:
            text += f" and {len(self._lanes)} shared, with room for {self._room()} more lanes,"
        return text

    def _room(self) -> int:
        """Lanes for which there is a seat on a core that is shared."""
        return self._most * len(self._lanes) - sum(self._lanes.values())

    def _take_free(self, cores: int) -> list[int]:
        chosen = self._topology.choose(cores, self._free)
        gone = set(chosen)
        self._free = [place for place in self._free if place not in gone]
        return chosen

    def _opens(self, lanes: int, shared: int) -> list[bool]:
        """Of each lane, whether it is the first on a core: they are chosen together."""
        opens: list[bool] = []
        room = self._room()
        for _ in range(lanes):
            cores = len(self._lanes) + sum(opens)
            opens.append(sum(opens) < len(self._free) and (cores < shared or not room))
            room += self._most - 1 if opens[-1] else -1
        return opens

    def _seat(self, taken: list[int]) -> int:
        """The core with the fewest lanes, if possible none of this lease's, nor beside one."""
        open_ = [place for place, lanes in self._lanes.items() if lanes < self._most]
        beside = self._topology.is_sibling
        return min(open_, key=lambda one: (one in taken, beside(one, taken), self._lanes[one]))
