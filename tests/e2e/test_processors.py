"""Where the threads of workers may run, as the kernel tells it: lanes, and all beside them.

That a stranger's function cannot change it is in test_hostile.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rfaas.client import Lease
from tests.e2e.test_hostile import answers, attacks
from tests.e2e.test_levels import needs_unshare, waiting_workers
from tests.harness.processes import Child, until, workers_of
from tests.harness.site import Site

__all__ = ["attacks"]
SYSFS = "/sys/devices/system/cpu"
LEVELS = ("none", "process", "sandbox")

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="lanes are pinned apart on two processors or more"
)


@pytest.fixture
def executor(site: Site) -> Child:
    """A node of two cores."""
    return site.start("executor", "--resource-manager", "none")


def allowed(pid: int) -> dict[int, set[int]]:
    """Of each thread of a process, where it may run."""
    found = {}
    for task in map(int, os.listdir(f"/proc/{pid}/task")):
        text = Path(f"/proc/{pid}/task/{task}/status").read_text()
        (line,) = (line for line in text.splitlines() if line.startswith("Cpus_allowed_list:"))
        found[task] = cpus_of(line.partition(":")[2])
    return found


def cpus_of(text: str) -> set[int]:
    """0-3,8 -> {0, 1, 2, 3, 8}"""
    ranges = (part.split("-") for part in text.split(","))
    return {cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)}


def check(lease: Lease, pid: int) -> None:
    """Each lane has exactly its processor, and nothing leaves the lease's, as far as promised."""
    threads = allowed(pid)
    main = threads.pop(pid)
    assert sorted(threads.values(), key=min) == [{cpu} for cpu in sorted(lease.cpus)]
    assert len(set(lease.cpus)) == len(lease.cpus)
    if lease.isolation == "none" or "cgroup" in lease.lacks:
        assert main == os.sched_getaffinity(0)
    else:
        assert main <= set(lease.cpus)


@pytest.mark.parametrize("level", LEVELS)
def test_each_lane_has_its_processor(
    site: Site, executor: Child, counter: Path, level: str
) -> None:
    with site.session(client__executor=site.address("executor")) as session:
        with session.lease(cores=2, library=counter, isolation=level) as lease:
            (worker,) = workers_of(executor.pid)
            check(lease, worker)
        with (
            session.lease(library=counter, isolation=level) as one,
            session.lease(library=counter, isolation=level) as other,
        ):
            assert not set(one.cpus) & set(other.cpus)
            first, second = sorted(workers_of(executor.pid))
            check(one, first)
            check(other, second)


@pytest.mark.parametrize("level", LEVELS)
def test_so_has_a_worker_that_waited(site: Site, counter: Path, level: str) -> None:
    """It was born before anybody knew whose processors it would have."""
    site.set(sandbox__pool=1, sandbox__levels=level, lease__isolation=level)
    executor = site.start("executor", "--resource-manager", "none")
    with site.session(client__executor=site.address("executor")) as session:
        session.lease(library=counter).close()  # from now on the level is wanted
        (waits,) = until(lambda: waiting_workers(executor.pid), "a worker that waits")
        with session.lease(cores=2, library=counter) as lease:
            check(lease, waits)
        (waits,) = until(lambda: waiting_workers(executor.pid) - {waits}, "another one")
        with session.lease(library=counter) as lease:
            check(lease, waits)


@pytest.mark.parametrize("level", LEVELS)
def test_so_has_a_worker_that_was_kept(site: Site, counter: Path, level: str) -> None:
    """Its next lease has another processor."""
    site.set(executor__keep_warm_s=60, lease__isolation=level)
    executor = site.start("executor", "--resource-manager", "none")
    with site.session(client__executor=site.address("executor")) as session:
        with session.lease(library=counter) as lease:
            before = lease.cpus
            (worker,) = workers_of(executor.pid)
        with session.lease(library=counter, memory="32MiB", keep_warm=False) as in_between:
            assert in_between.cpus == before
            with session.lease(library=counter) as lease:
                assert lease.was_kept
                assert lease.cpus != before
                check(lease, worker)


def test_at_none_a_function_goes_where_it_likes(site: Site, executor: Child, attacks: Path) -> None:
    """So what holds it at the other levels is not that it does not try."""
    with (
        site.session(client__executor=site.address("executor")) as session,
        session.lease(library=attacks, isolation="none") as lease,
    ):
        found = answers(lease, "flee_processor", str(lease.cpus[0]))
        assert "0" not in (found["itself"], found["thread"], found["child"])


@needs_unshare
def test_physical_cores_are_told(site: Site, counter: Path, tmp_path: Path) -> None:
    """On a machine that says of its processors that they are threads of one core."""
    cpus = os.sched_getaffinity(0)
    for cpu in cpus:
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(",".join(map(str, sorted(cpus))) + "\n")
    shown = f'mount --bind "$0" {SYSFS} && exec "$@"'
    within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", shown, str(tmp_path))
    executor = site.start_unready("executor", "--resource-manager", "none", prefix=within)
    assert "ready" in (executor.lines.next() or "")
    with site.session(client__executor=site.address("executor")) as session:
        assert str(session.status().facts["processors"]).startswith("2 on 1 physical core")
        assert "lends processors: 2 on 1 physical core" in executor.stderr
        with session.lease(cores=2, library=counter, isolation="process") as lease:
            assert len(set(lease.cpus)) == 2
