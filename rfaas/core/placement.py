"""Which node takes a lease: an index of nodes by what is free, and a refusal that says why.

Nodes that offer the same isolation levels stand on one shelf.  A shelf has a row for each
count of free cores, in which nodes are in order of free memory; the bits of `mask` say
which rows have nodes.  So the best fit is the lowest bit from the cores asked for on, and
a bisection in that row: a grant costs no more than the logarithm of the number of nodes.

    pack     one node if any has room, else the fewest nodes that have it together
    spread   as many nodes as there are, evenly
    node     one node, or a refusal
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rfaas.errors import CapacityError, near
from rfaas.proto.messages import NodeReport
from rfaas.units import format_bytes

PARTS_MAX = 64  # nodes of one lease: as many tokens as the frame that grants them holds
ALL = 0  # cores or memory of a whole node, as placement is asked for them
LOOKED_AT_MAX = 256  # nodes, for the text of a refusal

_SLOT_BITS = 14  # room for ledger.NODES_MAX
_SLOT = (1 << _SLOT_BITS) - 1

Part = tuple["Node", int, int]  # a node, cores and bytes of memory


@dataclass(slots=True, eq=False)
class Node:
    """What a node offers, what of it is free, and until when its silence is borne."""

    node: str
    address: str
    incarnation: str
    cores: int
    memory_bytes: int
    isolation: tuple[str, ...]
    state: Literal["up", "lost"]
    beat_at_s: float
    silent_until_s: float  # its leases end then, unless it beats or joins before
    cores_free: int
    memory_free_bytes: int
    draining: bool = False  # what it has goes on, nothing new comes
    leases: set[str] = field(default_factory=set)
    shelf: Shelf | None = None  # while it can be leased from
    slot: int = 0  # there

    def fits(self, cores: int, memory_bytes: int) -> bool:
        return self.cores_free >= cores and self.memory_free_bytes >= memory_bytes

    def take(self, lease: str, cores: int, memory_bytes: int) -> None:
        self.leases.add(lease)
        self._move(cores, memory_bytes)

    def give(self, lease: str, cores: int, memory_bytes: int) -> bool:
        """Undo `take`; nothing, and False, where this node does not hold the lease."""
        if lease not in self.leases:
            return False
        self.leases.remove(lease)
        self._move(-cores, -memory_bytes)
        return True

    def report(self, now_s: float) -> NodeReport:
        return NodeReport(
            node=self.node,
            address=self.address,
            state="draining" if self.draining and self.state == "up" else self.state,
            cores=self.cores,
            cores_free=self.cores_free,
            memory_bytes=self.memory_bytes,
            memory_free_bytes=self.memory_free_bytes,
            leases=len(self.leases),
            beat_age_s=now_s - self.beat_at_s,
        )

    def _move(self, cores: int, memory_bytes: int) -> None:
        shelf = self.shelf
        if shelf is None:
            self.cores_free -= cores
            self.memory_free_bytes -= memory_bytes
            return
        shelf.drop(self)
        self.cores_free -= cores
        self.memory_free_bytes -= memory_bytes
        shelf.put(self)


class Shelf:
    """The nodes of the same levels that can be leased from; see the module's docstring."""

    __slots__ = ("cores_free", "idle", "mask", "rows", "shapes")

    def __init__(self) -> None:
        self.mask = 0
        self.rows: dict[int, list[int]] = {}  # by free cores: free memory and slot, as one number
        self.shapes: dict[tuple[int, int], dict[int, None]] = {}  # cores, memory: slots
        self.idle: dict[tuple[int, int], dict[int, None]] = {}  # those of them without a lease
        self.cores_free = 0

    def put(self, node: Node) -> None:
        free = node.cores_free
        self.cores_free += free
        row = self.rows.get(free)
        if row:
            insort(row, node.memory_free_bytes << _SLOT_BITS | node.slot)
        else:
            self.rows[free] = [node.memory_free_bytes << _SLOT_BITS | node.slot]
            self.mask |= 1 << free
        if free == node.cores:
            self.idle.setdefault((free, node.memory_bytes), {})[node.slot] = None

    def drop(self, node: Node) -> None:
        free = node.cores_free
        self.cores_free -= free
        row = self.rows[free]
        if len(row) == 1:
            row.clear()
            self.mask ^= 1 << free
        else:
            del row[bisect_left(row, node.memory_free_bytes << _SLOT_BITS | node.slot)]
        if free == node.cores:
            del self.idle[free, node.memory_bytes][node.slot]

    def best(self, cores: int, memory_bytes: int) -> tuple[int, int]:
        """Free cores, and memory and slot, of the node that this fills best; (0, -1): none."""
        mask, free, least = self.mask >> cores, cores - 1, memory_bytes << _SLOT_BITS
        while mask:
            step = (mask & -mask).bit_length()
            free += step
            row = self.rows[free]
            if row[-1] >= least:
                return free, row[bisect_left(row, least)]
            mask >>= step
        return 0, -1

    def from_largest(self) -> Iterator[int]:
        """Slots in falling order of free cores, then free memory."""
        mask = self.mask
        while mask:
            free = mask.bit_length() - 1
            for key in reversed(self.rows[free]):
                yield key & _SLOT
            mask ^= 1 << free


class Index:
    """All nodes that can be leased from: up and not draining."""

    def __init__(self) -> None:
        self._shelves: dict[tuple[str, ...], Shelf] = {}
        self._by_level: dict[str, list[Shelf]] = {}
        self._nodes: list[Node | None] = []  # by slot
        self._spare: list[int] = []  # slots

    def add(self, node: Node) -> None:
        if node.shelf is not None:
            return
        if self._spare:
            node.slot = self._spare.pop()
            self._nodes[node.slot] = node
        else:
            node.slot = len(self._nodes)
            self._nodes.append(node)
        shelf = self._shelves.get(node.isolation)
        if shelf is None:
            shelf = self._shelves[node.isolation] = Shelf()
            for level in set(node.isolation):
                self._by_level.setdefault(level, []).append(shelf)
        node.shelf = shelf
        shelf.shapes.setdefault((node.cores, node.memory_bytes), {})[node.slot] = None
        shelf.put(node)

    def remove(self, node: Node) -> None:
        """Take a node out; nothing where it is not in."""
        shelf = node.shelf
        if shelf is None:
            return
        shelf.drop(node)
        shape = (node.cores, node.memory_bytes)
        del shelf.shapes[shape][node.slot]
        if not shelf.shapes[shape]:
            del shelf.shapes[shape]
            shelf.idle.pop(shape, None)
        node.shelf = None
        self._nodes[node.slot] = None
        self._spare.append(node.slot)
        if not shelf.shapes:
            del self._shelves[node.isolation]
            for level in set(node.isolation):
                self._by_level[level].remove(shelf)
                if not self._by_level[level]:
                    del self._by_level[level]

    def best(self, cores: int, memory_bytes: int, isolation: str) -> Node | None:
        """The node that the lease fills best, so that large gaps stay whole.

        `ALL` cores or memory are those of a node that has no lease.
        """
        shelves = self._by_level.get(isolation, ())
        if not cores or not memory_bytes:  # ALL
            return self._best_idle(cores, memory_bytes, isolation)
        free, found = 0, -1
        for shelf in shelves:
            free_here, here = shelf.best(cores, memory_bytes)
            if here >= 0 and (found < 0 or (free_here, here) < (free, found)):
                free, found = free_here, here
        return self._nodes[found & _SLOT] if found >= 0 else None

    def _best_idle(self, cores: int, memory_bytes: int, isolation: str) -> Node | None:
        shapes = [
            (shape, slots)
            for shelf in self._by_level.get(isolation, ())
            for shape, slots in shelf.idle.items()
            if slots and shape[0] >= cores and shape[1] >= memory_bytes
        ]
        if not shapes:
            return None
        _, slots = min(shapes, key=lambda found: found[0])
        return self._nodes[next(iter(slots))]

    def several(
        self, cores: int, memory_bytes: int, isolation: str, spread: bool
    ) -> list[Part] | None:
        """Parts of several nodes that have the cores together; None where they do not.

        Memory goes by cores, rounded up to whole bytes for each.
        """
        per_core = -(-memory_bytes // cores)
        most = min(cores, PARTS_MAX)
        rooms = sorted(self._rooms(per_core, isolation, most), key=lambda room: -room[0])[:most]
        if sum(room for room, _ in rooms) < cores:
            return None
        parts: list[Part] = []
        left = cores
        if spread:
            for count, (room, node) in zip(
                range(len(rooms), 0, -1), reversed(rooms), strict=True
            ):  # from the least room on: what it lacks, the others make up for
                part = min(room, left // count)
                left -= part
                if part:
                    parts.append((node, part, part * per_core))
            return parts[::-1]
        for room, node in rooms:
            if room >= left:  # the last part: in the smallest gap, if that is not taken yet
                best = self.best(left, left * per_core, isolation)
                taken = {part[0].node for part in parts}
                last = best if best is not None and best.node not in taken else node
                return [*parts, (last, left, left * per_core)]
            parts.append((node, room, room * per_core))
            left -= room
        return parts

    def _rooms(self, per_core: int, isolation: str, most: int) -> list[tuple[int, Node]]:
        found = []
        for shelf in self._by_level.get(isolation, ()):
            taken = 0
            for slot in shelf.from_largest():
                node = self._nodes[slot]
                assert node is not None
                room = min(node.cores_free, node.memory_free_bytes // per_core)
                if room:
                    found.append((room, node))
                    taken += 1
                if taken == most or not node.cores_free:
                    break
        return found

    def possible(self, cores: int, memory_bytes: int, isolation: str, one: bool) -> bool:
        """Whether `one` node, or several together, could have that much when idle."""
        shapes = [
            (shape, len(slots))
            for shelf in self._by_level.get(isolation, ())
            for shape, slots in shelf.shapes.items()
        ]
        if any(has >= cores and memory >= memory_bytes for (has, memory), _ in shapes):
            return True
        if one or ALL in (cores, memory_bytes):
            return False
        per_core = -(-memory_bytes // cores)
        rooms = sorted((min(has, memory // per_core), nodes) for (has, memory), nodes in shapes)
        left, parts = cores, PARTS_MAX
        for room, nodes in reversed(rooms):
            left -= room * min(nodes, parts)
            parts -= min(nodes, parts)
        return left <= 0

    def refusal(self, cores: int, memory_bytes: int, isolation: str, one: bool) -> CapacityError:
        """Why nobody takes that lease; `one` node or several together."""
        asked = f"cannot lease {_cores_text(cores)} and {_memory_text(memory_bytes)}"
        if not self._shelves:
            return CapacityError(
                f"{asked}: no node is up", hint="start one: rfaas serve --role executor"
            )
        shelves = self._by_level.get(isolation)
        if not shelves:
            levels = sorted(self._by_level)
            return CapacityError(
                f"{asked}: no node offers isolation {isolation!r}, offered: {', '.join(levels)}",
                hint=near(isolation, levels) or "ask for a level that is offered",
            )
        shapes = [
            (shape, slots, shelf) for shelf in shelves for shape, slots in shelf.shapes.items()
        ]
        if any(has >= cores and memory >= memory_bytes for (has, memory), _, _ in shapes):
            largest = self._largest(shelves, cores, memory_bytes)
            hint = "busy now; ask again when a lease has ended"
        else:
            (has, memory), slots, _ = max(shapes, key=lambda found: found[0])
            largest = self._node(next(iter(slots)))
            hint = (
                "no node is that large, busy or not; ask for at most "
                f"{_cores_text(has)} and {format_bytes(memory)}"
            )
        text = (
            f"{asked}: the largest node, {largest.node}, has "
            f"{largest.cores_free} of {_cores_text(largest.cores)} and "
            f"{format_bytes(largest.memory_free_bytes)} of "
            f"{format_bytes(largest.memory_bytes)} free"
        )
        if not one and sum(len(slots) for _, slots, _ in shapes) > 1:
            free = sum(shelf.cores_free for shelf in shelves)
            text += f"; all nodes together have {_cores_text(free)} free"
        return CapacityError(text, hint=hint)

    def _largest(self, shelves: list[Shelf], cores: int, memory_bytes: int) -> Node:
        """Of the nodes that could take it when idle, the one with the most free."""
        tops = []
        for shelf in shelves:
            looked_at = None
            for count, slot in enumerate(shelf.from_largest()):
                node = self._node(slot)
                looked_at = looked_at or node
                if node.cores >= cores and node.memory_bytes >= memory_bytes:
                    looked_at = node
                    tops.append(node)
                    break
                if count == LOOKED_AT_MAX:
                    break
            if not tops and looked_at is not None:
                tops.append(looked_at)
        return max(tops, key=lambda node: (node.cores_free, node.memory_free_bytes))

    def _node(self, slot: int) -> Node:
        node = self._nodes[slot]
        assert node is not None
        return node


def _cores_text(cores: int) -> str:
    if cores == ALL:
        return "all cores of a node"
    return "1 core" if cores == 1 else f"{cores} cores"


def _memory_text(memory_bytes: int) -> str:
    return f"{format_bytes(memory_bytes)} of memory" if memory_bytes else "all its memory"
