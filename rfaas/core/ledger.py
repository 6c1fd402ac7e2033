"""Who has cores and who leases them: the book of nodes and leases.

A resource manager keeps one for many nodes; an executor that grants leases by
itself keeps one for the node that it is.  The book knows no links, stores or
clocks: each call says when it happens, in monotonic seconds.  `tick` says what
ended because time passed, `settle` what became of requests that waited.

    node     join -> up -> silent too long, or lose -> lost -> join -> up
             drain: nothing new comes; undrain; remove, leave -> forgotten
             restore_node -> lost, but its leases stay for as long as an up
             node may be silent
    request  ask -> granted, refused, or waiting -> granted, refused, cancelled
    lease    granted -> live -> end, once, with one of lease.CAUSES
             revoke with notice: live, not renewable -> end
    bundle   leases of several nodes that one request got: granted all or none,
             renewed together; when one ends, all do

The ledger counts GPUs, as it does cores; which ones a lease has its node says, in
core/supervisor.py: it alone knows when a worker that held one is gone.

Invariants, held by tests/core/test_ledger_properties.py: the cores, memory and GPUs
of a node's live leases never exceed what it has (of leases that share their processors,
what core/placement.py says), and all is free again when all have ended; a lease is on one
node; it ends once; no account holds more than its quota; a bundle is live as a whole or not
at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rfaas.core.book import CORES_MAX, MEMORY_BYTES_MAX, Book, check_amounts
from rfaas.core.lease import CAUSES, Ask, Lease, Settled
from rfaas.core.node import Node
from rfaas.core.placement import ALL, Index, Part
from rfaas.core.waiting import PASSED_MAX, Queue
from rfaas.errors import CapacityError, LeaseEndedError, UsageError
from rfaas.proto.messages import Usage
from rfaas.proto.worker_messages import TURNS_MAX

Amounts = tuple[Node, int, int, int]  # as of a Part


class Quota(NamedTuple):
    """What one account may hold at once; 0: no bound."""

    cores_max: int = 0
    leases_max: int = 0
    gpus_max: int = 0


class Ledger(Book):
    """See the module's docstring.

    `heartbeat_s * missed_beats_max` is the silence after which a node is lost;
    an infinite heartbeat suits an executor, which cannot lose itself.

    Args:
        new_id: a random lease id, for the second and later parts of a bundle.  Without it
            a lease is on one node.
    """

    def __init__(
        self,
        heartbeat_s: float,
        missed_beats_max: int,
        duration_max_s: float,
        *,
        quota: Quota = Quota(),  # noqa: B008 - a constant
        new_id: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(heartbeat_s, missed_beats_max)
        self._duration_max_s = duration_max_s
        self._quota = quota
        self._new_id = new_id
        self._queue = Queue()

    # Leases

    def ask(self, ask: Ask, now_s: float) -> Lease | None:
        """Lease what is asked for, now or later; call `tick` before, to free what is over.

        Returns the lease, the first of its bundle, or None where the request waits: then
        `settle` says what becomes of it.

        Raises:
            UsageError: an amount that no node could ever have.
            CapacityError: no room now and it does not wait, or more than its quota ever.
        """
        self._check(ask)
        over = self._over_quota(ask)
        if not self._queue:
            if not over and (lease := self._try(ask, now_s)) is not None:
                return lease
            if not ask.wait_s > 0 or self._never(ask):
                raise over or self._refusal(ask)
            self._queue.add(ask, now_s)
            return None
        # Others wait: who holds less than they do goes first, also if it would not wait.
        self._queue.add(ask, now_s)
        if settled := self._serve_queue(now_s, only=ask.lease):
            return settled[0].granted
        if ask.wait_s > 0 and not self._never(ask):
            return None
        self._queue.remove(ask.lease)
        raise over or self._refusal(ask)

    def request(
        self,
        client: str,
        cores: int,
        memory_bytes: int,
        duration_s: float,
        isolation: str,
        lease_id: str,
        now_s: float,
    ) -> Lease:
        """As `ask`, on one node and without waiting."""
        check_amounts(cores, memory_bytes)
        ask = Ask(
            lease=lease_id,
            client=client,
            account=client,
            cores=cores,
            memory_bytes=memory_bytes,
            duration_s=duration_s,
            isolation=isolation,
            placement="node",
        )
        lease = self.ask(ask, now_s)
        assert lease is not None, "it does not wait"
        return lease

    def cancel(self, lease: str) -> bool:
        """Whoever waits for that lease does so no more; False where nobody did."""
        if self._queue.remove(lease) is None:
            return False
        self._freed = True  # who stood behind it may fit
        return True

    def settle(self, now_s: float) -> list[Settled]:
        """Requests that have waited and do so no more: granted, or their time is up.

        Cheap while nothing was freed, so call it after every event.
        """
        if not self._queue:
            return []
        late = self._queue.overdue(now_s)
        self._freed = self._freed or bool(late)  # who stood behind them may fit
        settled = [Settled(ask, None, self._late(ask)) for ask in late]
        return settled + (self._serve_queue(now_s) if self._freed else [])

    def renew(self, lease: str, duration_s: float, now_s: float) -> Lease:
        """Let a lease, and its bundle, end `duration_s` from now instead.

        Raises:
            LeaseEndedError: it is over, about to be, or unknown.
        """
        self._check_duration(duration_s)
        found = self.find(lease)
        if found is None:
            raise LeaseEndedError(f"lease {lease[:8]} is unknown", hint="request a new one")
        if over := found.over(now_s):
            raise LeaseEndedError(
                f"lease {lease[:8]} on {found.node} is over: {over} "
                f"{now_s - found.ends_at_s:.1f} s ago",
                hint="request a new one",
            )
        if found.ending:
            raise LeaseEndedError(
                f"lease {lease[:8]} on {found.node} is being ended: {found.ending} in "
                f"{found.ends_at_s - now_s:.1f} s",
                hint="request a new one",
            )
        for part in self.parts(found):
            part.duration_s = duration_s
            self._fence += 1
            part.fence = self._fence
            self._move_deadline(part, now_s + duration_s)
        return found

    def revoke(self, lease: str, notice_s: float, now_s: float) -> list[Lease]:
        """End a lease and its bundle in `notice_s`, or sooner where they end by themselves.

        Returns those to whom that is news; none where it is over, unknown or revoked with
        shorter notice.  The next `tick` past the notice reports their ends.
        """
        found = self._live.get(lease)
        if found is None:
            return []
        until_s = now_s + max(0.0, notice_s)
        told = [part for part in self.parts(found) if not part.ending or part.ends_at_s > until_s]
        for part in told:
            part.ending = "revoked"
            self._move_deadline(part, min(part.ends_at_s, until_s))
        return told

    def end(self, lease: str, cause: str, now_s: float, usage: Usage | None = None) -> bool:
        """End a lease; True the first time, False where it is over or unknown.

        `usage` counts even when the lease is over: a node sends its last word
        after the manager's.  The next `tick` reports the rest of its bundle.
        """
        if cause not in CAUSES:
            raise UsageError(f"{cause!r} ends no lease, one of {', '.join(sorted(CAUSES))} does")
        found = self._live.get(lease)
        if found is None:
            found = self._ended.get(lease)
            if found is not None and usage is not None:
                found.usage = usage
            return False
        if usage is not None:
            found.usage = usage
        self._close(found, cause, now_s)
        return True

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    # Granting

    def _try(self, ask: Ask, now_s: float) -> Lease | None:
        """Grant what was checked, if there is room; who shares goes where others do."""
        if ask.shared and (lease := self._try_of(self._twins, ask, now_s)) is not None:
            return lease
        return self._try_of(self._index, ask, now_s)

    def _try_of(self, index: Index, ask: Ask, now_s: float) -> Lease | None:
        if (
            ask.placement != "spread"
            or self._new_id is None
            or ALL in (ask.cores, ask.memory_bytes)
        ):
            node = index.best(ask.cores, ask.memory_bytes, ask.isolation, ask.gpus)
            if node is not None:
                cores, memory_bytes = ask.cores or node.cores, ask.memory_bytes or node.memory_bytes
                part = (node, cores, memory_bytes, ask.gpus)  # no Part: its making takes 0.3 us
                return self._place(ask, ask.lease, "", part, now_s)
        first: Lease | None = None
        parts = self._several(index, ask) or []
        bundle = ask.lease if len(parts) > 1 else ""
        for part in parts:
            lease_id = self._new_id() if first is not None and self._new_id else ask.lease
            lease = self._place(ask, lease_id, bundle, part, now_s)
            first = first or lease
        return first

    def _several(self, index: Index, ask: Ask) -> list[Part] | None:
        if ask.placement == "node" or ALL in (ask.cores, ask.memory_bytes) or not self._new_id:
            return None
        spread = ask.placement == "spread"
        return index.several(ask.cores, ask.memory_bytes, ask.isolation, spread, ask.gpus)

    def _place(self, ask: Ask, lease_id: str, bundle: str, part: Amounts, now_s: float) -> Lease:
        node, cores, memory_bytes, gpus = part
        node = node.of or node
        shared = 0
        if ask.shared and node.twin is not None:
            shared = node.cores - node.held
            node.take(lease_id, cores, memory_bytes, gpus, shares=True)
        else:
            node.take(lease_id, cores, memory_bytes, gpus)
        self._fence += 1
        lease = Lease(
            lease_id,
            ask.client,
            node.node,
            cores,
            memory_bytes,
            ask.isolation,
            ask.duration_s,
            now_s,
            now_s + ask.duration_s,
            self._fence,
            bundle,
            ask.account,
            image=ask.image,
            gpus=gpus,
            shared=shared,
        )
        self._enter(lease)
        return lease

    def _serve_queue(self, now_s: float, only: str = "") -> list[Settled]:
        """Grant what fits now, in turn; of newcomers, that one `only`."""
        settled: list[Settled] = []
        served = True
        while served:
            served = False
            passed = []
            for waiting in self._queue.turns(self._cores_held):
                ask = waiting.ask
                if self._over_quota(ask):  # it waits for its own leases to end, not for others'
                    continue
                granted = None
                if not only or ask.lease == only:
                    granted = self._try(ask, now_s)
                if granted is None:
                    if waiting.passed >= PASSED_MAX and self._possible(ask):
                        break
                    passed.append(waiting)
                    continue
                self._queue.remove(ask.lease)
                for other in passed:
                    other.passed += 1
                settled.append(Settled(ask, granted, None))
                served = not only
                break
        if not only:
            self._freed = False
        return settled

    def _cores_held(self, account: str) -> int:
        held = self._held.get(account)
        return held[0] if held else 0

    def _check(self, ask: Ask) -> None:
        if ask.gpus or not (
            0 < ask.cores <= CORES_MAX and 0 < ask.memory_bytes <= MEMORY_BYTES_MAX
        ):
            check_amounts(
                1 if ask.cores == ALL else ask.cores,
                1 if ask.memory_bytes == ALL else ask.memory_bytes,
                ask.gpus,
            )
        self._check_duration(ask.duration_s)
        if ask.shared and ask.cores > TURNS_MAX:
            raise UsageError(
                f"a lease that shares processors cannot have {ask.cores} cores, "
                f"at most {TURNS_MAX} are allowed"
            )
        if ask.shared and (ask.gpus or ALL in (ask.cores, ask.memory_bytes)):
            raise UsageError(
                "a lease that shares processors has no GPUs, and not all cores or memory of a node",
                hint="ask for a number of cores and bytes, or for a lease that shares nothing",
            )
        if self.find(ask.lease) is not None or ask.lease in self._queue:
            raise UsageError(f"lease {ask.lease[:8]} exists already")

    def _over_quota(self, ask: Ask) -> CapacityError | None:
        cores_max, leases_max, gpus_max = self._quota
        if not (cores_max or leases_max or gpus_max):
            return None
        cores, leases, gpus = self._held.get(ask.account, (0, 0, 0))
        wanted = ask.cores
        if wanted == ALL:
            idle = self._index.best(ALL, ask.memory_bytes, ask.isolation, ask.gpus)
            wanted = idle.cores if idle is not None else 1
        if cores_max and cores + wanted > cores_max:
            return CapacityError(
                f"cannot lease {wanted} cores: {ask.account} holds {cores} of the {cores_max} "
                "that one client may",
                hint="release a lease, or ask for fewer cores",
            )
        if leases_max and leases >= leases_max:
            return CapacityError(
                f"cannot grant a lease: {ask.account} holds {leases}, the most that one client may",
                hint="release a lease",
            )
        if gpus_max and ask.gpus and gpus + ask.gpus > gpus_max:
            return CapacityError(
                f"cannot lease {ask.gpus} GPUs: {ask.account} holds {gpus} of the {gpus_max} "
                "that one client may",
                hint="release a lease, or ask for fewer GPUs",
            )
        return None

    def _never(self, ask: Ask) -> bool:
        return 0 < self._quota.cores_max < ask.cores or 0 < self._quota.gpus_max < ask.gpus

    def _possible(self, ask: Ask) -> bool:
        """Whether the nodes that are up could take it if they were idle."""
        one = ask.placement == "node" or self._new_id is None
        wanted = (ask.cores, ask.memory_bytes, ask.isolation, one, ask.gpus)
        return (ask.shared and self._twins.possible(*wanted)) or self._index.possible(*wanted)

    def _late(self, ask: Ask) -> CapacityError:
        when = f" after {ask.wait_s:g} s of waiting"
        over = self._over_quota(ask)
        return CapacityError(over.text + when, hint=over.hint) if over else self._refusal(ask, when)

    def _refusal(self, ask: Ask, when: str = "") -> CapacityError:
        one = ask.placement == "node" or self._new_id is None
        wanted = (ask.cores, ask.memory_bytes, ask.isolation, one, ask.gpus)
        shares = ask.shared and self._twins.possible(*wanted)
        refused = (self._twins if shares else self._index).refusal(*wanted)
        if shares:
            when = f", for leases that share{when}"
        return CapacityError(refused.text + when, hint=refused.hint) if when else refused

    def _check_duration(self, duration_s: float) -> None:
        if not 0 < duration_s <= self._duration_max_s:  # refuses NaN, too
            raise UsageError(
                f"a lease cannot last {duration_s:g} s, more than 0 and at most "
                f"{self._duration_max_s:g} s are allowed",
                hint="a lease can be renewed as often as you like",
            )
