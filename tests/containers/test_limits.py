"""Control groups hold a small engine, too, which so makes nobody wait; it is not the lease's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.containers.conftest import BASE, Node, name_of
from tests.functions.build import build_library

LIMITING = ("", "memory", "pids", "cpuset")
pytestmark = pytest.mark.parametrize("made", BASE, indirect=True)


@pytest.mark.parametrize("processes", [1, 8])
def test_threads(made: Node, libraries: Path, processes: int) -> None:
    """As many as `sandbox.processes`, and no more: also where an engine is in the same group."""
    attacks = build_library(libraries, "attacks")
    made.site.set(sandbox__processes=processes)
    made.start()
    with made.session() as session, session.lease(library=attacks) as lease:
        if "cgroup" in lease.lacks:
            pytest.skip("no control group can be written here")
        lines = bytes(lease.call("thread_bomb", b"")).decode().splitlines()
        found = dict(line.rsplit(": ", 1) for line in lines)
        assert (found["pthread_create"], found["started"]) == ("EAGAIN", str(processes))


def test_who_is_in_the_groups(node: Node, hostile: Path) -> None:
    """All but the keeper where the engine enters by itself: nobody had to be moved."""
    with node.session() as session, session.lease(library=hostile) as lease:
        if "cgroup" in lease.lacks:
            pytest.skip("no control group can be written here")
        outside = {name_of(pid) for pid in node.processes() if not is_limited(pid)}
    assert "rfaas-keeper" in outside
    assert "rfaas-worker" not in outside
    if node.engine in ("bubblewrap", "crun"):
        assert outside == {"rfaas-keeper"}


def is_limited(pid: int) -> bool:
    """Whether it is in groups of ours, in all hierarchies that have limits."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    paths = [path for _, key, path in (x.split(":", 2) for x in lines) if key in LIMITING]
    return all(re.search(r"/rfaas-\d+-", path) for path in paths)
