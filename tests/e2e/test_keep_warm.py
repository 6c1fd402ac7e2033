"""Workers that outlive their lease: real executors, real processes, the library's state."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas.client import Lease, Session
from rfaas.errors import RfaasError
from tests.functions.build import build_text
from tests.harness.gate import Gate
from tests.harness.processes import (
    PATIENCE_S,
    is_alive,
    until,
    wait_for_end,
    workers_of,
)
from tests.harness.site import Site

RESTLESS = r"""
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#include "rfaas.h"

static void *spin(void *unused) { for (volatile long i = 0;; i++) (void)unused; return NULL; }

/* Starts a thread that never sleeps. */
RFAAS_EXPORT uint32_t start_thread(void *args, uint32_t size, void *res)
{
    pthread_t thread;
    (void)args; (void)size; (void)res;
    return pthread_create(&thread, NULL, spin, NULL) ? 1 : 0;
}

/* Starts a process that never sleeps. */
RFAAS_EXPORT uint32_t start_process(void *args, uint32_t size, void *res)
{
    (void)args; (void)size; (void)res;
    if (!fork())
        spin(NULL);
    return 0;
}

/* Has timers send SIGCONT, ten a second for a while, and a thread that never sleeps. */
RFAAS_EXPORT uint32_t wake_by_timer(void *args, uint32_t size, void *res)
{
    /* One that finds the process stopping is lost, and with it all its repetitions. */
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT};
    for (int i = 1; i <= 100; i++) {
        const struct itimerspec once = {{0, 0}, {i / 10, i % 10 * 100000000}};
        timer_t timer;
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &once, NULL))
            return 1;
    }
    return start_thread(args, size, res);
}
"""

over_shm = pytest.mark.skipif(
    os.environ.get("RFAAS_LANE_TRANSPORT") == "verbs",
    reason="over RDMA, only a worker behind an endpoint is kept",
)


@pytest.fixture
def kept(site: Site) -> Site:
    """An executor of two cores that keeps workers."""
    site.set(
        executor__keep_warm_s=600.0,
        client__executor=site.address("executor"),
        lease__isolation="sandbox",
    )
    return site


@pytest.fixture(scope="session")
def restless(libraries: Path) -> Path:
    return build_text(libraries, "restless", RESTLESS, "-lpthread", "-lrt")


def start(site: Site) -> int:
    return site.start("executor", "--resource-manager", "none").pid


def count(lease: Lease) -> int:
    return int.from_bytes(lease.call("count", b""), "little")


def kept_by(session: Session) -> object:
    return session.status().facts["workers kept"]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ended(executor: int) -> Callable[[], bool]:
    return lambda: not workers_of(executor)


@pytest.mark.parametrize(
    "isolation",
    [pytest.param("none", marks=over_shm), pytest.param("process", marks=over_shm), "sandbox"],
)
def test_the_next_lease_has_the_worker_and_its_state(
    kept: Site, counter: Path, isolation: str
) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=counter, isolation=isolation) as lease:
            assert [count(lease) for _ in range(3)] == [1, 2, 3]
            assert not lease.was_kept
            first, before = lease.id, workers_of(executor)
        assert kept_by(session) == 1
        assert workers_of(executor) == before
        assert "T" in {state(pid) for pid in before}
        for number in (4, 5):
            with session.lease(library=counter, isolation=isolation) as lease:
                assert lease.was_kept
                assert workers_of(executor) == before
                assert lease.id != first
                assert kept_by(session) == 0
                assert count(lease) == number  # what the library remembers
                assert session.status().facts["calls of live leases"] == 1
                assert set(lease.steps_ns) >= {"worker.start_lanes"}
                assert "worker.load" not in lease.steps_ns
            assert kept_by(session) == 1


def test_it_is_off_unless_the_node_says_so(site: Site, counter: Path) -> None:
    site.set(client__executor=site.address("executor"))
    executor = start(site)
    with site.session() as session:
        with session.lease(library=counter) as lease:
            assert count(lease) == 1
        assert workers_of(executor) == []
        with session.lease(library=counter) as lease:
            assert count(lease) == 1


def test_a_client_can_do_without(kept: Site, counter: Path) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=counter) as lease:
            assert count(lease) == 1
        with session.lease(library=counter, keep_warm=False) as lease:
            assert not lease.was_kept
            assert count(lease) == 1
            mine = set(workers_of(executor))
        assert kept_by(session) == 1  # of the first; that of the second is gone
        assert set(workers_of(executor)) < mine


def test_another_shape_is_another_worker(kept: Site, counter: Path) -> None:
    start(kept)
    with kept.session() as session:
        with session.lease(library=counter):
            pass
        for other in (
            {"cores": 2},
            {"memory": "65MiB"},
            {"slots": 2},
            {"slot_bytes": 4096},
            {"isolation": "process"},
        ):
            with session.lease(library=counter, **other) as lease:
                assert not lease.was_kept


def test_it_goes_at_once_when_its_core_is_needed(kept: Site, counter: Path, shipped: Path) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(cores=2, library=counter) as lease:
            assert count(lease) == 1
        before = workers_of(executor)
        with session.lease(library=shipped) as lease:  # one core: that worker would take both
            assert lease.call("echo", b"x") == b"x"
            until(lambda: not any(map(is_alive, before)), "the kept worker is gone")
            assert kept_by(session) == 0
        with session.lease(library=counter) as lease:  # and now there is room for both
            assert count(lease) == 1
            assert kept_by(session) == 1


def test_it_goes_when_its_memory_is_needed(kept: Site, counter: Path, shipped: Path) -> None:
    kept.set(executor__memory="200MiB", executor__keep_warm_s=600.0)
    start(kept)
    with kept.session() as session:
        with session.lease(library=counter, memory="150MiB"):
            pass
        assert kept_by(session) == 1
        with session.lease(library=shipped, memory="50MiB", keep_warm=False):
            assert kept_by(session) == 1
        with session.lease(library=shipped, memory="51MiB", keep_warm=False):
            until(lambda: kept_by(session) == 0, "what was kept is gone")


def test_so_many_are_kept(kept: Site, counter: Path, shipped: Path) -> None:
    kept.set(executor__keep_warm_s=600.0, executor__keep_warm_max=1)
    start(kept)
    with kept.session() as session:
        for library in (counter, shipped, counter):
            with session.lease(library=library) as lease:
                assert not lease.was_kept
            until(lambda: kept_by(session) == 1, "the latest alone is kept")


def test_it_goes_when_its_time_is_up(kept: Site, counter: Path) -> None:
    kept.set(executor__keep_warm_s=0.05)
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=counter) as lease:
            assert count(lease) == 1
        until(ended(executor), "what was kept has ended")
        assert kept_by(session) == 0


def test_kill_9_of_its_client_keeps_nothing(kept: Site, counter: Path) -> None:
    executor = start(kept)
    client = kept.client(
        """
session = rfaas.connect()
lease = session.lease(library=sys.argv[1])
say(len(lease.call("count", b"")))
sys.stdin.read()
""",
        counter,
    )
    assert client.lines.next() == "8"
    client.signal(signal.SIGKILL)
    client.wait()
    until(ended(executor), "its worker has ended")


def test_kill_9_of_the_executor_leaves_none(kept: Site, counter: Path) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=counter):
            pass
        (workers) = workers_of(executor)
        assert workers
        assert kept_by(session) == 1
    kept.kill(kept.children[0])
    wait_for_end(*workers)


def test_kill_9_of_what_is_kept_costs_nobody(kept: Site, counter: Path) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=counter) as lease:
            assert count(lease) == 1
        for pid in workers_of(executor):
            os.kill(pid, signal.SIGKILL)
        with session.lease(library=counter) as lease:
            assert not lease.was_kept
            assert count(lease) == 1


@pytest.mark.parametrize("isolation", [pytest.param("process", marks=over_shm), "sandbox"])
def test_threads_of_a_library_are_stopped(kept: Site, restless: Path, isolation: str) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=restless, isolation=isolation) as lease:
            lease.call("start_thread", b"")
        assert kept_by(session) == 1
        (worker,) = [pid for pid in workers_of(executor) if state(pid) == "T"]
        threads = list(Path(f"/proc/{worker}/task").iterdir())
        assert len(threads) >= 2
        assert {(one / "stat").read_text().rpartition(")")[2].split()[0] for one in threads} == {
            "T"
        }
        with session.lease(library=restless, isolation=isolation) as lease:
            assert lease.was_kept


@pytest.mark.parametrize("isolation", [pytest.param("process", marks=over_shm), "sandbox"])
def test_what_has_started_processes_is_not_kept(kept: Site, restless: Path, isolation: str) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=restless, isolation=isolation) as lease:
            lease.call("start_process", b"")
        assert kept_by(session) == 0
        until(ended(executor), "worker and child are gone")


def test_what_wakes_itself_is_ended(kept: Site, restless: Path) -> None:
    executor = start(kept)
    with kept.session() as session:
        with session.lease(library=restless) as lease:
            lease.call("wake_by_timer", b"")
        until(ended(executor), "it is ended")
        assert kept_by(session) == 0


def test_what_still_calls_is_not_kept(kept: Site, held: Path, gate: Callable[[], Gate]) -> None:
    executor, its_gate = start(kept), gate()
    with kept.session() as session:
        with session.lease(library=held, isolation="process") as lease:
            call = lease.submit("hold", its_gate.data)
            its_gate.begun()
        assert kept_by(session) == 0
        assert workers_of(executor) == []
        with pytest.raises(RfaasError):
            call.result()


def test_many_who_come_and_go(kept: Site, counter: Path, shipped: Path) -> None:
    """Each gets what it asked for, whatever was kept by then; nothing is left in the end."""
    executor = start(kept)
    failed: list[RfaasError] = []

    def come_and_go(session: Session, number: int) -> None:
        for turn in range(12):
            library, name = ((counter, "count"), (shipped, "echo"))[(number + turn) % 2]
            try:
                with session.lease(library=library, wait_s=PATIENCE_S) as lease:
                    assert len(lease.call(name, b"12345678")) == 8
            except RfaasError as error:
                failed.append(error)

    with kept.session() as session:
        threads = [
            threading.Thread(target=come_and_go, args=(session, number)) for number in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        until(lambda: kept_by(session) in (1, 2), "there is room for two")
        until(
            lambda: (
                len([1 for pid in workers_of(executor) if state(pid) == "T"]) == kept_by(session)
            ),
            "and the others are gone",
        )
