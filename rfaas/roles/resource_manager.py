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

Decisions run in one thread, and none is cut by an await: each message is decided
whole, then its answer waits for the store, together with others (store/committer.py).
"""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
from collections.abc import Callable
from contextlib import suppress

import msgspec

from rfaas.addresses import announced, is_local
from rfaas.clock import Clock
from rfaas.config import ControlConfig, HttpConfig, PricesConfig, ResourceManagerConfig
from rfaas.control import cluster_key
from rfaas.control.aio import AsyncLink, listen
from rfaas.control.authority import CLIENT_BEATS_MAX
from rfaas.core.events import Events
from rfaas.errors import CapacityError, PeerLostError, ProtocolError, RfaasError
from rfaas.failpoints import reach
from rfaas.proto import messages
from rfaas.proto.messages import PROTOCOL_VERSION, Message
from rfaas.roles.manager_leases import Leases
from rfaas.roles.manager_nodes import Nodes
from rfaas.roles.manager_reports import ROLE, Reports
from rfaas.roles.manager_state import Peer, State
from rfaas.roles.manager_view import View
from rfaas.roles.manager_web import web_of
from rfaas.store import Store
from rfaas.store.sqlite import SqliteStore

TICK_S = 0.5  # the longest that an expiry or a usage waits to be noticed and saved
WAITS_PER_LINK_MAX = 64  # requests of one link in the queue
REFUSED_PROOFS_MAX = 3  # of one link: guessing is made slow

log = logging.getLogger(__name__)


class ResourceManager:
    """The role's life; what it answers is in manager_*.py.  `run` makes one.

    `nodes`, `leases` and `events` are also for the web: drain, remove, add, revoke.
    """

    def __init__(
        self,
        config: ResourceManagerConfig,
        clock: Clock,
        store: Store,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        prices: PricesConfig | None = None,
    ) -> None:
        self.state = State(config, clock, store, random_bytes)
        self.leases = Leases(self.state)
        self.nodes = Nodes(self.state, self.leases)
        self.reports = Reports(self.state)
        self.view = View(
            self.state, self.nodes, self.leases, self.reports, store, prices or PricesConfig()
        )
        self.tick_s = min(TICK_S, config.heartbeat_s, self.state.ledger.away_s / 2)
        self._stopping = False

    @property
    def events(self) -> Events:
        """What happens to nodes and leases, as it happens."""
        return self.state.events

    # Life

    def housekeep(self) -> None:
        """What need not happen at once: usage to the store, old leases out of it."""
        self.state.tick()
        self.state.commits.housekeep()
        self.view.sample()

    def stop(self) -> None:
        """From here on a link that ends takes nothing with it."""
        self._stopping = True

    async def close(self) -> None:
        """Have the store hold all that was decided; its own to close then."""
        await self.state.commits.close()

    async def serve(self, link: AsyncLink, hello: messages.Hello) -> None:
        """One connection, from its first message to its end."""
        config = self.state.config
        peer = Peer(link, hello.role)
        beats = config.missed_beats_max if hello.role == "executor" else CLIENT_BEATS_MAX
        link.lose_after(beats * config.heartbeat_s)
        log.debug("link %s of %s %s opened", link.peer, hello.role, hello.name)
        try:
            while (message := await link.receive()) is not None:
                self.state.tick()
                if isinstance(message, messages.RequestLease) and message.wait_s > 0:
                    await self._answer_later(peer, message)
                    continue
                await self._send(peer, message, await self._reply(peer, message))
                if peer.refused >= REFUSED_PROOFS_MAX:
                    log.warning("%s gave %d wrong proofs", link.peer, peer.refused)
                    return
                await asyncio.sleep(0)  # who never stops asking must not keep others waiting
        finally:
            log.debug("link %s of %s %s ended", link.peer, hello.role, hello.name)
            self.leases.withdraw(peer)
            for task in tuple(peer.waits):
                task.cancel()
            if not self._stopping:
                self.nodes.part(peer)
            await asyncio.gather(*peer.waits, return_exceptions=True)

    # Messages

    async def _answer_later(self, peer: Peer, message: messages.RequestLease) -> None:
        """Serve the link's other messages, and notice its end, while one of it waits."""
        if len(peer.waits) >= WAITS_PER_LINK_MAX:
            text = f"{WAITS_PER_LINK_MAX} requests of this link wait already"
            error = CapacityError(text, hint="ask again when one of them is answered")
            await self._send(peer, message, _refused(error))
            return

        async def answer() -> None:
            with suppress(PeerLostError):
                await self._send(peer, message, await self._reply(peer, message))

        task = asyncio.get_running_loop().create_task(answer())
        peer.waits.add(task)
        task.add_done_callback(peer.waits.discard)

    async def _send(self, peer: Peer, message: Message, reply: Message | None) -> None:
        if reply is None:
            return
        try:
            peer.link.send(msgspec.structs.replace(reply, id=message.id))
        except ProtocolError as error:  # names that are too long for a frame of so many tokens
            if isinstance(reply, messages.LeaseGranted):
                self.state.end(reply.lease, "revoked")
            peer.link.send(msgspec.structs.replace(_refused(error), id=message.id))
        reach("manager.answered")
        await peer.link.drain()

    async def _reply(self, peer: Peer, message: Message) -> Message | None:
        try:
            return await self._answer(peer, message)
        except RfaasError as error:
            if message.id:
                return _refused(error)
            log.warning("notice from %s: %s", peer.link.peer, error.text)
            return None

    async def _answer(self, peer: Peer, message: Message) -> Message | None:
        match message:
            case messages.RequestLease():
                return await self.leases.request(peer, message)
            case messages.RenewLease():
                return await self.leases.renew(peer, message)
            case messages.ReleaseLease():
                return await self.leases.release(peer, message)
            case messages.ListNodes():
                return self.reports.nodes(message)
            case messages.ListLeases():
                return self.reports.leases(message)
            case messages.GetStatus():
                return self.reports.status()
            case _ if peer.role == "executor":
                return self._answer_executor(peer, message)
        if (report := await self.view.answer(message)) is not None:
            return report
        raise _not_answered(peer, message)

    def _answer_executor(self, peer: Peer, message: Message) -> Message | None:
        match message:
            case messages.JoinNode():
                return self.nodes.join(peer, message)
            case messages.Beat():
                return self.nodes.beat(peer, message)
            case messages.LeaseEnded():
                self.nodes.note_end(peer, message)
                return None
        raise _not_answered(peer, message)


async def run(  # noqa: PLR0913, PLR0917 - what it is made of
    config: ResourceManagerConfig,
    clock: Clock,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    device: str = "",
    http: HttpConfig | None = None,
    prices: PricesConfig | None = None,
    control: ControlConfig = ControlConfig(),  # noqa: B008 - frozen
    made: Callable[[ResourceManager], None] = lambda _: None,
) -> None:
    """Serve until `stop` is set; `ready` gets the one line that says so.

    Args:
        device: where an address of the form verbs:*:PORT is, "": the first that can be used.
        http: where people look on, None: nowhere.
        prices: what bills cost.
        control: who may connect.
        made: gets the manager before `ready`: for who operates it.

    Raises:
        ConfigError, SystemCallError: the store cannot be used.
        AddressInUseError: somebody else listens at the address.
    """
    store = SqliteStore(config.store, config.synchronous)
    try:
        manager = ResourceManager(config, clock, store, prices=prices)
        made(manager)
        web = web_of(http, manager.view)
        welcome = messages.Welcome(version=PROTOCOL_VERSION, role=ROLE, name=platform.node())
        admit = cluster_key.admit(control)
        listener = await listen(config.address, welcome, manager.serve, device, admit)
        try:
            at = manager.state.address = listener.address
            flag = "" if is_local(at) else f" --resource-manager {announced(at, platform.node())}"
            page = web.start() if web is not None else ""
            next_ = f"next: rfaas serve --role executor{flag}"
            ready(f"resource manager ready on {at}{page}; {next_}")
            while not stop.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), manager.tick_s)
                manager.housekeep()
        finally:
            manager.stop()
            if web is not None:
                await web.close()
            await listener.close()
            await manager.close()
    finally:
        store.close()


def _refused(error: RfaasError) -> messages.Error:
    return messages.Error(code=error.code, text=error.text, hint=error.hint)


def _not_answered(peer: Peer, message: Message) -> ProtocolError:
    return ProtocolError(
        f"a resource manager does not answer {type(message).__name__}, sent by role {peer.role}"
    )
