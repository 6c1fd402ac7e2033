"""Control groups of version 2 alone, as on a machine of today; in a guest where this is none.

packaging/softroce/run -- .venv/bin/python -I -m pytest tests/e2e/test_cgroup2.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.client import Lease
from rfaas.errors import DeadlineExceededError, WorkerCrashedError
from tests.e2e.test_hostile import attacks
from tests.harness.hostile import Node, made
from tests.harness.processes import parent_of, until, workers_of
from tests.harness.site import Site

__all__ = ["attacks"]
ROOT = Path("/sys/fs/cgroup")
NEEDED = {"memory", "pids", "cpuset"}
MEMORY_BYTES = 64 << 20


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group for the executor alone, as a unit with Delegate=yes has one."""
    try:
        there = set((ROOT / "cgroup.controllers").read_text().split())
    except OSError:
        there = set()
    if missing := NEEDED - there:
        pytest.skip(f"control groups of version 2 have no {', '.join(sorted(missing))} here")
    if os.geteuid():
        pytest.skip("only root makes a group to delegate")
    (ROOT / "cgroup.subtree_control").write_text(" ".join(f"+{one}" for one in NEEDED))
    group = ROOT / f"test-{os.getpid()}.service"
    group.mkdir()
    yield group
    (group / "rfaas-executor").rmdir()
    group.rmdir()  # nothing else is left in there


@pytest.fixture(params=["process", "sandbox"])
def node(
    delegated: Path, site: Site, counter: Path, request: pytest.FixtureRequest
) -> Iterator[Node]:
    enter = f'echo 0 >{delegated}/cgroup.procs && exec "$@"'
    yield from made(site, request.param, counter, ("sh", "-c", enter, "sh"))


@pytest.fixture
def lease(node: Node, attacks: Path) -> Iterator[Lease]:
    with node.lease(attacks, memory=MEMORY_BYTES) as lease:
        yield lease


def group_of(pid: int) -> Path:
    return ROOT / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def attacker(node: Node) -> int:
    """The worker of the lease that is not the neighbour's."""
    (found,) = set(workers_of(node.pid)) - node.workers
    return found


def test_limits(node: Node, lease: Lease, delegated: Path) -> None:
    assert lease.lacks == ()
    lease.call("be_honest")
    group = group_of(attacker(node))
    its_init = group_of(parent_of(attacker(node)))
    assert its_init == (group if node.level == "sandbox" else group_of(node.zygote))
    assert re.fullmatch(r"rfaas-[\d-]+", group.name)
    assert int((group / "memory.max").read_text()) == MEMORY_BYTES + (64 << 20)
    assert (group / "memory.oom.group").read_text() == "1\n"
    assert (group / "pids.max").read_text() == "67\n"
    assert (group / "cpuset.cpus").read_text().strip().isdecimal()


def test_memory_is_the_sum(node: Node, lease: Lease) -> None:
    words = rf"SIGKILL \(Killed\): its memory limit of {MEMORY_BYTES} bytes is reached$"
    with pytest.raises(WorkerCrashedError, match=words):
        lease.call("memory_hog")


def test_memory_is_that_of_all_processes(lease: Lease) -> None:
    """Each of them is within its own limit; the kernel ends the whole group (memory.oom.group)."""
    with pytest.raises(WorkerCrashedError, match="its memory limit of"):
        lease.call("memory_hogs")


def test_a_daemon_ends_with_its_group(node: Node, lease: Lease) -> None:
    group = group_of(attacker(node))
    lease.call("daemonise")
    assert {group_of(pid) for pid in node.strangers()} == {group}
    assert len(node.strangers()) >= 2
    with pytest.raises(DeadlineExceededError):
        lease.call("ignore_term", timeout=0.2)
    node.wait_until_gone()
    until(lambda: not group.exists(), "the end of its group")


def test_processes_and_the_blow_that_ends_them(node: Node, lease: Lease) -> None:
    group = group_of(attacker(node))
    assert b"fork: EAGAIN" in bytes(lease.call("fork_bomb"))
    assert len((group / "cgroup.procs").read_text().split()) > 32
    with pytest.raises(DeadlineExceededError):
        lease.call("ignore_term", timeout=0.2)
    node.wait_until_gone()
    until(lambda: not group.exists(), "the end of its group")


def test_the_executor_makes_room_for_groups(node: Node, delegated: Path) -> None:
    """Version 2 limits only beneath a group without processes; those in it are its own."""
    (worker,) = node.workers
    assert group_of(worker).parent == delegated
    assert group_of(node.pid) == group_of(node.zygote) == delegated / "rfaas-executor"
