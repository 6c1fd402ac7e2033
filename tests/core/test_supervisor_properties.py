"""The supervisor under random histories: hypothesis plays clients, workers and time.

A model beside it holds the leases that were opened and the workers that run;
after every step the two must agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rfaas.core.supervisor import Action, Exited, Kill, Over, Supervisor, Worker
from rfaas.core.tokens import Claims
from rfaas.errors import CapacityError, LeaseEndedError, UsageError
from rfaas.proto.messages import Usage

CPUS = range(6)
GPUS = ["x", "y", "z"]
CRASHED_MAX = 2
LEASES = [f"{number:032x}" for number in range(8)]
CAUSES = ["released", "revoked", "client-lost"]

leases = st.sampled_from(LEASES)


class SupervisorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.supervisor = Supervisor(CPUS, CRASHED_MAX, GPUS)
        self.now_s = 0.0
        self.fence = 0
        self.ends_at_s: dict[str, float] = {}  # live leases
        self.ending: set[str] = set()
        self.over: Counter[str] = Counter()
        self.running: dict[int, Worker] = {}
        self.numbers: set[int] = set()
        self.exits: Counter[int] = Counter()
        self.crashes: Counter[str] = Counter()
        self.killed: set[int] = set()

    # What comes out

    def take(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Kill(number):
                    assert number in self.running
                    assert self.running[number].state == "stopping"
                    self.killed.add(number)
                case Exited(lease, number, text):
                    assert number not in self.running
                    assert lease in self.ends_at_s, "of one that ends, the end alone is told"
                    assert text
                    self.exits[number] += 1
                case Over(lease, cause, usage):
                    assert lease in self.ending
                    assert all(worker.lease != lease for worker in self.running.values())
                    assert cause
                    assert usage.executing_ns + usage.polling_ns <= usage.allocated_ns
                    self.ending.discard(lease)
                    self.over[lease] += 1

    def end(self, lease: str) -> None:
        if lease in self.ends_at_s:
            del self.ends_at_s[lease]
            self.ending.add(lease)

    # Steps

    @rule(
        lease=leases,
        cores=st.integers(1, 7),
        gpus=st.sampled_from([0, 0, 1, 2, 4]),
        duration_s=st.floats(0.5, 50),
        old=st.booleans(),
    )
    def open(self, lease: str, cores: int, gpus: int, duration_s: float, old: bool) -> None:
        known, was_over = lease in self.ends_at_s, lease in self.ending or self.over[lease]
        self.fence += 1
        fence = 0 if known and old else self.fence
        free = len(CPUS) - sum(len(one.cpus) for one in self.supervisor.leases.values())
        gpus_free = len(GPUS) - sum(len(one.gpus) for one in self.supervisor.leases.values())
        claims = Claims(
            lease=lease,
            client="client",
            node="node",
            cores=cores,
            gpus=gpus,
            memory_bytes=0,
            isolation="process",
            duration_s=duration_s,
            issued_at_s=self.now_s,
            not_after_s=self.now_s + duration_s,
            fence=fence,
        )
        try:
            opened = self.supervisor.open(claims, self.now_s, self.now_s)
        except LeaseEndedError:
            assert was_over
        except CapacityError:
            assert not known
            assert cores > free or gpus > gpus_free
        else:
            assert not was_over
            assert known or len(opened.cpus) == cores <= free
            assert known or len(opened.gpus) == gpus <= gpus_free
            if not (known and old):
                self.ends_at_s[lease] = opened.ends_at_s
                assert opened.ends_at_s <= self.now_s + duration_s + 1e-9

    @rule(lease=leases)
    def start(self, lease: str) -> None:
        has_one = any(worker.lease == lease for worker in self.running.values())
        try:
            worker = self.supervisor.start(lease)
        except LeaseEndedError:
            assert lease not in self.ends_at_s
        except UsageError:
            assert has_one
        except CapacityError:
            assert self.crashes[lease] >= CRASHED_MAX
        else:
            assert lease in self.ends_at_s
            assert not has_one
            assert worker.number not in self.numbers
            self.numbers.add(worker.number)
            self.running[worker.number] = worker

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def loaded(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(list(self.running.values())))
        before = worker.state
        self.supervisor.loaded(worker)
        assert worker.state == ("stopping" if before == "stopping" else "serving")

    @precondition(lambda self: self.running)
    @rule(data=st.data(), calls=st.integers(0, 5))
    def exit(self, data: st.DataObject, calls: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        worker = self.running.pop(number)
        self.crashes[worker.lease] += worker.state != "stopping"
        self.take(self.supervisor.exited(worker, "it died", Usage(calls=calls), self.now_s))
        assert self.exits[number] == (worker.lease in self.ends_at_s)

    @rule(lease=leases)
    def stop(self, lease: str) -> None:
        try:
            self.take(self.supervisor.stop(lease, "a deadline"))
        except LeaseEndedError:
            assert lease not in self.ends_at_s

    @rule(lease=leases, cause=st.sampled_from(CAUSES))
    def close(self, lease: str, cause: str) -> None:
        known = lease in self.ends_at_s
        self.end(lease)
        actions = self.supervisor.close(lease, cause, self.now_s)
        assert bool(actions) == known
        self.take(actions)

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for lease, ends_at_s in list(self.ends_at_s.items()):
            if ends_at_s <= self.now_s:
                self.end(lease)
        self.take(self.supervisor.tick(self.now_s))

    # What holds at all times

    @invariant()
    def agrees(self) -> None:
        assert set(self.supervisor.leases) == set(self.ends_at_s) | self.ending
        for lease in self.supervisor.leases:
            assert bool(self.supervisor.leases[lease].cause) == (lease in self.ending)

    @invariant()
    def no_core_is_lent_twice(self) -> None:
        lent = [cpu for lease in self.supervisor.leases.values() for cpu in lease.cpus]
        assert len(lent) == len(set(lent))
        assert set(lent) <= set(CPUS)

    @invariant()
    def no_gpu_is_lent_twice(self) -> None:
        lent = [gpu for lease in self.supervisor.leases.values() for gpu in lease.gpus]
        assert len(lent) == len(set(lent))
        assert set(lent) <= set(GPUS)

    @invariant()
    def each_lease_ends_once(self) -> None:
        assert set(self.over.values()) <= {0, 1}

    @invariant()
    def what_ends_is_killed(self) -> None:
        assert {n for n, w in self.running.items() if w.lease in self.ending} <= self.killed

    def teardown(self) -> None:
        """In the end all of it ends, and the cores are back."""
        for lease in list(self.ends_at_s):
            self.close(lease, "released")
        for number, worker in list(self.running.items()):
            del self.running[number]
            self.take(self.supervisor.exited(worker, "it died", Usage(), self.now_s))
        assert not self.supervisor.leases
        assert not self.ending
        claims = Claims(
            lease="f" * 32,
            client="client",
            node="node",
            cores=len(CPUS),
            gpus=len(GPUS),
            memory_bytes=0,
            isolation="process",
            duration_s=1,
            issued_at_s=0,
            not_after_s=1,
            fence=1,
        )
        last = self.supervisor.open(claims, self.now_s, 0)
        assert sorted(last.cpus) == list(CPUS)
        assert sorted(last.gpus) == GPUS


TestSupervisorMachine = SupervisorMachine.TestCase
