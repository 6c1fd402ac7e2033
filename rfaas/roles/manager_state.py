"""What the parts of a resource manager share: the book, its store, and who is connected.

Here is what each of them must do in the same way: let time pass, enter a lease that was
granted, tell of one that ended.  All runs in one thread, and no decision is cut by an await.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec.structs import replace

from rfaas.clock import Clock
from rfaas.config import ResourceManagerConfig
from rfaas.control.aio import AsyncLink
from rfaas.control.authority import granted
from rfaas.core.events import Events
from rfaas.core.lease import Ended, Lease
from rfaas.core.ledger import Ledger, Quota
from rfaas.core.meters import Meters
from rfaas.errors import InternalError, PeerLostError
from rfaas.failpoints import reach
from rfaas.proto import messages
from rfaas.proto.messages import LeaseReport
from rfaas.store import Store
from rfaas.store.committer import Committer
from rfaas.store.keeper import Keeper

log = logging.getLogger("rfaas.roles.resource_manager")


@dataclass(eq=False, slots=True)
class Peer:
    """One link and what depends on it."""

    link: AsyncLink
    role: str
    node: str = ""  # an executor's, once it has joined
    leases: set[str] = field(default_factory=set)  # a client's
    refused: int = 0  # proofs that were wrong
    waits: set[asyncio.Task[None]] = field(default_factory=set)  # requests in the queue


class State:
    """See the module's docstring; made in a running loop."""

    def __init__(
        self,
        config: ResourceManagerConfig,
        clock: Clock,
        store: Store,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.config = config
        self.address = config.address  # where it listens: a port left open is filled in
        self.clock = clock
        self.random_bytes = random_bytes
        self.ledger = Ledger(
            config.heartbeat_s,
            config.missed_beats_max,
            config.lease_duration_max_s,
            quota=Quota(
                config.cores_per_client_max,
                config.leases_per_client_max,
                config.gpus_per_client_max,
            ),
            new_id=self.new_id,
        )
        self.keeper = Keeper(self.ledger, store, clock)
        self.keeper.restore()
        self.commits = Committer(self.keeper)
        self.events = Events()
        self.meters = Meters()
        self.executors: dict[str, Peer] = {}  # by node
        self.lacks: dict[str, dict[str, tuple[str, ...]]] = {}  # by node that has joined, by level
        self.owners: dict[str, Peer] = {}  # by lease
        self.waiting: dict[str, tuple[asyncio.Future[Lease], Peer]] = {}  # by lease to be
        self.granted = 0
        self.refused = 0  # proofs that were wrong

    def new_id(self) -> str:
        return self.random_bytes(16).hex()

    def now_s(self) -> float:
        return self.clock.monotonic_s()

    def told(self, report: LeaseReport) -> LeaseReport:
        """With what the lease's level lacks at its node, if that has joined since we started."""
        lacks = self.lacks.get(report.node, {}).get(report.isolation, ())
        return replace(report, lacks=lacks) if lacks else report

    def emit(
        self, kind: str, lease: Lease | None = None, *, node: str = "", cause: str = ""
    ) -> None:
        """Tell who looks on."""
        wall_s = self.clock.wall_s()
        if lease is None:
            self.events.emit(kind, wall_s, node=node, cause=cause)
            return
        self.events.emit(
            kind,
            wall_s,
            node=lease.node,
            lease=lease.lease,
            client=lease.client,
            cores=lease.cores,
            cause=cause,
        )

    def tick(self) -> None:
        """Let time pass, and serve who waits; called before and after every event."""
        ended = self.ledger.tick(self.now_s())
        while self.ledger.silent:
            self.emit("node-lost", node=self.ledger.silent.pop(0))
        if ended:
            self.tell(ended)
            self.commits.soon()
        for settled in self.ledger.settle(self.now_s()):
            future, peer = self.waiting.pop(settled.ask.lease)
            if settled.granted is not None:
                self.enter(peer, settled.granted)
                future.set_result(settled.granted)
            elif settled.error is not None:
                future.set_exception(settled.error)

    def enter(self, peer: Peer, lease: Lease) -> None:
        """A lease was granted on behalf of a link."""
        for part in self.ledger.parts(lease):
            self.keeper.mark_leases(part.lease)
            self.own(peer, part.lease)
            self.emit("lease-granted", part)
        self.granted += 1
        reach("manager.decided")

    def end(self, lease: str, cause: str) -> None:
        """End a lease and its bundle, if it is live, and tell of it."""
        found = self.ledger.find(lease)
        if found is not None and self.ledger.end(lease, cause, self.now_s()):
            self.tell([Ended(lease, found.node, cause)])
        self.tick()  # the rest of its bundle; and who waited for its cores

    def tell(self, ended: Sequence[Ended]) -> None:
        """Leases have ended in the ledger; tell those who serve and own them."""
        for one in ended:
            log.info("lease %s ended on %s: %s", one.lease[:8], one.node, one.cause)
            self.disown(one.lease)
            self.keeper.mark_leases(one.lease)
            if (lease := self.ledger.find(one.lease)) is not None:
                self.emit("lease-ended", lease, cause=one.cause)
            self.notify(one.node, messages.RevokeLease(lease=one.lease, cause=one.cause))
            reach("manager.ended")

    def notify(self, node: str, notice: messages.Message) -> None:
        """Tell a node; one that cannot hear it learns it when it joins."""
        executor = self.executors.get(node)
        if executor is not None:
            with suppress(PeerLostError):
                executor.link.send(notice)

    def own(self, peer: Peer, lease: str) -> None:
        """From here on a lease ends with that link."""
        self.disown(lease)
        self.owners[lease] = peer
        peer.leases.add(lease)

    def disown(self, lease: str) -> None:
        owner = self.owners.pop(lease, None)
        if owner is not None:
            owner.leases.discard(lease)

    def key(self, node: str) -> bytes:
        """What signs the tokens of a node."""
        record = self.keeper.node(node)
        if record is None:
            raise InternalError(f"node {node} holds leases and has no key")
        return record.key

    def token(self, lease: Lease) -> messages.LeaseGranted:
        """The answer that grants one lease."""
        address = self.ledger.address(lease.node)
        return granted(lease, address, self.key(lease.node), self.clock.wall_s(), 0)
