"""The resource manager: feeds links, a clock and a store to the ledger.

    executor                      manager                         client
      Hello ---------------------->  <-------------------------- Hello
      JoinNode ------------------->  (a key for the node)
      <------------------ NodeJoined
                                     <------------------- RequestLease
                                     save, then
                                     LeaseGranted (token) ----------->
      <------------------------------------------- OpenLease (token)
      Beat (usage) --------------->
      LeaseEnded ----------------->
      <----------------- RevokeLease  <------------------- ReleaseLease

A lease belongs to the link that asked for it, or last renewed it, and ends
with that link; a node's leases end with its link.  Only a manager that stops
ends nothing: executors and clients come back to the next one, which restores
the leases from the store.  What a client was told is in the store before; ends
and usage are saved as soon as the store takes them.

All runs in one thread, and no decision is cut by an await, so each message is
handled whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

import rfaas
from rfaas.addresses import announced, is_local
from rfaas.clock import Clock
from rfaas.config import ResourceManagerConfig
from rfaas.control.aio import AsyncLink, listen
from rfaas.control.authority import granted
from rfaas.core import tokens
from rfaas.core.lease import Ended, Lease
from rfaas.core.ledger import Ledger
from rfaas.errors import (
    InternalError,
    PeerLostError,
    ProtocolError,
    RfaasError,
    SystemCallError,
    UnavailableError,
)
from rfaas.proto import messages
from rfaas.proto.messages import FRAME_BYTES_MAX, PROTOCOL_VERSION, Message
from rfaas.store import NodeRecord, Store
from rfaas.store.keeper import Keeper
from rfaas.store.sqlite import SqliteStore

ROLE = "resource-manager"
TICK_S = 1.0  # the longest that an expiry or a usage waits to be noticed and saved
PAGE_MAX = 256  # reports in one page, if the frame has room for them
PAGE_BYTES_MAX = FRAME_BYTES_MAX - 1024  # leaves room for the frame's other fields

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Peer:
    """One link and what depends on it."""

    link: AsyncLink
    role: str
    node: str = ""  # an executor's, once it has joined
    leases: set[str] = field(default_factory=set)  # a client's


class ResourceManager:
    """The role's state; `run` is its life."""

    def __init__(
        self,
        config: ResourceManagerConfig,
        clock: Clock,
        store: Store,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.address = config.address  # where it listens: a port left open is filled in
        self._config = config
        self._clock = clock
        self._random_bytes = random_bytes
        self._ledger = Ledger(
            config.heartbeat_s, config.missed_beats_max, config.lease_duration_max_s
        )
        self.tick_s = min(TICK_S, config.heartbeat_s, self._ledger.away_s / 2)
        self._keeper = Keeper(self._ledger, store, clock)
        self._keeper.restore()
        self._executors: dict[str, Peer] = {}  # by node
        self._owners: dict[str, Peer] = {}  # by lease
        self._started_s = clock.monotonic_s()
        self._granted = 0
        self._stopping = False

    # Life

    def tick(self) -> None:
        """Let time pass; called before every message, and by the second."""
        ended = self._ledger.tick(self._clock.monotonic_s())
        self._tell(ended)
        if ended:
            self._keeper.save_soon()

    def housekeep(self) -> None:
        """What need not happen at once: usage to the store, old leases out of it."""
        self.tick()
        self._keeper.housekeep()

    def stop(self) -> None:
        """From here on a link that ends takes nothing with it."""
        self._stopping = True
        self._keeper.save_soon()

    async def serve(self, link: AsyncLink, hello: messages.Hello) -> None:
        """One connection, from its first message to its end."""
        peer = Peer(link, hello.role)
        log.debug("link %s of %s %s opened", link.peer, hello.role, hello.name)
        try:
            while (message := await link.receive()) is not None:
                self.tick()
                if (reply := self._reply(peer, message)) is not None:
                    link.send(reply)
                    await link.drain()
                await asyncio.sleep(0)  # who never stops asking must not keep others waiting
        finally:
            log.debug("link %s of %s %s ended", link.peer, hello.role, hello.name)
            if not self._stopping:
                self._part(peer)

    # Messages

    def _reply(self, peer: Peer, message: Message) -> Message | None:
        try:
            reply = self._answer(peer, message)
        except RfaasError as error:
            if not message.id:
                log.warning("notice from %s: %s", peer.link.peer, error.text)
                return None
            reply = messages.Error(code=error.code, text=error.text, hint=error.hint)
        return msgspec.structs.replace(reply, id=message.id) if reply is not None else None

    def _answer(self, peer: Peer, message: Message) -> Message | None:
        match message:
            case messages.RequestLease():
                return self._request(peer, message)
            case messages.RenewLease():
                return self._renew(peer, message)
            case messages.ReleaseLease():
                return self._release(message)
            case messages.ListNodes():
                return self._list_nodes(message)
            case messages.ListLeases():
                return self._list_leases(message)
            case messages.GetStatus():
                return self._status()
            case _ if peer.role == "executor":
                return self._answer_executor(peer, message)
        raise _not_answered(peer, message)

    def _answer_executor(self, peer: Peer, message: Message) -> Message | None:
        match message:
            case messages.JoinNode():
                return self._join(peer, message)
            case messages.Beat():
                return self._beat(peer, message)
            case messages.LeaseEnded():
                self._note_end(peer, message)
                return None
        raise _not_answered(peer, message)

    def _request(self, peer: Peer, asked: messages.RequestLease) -> messages.LeaseGranted:
        now_s = self._clock.monotonic_s()
        grant = self._ledger.request(
            client=asked.client,
            cores=asked.cores,
            memory_bytes=asked.memory_bytes,
            duration_s=asked.duration_s,
            isolation=asked.isolation,
            lease_id=self._random_bytes(16).hex(),
            now_s=now_s,
        )
        self._keeper.mark_leases(grant.lease)
        try:
            self._keeper.save()
        except SystemCallError:
            self._ledger.end(grant.lease, "revoked", now_s)
            raise
        self._own(peer, grant.lease)
        self._granted += 1
        log.info(
            "lease %s granted %d cores on %s to %s",
            grant.lease[:8],
            grant.cores,
            grant.node,
            grant.client,
        )
        return self._token(grant, asked.id, asked.image)

    def _renew(self, peer: Peer, asked: messages.RenewLease) -> messages.LeaseGranted:
        grant = self._ledger.renew(asked.lease, asked.duration_s, self._clock.monotonic_s())
        self._own(peer, grant.lease)
        self._keeper.mark_leases(grant.lease)
        self._keeper.save()
        log.info("lease %s renewed for %g s", grant.lease[:8], grant.duration_s)
        return self._token(grant, asked.id)

    def _release(self, asked: messages.ReleaseLease) -> messages.Done:
        """Done also where the lease is over or unknown, so it can be asked twice."""
        self._end([asked.lease], "released")
        return messages.Done()

    def _join(self, peer: Peer, asked: messages.JoinNode) -> messages.NodeJoined:
        if peer.node not in ("", asked.node):
            raise ProtocolError(f"node {asked.node} joins on the link of node {peer.node}")
        revoked = self._ledger.join(
            node=asked.node,
            address=asked.address,
            incarnation=asked.incarnation,
            cores=asked.cores,
            memory_bytes=asked.memory_bytes,
            isolation=asked.isolation,
            live=asked.leases,
            now_s=self._clock.monotonic_s(),
        )
        if asked.node in self._executors and self._executors[asked.node] is not peer:
            log.warning("node %s joined on a second link, the first counts no more", asked.node)
        known = self._keeper.node(asked.node)
        again = known is not None and known.incarnation == asked.incarnation
        node = NodeRecord(
            node=asked.node,
            address=asked.address,
            incarnation=asked.incarnation,
            cores=asked.cores,
            memory_bytes=asked.memory_bytes,
            isolation=asked.isolation,
            # Tokens that its clients have not shown yet stay good.
            key=known.key if known and again else self._random_bytes(tokens.KEY_BYTES),
        )
        self._keeper.mark_node(node)
        self.tick()  # what ended because a new incarnation does not serve it
        self._keeper.save_soon()
        peer.node = asked.node
        self._executors[asked.node] = peer
        log.info(
            "node %s joined %s with %d cores at %s, %d leases kept, %d revoked",
            node.node,
            "again" if again else "anew",
            node.cores,
            node.address,
            len(asked.leases) - len(revoked),
            len(revoked),
        )
        return messages.NodeJoined(
            heartbeat_s=self._config.heartbeat_s, key=node.key, revoked=tuple(revoked)
        )

    def _beat(self, peer: Peer, beat: messages.Beat) -> messages.BeatTaken:
        self._check_speaks_for(peer, beat.node)
        self._ledger.beat(beat.node, beat.usage, self._clock.monotonic_s())
        self._keeper.mark_leases(*beat.usage)
        return messages.BeatTaken()

    def _note_end(self, peer: Peer, ended: messages.LeaseEnded) -> None:
        lease = self._ledger.find(ended.lease)
        if lease is None:
            return
        self._check_speaks_for(peer, lease.node)
        now_s = self._clock.monotonic_s()
        first = self._ledger.end(ended.lease, ended.cause, now_s, ended.usage)
        self._keeper.mark_leases(ended.lease)
        if first:
            self._disown(ended.lease)
            log.info("lease %s ended on %s: %s", ended.lease[:8], lease.node, ended.cause)
        self._keeper.save_soon()

    def _list_nodes(self, asked: messages.ListNodes) -> messages.Nodes:
        now_s = self._clock.monotonic_s()
        found = self._ledger.nodes(now_s, after=asked.after, most=PAGE_MAX + 1)
        page = found[: _fitting(found)]
        return messages.Nodes(nodes=tuple(page), more=len(page) < len(found))

    def _list_leases(self, asked: messages.ListLeases) -> messages.Leases:
        now_s = self._clock.monotonic_s()
        found = self._ledger.leases(now_s, asked.all, after=asked.after, most=PAGE_MAX + 1)
        page = found[: _fitting(found)]
        return messages.Leases(leases=tuple(page), more=len(page) < len(found))

    def _status(self) -> messages.StatusReport:
        now_s = self._clock.monotonic_s()
        nodes = self._ledger.nodes(now_s)
        up = [node for node in nodes if node.state == "up"]
        return messages.StatusReport(
            role=ROLE,
            name=platform.node(),
            version=rfaas.__version__,
            pid=os.getpid(),
            uptime_s=now_s - self._started_s,
            address=self.address,
            facts={
                "nodes up": len(up),
                "nodes lost": len(nodes) - len(up),
                "cores": sum(node.cores for node in up),
                "cores free": sum(node.cores_free for node in up),
                "leases live": sum(node.leases for node in nodes),
                "leases granted": self._granted,
                "store": self._config.store,
                "store state": "fails" if self._keeper.fails else "saves",
            },
        )

    # Ends

    def _part(self, peer: Peer) -> None:
        """A link has ended, and what depends on it ends too."""
        self.tick()
        if peer.node and self._executors.get(peer.node) is peer:
            del self._executors[peer.node]
            log.warning("node %s lost: its link ended", peer.node)
            self._tell(self._ledger.lose(peer.node, self._clock.monotonic_s()))
        self._end(sorted(peer.leases), "client-lost")

    def _end(self, leases: Iterable[str], cause: str) -> None:
        now_s = self._clock.monotonic_s()
        for lease in leases:
            if self._ledger.end(lease, cause, now_s) and (found := self._ledger.find(lease)):
                self._tell([Ended(lease, found.node, cause)])
        self._keeper.save_soon()

    def _tell(self, ended: Sequence[Ended]) -> None:
        """Leases have ended in the ledger; tell those who serve and own them."""
        for lease, node, cause in map(msgspec.structs.astuple, ended):
            log.info("lease %s ended on %s: %s", lease[:8], node, cause)
            self._disown(lease)
            self._keeper.mark_leases(lease)
            executor = self._executors.get(node)
            if executor is not None:
                # A link that cannot take it is ending: the node learns it when it joins.
                with suppress(PeerLostError):
                    executor.link.send(messages.RevokeLease(lease=lease, cause=cause))

    def _own(self, peer: Peer, lease: str) -> None:
        self._disown(lease)
        self._owners[lease] = peer
        peer.leases.add(lease)

    def _disown(self, lease: str) -> None:
        owner = self._owners.pop(lease, None)
        if owner is not None:
            owner.leases.discard(lease)

    def _check_speaks_for(self, peer: Peer, node: str) -> None:
        if self._executors.get(node) is not peer:
            raise UnavailableError(f"node {node} has not joined on this link", hint="join again")

    def _token(self, grant: Lease, request_id: int, image: str = "") -> messages.LeaseGranted:
        node = self._keeper.node(grant.node)
        if node is None:
            raise InternalError(
                f"lease {grant.lease[:8]} is on node {grant.node}, which has no key"
            )
        address, wall_s = self._ledger.address(grant.node), self._clock.wall_s()
        return granted(grant, address, node.key, wall_s, request_id, image)


async def run(
    config: ResourceManagerConfig,
    clock: Clock,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    device: str = "",
) -> None:
    """Serve until `stop` is set; `ready` gets the one line that says so.

    `device` is where an address of the form verbs:*:PORT is, "": the first that can be used.

    Raises:
        ConfigError, SystemCallError: the store cannot be used.
        AddressInUseError: somebody else listens at the address.
    """
    store = SqliteStore(config.store, config.synchronous)
    try:
        manager = ResourceManager(config, clock, store)
        welcome = messages.Welcome(version=PROTOCOL_VERSION, role=ROLE, name=platform.node())
        listener = await listen(config.address, welcome, manager.serve, device)
        try:
            at = manager.address = listener.address
            flag = "" if is_local(at) else f" --resource-manager {announced(at, platform.node())}"
            ready(f"resource manager ready on {at}; next: rfaas serve --role executor{flag}")
            while not stop.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), manager.tick_s)
                manager.housekeep()
        finally:
            manager.stop()
            await listener.close()
    finally:
        store.close()


def _not_answered(peer: Peer, message: Message) -> ProtocolError:
    return ProtocolError(
        f"a resource manager does not answer {type(message).__name__}, sent by role {peer.role}"
    )


def _fitting(reports: Sequence[msgspec.Struct]) -> int:
    """How many of the reports fit into one page."""
    room = PAGE_BYTES_MAX
    for count, report in enumerate(reports[:PAGE_MAX]):
        room -= len(msgspec.msgpack.encode(report))
        if room < 0:
            return count
    return min(len(reports), PAGE_MAX)
