"""The supervisor: leases of a node, their cores and their workers."""

from __future__ import annotations

import pytest

from rfaas.core import supervisor as module
from rfaas.core.supervisor import Exited, Kill, Over, Supervisor, Worker
from rfaas.core.tokens import Claims
from rfaas.errors import CapacityError, LeaseEndedError, UsageError
from rfaas.proto.messages import Usage

A, B, C = (letter * 32 for letter in "abc")
CRASHED_MAX = 2
WALL_S = 1_000_000.0


def claims(lease: str = A, cores: int = 1, duration_s: float = 10.0, fence: int = 1) -> Claims:
    return Claims(
        lease=lease,
        client="client",
        node="node",
        cores=cores,
        memory_bytes=0,
        isolation="process",
        duration_s=duration_s,
        issued_at_s=WALL_S,
        not_after_s=WALL_S + duration_s,
        fence=fence,
    )


@pytest.fixture
def supervisor() -> Supervisor:
    """Of a node that lends four cores."""
    return Supervisor([0, 1, 2, 3], CRASHED_MAX)


def opened(supervisor: Supervisor, lease: str = A, cores: int = 1) -> tuple[int, ...]:
    return supervisor.open(claims(lease, cores), 0.0, WALL_S).cpus


def serving(supervisor: Supervisor, lease: str = A) -> Worker:
    worker = supervisor.start(lease)
    supervisor.loaded(worker)
    return worker


class TestOpening:
    def test_cores_go_out_from_the_last(self, supervisor: Supervisor) -> None:
        assert opened(supervisor, A, 1) == (3,)
        assert opened(supervisor, B, 2) == (2, 1)
        assert opened(supervisor, C, 1) == (0,)

    def test_more_cores_than_are_free(self, supervisor: Supervisor) -> None:
        opened(supervisor, A, 3)
        with pytest.raises(CapacityError, match="needs 2 cores, 1 of 4 are free on node node"):
            opened(supervisor, B, 2)
        assert opened(supervisor, B, 1) == (0,)
        with pytest.raises(CapacityError, match="needs 1 cores, 0 of 4"):
            opened(supervisor, C, 1)

    def test_all_cores_and_one_more(self, supervisor: Supervisor) -> None:
        with pytest.raises(CapacityError):
            opened(supervisor, A, 5)
        assert len(opened(supervisor, A, 4)) == 4

    def test_again_is_a_renewal(self, supervisor: Supervisor) -> None:
        first = supervisor.open(claims(duration_s=10), 0.0, WALL_S)
        again = supervisor.open(claims(duration_s=10, fence=2), 8.0, WALL_S)
        assert again is first
        assert again.ends_at_s == 18.0
        assert supervisor.tick(17.9) == []
        assert len(supervisor.tick(18.0)) == 1

    def test_an_older_token_changes_nothing(self, supervisor: Supervisor) -> None:
        supervisor.open(claims(duration_s=100, fence=5), 0.0, WALL_S)
        lease = supervisor.open(claims(duration_s=1, fence=4), 50.0, WALL_S)
        assert lease.ends_at_s == 100.0
        assert lease.claims.fence == 5

    def test_the_same_token_again_changes_nothing(self, supervisor: Supervisor) -> None:
        """Whatever the wall clock says by then: the deadline was the monotonic one's from there."""
        supervisor.open(claims(duration_s=10), 0.0, WALL_S)
        assert supervisor.open(claims(duration_s=10), 8.0, WALL_S + 4).ends_at_s == 10.0

    def test_a_token_shown_late_does_not_last_longer(self, supervisor: Supervisor) -> None:
        lease = supervisor.open(claims(duration_s=10), 0.0, WALL_S + 7)
        assert lease.ends_at_s == 3.0

    def test_a_token_does_not_revive_a_lease(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        supervisor.close(A, "released", 1.0)
        with pytest.raises(LeaseEndedError, match="over: released"):
            opened(supervisor)

    def test_nor_one_that_is_ending(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        serving(supervisor)
        supervisor.close(A, "revoked", 1.0)
        with pytest.raises(LeaseEndedError, match="over: revoked"):
            opened(supervisor)

    def test_ended_leases_are_remembered_up_to_a_bound(
        self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LEASES_REMEMBERED_MAX", 2)
        for lease in (A, B, C):
            opened(supervisor, lease)
            supervisor.close(lease, "released", 1.0)
        for lease in (B, C):
            with pytest.raises(LeaseEndedError):
                opened(supervisor, lease)
        assert opened(supervisor, A)


class TestWorkers:
    def test_numbers_are_never_used_again(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        numbers = []
        for _ in range(CRASHED_MAX):
            worker = supervisor.start(A)
            numbers.append(worker.number)
            supervisor.exited(worker, "it died", Usage(), 1.0)
        assert numbers == [1, 2]

    def test_one_at_a_time(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        worker = supervisor.start(A)
        with pytest.raises(UsageError, match="has a worker already"):
            supervisor.start(A)
        supervisor.loaded(worker)
        with pytest.raises(UsageError):
            supervisor.start(A)

    def test_only_for_a_live_lease(self, supervisor: Supervisor) -> None:
        with pytest.raises(LeaseEndedError, match="never opened here"):
            supervisor.start(A)
        opened(supervisor)
        supervisor.close(A, "expired", 1.0)
        with pytest.raises(LeaseEndedError, match="expired"):
            supervisor.start(A)

    def test_one_that_dies_leaves_its_lease(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        worker = serving(supervisor)
        assert supervisor.exited(worker, "killed by SIGSEGV", Usage(calls=3), 1.0) == [
            Exited(A, worker.number, "killed by SIGSEGV")
        ]
        assert supervisor.live(A).used == Usage(calls=3)
        assert serving(supervisor).number == worker.number + 1

    def test_too_many_that_die(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        for _ in range(CRASHED_MAX):
            supervisor.exited(serving(supervisor), "it died", Usage(), 1.0)
        with pytest.raises(CapacityError, match=f"has crashed {CRASHED_MAX} workers"):
            supervisor.start(A)
        assert supervisor.live(A).crashed == CRASHED_MAX

    @pytest.mark.parametrize("loaded", [False, True])
    def test_stopped_ones_have_not_crashed(self, supervisor: Supervisor, loaded: bool) -> None:
        opened(supervisor)
        for _ in range(CRASHED_MAX + 2):
            worker = supervisor.start(A)
            if loaded:
                supervisor.loaded(worker)
            assert supervisor.stop(A, "a deadline") == [Kill(worker.number)]
            (told,) = supervisor.exited(worker, "killed by SIGKILL", Usage(), 1.0)
            assert told == Exited(A, worker.number, "the worker was stopped: a deadline")

    def test_stopped_twice_the_first_reason_counts(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        worker = serving(supervisor)
        supervisor.stop(A, "a deadline")
        supervisor.stop(A, "another")
        (told,) = supervisor.exited(worker, "killed by SIGKILL", Usage(), 2.0)
        assert told == Exited(A, worker.number, "the worker was stopped: a deadline")

    def test_stop_without_one(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        assert supervisor.stop(A, "nothing") == []
        with pytest.raises(LeaseEndedError):
            supervisor.stop(B, "no such lease")

    def test_loaded_after_it_was_stopped(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        worker = supervisor.start(A)
        supervisor.stop(A, "too slow")
        supervisor.loaded(worker)
        assert worker.state == "stopping"


class TestEnding:
    def test_without_a_worker(self, supervisor: Supervisor) -> None:
        opened(supervisor, A, 2)
        assert supervisor.close(A, "released", 3.0) == [
            Over(A, "released", Usage(allocated_ns=6_000_000_000))
        ]
        assert supervisor.close(A, "released", 4.0) == []
        assert A not in supervisor.leases

    def test_cores_are_free_when_the_worker_is_gone(self, supervisor: Supervisor) -> None:
        opened(supervisor, A, 4)
        worker = serving(supervisor)
        assert supervisor.close(A, "released", 1.0) == [Kill(worker.number)]
        assert supervisor.close(A, "expired", 1.5) == []  # the first cause counts
        with pytest.raises(CapacityError):
            opened(supervisor, B)
        used = Usage(polling_ns=1, executing_ns=2, calls=3, failed=1)
        (over,) = supervisor.exited(worker, "killed by SIGKILL", used, 2.0)
        assert over == Over(
            A,
            "released",
            Usage(allocated_ns=8_000_000_000, polling_ns=1, executing_ns=2, calls=3, failed=1),
        )
        assert opened(supervisor, B, 4) == (3, 2, 1, 0)

    def test_a_crash_while_it_ends(self, supervisor: Supervisor) -> None:
        """The worker died by itself before the kill arrived: the client hears of the end alone."""
        opened(supervisor)
        worker = serving(supervisor)
        supervisor.close(A, "client-lost", 1.0)
        (over,) = supervisor.exited(worker, "killed by SIGSEGV", Usage(), 1.0)
        assert isinstance(over, Over)
        assert over.cause == "client-lost"

    def test_unknown(self, supervisor: Supervisor) -> None:
        assert supervisor.close(A, "released", 1.0) == []
        with pytest.raises(LeaseEndedError, match="never opened"):
            supervisor.live(A)

    def test_tick_ends_what_is_due(self, supervisor: Supervisor) -> None:
        supervisor.open(claims(A, duration_s=5), 0.0, WALL_S)
        supervisor.open(claims(B, duration_s=5), 0.0, WALL_S)
        supervisor.open(claims(C, duration_s=6), 0.0, WALL_S)
        worker = serving(supervisor, B)
        assert supervisor.tick(4.999) == []
        over, kill = supervisor.tick(5.0)
        assert isinstance(over, Over)
        assert (over.lease, over.cause) == (A, "expired")
        assert kill == Kill(worker.number)
        assert supervisor.tick(5.5) == []
        assert list(supervisor.leases) == [B, C]

    def test_allocated_grows_with_cores_and_time(self, supervisor: Supervisor) -> None:
        opened(supervisor, A, 3)
        assert supervisor.allocated_ns(A, 0.0) == 0
        assert supervisor.allocated_ns(A, 2.5) == 7_500_000_000

    def test_usage_of_workers_before_is_kept(self, supervisor: Supervisor) -> None:
        opened(supervisor)
        supervisor.exited(serving(supervisor), "it died", Usage(calls=3, failed=1), 1.0)
        (over,) = supervisor.close(A, "released", 2.0)
        assert isinstance(over, Over)
        assert (over.usage.calls, over.usage.failed) == (3, 1)


def test_lanes_that_are_not_pinned() -> None:
    """Each entry is a core, even where all are -1."""
    supervisor = Supervisor([-1, -1, -1], CRASHED_MAX)
    assert opened(supervisor, A, 2) == (-1, -1)
    with pytest.raises(CapacityError):
        opened(supervisor, B, 2)
    supervisor.close(A, "released", 1.0)
    assert opened(supervisor, B, 3) == (-1, -1, -1)
