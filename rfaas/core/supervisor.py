"""Which worker serves which lease on this node, and what happens when either ends.

The executor's decisions, without its processes: events and a time go in,
actions come out.  A lease's cores are taken when it is opened and free again
only when its last worker is gone, so two workers never share a core, but those of leases
that say so share theirs (core/seats.py).  Nor a GPU: which
ones a lease has is decided here, as with cores, by who knows when a worker is really gone.
A token says how many, so none can name another lease's.

    lease    open -> live -> close, or tick past its deadline -> ending -> over
    worker   start -> starting -> loaded -> serving -> (stop) -> exited
                                                    -> (part) -> kept, see core.keeping

A worker that dies by itself does not end its lease: the client is told and may
start another, until `workers_crashed_max` have died.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from rfaas.core.accounting import allocated_ns
from rfaas.core.seats import Seats
from rfaas.core.tokens import Claims
from rfaas.core.topology import UNKNOWN, Facts, Topology
from rfaas.errors import CapacityError, LeaseEndedError, UsageError
from rfaas.proto.messages import Usage

LEASES_REMEMBERED_MAX = 4096  # ended leases whose tokens are refused; the oldest go first


@dataclass(slots=True)
class Worker:
    """A worker process of a lease."""

    number: int
    lease: str
    state: str = "starting"  # serving, stopping
    reason: str = ""  # why it is being stopped


@dataclass(slots=True)
class LeaseOnNode:
    """A lease that this node serves."""

    claims: Claims
    places: tuple[int, ...]  # which of the node's cores
    cpus: tuple[int, ...]  # the processor of each, or -1
    opened_at_s: float
    ends_at_s: float
    gpus: tuple[str, ...] = ()
    worker: Worker | None = None
    crashed: int = 0
    cause: str = ""  # set once it is ending
    ending: str = ""  # the cause that notice was given of
    used: Usage = field(default_factory=Usage)  # by workers that are gone


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill this worker; its exit is an event."""

    worker: int


@dataclass(frozen=True, slots=True)
class Part:
    """Have this worker outlive its lease, or kill it; both count as its exit."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class Exited:
    """Tell the lease's client that its worker is gone, and why."""

    lease: str
    worker: int
    text: str


@dataclass(frozen=True, slots=True)
class Over:
    """The lease is over and its cores are free: tell its client and the resource manager."""

    lease: str
    cause: str
    usage: Usage


Action = Kill | Part | Exited | Over


class Supervisor:
    """See the module's docstring.

    Args:
        cpus: one entry for each core that may be leased: the processor to pin its lane
            to, or -1.
        gpus: the name of each GPU that may be leased; handed out from the first.
        oversubscribe: lanes that may share a core.
        facts: what is known of the processors: who gets which (core/topology.py).
    """

    def __init__(
        self,
        cpus: Sequence[int],
        workers_crashed_max: int,
        gpus: Sequence[str] = (),
        oversubscribe: int = 1,
        facts: Facts = UNKNOWN,
    ) -> None:
        self._cpus = list(cpus)
        self._seats = Seats(len(cpus), oversubscribe, Topology(cpus, facts))
        self._gpus = list(gpus)
        self._gpus_free = list(gpus)
        self._workers_crashed_max = workers_crashed_max
        self._leases: dict[str, LeaseOnNode] = {}
        self._over: OrderedDict[str, str] = OrderedDict()
        self._next_worker = 0

    @property
    def leases(self) -> dict[str, LeaseOnNode]:
        """The leases that are live or ending here, by id."""
        return self._leases

    def open(self, claims: Claims, now_s: float, wall_s: float) -> LeaseOnNode:
        """Take a lease on, or its renewal, from a token that was verified.

        Raises:
            LeaseEndedError: it is over here; a token does not revive it.
            CapacityError: its cores are not free, or not free yet.
        """
        left_s = min(claims.duration_s, claims.not_after_s - wall_s)
        lease = self._leases.get(claims.lease)
        if cause := self._over.get(claims.lease) or (lease.cause if lease else ""):
            raise LeaseEndedError(f"lease {claims.lease[:8]} is over: {cause}")
        if lease is not None:
            if claims.fence > lease.claims.fence and not lease.ending:
                # A manager that was started anew knows no image: it is that of the grant.
                lease.claims = replace(claims, image=lease.claims.image)
                lease.ends_at_s = now_s + left_s
            return lease
        if claims.gpus > len(self._gpus_free):
            raise CapacityError(
                f"lease {claims.lease[:8]} needs {claims.gpus} GPUs, "
                f"{len(self._gpus_free)} of {len(self._gpus)} are free on node {claims.node}"
            )
        places = self._seats.take(claims.cores, claims.shared)
        if places is None:
            raise CapacityError(
                f"lease {claims.lease[:8]} needs {claims.cores} cores, "
                f"{self._seats.free_text()} on node {claims.node}"
            )
        cpus = tuple(self._cpus[place] for place in places)
        gpus = tuple(self._gpus_free[: claims.gpus])
        del self._gpus_free[: claims.gpus]
        lease = LeaseOnNode(claims, places, cpus, now_s, now_s + left_s, gpus)
        self._leases[claims.lease] = lease
        return lease

    def live(self, lease: str) -> LeaseOnNode:
        """The lease, if it has not ended.

        Raises:
            LeaseEndedError: it is over, or was never opened here.
        """
        found = self._leases.get(lease)
        if found is None or found.cause:
            cause = found.cause if found else self._over.get(lease, "it was never opened here")
            raise LeaseEndedError(f"lease {lease[:8]} is over: {cause}", hint="request a new one")
        return found

    def start(self, lease: str) -> Worker:
        """A worker is about to be started for a live lease that has none."""
        found = self.live(lease)
        if found.worker is not None:
            raise UsageError(f"lease {lease[:8]} has a worker already")
        if found.crashed >= self._workers_crashed_max:
            raise CapacityError(
                f"lease {lease[:8]} has crashed {found.crashed} workers, no more are started",
                hint="mend the function, then request a new lease",
            )
        self._next_worker += 1
        found.worker = Worker(self._next_worker, lease)
        return found.worker

    def loaded(self, worker: Worker) -> None:
        """The worker serves its lanes."""
        if worker.state == "starting":
            worker.state = "serving"

    def stop(self, lease: str, reason: str) -> list[Action]:
        """End the lease's worker, whatever it does; the lease lives on."""
        found = self.live(lease)
        return self._stop(found, reason)

    def exited(self, worker: Worker, text: str, usage: Usage, now_s: float) -> list[Action]:
        """The worker is gone: `text` says how it died, `usage` what its lease has used."""
        lease = self._leases[worker.lease]
        lease.worker = None
        lease.used = usage
        if worker.state != "stopping":
            lease.crashed += 1
        if lease.cause:  # its client hears that instead: no call of it has merely crashed
            return self._over_now(worker.lease, now_s)
        return [Exited(worker.lease, worker.number, worker.reason or text)]

    def close(self, lease: str, cause: str, now_s: float, *, keep: bool = False) -> list[Action]:
        """End a lease, once; of a lease that is over nothing follows.

        Where it may `keep` its worker, that parts from it instead of being killed.
        """
        found = self._leases.get(lease)
        if found is None or found.cause:
            return []
        found.cause = cause
        if found.worker is None:
            return self._over_now(lease, now_s)
        serves = found.worker.state == "serving"
        killed = self._stop(found, f"its lease is over: {cause}")
        return [Part(found.worker)] if keep and serves else killed

    def terminate(self, lease: str, cause: str, ends_at_s: float) -> None:
        """A lease ends then, or before if its time is up; no token lengthens it any more."""
        found = self._leases.get(lease)
        if found is not None and not found.cause:
            found.ending = cause
            found.ends_at_s = min(found.ends_at_s, ends_at_s)

    def tick(self, now_s: float) -> list[Action]:
        """End the leases whose time is up."""
        due = [(lease, one) for lease, one in self._leases.items() if one.ends_at_s <= now_s]
        return [
            action
            for lease, one in due
            for action in self.close(lease, one.ending or "expired", now_s)
        ]

    def allocated_ns(self, lease: str, now_s: float) -> int:
        """Core-nanoseconds that the lease has held so far."""
        found = self._leases[lease]
        return allocated_ns(len(found.cpus), now_s - found.opened_at_s)

    def gpu_ns(self, lease: str, now_s: float) -> int:
        """GPU-nanoseconds, in the same way."""
        found = self._leases[lease]
        return allocated_ns(len(found.gpus), now_s - found.opened_at_s)

    def in_use(self) -> tuple[int, int]:
        """Cores and bytes of memory of the leases that have a worker now."""
        serving = [one for one in self._leases.values() if one.worker is not None]
        return (
            len({place for one in serving for place in one.places}),
            sum(one.claims.memory_bytes for one in serving),
        )

    def _stop(self, lease: LeaseOnNode, reason: str) -> list[Action]:
        worker = lease.worker
        if worker is None:
            return []
        worker.state = "stopping"
        worker.reason = worker.reason or f"the worker was stopped: {reason}"
        return [Kill(worker.number)]

    def _over_now(self, lease: str, now_s: float) -> list[Action]:
        allocated, gpu_ns = self.allocated_ns(lease, now_s), self.gpu_ns(lease, now_s)
        found = self._leases.pop(lease)
        self._seats.give(found.places, found.claims.shared)
        self._gpus_free = [one for one in self._gpus if one in self._gpus_free or one in found.gpus]
        self._over[lease] = found.cause
        if len(self._over) > LEASES_REMEMBERED_MAX:
            self._over.popitem(last=False)
        used = Usage(
            allocated_ns=allocated,
            polling_ns=found.used.polling_ns,
            executing_ns=found.used.executing_ns,
            calls=found.used.calls,
            failed=found.used.failed,
            gpu_ns=gpu_ns,
            busy=found.used.busy,
        )
        return [Over(lease, found.cause, used)]
