"""A node for hostile functions, in mount and process namespaces of its own.

Whatever a level fails to hold is then held by those: the machine that runs the tests
is safe.  `HOLDING` are the levels that promise to hold a stranger's code; a new level is
entered there and passes `tests/e2e/test_hostile.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rfaas.client import Lease, Session
from tests.harness.processes import descendants, is_alive, parent_of, until, workers_of
from tests.harness.site import Site

HOLDING = ("sandbox",)
OUTSIDE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
OVER = re.compile(
    r"lease (?P<lease>\w{8}) is over .*: (?P<calls>\d+) calls, "
    r"(?P<executing_s>[\d.]+) s executing, (?P<polling_s>[\d.]+) s polling"
)
SECRET = "kept-from-all-functions-7f3a9c"  # in the executor's environment and arguments


class Node:
    """An executor that grants `level`, a client's session with it, and a neighbour's lease.

    The neighbour calls a function before and after each attack, over one and the same worker.
    """

    def __init__(self, site: Site, level: str, counter: Path, within: Sequence[str] = ()) -> None:
        if shutil.which("unshare") is None:
            pytest.skip("unshare is missing: install util-linux")
        self.level = level
        self.site = site
        site.environ["A_SECRET"] = SECRET
        site.set(sandbox__levels=level, lane__slot_bytes=65536, executor__cores=2)
        outside = [*OUTSIDE, "--mount-proc"]
        if os.geteuid():
            outside += ["--map-root-user"]
        outside += within
        self.executor = site.start_unready("executor", "--resource-manager", "none", prefix=outside)
        self.pid = 0
        self.status = 0  # that the executor is to end with
        line = self.executor.lines.next()
        if line is None:
            status, why = self.executor.wait(), self.executor.stderr
            if "cannot be had on this node" in why:
                pytest.skip(f"level {level}: {why.strip()}")
            pytest.fail(f"the executor ended with status {status}:\n{why}")
        children = [p for p in descendants(self.executor.pid) if parent_of(p) == self.executor.pid]
        (self.pid,) = children
        (self.zygote,) = (p for p in descendants(self.pid) if parent_of(p) == self.pid)
        self.groups = groups_of(self.zygote)
        self.session: Session = site.session(
            client__executor=site.address("executor"), lease__isolation=level
        )
        self._library = counter
        self.neighbour: Lease = self.session.lease(1, counter)
        self.neighbour.call("count")
        self.processes = set(descendants(self.pid))
        self.workers = set(workers_of(self.pid))

    def lease(self, library: Path, **settings: object) -> Lease:
        """The core that is left, for somebody hostile."""
        return self.session.lease(1, library, **settings)  # type: ignore[arg-type]

    def check(self) -> None:
        """Nothing is left of the attack: no process, its core is free, the neighbour is well."""
        before = int.from_bytes(self.neighbour.call("count"), "little")
        assert int.from_bytes(self.neighbour.call("count"), "little") == before + 1 > 2
        self.wait_until_gone()
        assert is_alive(self.pid)
        with self.session.lease(1, self._library) as again:
            again.call("count")

    def strangers(self) -> set[int]:
        """The processes beneath the executor that were not there before the attack."""
        return {pid for pid in descendants(self.pid) if is_alive(pid)} - self.processes

    def wait_until_gone(self) -> None:
        """Return when the attack has no process left."""
        until(lambda: not self.strangers(), "the end of all that the attack started")

    def ended(self, lease: str) -> dict[str, float]:
        """What the executor says that a lease has used, once it is over."""
        return over(self.executor.stderr, lease)

    def kill_zygote(self) -> None:
        """As a crash of it, or the kernel out of memory, would; the executor gives up then."""
        self.status = 70
        os.kill(self.zygote, signal.SIGKILL)

    def close(self) -> None:
        if self.pid:
            self.session.close()
            if self.status == 0:
                os.kill(self.pid, signal.SIGTERM)
            assert self.executor.wait() == self.status, self.executor.stderr
            left = groups_left(self.groups)
            assert left == [], f"control groups left: {left}"


def over(log: str, lease: str) -> dict[str, float]:
    """What an executor's log says that a lease has used; empty where it is not over yet."""
    for match in OVER.finditer(log):
        if match["lease"] == lease[:8]:
            return {key: float(match[key]) for key in ("calls", "executing_s", "polling_s")}
    return {}


def groups_of(zygote: int) -> str:
    """How the names of its groups begin, by its process namespace: sandbox/cgroups.py, name_of."""
    place = Path(f"/proc/{zygote}")
    inside = place.joinpath("status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1]
    started = place.joinpath("stat").read_text().rpartition(")")[2].split()[19]
    return f"rfaas-{place.joinpath('ns/pid').stat().st_ino}-{inside}-{started}-"


def groups_left(part: str) -> list[str]:
    """Control groups that an executor has made and not removed."""
    found = []
    for place, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [
            f"{place}/{name}" for name in folders if name.startswith("rfaas-") and part in name
        ]
    return found


def made(site: Site, level: str, counter: Path, within: Sequence[str] = ()) -> Iterator[Node]:
    """For a fixture: a node, and what it leaves is looked for.

    Args:
        within: what starts the executor in there, as words before its command.
    """
    node = Node(site, level, counter, within)
    try:
        yield node
        if node.status == 0:
            node.check()
    finally:
        node.close()
