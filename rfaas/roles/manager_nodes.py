"""What a resource manager answers to executors, and what a person does to nodes."""

from __future__ import annotations

import logging
from contextlib import suppress

from rfaas.core import tokens
from rfaas.errors import (
    CapacityError,
    NotPermittedError,
    PeerLostError,
    ProtocolError,
    UnavailableError,
)
from rfaas.proto import messages
from rfaas.roles.manager_leases import Leases
from rfaas.roles.manager_state import Peer, State
from rfaas.store import NodeRecord

REMOVED_MAX = 16384  # names of nodes that may not join; one more is refused

log = logging.getLogger("rfaas.roles.resource_manager")


class Nodes:
    """See the module's docstring."""

    def __init__(self, state: State, leases: Leases) -> None:
        self._state = state
        self._leases = leases

    # Executors

    def join(self, peer: Peer, asked: messages.JoinNode) -> messages.NodeJoined:
        """Take a node in; its key is new with each start of its executor."""
        state = self._state
        if peer.node not in ("", asked.node):
            raise ProtocolError(f"node {asked.node} joins on the link of node {peer.node}")
        if asked.node in state.keeper.barred:
            raise NotPermittedError(
                f"node {asked.node} was removed", hint="somebody must add it before it can join"
            )
        revoked = state.ledger.join(
            node=asked.node,
            address=asked.address,
            incarnation=asked.incarnation,
            cores=asked.cores,
            memory_bytes=asked.memory_bytes,
            isolation=asked.isolation,
            live=asked.leases,
            now_s=state.now_s(),
            gpus=asked.gpus,
            oversubscribe=asked.oversubscribe,
        )
        if asked.node in state.executors and state.executors[asked.node] is not peer:
            log.warning("node %s joined on a second link, the first counts no more", asked.node)
        known = state.keeper.node(asked.node)
        again = known is not None and known.incarnation == asked.incarnation
        node = NodeRecord(
            node=asked.node,
            address=asked.address,
            incarnation=asked.incarnation,
            cores=asked.cores,
            memory_bytes=asked.memory_bytes,
            isolation=asked.isolation,
            # Tokens that its clients have not shown yet stay good.
            key=known.key if known and again else state.random_bytes(tokens.KEY_BYTES),
            draining=known is not None and known.draining,
            gpus=asked.gpus,
            oversubscribe=asked.oversubscribe,
        )
        state.keeper.mark_node(node)
        state.emit("node-joined", node=asked.node)
        state.tick()  # what ended because a new incarnation does not serve it; who waits for it
        peer.node = asked.node
        state.executors[asked.node] = peer
        state.lacks[asked.node] = asked.lacks
        state.commits.soon()
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
            heartbeat_s=state.config.heartbeat_s, key=node.key, revoked=tuple(revoked)
        )

    def beat(self, peer: Peer, beat: messages.Beat) -> messages.BeatTaken:
        self._check_speaks_for(peer, beat.node)
        self._state.ledger.beat(beat.node, beat.usage, self._state.now_s())
        self._state.keeper.mark_leases(*beat.usage)
        self._state.meters.crashes[beat.node] = beat.crashes
        return messages.BeatTaken()

    def note_end(self, peer: Peer, ended: messages.LeaseEnded) -> None:
        """A node says that a lease is over there; its last word on usage counts."""
        state = self._state
        lease = state.ledger.find(ended.lease)
        if lease is None:
            return
        self._check_speaks_for(peer, lease.node)
        first = state.ledger.end(ended.lease, ended.cause, state.now_s(), ended.usage)
        state.keeper.mark_leases(ended.lease)
        if first:
            state.disown(ended.lease)
            state.emit("lease-ended", lease, cause=ended.cause)
            log.info("lease %s ended on %s: %s", ended.lease[:8], lease.node, ended.cause)
            state.tick()
        state.commits.soon()

    def part(self, peer: Peer) -> None:
        """A link has ended, and what depends on it ends too."""
        state = self._state
        state.tick()
        if peer.node and state.executors.get(peer.node) is peer:
            del state.executors[peer.node]
            log.warning("node %s lost: its link ended", peer.node)
            state.emit("node-lost", node=peer.node)
            state.tell(state.ledger.lose(peer.node, state.now_s()))
        for lease in sorted(peer.leases):
            state.end(lease, "client-lost")
        state.tick()
        state.commits.soon()

    # People

    def drain(self, node: str, draining: bool = True) -> None:
        """No new leases there, or again; those that are live go on.  Kept over restarts.

        Raises:
            UnavailableError: there is no such node.
        """
        state = self._state
        state.ledger.drain(node, draining)
        record = state.keeper.node(node)
        if record is not None and record.draining != draining:
            state.keeper.mark_draining(node, draining)
            state.emit("node-drained" if draining else "node-undrained", node=node)
            log.info("node %s %s", node, "drains" if draining else "drains no more")
        state.tick()
        state.commits.soon()

    def remove(self, node: str) -> None:
        """Revoke a node's leases, forget it, and do not let it join until `add`.

        Raises:
            CapacityError: so many were removed already.
            UnavailableError: there is no such node.
        """
        state = self._state
        if node not in state.ledger.names:
            raise UnavailableError(f"node {node} is unknown", hint="`rfaas nodes` lists them")
        if len(state.keeper.barred) >= REMOVED_MAX:
            raise CapacityError(
                f"node {node} cannot be removed: {REMOVED_MAX} that were are the most",
                hint="add some of them again",
            )
        state.keeper.bar(node, True)
        state.tell(state.ledger.remove(node, state.now_s()))
        state.keeper.mark_gone(node)
        state.emit("node-removed", node=node)
        log.info("node %s removed", node)
        state.lacks.pop(node, None)
        executor = state.executors.pop(node, None)
        if executor is not None:
            text = f"node {node} was removed"
            with suppress(PeerLostError):
                executor.link.send(messages.Error(code="not-permitted", text=text))
        state.tick()
        state.commits.soon()

    def add(self, node: str) -> None:
        """A node that was removed may join again."""
        self._state.keeper.bar(node, False)
        self._state.commits.soon()

    def _check_speaks_for(self, peer: Peer, node: str) -> None:
        if self._state.executors.get(node) is not peer:
            raise UnavailableError(f"node {node} has not joined on this link", hint="join again")
