"""The hostile suite (tests/e2e/test_hostile.py) in bubblewrap and in containers.

Two of its tests are stricter than a container can be: it has a /proc of its own processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.client import Lease
from tests.containers.conftest import equip
from tests.e2e.conftest import counter
from tests.e2e.test_hostile import (
    assert_refused,
    attacks,
    lease,
    test_an_honest_function_has_what_it_needs,
    test_crash,
    test_daemon,
    test_daemon_outlives_no_worker,
    test_descriptor_flood,
    test_disk_fill,
    test_endless,
    test_endless_loop,
    test_fleeing_its_processor,
    test_forging_its_counts,
    test_fork_bomb,
    test_kill,
    test_memory_hog,
    test_nothing_outlives_the_zygote,
    test_output_is_kept_to_its_end,
    test_quotas_of_its_user,
    test_refused,
    test_resizing_the_shared_memory,
    test_thread_bomb,
    test_writing_past_the_shared_memory,
)
from tests.harness.hostile import SECRET, Node, made
from tests.harness.site import Site

__all__ = [
    "attacks",
    "counter",
    "lease",
    "test_an_honest_function_has_what_it_needs",
    "test_crash",
    "test_daemon",
    "test_daemon_outlives_no_worker",
    "test_descriptor_flood",
    "test_disk_fill",
    "test_endless",
    "test_endless_loop",
    "test_fleeing_its_processor",
    "test_forging_its_counts",
    "test_fork_bomb",
    "test_kill",
    "test_memory_hog",
    "test_nothing_outlives_the_zygote",
    "test_output_is_kept_to_its_end",
    "test_quotas_of_its_user",
    "test_refused",
    "test_resizing_the_shared_memory",
    "test_thread_bomb",
    "test_writing_past_the_shared_memory",
]
NODES = ("/etc/shadow", "/dev/mem", "file")  # of what a container must not show
OWN = (  # what it may: its image, its processes
    *("/etc/passwd", "/root", "/home", "/sys/class/net"),
    *("/proc/self/environ", "/proc/self/cmdline", "/proc/self/maps", "/proc/1/environ"),
)


@pytest.fixture(params=("bubblewrap", "runc", "crun", "podman"))
def node(request: pytest.FixtureRequest, site: Site, counter: Path) -> Iterator[Node]:
    """A node that grants the level."""
    equip(request, site, request.param)
    level = "bubblewrap" if request.param == "bubblewrap" else "container"
    yield from made(site, level, counter)


def test_secrets(node: Node, lease: Lease, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    shifted = "".join(chr(ord(character) + 1) for character in SECRET)
    lines = bytes(lease.call("read_secrets", f"{tmp_path}/file\n{shifted}".encode())).decode()
    found = [line.rsplit(": ", 1) for line in lines.splitlines()]
    counts = [pair for pair in found if pair[0] in ("found", "descriptors", "variables")]
    assert_refused(dict(pair for pair in found if pair[0] in NODES))
    opened = [what for what, answer in found if answer == "done"]  # and not closed
    assert set(opened) <= set(OWN)
    assert counts == [["descriptors", str(len(opened))], ["variables", "0"], ["found", "0"]]
