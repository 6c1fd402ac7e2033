"""Control groups that an engine makes for itself: beneath the executor's own, and removed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.containers.conftest import Node, name_of
from tests.harness.processes import until, wait_for_end

pytestmark = [
    pytest.mark.parametrize("made", ["runc", "crun"], indirect=True),
    pytest.mark.skipif(os.geteuid() != 0, reason="engines make groups as root alone"),
]
ROOT = "/sys/fs/cgroup"


def groups() -> set[str]:
    """All that is called ours; of other zygotes of this machine, those may come and go."""
    found = [f"{place}/{name}" for place, names, _ in os.walk(ROOT) for name in names]
    return {path for path in found if "/rfaas" in path}


def own() -> set[str]:
    """The groups of this process, which the executor is in as well, by where they are mounted."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = {key.removeprefix("name="): path for _, key, path in (x.split(":", 2) for x in lines)}
    points = {key: f"{ROOT}/{key or 'unified'}" for key in paths}
    if set(paths) == {""}:
        points = {"": ROOT}
    return {(points[key] + path).rstrip("/") for key, path in paths.items()}


def of_boxes(found: set[str], names: list[str]) -> set[str]:
    return {path for path in found if any(f"/{name}" in path for name in names)}


def test_nothing_is_left(node: Node, hostile: Path) -> None:
    before = groups()
    with node.session() as session:
        with session.lease(library=hostile) as lease:
            assert lease.call("empty_output") == b""
            names = [box.name for box in node.boxes()]
            its_own = of_boxes(groups(), names)
            assert {os.path.dirname(path) for path in its_own} <= own()
            assert bool(its_own) == (node.engine == "runc")
        until(lambda: not node.processes() and not node.boxes(), "the end of all containers")
    left = groups() - before
    assert of_boxes(left, names) == set()
    assert not [path for path in left if "/rfaas" in path and "/rfaas-" not in path]


def test_nothing_is_left_of_what_was_killed(made: Node, hostile: Path) -> None:
    """Of runc too, before it could remove its groups: the next executor does."""
    executor = made.start()
    with made.session() as session:
        lease = session.lease(library=hostile)
        names = [box.name for box in made.boxes()]
        family = made.processes()
        made.site.killed = True
        for pid in sorted(family, key=lambda pid: name_of(pid) != "rfaas-keeper"):
            if name_of(pid) in ("rfaas-keeper", "rfaas-engine", "runc", "crun"):
                os.kill(pid, signal.SIGKILL)
        made.site.kill(executor)
        lease.close()
    wait_for_end(*family)
    assert bool(of_boxes(groups(), names)) == (made.engine == "runc")
    made.start()
    until(lambda: not made.boxes(), "no folder of a container")
    assert of_boxes(groups(), names) == set()
