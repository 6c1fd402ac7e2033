"""Which node takes a lease: an index of nodes by what is free, and a refusal that says why.

Nodes that offer the same isolation levels and have as many GPUs free stand on one shelf: a
lease is looked for on those with enough of them, the fewest first, so that one without GPUs
leaves them to others.  A shelf has a row for each
count of free cores, in which nodes are in order of free memory; the bits of `mask` say
which rows have nodes.  So the best fit is the lowest bit from the cores asked for on, and
a bisection in that row: a grant costs no more than the logarithm of the number of nodes.

    pack     one node if any has room, else the fewest nodes that have it together
    spread   as many nodes as there are, evenly
    node     one node, or a refusal

Cores and GPUs of a lease over several nodes stay together: 8 cores and 4 GPUs are 4 units
of 2 cores and 1 GPU, and a node takes whole ones.  Without GPUs, a core is a unit.

A node that oversubscribes by a factor f lends its C processors twice.  Leases that own their
cores hold H of them; those that share (their workers never spin) hold S.  Always

    H <= C  and  S <= f * (C - H)

so that no processor of a lease that owns it has another lane, and none has more than f.
While processors last, a lease that shares has one to itself: what others find free is
C - H - S, and those that share C - H - S too, and f - 1 times what is not held beside it.
The second figure, f * (C - H) - S, stands in an index of its own, as the free cores of the
node's `twin`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from math import gcd
from typing import NamedTuple

from rfaas.core.node import Node
from rfaas.errors import CapacityError, near
from rfaas.units import format_bytes

PARTS_MAX = 64  # nodes of one lease: as many tokens as the frame that grants them holds
ALL = 0  # cores or memory of a whole node, as placement is asked for them
LOOKED_AT_MAX = 256  # nodes, for the text of a refusal

Shape = tuple[int, int, int]  # cores, bytes of memory, GPUs

_SLOT_BITS = 14  # room for ledger.NODES_MAX
_SLOT = (1 << _SLOT_BITS) - 1


class Part(NamedTuple):
    """What a lease takes of one node."""

    node: Node
    cores: int
    memory_bytes: int
    gpus: int


class Shelf:
    """Nodes of the same levels and free GPUs, to lease from; see the module's docstring."""

    __slots__ = ("cores_free", "gpus_free", "idle", "index", "mask", "rows", "shapes")

    def __init__(self, index: Index, gpus_free: int) -> None:
        self.index = index
        self.gpus_free = gpus_free  # of each node here
        self.mask = 0
        self.rows: dict[int, list[int]] = {}  # by free cores: free memory and slot, as one number
        self.shapes: dict[Shape, dict[int, None]] = {}  # slots
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
        self._shelves: dict[tuple[tuple[str, ...], int], Shelf] = {}  # by levels and free GPUs
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
        key = (node.isolation, node.gpus_free)
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf(self, node.gpus_free)
            for level in set(node.isolation):
                self._by_level.setdefault(level, []).append(shelf)
        node.shelf = shelf
        shape = (node.cores, node.memory_bytes, node.gpus)
        shelf.shapes.setdefault(shape, {})[node.slot] = None
        shelf.put(node)

    def remove(self, node: Node) -> None:
        """Take a node out; nothing where it is not in."""
        shelf = node.shelf
        if shelf is None:
            return
        shelf.drop(node)
        shape = (node.cores, node.memory_bytes, node.gpus)
        del shelf.shapes[shape][node.slot]
        if not shelf.shapes[shape]:
            del shelf.shapes[shape]
            if not shelf.idle.get(shape[:2], True):
                del shelf.idle[shape[:2]]
        node.shelf = None
        self._nodes[node.slot] = None
        self._spare.append(node.slot)
        if not shelf.shapes:
            del self._shelves[node.isolation, shelf.gpus_free]
            for level in set(node.isolation):
                self._by_level[level].remove(shelf)
                if not self._by_level[level]:
                    del self._by_level[level]

    def best(self, cores: int, memory_bytes: int, isolation: str, gpus: int = 0) -> Node | None:
        """The node that the lease fills best, so that large gaps stay whole: GPUs, then cores.

        `ALL` cores or memory are those of a node that has no lease.
        """
        shelves = self._by_level.get(isolation, ())
        if not cores or not memory_bytes:  # ALL
            return self._best_idle(cores, memory_bytes, isolation, gpus)
        spare, free, found = 0, 0, -1
        for shelf in shelves:
            if (more := shelf.gpus_free) < gpus:
                continue
            free_here, here = shelf.best(cores, memory_bytes)
            if here >= 0 and (found < 0 or (more, free_here, here) < (spare, free, found)):
                spare, free, found = more, free_here, here
        return self._nodes[found & _SLOT] if found >= 0 else None

    def _best_idle(self, cores: int, memory_bytes: int, isolation: str, gpus: int) -> Node | None:
        shapes = [
            ((shelf.gpus_free, *shape), slots)
            for shelf in self._by_level.get(isolation, ())
            for shape, slots in shelf.idle.items()
            if slots and shelf.gpus_free >= gpus and shape[0] >= cores and shape[1] >= memory_bytes
        ]
        if not shapes:
            return None
        _, slots = min(shapes, key=lambda found: found[0])
        return self._nodes[next(iter(slots))]

    def several(
        self, cores: int, memory_bytes: int, isolation: str, spread: bool, gpus: int = 0
    ) -> list[Part] | None:
        """Parts of several nodes that have the units together; None where they do not.

        Memory goes by cores, rounded up to whole bytes for each.
        """
        units = gcd(cores, gpus)
        unit = _unit(cores, memory_bytes, gpus)
        most = min(units, PARTS_MAX)
        rooms = sorted(self._rooms(unit, isolation, most), key=lambda room: -room[0])[:most]
        if sum(room for room, _ in rooms) < units:
            return None
        parts: list[Part] = []
        left = units
        if spread:
            for count, (room, node) in zip(
                range(len(rooms), 0, -1), reversed(rooms), strict=True
            ):  # from the least room on: what it lacks, the others make up for
                part = min(room, left // count)
                left -= part
                if part:
                    parts.append(Part(node, *(part * amount for amount in unit)))
            return parts[::-1]
        for room, node in rooms:
            if room >= left:  # the last part: in the smallest gap, if that is not taken yet
                amounts = [left * amount for amount in unit]
                best = self.best(amounts[0], amounts[1], isolation, amounts[2])
                taken = {one.node.node for one in parts}
                last = best if best is not None and best.node not in taken else node
                return [*parts, Part(last, *amounts)]
            parts.append(Part(node, *(room * amount for amount in unit)))
            left -= room
        return parts

    def _rooms(self, unit: Shape, isolation: str, most: int) -> list[tuple[int, Node]]:
        """How many units nodes have room for, of those with the most."""
        found = []
        for shelf in self._by_level.get(isolation, ()):
            if shelf.gpus_free < unit[2]:
                continue
            taken = 0
            for slot in shelf.from_largest():
                node = self._nodes[slot]
                assert node is not None
                room = _room((node.cores_free, node.memory_free_bytes, node.gpus_free), unit)
                if room:
                    found.append((room, node))
                    taken += 1
                if taken == most or node.cores_free < unit[0]:
                    break
        return found

    def possible(
        self, cores: int, memory_bytes: int, isolation: str, one: bool, gpus: int = 0
    ) -> bool:
        """Whether `one` node, or several together, could have that much when idle."""
        shapes = [
            (shape, len(slots))
            for shelf in self._by_level.get(isolation, ())
            for shape, slots in shelf.shapes.items()
        ]
        if any(_fits(shape, cores, memory_bytes, gpus) for shape, _ in shapes):
            return True
        if one or ALL in (cores, memory_bytes):
            return False
        unit = _unit(cores, memory_bytes, gpus)
        rooms = sorted((_room(shape, unit), nodes) for shape, nodes in shapes)
        left, parts = gcd(cores, gpus), PARTS_MAX
        for room, nodes in reversed(rooms):
            left -= room * min(nodes, parts)
            parts -= min(nodes, parts)
        return left <= 0

    def refusal(
        self, cores: int, memory_bytes: int, isolation: str, one: bool, gpus: int = 0
    ) -> CapacityError:
        """Why nobody takes that lease; `one` node or several together."""
        asked = f"cannot lease {_amounts(_cores_text(cores), gpus, _memory_text(memory_bytes))}"
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
        if gpus and not any(shape[2] for shape, _, _ in shapes):
            return CapacityError(
                f"{asked}: no node that offers isolation {isolation!r} lends a GPU",
                hint="`rfaas nodes` shows what there is; executor.gpus says what a node lends",
            )
        if any(_fits(shape, cores, memory_bytes, gpus) for shape, _, _ in shapes):
            largest = self._largest(shelves, cores, memory_bytes, gpus)
            hint = "busy now; ask again when a lease has ended"
        else:
            by_gpus = bool(gpus)
            shape, slots, _ = max(shapes, key=lambda found: (found[0][2] * by_gpus, *found[0]))
            largest = self._node(next(iter(slots)))
            hint = "no node is that large, busy or not; ask for at most " + _amounts(
                _cores_text(shape[0]), shape[2] * by_gpus, format_bytes(shape[1])
            )
        has_gpus = f", {largest.gpus_free} of {_gpus_text(largest.gpus)}" if gpus else ""
        text = (
            f"{asked}: the largest node, {largest.node}, has "
            f"{largest.cores_free} of {_cores_text(largest.cores)}{has_gpus} and "
            f"{format_bytes(largest.memory_free_bytes)} of "
            f"{format_bytes(largest.memory_bytes)} free"
        )
        if not one and sum(len(slots) for _, slots, _ in shapes) > 1:
            free = sum(shelf.cores_free for shelf in shelves)
            text += f"; all nodes together have {_cores_text(free)}"
            if gpus:
                text += f" and {_gpus_text(sum(s.gpus_free * len(on) for _, on, s in shapes))}"
            text += " free"
        return CapacityError(text, hint=hint)

    def _largest(self, shelves: list[Shelf], cores: int, memory_bytes: int, gpus: int) -> Node:
        """Of the nodes that could take it when idle, the one with the most free."""
        tops = []
        for shelf in shelves:
            looked_at = None
            for count, slot in enumerate(shelf.from_largest()):
                node = self._node(slot)
                looked_at = looked_at or node
                shape = (node.cores, node.memory_bytes, node.gpus)
                if _fits(shape, cores, memory_bytes, gpus):
                    looked_at = node
                    tops.append(node)
                    break
                if count == LOOKED_AT_MAX:
                    break
            if not tops and looked_at is not None:
                tops.append(looked_at)
        fitting = [node for node in tops if node.gpus >= gpus] or tops
        return max(fitting, key=lambda node: (node.cores_free, node.memory_free_bytes))

    def _node(self, slot: int) -> Node:
        node = self._nodes[slot]
        assert node is not None
        return node


def _unit(cores: int, memory_bytes: int, gpus: int) -> Shape:
    """What of it stays together: see the module's docstring."""
    units = gcd(cores, gpus)
    return cores // units, -(-memory_bytes // cores) * (cores // units), gpus // units


def _room(has: Shape, unit: Shape) -> int:
    """How many units there is room for."""
    room = min(has[0] // unit[0], has[1] // unit[1])
    return min(room, has[2] // unit[2]) if unit[2] else room


def _fits(has: Shape, cores: int, memory_bytes: int, gpus: int) -> bool:
    return has[0] >= cores and has[1] >= memory_bytes and has[2] >= gpus


def _amounts(cores: str, gpus: int, memory: str) -> str:
    return f"{cores}, {_gpus_text(gpus)} and {memory}" if gpus else f"{cores} and {memory}"


def _gpus_text(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def _cores_text(cores: int) -> str:
    if cores == ALL:
        return "all cores of a node"
    return "1 core" if cores == 1 else f"{cores} cores"


def _memory_text(memory_bytes: int) -> str:
    return f"{format_bytes(memory_bytes)} of memory" if memory_bytes else "all its memory"
