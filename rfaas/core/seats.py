"""Which of a node's cores a lease has: each to itself, or with others that share.

A lease that owns its cores has each alone.  One that shares (its workers never spin) may
have them with as many others as the node oversubscribes, and has two lanes on one core only
where no other has a seat left.  How many cores may be shared, its token says: what the others
are promised are no cores to be shared, though their tokens may be shown later.
"""

from __future__ import annotations

from collections.abc import Sequence


class Seats:
    """See the module's docstring.

    Args:
        cores: handed out from the last, as the first ones serve interrupts.
        oversubscribe: lanes that may share a core.
    """

    def __init__(self, cores: int, oversubscribe: int) -> None:
        self._cores = cores
        self._most = oversubscribe
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
            return tuple(self._free.pop() for _ in range(cores))
        if self._most * (len(self._free) + len(self._lanes)) - sum(self._lanes.values()) < cores:
            return None
        taken: list[int] = []
        for _ in range(cores):
            place = self._seat(taken, shared)
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
            seats = self._most * len(self._lanes) - sum(self._lanes.values())
            text += f" and {len(self._lanes)} shared, with room for {seats} more lanes,"
        return text

    def _seat(self, taken: list[int], shared: int) -> int:
        """The core with the fewest lanes, if possible none of this lease's."""
        open_ = [place for place, lanes in self._lanes.items() if lanes < self._most]
        if self._free and (len(self._lanes) < shared or not open_):
            return self._free.pop()
        return min(open_, key=lambda place: (place in taken, self._lanes[place]))
