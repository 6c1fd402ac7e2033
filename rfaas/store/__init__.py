"""What a resource manager remembers over a restart, and where: the interface.

One implementation is a file per store; tests/store/test_store_contract.py holds
each to this interface.  Records carry wall-clock seconds, because a monotonic
clock means nothing to the next process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from msgspec import Struct

from rfaas.core.billing import Bill
from rfaas.core.lease import LIVE
from rfaas.proto.messages import Usage


class NodeRecord(Struct, frozen=True, kw_only=True):
    """A node as it last joined; `key` signs its leases, so the store is a secret."""

    node: str
    address: str
    incarnation: str
    cores: int
    memory_bytes: int
    isolation: tuple[str, ...]
    key: bytes
    draining: bool = False
    gpus: int = 0
    oversubscribe: int = 1


class LeaseRecord(Struct, frozen=True, kw_only=True):
    """A lease; `ends_at_s` is its deadline and, once `state` is not live, when it ended.

    The rest is as in `core.lease.Lease`.
    """

    lease: str
    client: str
    node: str
    cores: int
    memory_bytes: int
    isolation: str
    duration_s: float
    granted_at_s: float
    ends_at_s: float
    fence: int
    bundle: str = ""
    account: str = ""
    ending: str = ""
    state: str = LIVE
    gpus: int = 0
    shared: int = 0
    usage: Usage = Usage()


class Stored(Struct, frozen=True):
    """All that a store holds: nodes by name, leases by fence, the greatest fence ever saved.

    `barred` are the names of nodes that were removed and may not join.
    """

    nodes: tuple[NodeRecord, ...]
    leases: tuple[LeaseRecord, ...]
    fence: int
    barred: tuple[str, ...] = ()


class Store(Protocol):
    """A place that keeps nodes and leases."""

    def load(self) -> Stored:
        """All that was saved and not pruned."""

    def save(
        self,
        nodes: Sequence[NodeRecord] = (),
        leases: Sequence[LeaseRecord] = (),
        forgotten: Sequence[str] = (),
        bills: Sequence[Bill] = (),
        barred: Mapping[str, bool] = MappingProxyType({}),
    ) -> None:
        """Add or replace these, drop `forgotten` nodes, all or none; kept once this returns.

        `bills` are added to what is kept for the same lease and day.  `barred` says of nodes
        that they may not join, or may again.

        Raises:
            SystemCallError: nothing was saved; a later call may succeed.
        """

    def prune(self, ended_max: int) -> None:
        """Forget ended leases but the `ended_max` that ended last."""

    def bills(
        self,
        since: str = "",
        until: str = "",
        client: str = "",
        after: tuple[str, str] = ("", ""),
        most: int = 256,
    ) -> list[Bill]:
        """Bills in order of (day, lease): the `most` that follow `after`.

        Args:
            since, until: the first and the last day, "": no bound.
            client: of this client alone, "": of all.
        """

    def close(self) -> None:
        """Can be called twice."""
