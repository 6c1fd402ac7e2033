"""What one lease does never disturbs another, and two that want the same get what there is."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas.errors import CapacityError, DeadlineExceededError, LibraryError, WorkerCrashedError
from tests.functions.build import build_library
from tests.harness.gate import Gate
from tests.harness.processes import until, workers_of
from tests.harness.site import Site

DISTURBANCES = 10
NUMBER = struct.Struct("<Q")


def test_crashes_next_door(site: Site, counter: Path, hostile: Path) -> None:
    """One lease counts its calls without a break while another's worker dies again and again."""
    site.start("all")
    done, counted = threading.Event(), []
    with site.session() as session, session.lease(library=counter) as lease:

        def hammer() -> None:
            wanted = 0
            while not done.is_set():
                for _ in range(100):
                    wanted += 1
                    assert lease.call("count", timeout=20) == NUMBER.pack(wanted)
                counted.append(wanted)

        thread = threading.Thread(target=hammer)
        thread.start()
        try:
            with site.session() as other, other.lease(library=hostile) as neighbour:
                for number in range(DISTURBANCES):
                    crash = ("crash_segv", "crash_abort", "call_exit")[number % 3]
                    with pytest.raises(WorkerCrashedError):
                        neighbour.call(crash)
                    so_far = len(counted)
                    until(lambda: len(counted) > so_far, "calls after the crash")  # noqa: B023
                with pytest.raises(DeadlineExceededError):
                    neighbour.call("loop_forever", timeout=0.05)
        finally:
            done.set()
            thread.join()
        assert bytes(lease.call("count")) == NUMBER.pack(counted[-1] + 1)  # all by one worker


def test_failed_loads_next_door(site: Site, counter: Path, libraries: Path) -> None:
    site.set(executor__load_timeout_s=0.2)
    site.start("all")
    with site.session() as session, session.lease(library=counter) as lease:
        for number, name in enumerate(("ctor_crash", "ctor_hang", "unresolved"), start=1):
            with (
                site.session() as other,
                pytest.raises((WorkerCrashedError, LibraryError)),
            ):
                other.lease(library=build_library(libraries, name))
            assert bytes(lease.call("count")) == NUMBER.pack(number)


def test_two_leases_of_one_session(site: Site, counter: Path, hostile: Path) -> None:
    with (
        site.private_session() as session,
        session.lease(library=counter) as lease,
        session.lease(library=hostile) as neighbour,
    ):
        for number in range(1, DISTURBANCES):
            future = neighbour.submit("crash_segv")
            assert bytes(lease.call("count")) == NUMBER.pack(number)
            assert isinstance(future.exception(), WorkerCrashedError)


def test_crash_of_one_lane_fails_the_other_lane(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    """Lanes of one lease share a process: their calls in flight fail, and say why."""
    with site.private_session() as session, session.lease(cores=2, library=held) as lease:
        gates = [gate(), gate()]
        futures = [lease.submit("hold", one.data) for one in gates]
        workers = {one.begun() for one in gates}
        assert len(workers) == 1
        os.kill(workers.pop(), 9)
        for future in futures:
            assert isinstance(future.exception(), WorkerCrashedError)
        assert bytes(lease.call("copy", b"x")) == b"x"


def test_two_sessions_want_the_same_cores(site: Site, shipped: Path) -> None:
    node = site.start("all")
    with site.session() as first, site.session() as second:
        with first.lease(cores=2, library=shipped) as lease:
            for cores in (1, 2):
                with pytest.raises(CapacityError) as refused:
                    second.lease(cores=cores, library=shipped)
                assert "has 0 of 2 cores" in refused.value.text
                assert refused.value.exit_status == 75
            assert bytes(lease.call("echo", b"winner")) == b"winner"
            assert len(workers_of(node.pid)) == 1
        with second.lease(cores=2, library=shipped) as lease:
            assert bytes(lease.call("echo", b"at last")) == b"at last"


def test_race_for_cores(site: Site, shipped: Path) -> None:
    """Many ask at once: exactly as many win as there are cores."""
    site.start("all")
    sessions = [site.session() for _ in range(8)]
    start, wins, losses = threading.Barrier(8), [], []

    def ask(number: int) -> None:
        start.wait()
        try:
            wins.append(sessions[number].lease(library=shipped))
        except CapacityError as error:
            losses.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(wins), len(losses)) == (2, 6)
    for lease in wins:
        assert bytes(lease.call("echo", b"won")) == b"won"
    for session in sessions:
        session.close()
    with site.session() as session:
        assert [node.cores_free for node in session.nodes()] == [2]


def test_released_cores_are_free_at_once(site: Site, shipped: Path) -> None:
    """`close` returns when the worker is gone: nobody has to try twice."""
    site.start("all")
    with site.session() as session:
        for number in range(20):
            data = NUMBER.pack(number)
            with session.lease(cores=2, library=shipped) as lease:
                assert bytes(lease.call("echo", data)) == data


def test_nothing_of_one_lease_is_seen_by_the_next(site: Site, libraries: Path) -> None:
    """Slots of a new lease hold zeros, not what another's calls have left there."""
    from tests.functions.build import build_text

    peek = build_text(
        libraries,
        "peek",
        '#include "rfaas.h"\n'
        "RFAAS_EXPORT uint32_t peek(void *args, uint32_t size, void *res)\n"
        "{ (void)args; (void)size; (void)res; return 65536; }\n"
        "RFAAS_EXPORT uint32_t copy(void *args, uint32_t size, void *res)\n"
        "{ memcpy(res, args, size); return size; }\n",
    )
    site.start("all")
    with site.session() as session:
        with session.lease(library=peek, slots=2) as lease:
            for _ in range(4):
                lease.call("copy", b"secret!!" * 8192)
            assert b"secret" in bytes(lease.call("peek"))
        with session.lease(library=peek, slots=2) as lease:
            assert bytes(lease.call("peek")) == bytes(65536)
