"""What every test gets: a fixed seed, and a check that it leaves nothing behind.

Left behind means: a process (grandchildren count: their parents' end hands them to
us), a thread, a descriptor, a file in /dev/shm.  What a test ends without waiting
for gets `--leak-wait-s` to go; what is there after that fails the test by name,
and processes are killed, so that one leak fails one test.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import hypothesis
import pytest

from tests.harness import rdma

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
WALL = 0x40000000  # __WALL, linux/wait.h: children of every kind
POLL_S = 0.005
GENERATIONS_MAX = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's own options."""
    group = parser.getgroup("rfaas")
    group.addoption("--seed", type=int, default=1, help="seed of the tests' own random sources (1)")
    group.addoption(
        "--leak-wait-s", type=float, default=2.0, help="patience with what a test leaves (2)"
    )
    group.addoption(
        "--rdma-device",
        action="append",
        default=[],
        metavar="NAME",
        help="run the RDMA tests over this device, or between two of them",
    )
    group.addoption(
        "--require-rdma", action="store_true", help="fail where RDMA is missing, do not skip"
    )
    group.addoption(
        "--require-engines",
        action="store_true",
        help="fail where bwrap, an engine or the registry is missing, do not skip",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Adopt orphans; make hypothesis repeatable."""
    # It is ignored in the background jobs of a script, and would be in whatever we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    # derandomize: the examples follow from the test itself.  `--hypothesis-profile=explore`
    # tries new ones, and prints what repeats a failure.
    hypothesis.settings.register_profile(
        "rfaas", derandomize=True, database=None, deadline=None, print_blob=True
    )
    hypothesis.settings.register_profile(
        "explore", max_examples=1000, deadline=None, print_blob=True
    )
    if not config.getoption("--hypothesis-profile"):
        hypothesis.settings.load_profile("rfaas")


def pytest_report_header(config: pytest.Config) -> str:
    """What repeats this run."""
    profile = config.getoption("--hypothesis-profile") or "rfaas (derandomized)"
    seed = config.getoption("--hypothesis-seed") or "none"
    return (
        f"repeat with: --seed={config.getoption('--seed')}; "
        f"hypothesis profile {profile}, hypothesis seed {seed}"
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed; printed in the header, set by --seed."""
    value: int = request.config.getoption("--seed")
    return value


@pytest.fixture(scope="session")
def rdma_ends(request: pytest.FixtureRequest) -> tuple[rdma.End, rdma.End]:
    """Two RDMA devices that reach each other, or one twice."""
    return rdma.ends(request.config)


@pytest.fixture(scope="session")
def rdma_hosts(request: pytest.FixtureRequest) -> tuple[rdma.Host, rdma.Host]:
    """Two network namespaces with a device each."""
    return rdma.hosts(request.config)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a process, thread, descriptor or file in /dev/shm behind."""
    before = observe()
    yield
    left = observe().beyond(before)
    if not left:
        return
    gc.collect()  # cycles: what only they hold is closed, with a ResourceWarning
    give_up_at = time.monotonic() + request.config.getoption("--leak-wait-s")
    while (left := observe().beyond(before)) and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
    if left:
        lines = "".join(f"\n  {line}" for line in left.describe())
        for _ in range(GENERATIONS_MAX):  # killed parents hand their children to us
            kill(left.processes)
            left = observe().beyond(before)
        pytest.fail(f"left behind:{lines}", pytrace=False)


class Belongings(NamedTuple):
    """What this process has, each with what tells it from a later one of the same number."""

    processes: frozenset[int]
    threads: frozenset[int]
    descriptors: frozenset[tuple[int, str]]
    shared: frozenset[str]

    def __bool__(self) -> bool:
        return any(self[:])

    def beyond(self, before: Belongings) -> Belongings:
        """What is here and was not before."""
        new = Belongings(
            self.processes - before.processes,
            self.threads - before.threads,
            self.descriptors - before.descriptors,
            self.shared - before.shared,
        )
        return new._replace(
            processes=frozenset(filter(is_running, new.processes)),
            # Other programs on this machine have files there too.
            shared=new.shared - mapped_by_others(new.shared) if new.shared else new.shared,
        )

    def describe(self) -> list[str]:
        """One line for each."""
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        return [
            *(f"process {pid}: {command_of(pid)}" for pid in sorted(self.processes)),
            *(
                f"thread {tid}: {names.get(tid) or read(f'/proc/self/task/{tid}/comm')}"
                for tid in sorted(self.threads)
            ),
            *(f"descriptor {fd}: {target}" for fd, target in sorted(self.descriptors)),
            *(f"shared memory: /dev/shm/{name}" for name in sorted(self.shared)),
        ]


def observe() -> Belongings:
    """Everything that this process has now; about 0.1 ms where it has no children."""
    return Belongings(
        children(),
        frozenset(map(int, os.listdir("/proc/self/task"))),
        frozenset(descriptors()),
        frozenset(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else frozenset(),
    )


def children() -> frozenset[int]:
    """Our children, orphans that came to us among them."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG | WALL)
    except ChildProcessError:
        return frozenset()  # one system call says that there is none
    own = os.getpid()
    return frozenset(
        int(entry) for entry in os.listdir("/proc") if entry.isdigit() and parent_of(entry) == own
    )


def parent_of(pid: str) -> int:
    """The parent of a process, or 0 where it is gone."""
    # The name, in parentheses, may hold anything; state and parent follow, proc_pid_stat(5).
    words = read(f"/proc/{pid}/stat").rpartition(")")[2].split(maxsplit=2)
    return int(words[1]) if words else 0


def is_running(pid: int) -> bool:
    """Whether a child runs still; one that has ended is reaped, for an orphan has no other."""
    try:
        return os.waitpid(pid, os.WNOHANG | WALL)[0] == 0
    except ChildProcessError:
        return False


def kill(pids: frozenset[int]) -> None:
    """Kill and reap children."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, WALL)


def descriptors() -> Iterator[tuple[int, str]]:
    """Our open descriptors with what they stand for."""
    for name in os.listdir("/proc/self/fd"):
        try:
            yield int(name), os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own
            continue


def mapped_by_others(names: frozenset[str]) -> frozenset[str]:
    """Those files of /dev/shm that processes map which are not ours."""
    ours = {str(pid) for pid in children()} | {str(os.getpid())}
    maps = "".join(
        read(f"/proc/{pid}/maps")
        for pid in os.listdir("/proc")
        if pid.isdigit() and pid not in ours
    )
    return frozenset(name for name in names if f"/dev/shm/{name}\n" in maps)


def command_of(pid: int) -> str:
    """A process' command line, or its name where it has none."""
    return read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or read(f"/proc/{pid}/comm")


def read(path: str) -> str:
    """A file of /proc, or nothing where its process is gone."""
    try:
        with open(path, "rb", buffering=0) as file:  # a fifth of what pathlib takes
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
