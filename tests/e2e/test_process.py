"""Level `process`: its limits are those of all that a function starts, and all of it ends at once.

It promises to hold no stranger, but a bomb or a daemon of one lease is nobody else's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.client import Lease
from rfaas.errors import DeadlineExceededError, WorkerCrashedError
from tests.e2e.test_hostile import DEADLINE_S, PROCESSES, answers, attacks
from tests.harness.hostile import Node, groups_left, made
from tests.harness.processes import descendants, until, wait_for_end
from tests.harness.site import Site

__all__ = ["attacks"]
MEMORY_BYTES = 64 << 20


@pytest.fixture
def node(site: Site, counter: Path) -> Iterator[Node]:
    """A node that grants the level, with control groups."""
    for one in made(site, "process", counter):
        if "cgroup" in one.neighbour.lacks:
            pytest.skip("no control group can be written here")
        yield one


@pytest.fixture
def lease(node: Node, attacks: Path) -> Iterator[Lease]:
    """The attacker's."""
    with node.lease(attacks, memory=MEMORY_BYTES) as lease:
        yield lease


def groups_of(node: Node, pid: int) -> dict[str, str]:
    """The names of the groups of ours that a process is in, by their controllers."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    found = (line.split(":", 2)[1:] for line in lines)
    return {key: Path(path).name for key, path in found if node.groups in path}


def test_it_is_in_its_groups_from_the_start(node: Node, lease: Lease) -> None:
    (worker,) = node.strangers()
    groups = groups_of(node, worker)
    assert groups
    assert len(set(groups.values())) == 1
    assert not groups_of(node, node.zygote)
    (neighbour,) = node.workers
    assert set(groups_of(node, neighbour).values()) != set(groups.values())
    answers(lease, "daemonise")
    assert all(groups_of(node, pid) == groups for pid in node.strangers())


def test_groups_go_with_their_worker(node: Node, lease: Lease) -> None:
    answers(lease, "daemonise")
    (name,) = {name for pid in node.strangers() for name in groups_of(node, pid).values()}
    assert groups_left(name)
    lease.close()
    until(lambda: not groups_left(name), "the end of the lease's groups")


def test_memory_of_one_process(lease: Lease) -> None:
    words = rf"SIGKILL \(Killed\): its memory limit of {MEMORY_BYTES} bytes is reached$"
    with pytest.raises(WorkerCrashedError, match=words):
        answers(lease, "memory_hog")


def test_memory_is_the_sum(node: Node, lease: Lease) -> None:
    """Each of them alone is within its own limit.  Version 2 ends all of the group then."""
    (worker,) = node.strangers()
    if "memory" in groups_of(node, worker):
        assert answers(lease, "memory_hogs") == {"killed": "1"}
    else:
        with pytest.raises(WorkerCrashedError, match="its memory limit of"):
            answers(lease, "memory_hogs")


def test_fork_bomb(node: Node, lease: Lease) -> None:
    assert answers(lease, "fork_bomb")["fork"] == "EAGAIN"
    assert 32 < len(node.strangers()) <= PROCESSES + 8
    lease.close()
    node.wait_until_gone()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root: proc_pid_map_files(5)")
def test_resizing_the_shared_memory(lease: Lease) -> None:
    """A function that is root opens it by its mappings; it is sealed, and the client goes on."""
    lines = bytes(lease.call("resize_memory")).decode().splitlines()
    found = answers(lease, "resize_memory")
    assert int(found["opened"]) >= 2  # the ring, and its counts
    tries = [line for line in lines if line.split(":")[0] in ("grow", "allocate", "shrink", "cut")]
    assert len(tries) == 4 * int(found["opened"])
    assert {line.split(": ")[1] for line in tries} == {"EPERM"}
    assert (found["files"], found["mremap"], found["behind"]) == ("0", "done", "SIGBUS")
    assert set(answers(lease, "be_honest").values()) == {"done"}


FILE_BYTES = 1 << 20


@pytest.fixture
def small_files(site: Site, attacks: Path) -> Iterator[Lease]:
    """A lease of a node that allows no file more than FILE_BYTES, with control groups or not."""
    site.set(sandbox__levels="process", sandbox__file_size=FILE_BYTES)
    with site.private_session() as session, session.lease(1, attacks) as lease:
        yield lease


def test_a_file_that_grows_past_its_limit(small_files: Lease, tmp_path: Path) -> None:
    """The last byte can be written, one more cannot; the function hears it, and goes on."""
    file = tmp_path / "file"
    found = answers(small_files, "overgrow_file", f"{file} {FILE_BYTES - 1}")
    assert found == {"open": "done", "last": "done", "past": "EFBIG", "truncate": "EFBIG"}
    assert file.stat().st_size == FILE_BYTES
    assert answers(small_files, "be_honest")["clock"] == "done"


def test_a_function_that_does_not_ignore_it(small_files: Lease, tmp_path: Path) -> None:
    """It is killed by its signal, and its client hears of which limit."""
    words = rf"SIGXFSZ \(File size limit exceeded\): its limit of {FILE_BYTES} bytes of a file is"
    file = tmp_path / "file"
    with pytest.raises(WorkerCrashedError, match=words):
        answers(small_files, "overgrow_file", f"{file} {FILE_BYTES - 1} die")
    assert file.stat().st_size == FILE_BYTES
    assert answers(small_files, "be_honest")["clock"] == "done"


@pytest.mark.parametrize("attack", ["daemonise", "fork_bomb"])
def test_nothing_outlives_a_deadline(node: Node, lease: Lease, attack: str) -> None:
    answers(lease, attack)
    with pytest.raises(DeadlineExceededError):
        lease.call("ignore_term", timeout=DEADLINE_S)
    node.wait_until_gone()


def test_nothing_outlives_the_zygote(node: Node, lease: Lease) -> None:
    """Its worker dies with it; a daemon in a session of its own, with its control group."""
    answers(lease, "daemonise")
    everything = set(descendants(node.pid))
    node.kill_zygote()
    wait_for_end(*everything)
