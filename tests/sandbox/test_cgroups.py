"""Control groups as a worker meets them: born or entering, killed at one blow or one by one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.errors import SystemCallError
from rfaas.native import _jail
from rfaas.proto.worker_messages import Limits, Places
from rfaas.sandbox import cgroups
from rfaas.sandbox.cgroups import Group, Groups
from tests.harness.processes import until

LIMITS = Limits(lanes=1, memory_bytes=64 << 20, processes=8)


@pytest.fixture
def groups() -> Groups:
    made = Groups()
    if not made.places.folders:
        pytest.skip(f"no control group can be written here: {made.why}")
    return made


@pytest.fixture
def group(groups: Groups) -> Iterator[Group]:
    made = groups.limited(LIMITS, ())
    assert made is not None
    yield made
    made.kill()
    until(made.remove, "an empty group")


def member(group: Group) -> int:
    """A process in it that forks one more, ignores what can be, and stays; its number."""
    told, tell = os.pipe()
    pid, born = group.fork()
    if not pid:
        try:
            group.enter(born=born)
            os.setsid()
            os.fork()
            os.write(tell, b"x")
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(told, 1) == b"x"
    assert os.read(told, 1) == b"x"
    os.close(told)
    return pid


def names_of(pid: int) -> set[str]:
    """Of the groups of ours that it is in: one, the same in each hierarchy."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {Path(line.split(":", 2)[2]).name for line in lines if "/rfaas-" in line}


def only(groups: Groups, *keys: str) -> Places:
    version, folders = groups.places.version, groups.places.folders
    return Places({key: version[key] for key in keys}, {key: folders[key] for key in keys})


def killed(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_one_blow(group: Group) -> None:
    pid = member(group)
    (path,) = names_of(pid)
    assert path.endswith("-1")
    group.kill()
    assert killed(pid)


def test_one_by_one_where_there_is_no_kill(groups: Groups) -> None:
    """As on a machine with version 1 alone."""
    if groups.places.version.get("pids") != 1:
        pytest.skip("control groups of version 1 are not there")
    group = Group(only(groups, "pids", "memory"), groups._name + "7")
    group.make()
    try:
        pid = member(group)
        assert not group.remove()
        group.kill()
        assert killed(pid)
    finally:
        until(group.remove, "an empty group")


def test_a_group_that_is_left_is_removed_later(groups: Groups) -> None:
    group = groups.make()
    assert group is not None
    pid = member(group)
    groups.remove(group)
    assert names_of(pid)
    group.kill()
    assert killed(pid)

    def gone() -> bool:
        groups.clear()
        return not groups._leaving

    until(gone, "the end of its group")


def test_a_process_that_is_not_born_there_enters(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Linux 5.7, or with another libc than glibc."""

    def refuse(_: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(_jail, "fork_into", refuse)
    pid = member(group)
    assert len(names_of(pid)) == 1
    group.kill()
    assert killed(pid)


def test_a_fork_into_nothing() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        _jail.fork_into(-1)


def test_limits_that_cannot_be_set(groups: Groups) -> None:
    if "cpuset" not in groups.places.folders:
        pytest.skip("no cpuset can be written here")
    with pytest.raises(SystemCallError, match="cannot limit a worker: "):
        groups.limited(LIMITS, (100_000,))


@pytest.fixture
def alone(groups: Groups) -> Iterator[Groups]:
    """In a folder of their own, so that nobody else's are swept."""
    if "pids" not in groups.places.folders:
        pytest.skip("no control group of pids can be written here")
    folder = f"{groups.places.folders['pids']}/rfaas-test-{os.getpid()}"
    os.mkdir(folder)
    before = groups.places
    groups.places = Places({"pids": before.version["pids"]}, {"pids": folder})
    yield groups
    groups.close()
    groups.places = before
    os.rmdir(folder)


def made_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def test_what_a_dead_zygote_left_is_swept(alone: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a live one has ready is not."""
    monkeypatch.setattr(cgroups, "STALE_S", -1.0)
    alone.make_ready()
    folder = Path(alone.places.folders["pids"])
    (ready,) = made_in(folder)
    namespace, zygote, started = ready.name.split("-")[1:4]
    for name in (f"{namespace}-{zygote}-{int(started) + 1}-1", f"{namespace}-{2**22 + 1}-1-1"):
        (folder / f"rfaas-{name}").mkdir()
    cgroups.sweep(alone.places)
    assert made_in(folder) == [ready]


def test_a_group_that_was_ready_and_is_gone(alone: Groups) -> None:
    """As where somebody swept it who does not see our processes."""
    alone.make_ready()
    (ready,) = made_in(Path(alone.places.folders["pids"]))
    ready.rmdir()
    group = alone.make()
    assert group is not None
    group.limit(LIMITS, ())
    pid = member(group)
    group.kill()
    assert killed(pid)
    until(group.remove, "an empty group")
