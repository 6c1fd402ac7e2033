"""Which node takes a lease: best fit, and a refusal that says what there is.

Apart from the ledger because it is the part that will change: spreading one
lease over nodes and placing in less than linear time replace `place` alone.
It sees nodes as they are handed in and changes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rfaas.errors import CapacityError, near
from rfaas.proto.messages import NodeReport
from rfaas.units import format_bytes


@dataclass(slots=True)
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
    leases: set[str] = field(default_factory=set)

    def fits(self, cores: int, memory_bytes: int) -> bool:
        return self.cores_free >= cores and self.memory_free_bytes >= memory_bytes

    def take(self, lease: str, cores: int, memory_bytes: int) -> None:
        self.leases.add(lease)
        self.cores_free -= cores
        self.memory_free_bytes -= memory_bytes

    def give(self, lease: str, cores: int, memory_bytes: int) -> None:
        """Undo `take`; nothing where this node does not hold the lease."""
        if lease in self.leases:
            self.leases.remove(lease)
            self.cores_free += cores
            self.memory_free_bytes += memory_bytes

    def report(self, now_s: float) -> NodeReport:
        return NodeReport(
            node=self.node,
            address=self.address,
            state=self.state,
            cores=self.cores,
            cores_free=self.cores_free,
            memory_bytes=self.memory_bytes,
            memory_free_bytes=self.memory_free_bytes,
            leases=len(self.leases),
            beat_age_s=now_s - self.beat_at_s,
        )


def place(nodes: Iterable[Node], cores: int, memory_bytes: int, isolation: str) -> Node:
    """The node that the lease fills best, so that large gaps stay whole.

    Raises:
        CapacityError: none has room; the hint tells "busy now" from "never".
    """
    up = [node for node in nodes if node.state == "up"]
    best = min(
        (node for node in up if isolation in node.isolation and node.fits(cores, memory_bytes)),
        key=lambda node: (node.cores_free, node.memory_free_bytes, node.node),
        default=None,
    )
    if best is None:
        raise _refusal(up, cores, memory_bytes, isolation)
    return best


def _refusal(up: list[Node], cores: int, memory_bytes: int, isolation: str) -> CapacityError:
    asked = f"cannot lease {_cores_text(cores)} and {format_bytes(memory_bytes)} of memory"
    if not up:
        return CapacityError(
            f"{asked}: no node is up", hint="start one: rfaas serve --role executor"
        )
    offering = [node for node in up if isolation in node.isolation]
    if not offering:
        levels = sorted({level for node in up for level in node.isolation})
        return CapacityError(
            f"{asked}: no node offers isolation {isolation!r}, offered: {', '.join(levels)}",
            hint=near(isolation, levels) or "ask for a level that is offered",
        )
    able = [node for node in offering if node.cores >= cores and node.memory_bytes >= memory_bytes]
    if able:
        largest = max(able, key=lambda node: (node.cores_free, node.memory_free_bytes))
        hint = "busy now; ask again when a lease has ended"
    else:
        largest = max(offering, key=lambda node: (node.cores, node.memory_bytes))
        hint = (
            "no node is that large, busy or not; ask for at most "
            f"{_cores_text(largest.cores)} and {format_bytes(largest.memory_bytes)}"
        )
    return CapacityError(
        f"{asked}: the largest node, {largest.node}, has "
        f"{largest.cores_free} of {_cores_text(largest.cores)} and "
        f"{format_bytes(largest.memory_free_bytes)} of {format_bytes(largest.memory_bytes)} free",
        hint=hint,
    )


def _cores_text(cores: int) -> str:
    return "1 core" if cores == 1 else f"{cores} cores"
