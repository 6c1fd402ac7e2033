"""A node whose control group may have little of its RDMA device: the kernel's rdma controller.

The one limit of queue pairs and regions that can be had on any device; SoftRoCE has a million.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.rdma import End
from tests.harness.site import Site

pytestmark = pytest.mark.rdma
Ends = tuple[End, End]
ROOT = Path("/sys/fs/cgroup")
OBJECTS_MAX = 64  # of two lanes, an accounting page and what librdmacm has: far fewer


@pytest.fixture
def group() -> Iterator[Path]:
    try:
        there = (ROOT / "cgroup.controllers").read_text().split()
    except OSError:
        there = []
    if "rdma" not in there:
        pytest.skip("no rdma controller: a kernel with CONFIG_CGROUP_RDMA (`make softroce`)")
    if os.geteuid():
        pytest.skip("only root makes a group")
    (ROOT / "cgroup.subtree_control").write_text("+rdma")
    group = ROOT / f"rdma-{os.getpid()}"
    group.mkdir()
    yield group
    group.rmdir()


@pytest.mark.slow
def test_lanes_beyond_what_the_group_may_have(
    group: Path, site: Site, shipped: Path, rdma_ends: Ends
) -> None:
    """Registrations, then queue pairs of one lane, then of the other: each refusal says why."""
    client, server = rdma_ends
    enter = f'echo 0 >{group}/cgroup.procs && exec "$@"'
    flags = ("--resource-manager", "none", "--device", server.device, "--address")
    address = f"unix:{site.path}/limited.sock"
    site.start_unready("executor", *flags, address, prefix=("sh", "-c", enter, "sh")).lines.next()
    window = ("--transport", "verbs", "--slot-bytes", "64KiB", "--device", client.device)
    call = ("call", "--executor", address, *window, "--cores", "2", "--isolation", "none", shipped)
    said = set()
    for objects in range(OBJECTS_MAX):
        (group / "rdma.max").write_text(f"{server.device} hca_object={objects}")
        done = site.run(*call, "echo", __file__)
        if done.returncode == 0:
            break
        text = done.stderr.decode()
        assert "rdma.max" in text, text
        said.add(text)
    print(*said, sep="")
    assert any("could not register the window" in text for text in said)
    assert any("it could not make a queue pair" in text for text in said)
