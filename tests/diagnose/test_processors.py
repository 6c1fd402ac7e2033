"""What is read of a machine's processors, from a tree as the kernel shows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rfaas.core.topology import UNKNOWN, Facts
from rfaas.diagnose import processors
from rfaas.diagnose.processors import find


class Sysfs:
    """Files as in /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def cpu(self, cpu: int, siblings: str = "", core: str = "", package: str = "0") -> None:
        folder = f"devices/system/cpu/cpu{cpu}/topology"
        if siblings:
            self.write(f"{folder}/thread_siblings_list", siblings)
        if core:
            self.write(f"{folder}/core_id", core)
            self.write(f"{folder}/physical_package_id", package)

    def node(self, node: int, cpus: str) -> None:
        self.write(f"devices/system/node/node{node}/cpulist", cpus)

    def device(
        self, name: str, node: str, state: str = "4: ACTIVE", kind: str = "infiniband"
    ) -> None:
        self.write(f"class/{kind}/{name}/device/numa_node", node)
        if kind == "infiniband":
            self.write(f"class/{kind}/{name}/ports/1/state", state)

    def find(self, cpus: set[int], nic: str | None = "") -> Facts:
        return find(cpus, nic, str(self.root))


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    """An empty one: a container."""
    return Sysfs(tmp_path)


@pytest.fixture
def two_nodes(sysfs: Sysfs) -> Sysfs:
    """Two sockets of two cores of two threads; nothing is attached to them."""
    for cpu in range(8):
        sysfs.cpu(
            cpu, siblings=f"{cpu % 4},{cpu % 4 + 4}", core=str(cpu % 2), package=str(cpu % 4 // 2)
        )
    sysfs.node(0, "0-1,4-5")
    sysfs.node(1, "2-3,6-7")
    sysfs.node(2, "")  # memory alone
    sysfs.write("devices/system/node/online", "0-2")
    return sysfs


def test_siblings_and_nodes(two_nodes: Sysfs) -> None:
    found = two_nodes.find(set(range(8)))
    assert found == Facts(
        {cpu: cpu % 4 for cpu in range(8)}, {cpu: cpu % 4 // 2 for cpu in range(8)}, None
    )


def test_only_those_that_one_may_use(two_nodes: Sysfs) -> None:
    assert two_nodes.find({4, 6}) == Facts({4: 4, 6: 6}, {4: 0, 6: 1}, None)
    assert two_nodes.find({0, 4, 6}).cores == {0: 0, 4: 0, 6: 6}


def test_siblings_in_a_range(sysfs: Sysfs) -> None:
    for cpu in range(4):
        sysfs.cpu(cpu, siblings="0-1" if cpu < 2 else "2-3")
    assert sysfs.find({0, 1, 2, 3}).cores == {0: 0, 1: 0, 2: 2, 3: 2}


def test_core_and_package_where_siblings_are_not_shown(sysfs: Sysfs) -> None:
    for cpu, (core, package) in enumerate([("0", "0"), ("0", "1"), ("0", "0"), ("-1", "0")]):
        sysfs.cpu(cpu, core=core, package=package)
    assert sysfs.find({0, 1, 2, 3}).cores == {0: 0, 1: 1, 2: 0}


@pytest.mark.parametrize("text", ["", "0-", "a", "0,,1", "0-1:2/4", "\xff"])
def test_nonsense_is_not_known(sysfs: Sysfs, text: str) -> None:
    sysfs.cpu(0, siblings=text or " ")
    sysfs.node(0, text)
    sysfs.node(1, "1")
    sysfs.device("mlx5_0", text)
    assert sysfs.find({0, 1}) == Facts({}, {1: 1}, None)


def test_a_container_that_shows_nothing(sysfs: Sysfs) -> None:
    assert sysfs.find({0, 1}) == UNKNOWN
    assert sysfs.find({0, 1}, "mlx5_0") == UNKNOWN


def test_one_processor_is_not_asked_about(two_nodes: Sysfs) -> None:
    assert two_nodes.find({0}) is UNKNOWN


class TestNic:
    def test_the_configured_one(self, two_nodes: Sysfs) -> None:
        two_nodes.device("mlx5_0", "0")
        two_nodes.device("mlx5_1", "1", "1: DOWN")
        assert two_nodes.find({0, 2}, "mlx5_1").nic == 1
        assert two_nodes.find({0, 2}, "mlx5_7").nic is None

    def test_by_its_netdev(self, two_nodes: Sysfs) -> None:
        two_nodes.device("ib0", "1", kind="net")
        assert two_nodes.find({0, 2}, "ib0").nic == 1

    def test_the_first_that_is_up(self, two_nodes: Sysfs) -> None:
        assert two_nodes.find({0, 2}).nic is None
        two_nodes.device("mlx5_0", "0", "1: DOWN")
        two_nodes.device("mlx5_1", "1")
        two_nodes.device("mlx5_2", "0")
        assert two_nodes.find({0, 2}).nic == 1

    @pytest.mark.parametrize("node", ["-1", ""])
    def test_on_no_node(self, two_nodes: Sysfs, node: str) -> None:
        two_nodes.device("rxe0", node)
        assert two_nodes.find({0, 2}).nic is None

    def test_where_it_does_not_matter(self, two_nodes: Sysfs) -> None:
        two_nodes.device("mlx5_0", "1")
        assert two_nodes.find({0, 2}, None).nic is None
        assert two_nodes.find({0, 1}).nic is None  # both are on one node


def test_this_machine() -> None:
    cpus = os.sched_getaffinity(0)
    found = processors.find(cpus)
    assert set(found.cores) <= cpus
    assert set(found.nodes) <= cpus
    assert all(found.cores[core] == core for core in found.cores.values())
