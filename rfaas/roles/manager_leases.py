"""What a resource manager answers about leases: request, renew, release; and revoking them.

Each is decided at once, in memory, and answered when the decision is in the store.  What a
client may do to a lease it shows by its link, or on another link by the lease's secret.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import msgspec

from rfaas.control.authority import ask_of, check_owner
from rfaas.core.lease import LIVE, Ask, Lease
from rfaas.errors import LeaseEndedError, NotPermittedError, RfaasError
from rfaas.failpoints import reach
from rfaas.proto import messages
from rfaas.roles.manager_state import Peer, State

_PART_FIELDS = messages.LeasePart.__struct_fields__

log = logging.getLogger("rfaas.roles.resource_manager")


class Leases:
    """See the module's docstring."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def request(self, peer: Peer, asked: messages.RequestLease) -> messages.LeaseGranted:
        """Grant a lease, at once or after a time in the queue.

        Raises:
            CapacityError: no room, or none in time.
            SystemCallError: the store does not take it; nothing is granted.
            LeaseEndedError: it was over before the store had it.
        """
        state = self._state
        began_s = state.now_s()
        account = peer.link.user or account_of(asked.client)
        ask = ask_of(asked, account, state.new_id())
        try:
            lease = state.ledger.ask(ask, state.now_s())
            if lease is None:
                lease = await self._turn(peer, ask)
            else:
                state.enter(peer, lease)
        except RfaasError as error:
            state.events.emit(
                "lease-refused",
                state.clock.wall_s(),
                client=ask.client,
                cores=ask.cores,
                cause=error.code,
            )
            raise
        try:
            await state.commits.committed()
        except BaseException:
            state.end(lease.lease, "revoked")
            raise
        reach("manager.saved")
        state.meters.granted(state.now_s() - began_s)
        log.info(
            "lease %s granted %d cores on %s to %s",
            lease.lease[:8],
            sum(part.cores for part in state.ledger.parts(lease)),
            ", ".join(part.node for part in state.ledger.parts(lease)),
            lease.client,
        )
        return self._granted(lease)

    async def renew(self, peer: Peer, asked: messages.RenewLease) -> messages.LeaseGranted:
        """Let a lease last longer; from here on it belongs to this link."""
        state = self._state
        self._check_owner(peer, asked.lease, asked.proof)
        lease = state.ledger.renew(asked.lease, asked.duration_s, state.now_s())
        parts = state.ledger.parts(lease)
        for part in parts:
            state.own(peer, part.lease)
            state.keeper.mark_leases(part.lease)
            state.emit("lease-renewed", part)
        await state.commits.committed()
        log.info("lease %s renewed for %g s", parts[0].lease[:8], lease.duration_s)
        return self._granted(parts[0])

    async def release(self, peer: Peer, asked: messages.ReleaseLease) -> messages.Done:
        """Done also where the lease is over or unknown, so it can be asked twice."""
        state = self._state
        found = state.ledger.find(asked.lease)
        if found is not None and found.state == LIVE:
            self._check_owner(peer, asked.lease, asked.proof)
            state.end(asked.lease, "released")
        with suppress(RfaasError):  # it has ended, whether that is kept by now or later
            await state.commits.committed()
        return messages.Done()

    def revoke(self, lease: str, notice_s: float | None = None) -> None:
        """End a lease and its bundle, for a person: with notice, so that clients can move.

        Args:
            notice_s: None: as configured.

        Raises:
            LeaseEndedError: it is unknown, or over.
        """
        state = self._state
        found = state.ledger.find(lease)
        if found is None or found.state != LIVE:
            over = f"is over: {found.state}" if found is not None else "is unknown"
            raise LeaseEndedError(f"lease {lease[:8]} {over}")
        if notice_s is None:
            notice_s = state.config.revoke_notice_s
        for part in state.ledger.revoke(lease, notice_s, state.now_s()):
            self.terminating(part)
        state.tick()
        state.commits.soon()

    def withdraw(self, peer: Peer) -> None:
        """A link has ended: its requests leave the queue, before what it frees is lent anew."""
        waiting = self._state.waiting
        for lease in [lease for lease, (_, asker) in waiting.items() if asker is peer]:
            del waiting[lease]
            self._state.ledger.cancel(lease)

    def terminating(self, lease: Lease) -> None:
        """Tell of a lease that it will end soon; its executor tells its client."""
        state = self._state
        left_s = max(0.0, lease.ends_at_s - state.now_s())
        log.info("lease %s ends in %g s: %s", lease.lease[:8], left_s, lease.ending)
        state.keeper.mark_leases(lease.lease)
        state.emit("lease-terminating", lease, cause=lease.ending)
        state.notify(
            lease.node,
            messages.LeaseTerminating(lease=lease.lease, cause=lease.ending, remaining_s=left_s),
        )

    async def _turn(self, peer: Peer, ask: Ask) -> Lease:
        """Stand in the queue until `State.tick` says what became of it."""
        state = self._state
        state.events.emit("lease-queued", state.clock.wall_s(), client=ask.client, cores=ask.cores)
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        state.waiting[ask.lease] = future, peer
        try:
            return await future
        finally:
            if state.waiting.pop(ask.lease, None) is not None:  # its link has ended
                state.ledger.cancel(ask.lease)

    def _granted(self, lease: Lease) -> messages.LeaseGranted:
        if lease.state != LIVE:
            raise LeaseEndedError(f"lease {lease.lease[:8]} ended at once: {lease.state}")
        first, *rest = map(self._state.token, self._state.ledger.parts(lease))
        if not rest:
            return first
        parts = [
            messages.LeasePart(**{name: getattr(one, name) for name in _PART_FIELDS})
            for one in rest
        ]
        return msgspec.structs.replace(first, rest=tuple(parts))

    def _check_owner(self, peer: Peer, lease: str, proof: bytes) -> None:
        state = self._state
        found = state.ledger.find(lease)
        if found is None or found.state != LIVE or state.owners.get(lease) is peer:
            return
        try:
            check_owner(lease, state.key(found.node), proof, peer.link.nonce)
        except NotPermittedError:
            peer.refused += 1
            state.refused += 1
            raise


def account_of(client: str) -> str:
    """Who answers for a client: its name without the process, as in `user@host:pid`."""
    return client.partition(":")[0] or client
