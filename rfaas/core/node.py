"""A node as the ledger has it: what it offers, and what of it is free.

Apart from core/placement.py, which finds the node that a lease fills best; what it keeps
of a node (its shelf) is told here of every change.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from rfaas.proto.messages import NodeReport

if TYPE_CHECKING:
    from rfaas.core.placement import Shelf


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
    gpus: int = 0
    gpus_free: int = 0
    oversubscribe: int = 1  # lanes that may share a processor
    held: int = 0  # cores of leases that share none
    shared: int = 0  # cores of leases that share theirs
    twin: Node | None = None  # where it oversubscribes: what it has for leases that share
    of: Node | None = None  # the node that this is the twin of
    leases: set[str] = field(default_factory=set)
    shelf: Shelf | None = None  # while it can be leased from
    slot: int = 0  # there

    def __post_init__(self) -> None:
        if self.oversubscribe > 1 and self.of is None:
            self.twin = replace(
                self,
                cores=self.cores * self.oversubscribe,
                cores_free=self.cores * self.oversubscribe,
                gpus=0,
                gpus_free=0,
                leases=set(),
                of=self,
            )

    def fits(self, cores: int, memory_bytes: int, gpus: int = 0) -> bool:
        return (
            self.cores_free >= cores
            and self.memory_free_bytes >= memory_bytes
            and self.gpus_free >= gpus
        )

    def holds(self, cores: int, memory_bytes: int, gpus: int, *, shares: bool) -> bool:
        """Whether it can have a lease again that it had: the invariant alone, in any order."""
        if self.twin is None:
            return self.fits(cores, memory_bytes, gpus)
        held, shared = self.held, self.shared
        held, shared = (held, shared + cores) if shares else (held + cores, shared)
        return (
            held <= self.cores
            and shared <= self.oversubscribe * (self.cores - held)
            and self.memory_free_bytes >= memory_bytes
            and self.gpus_free >= gpus
        )

    def take(
        self, lease: str, cores: int, memory_bytes: int, gpus: int = 0, *, shares: bool = False
    ) -> None:
        self.leases.add(lease)
        if self.twin is not None:
            self._share(cores, memory_bytes, gpus, shares)
        elif gpus:
            self._change_shelf(cores, memory_bytes, gpus)
        else:
            self._move(cores, memory_bytes)

    def give(
        self, lease: str, cores: int, memory_bytes: int, gpus: int = 0, *, shares: bool = False
    ) -> bool:
        """Undo `take`; nothing, and False, where this node does not hold the lease."""
        if lease not in self.leases:
            return False
        self.leases.remove(lease)
        if self.twin is not None:
            self._share(-cores, -memory_bytes, -gpus, shares)
        elif gpus:
            self._change_shelf(-cores, -memory_bytes, -gpus)
        else:
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
            gpus=self.gpus,
            gpus_free=self.gpus_free,
            shared=self.shared,
            shared_free=self.twin.cores_free if self.twin is not None else 0,
        )

    def _share(self, cores: int, memory_bytes: int, gpus: int, shares: bool) -> None:
        """Count a lease on a node that oversubscribes: see core/placement.py."""
        twin = self.twin
        assert twin is not None
        if shares:
            self.shared += cores
        else:
            self.held += cores
        free = max(0, self.cores - self.held - self.shared)
        if gpus:
            self._change_shelf(self.cores_free - free, memory_bytes, gpus)
        else:
            self._move(self.cores_free - free, memory_bytes)
        room = self.oversubscribe * (self.cores - self.held) - self.shared
        twin._move(twin.cores_free - room, memory_bytes)

    def _change_shelf(self, cores: int, memory_bytes: int, gpus: int) -> None:
        index = self.shelf.index if self.shelf is not None else None
        if index is not None:
            index.remove(self)
        self.gpus_free -= gpus
        self._move(cores, memory_bytes)
        if index is not None:
            index.add(self)

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
