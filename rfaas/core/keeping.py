"""Which workers outlive their lease on this node, for whom, and which of them go first.

A worker is kept for its client: who shows on an authenticated link that it is the same
user, or proves that the former lease was its own.  What a client calls itself is nothing.
A kept worker holds no core: it is stopped, and goes when what it would take up, were it to
serve, is needed for somebody else's.

    keep -> take (a lease of its client has it)
         -> gone (evicted for room, past its time, one too many, dead)

Invariants, held by tests/core/test_keeping_properties.py: after `spare`, the cores and memory
of what is kept do not exceed what no worker of a lease uses; each kept worker goes once, to its own
client and to a lease of its own shape, or away.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct


class Shape(Struct, frozen=True):
    """What two leases must have in common for one worker to serve both."""

    sha256: str
    isolation: str
    transport: str
    ring_fed: bool  # by its client or by an endpoint, not by a NIC of its own
    lanes: int
    memory_bytes: int
    slots: int
    slot_bytes: int


class Kept(Struct, frozen=True):
    """A worker that outlived `lease`; `owner` is who its link said it was, "" where it did not."""

    number: int
    shape: Shape
    owner: str
    lease: str
    until_s: float


class Keeping:
    """See the module's docstring.  Args: what the node lends, how long one is kept, how many."""

    def __init__(self, cores: int, memory_bytes: int, keep_s: float, kept_max: int) -> None:
        self._cores = cores
        self._memory_bytes = memory_bytes
        self._keep_s = keep_s
        self._kept_max = kept_max
        self._kept: dict[int, Kept] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def is_on(self) -> bool:
        return self._keep_s > 0

    def keep(self, number: int, shape: Shape, owner: str, lease: str, now_s: float) -> None:
        """Keep a worker; `spare` says then what is too much."""
        self._kept[number] = Kept(number, shape, owner, lease, now_s + self._keep_s)

    def take(self, shape: Shape, owner: str, former: Collection[str], now_s: float) -> int | None:
        """The worker that was kept last for whom `owner` says, or who had a `former` lease."""
        for kept in reversed(self._kept.values()):
            its_own = kept.lease in former or (owner and kept.owner == owner)
            if its_own and kept.shape == shape and now_s < kept.until_s:
                del self._kept[kept.number]
                return kept.number
        return None

    def spare(self, cores: int, memory_bytes: int, now_s: float) -> list[int]:
        """Who must go now that workers of leases use so much: the oldest first."""
        gone = [kept.number for kept in self._kept.values() if kept.until_s <= now_s]
        left = [kept for kept in self._kept.values() if kept.until_s > now_s]
        cores += sum(kept.shape.lanes for kept in left)
        memory_bytes += sum(kept.shape.memory_bytes for kept in left)
        count = len(left)
        for kept in left:
            fits = cores <= self._cores and memory_bytes <= self._memory_bytes
            if fits and count <= self._kept_max:
                break
            gone.append(kept.number)
            cores -= kept.shape.lanes
            memory_bytes -= kept.shape.memory_bytes
            count -= 1
        for number in gone:
            del self._kept[number]
        return gone

    def forget(self, number: int) -> None:
        """It is gone by itself."""
        self._kept.pop(number, None)
