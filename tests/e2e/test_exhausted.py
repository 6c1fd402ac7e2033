"""What a system, a node or a slot has no more of: who asks hears which limit and what to do."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from rfaas.client import Lease
from rfaas.errors import CapacityError, SystemCallError, WorkerCrashedError
from rfaas.proto.messages import LeaseGranted, RequestLease
from tests.harness.processes import Child, descendants, until, workers_of
from tests.harness.site import Site

LANES_MAX = 32
DESCRIPTORS_MAX = 64  # an executor with two links and a worker has fewer


def limit(pid: int, kind: int, value: int) -> int:
    """Set the soft limit of another process; returns what it was."""
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, hard))
    return soft


def executor_of(site: Site) -> Child:
    return site.start("executor", "--resource-manager", "none")


@pytest.mark.parametrize(
    ("pool", "shared", "level"),
    [(0, False, "process"), (1, False, "none"), (1, False, "sandbox"), (0, True, "sandbox")],
)
def test_no_descriptors_for_a_worker(
    site: Site, hostile: Path, pool: int, shared: bool, level: str
) -> None:
    """Whatever of its start fails, the client is told at once, and a later call succeeds.

    Nothing is left of what was begun: no worker that had waited for it, no core.
    """
    site.set(executor__workers_crashed_max=1000, sandbox__pool=pool, sandbox__levels=level)
    site.set(lease__isolation=level, executor__oversubscribe=2)
    executor = executor_of(site)
    with (
        site.session(client__executor=site.address("executor")) as session,
        session.lease(library=hostile, shared=shared, keep_warm=False) as lease,
    ):
        with pytest.raises(WorkerCrashedError):
            lease.call("crash_segv")
        refused = []
        for descriptors in range(4, DESCRIPTORS_MAX):
            limit(executor.pid, resource.RLIMIT_NOFILE, descriptors)
            try:
                with pytest.raises(WorkerCrashedError):
                    lease.call("crash_segv")
                break
            except SystemCallError as error:
                refused.append(error.text)
        assert refused
        assert all("Too many open files" in text for text in refused)
        limit(executor.pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        assert lease.call("empty_output") == b""
        until(lambda: len(workers_of(executor.pid)) == 1 + pool, "the end of all other workers")
        lease.close()
        until(lambda: len(workers_of(executor.pid)) == pool, "the end of its worker")
        with session.lease(cores="all", library=hostile) as again:
            assert again.call("empty_output") == b""


def test_no_descriptors_for_a_connection(site: Site, shipped: Path) -> None:
    """It waits until there are some; the log says so once."""
    executor = executor_of(site)
    usual = limit(executor.pid, resource.RLIMIT_NOFILE, 4)
    waiting = site.command(
        "call", "--executor", site.address("executor"), shipped, "echo", __file__
    )
    until(lambda: "cannot accept connections: Too many open files" in executor.stderr, "a warning")
    limit(executor.pid, resource.RLIMIT_NOFILE, usual)
    assert waiting.wait() == 0
    assert executor.stderr.count("cannot accept") == 1


def test_roles_use_the_hard_limit_of_descriptors(site: Site, shipped: Path) -> None:
    """Workers do not: a library may still use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))
    try:
        executor = executor_of(site)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(executor.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    (zygote,) = descendants(executor.pid)
    assert resource.prlimit(zygote, resource.RLIMIT_NOFILE)[0] == min(soft, 1000)


def test_a_client_that_dies_before_it_opens_its_lease(site: Site, shipped: Path) -> None:
    """Its cores are free at once, not when the lease would have expired."""
    executor_of(site)
    address = site.address("executor")
    with site.session(client__executor=address, client__lease_duration_s=3600) as session:
        wanted = RequestLease(
            client="gone", cores=2, memory_bytes=1, duration_s=3600.0, isolation="process"
        )
        with site.session(client__executor=address) as gone:
            gone.ask(wanted, LeaseGranted)
            with pytest.raises(CapacityError):
                session.lease(library=shipped)

        def again() -> Lease | None:
            try:
                return session.lease(library=shipped)
            except CapacityError:
                return None

        lease = until(again, "free cores")
        assert lease is not None
        with lease:
            assert bytes(lease.call("echo", b"x")) == b"x"


def test_a_lease_that_another_link_opened_stays(site: Site, shipped: Path) -> None:
    """The link that asked may end: the one that opened it is what counts."""
    executor_of(site)
    address = site.address("executor")
    with (
        site.session(client__executor=address) as session,
        session.lease(library=shipped) as lease,
    ):
        session.link.close()
        with site.session(client__executor=address) as other:
            other.status()
            with pytest.raises(CapacityError):
                other.lease(cores=2, library=shipped)
        assert bytes(lease.call("echo", b"x")) == b"x"


def test_more_lanes_than_threads_fit_into_the_memory(site: Site, shipped: Path) -> None:
    """The stacks of 64 lanes are more than the lease's memory: they are not part of it."""
    site.set(executor__cores=64)
    with (
        site.private_session() as session,
        session.lease(cores=64, library=shipped, slots=1, memory="1MiB") as lease,
    ):
        assert bytes(lease.call("echo", b"x")) == b"x"


def test_more_slots_than_areas_of_memory(site: Site, shipped: Path) -> None:
    """vm.max_map_count is the system's own limit: the message says what to do about it."""
    areas_max = int(Path("/proc/sys/vm/max_map_count").read_text())
    lanes = areas_max // (4 * 4096) + 1
    if lanes > LANES_MAX:
        pytest.skip(f"vm.max_map_count is {areas_max}: no lease of {LANES_MAX} lanes reaches it")
    site.set(executor__cores=lanes)
    with site.private_session() as session:
        with pytest.raises(SystemCallError, match="cannot open a ring") as refused:
            session.lease(cores=lanes, library=shipped, slots=4096, slot_bytes=4096)
        assert f"{lanes} lanes of 4096 slots take {lanes * 16384} areas" in refused.value.hint
        assert "vm.max_map_count" in refused.value.hint


def test_an_input_that_no_slot_holds(site: Site, shipped: Path) -> None:
    """Refused by name and bound before it is read."""
    big = site.path / "big"
    with big.open("wb") as file:
        file.truncate(2**31 + 1)
    done = site.run("call", shipped, "echo", big)
    assert done.returncode == 65
    assert done.stderr.decode() == (
        f"rfaas: the input {big} is too large (2147483649 bytes or more), "
        "at most 2147483648 (2 GiB) are allowed\n"
    )


def test_an_output_that_the_slot_does_not_hold(site: Site, hostile: Path) -> None:
    """On the command line the hint names a flag."""
    size = (5000).to_bytes(4, "little")
    done = site.run("call", "--slot-bytes", "4096", hostile, "report_too_much", "-", stdin=size)
    assert done.returncode == 70
    assert "hint: call with --slot-bytes 5000 or more" in done.stderr.decode()
