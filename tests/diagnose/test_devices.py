"""Discovery from recorded trees of /sys/class; netlink of this machine; measuring."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rfaas.diagnose import devices, netlink, pyverbs_import
from rfaas.diagnose.facts import read_cgroup

# As /sys/class/infiniband shows them: an InfiniBand card with IPoIB, and one that is down.
CARD = {
    "infiniband/mlx5_0/node_type": "1: CA",
    "infiniband/mlx5_0/fw_ver": "20.38.1002",
    "infiniband/mlx5_0/node_guid": "0c42:a103:0065:1f2a",
    "infiniband/mlx5_0/device/net/ib0/mtu": "2044",
    "infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
    "infiniband/mlx5_0/ports/1/phys_state": "5: LinkUp",
    "infiniband/mlx5_0/ports/1/rate": "200 Gb/sec (4X HDR)",
    "infiniband/mlx5_0/ports/1/link_layer": "InfiniBand",
    "infiniband/mlx5_0/ports/1/lid": "0x1c",
    "infiniband/mlx5_0/ports/1/gids/0": "fe80:0000:0000:0000:0c42:a103:0065:1f2a",
    "infiniband/mlx5_0/ports/1/gids/1": "0000:0000:0000:0000:0000:0000:0000:0000",
    "infiniband/mlx5_0/ports/1/gid_attrs/types/0": "IB/RoCE v1",
    "infiniband/siw0/node_type": "4: RNIC",
    "infiniband/siw0/ports/1/state": "1: DOWN",
    "infiniband/siw0/ports/1/phys_state": "3: Disabled",
    "infiniband/siw0/ports/1/link_layer": "Ethernet",
    "infiniband_verbs/uverbs0/ibdev": "mlx5_0",
}


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for name, text in CARD.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return tmp_path


def test_infiniband(sysfs: Path) -> None:
    card, _ = devices.find_devices(sysfs, with_limits=False)
    assert (card.name, card.transport, card.firmware) == ("mlx5_0", "InfiniBand", "20.38.1002")
    assert card.uverbs == "/dev/infiniband/uverbs0"
    (port,) = card.ports
    assert (port.state, port.physical_state) == ("active", "LinkUp")
    assert (port.speed, port.netdev, port.lid) == ("200 Gb/sec (4X HDR)", "ib0", 28)
    assert [gid.index for gid in port.gids] == [0]


def test_iwarp_that_is_down(sysfs: Path) -> None:
    _, siw = devices.find_devices(sysfs, with_limits=False)
    assert (siw.transport, siw.has_write_with_imm) == ("iWARP", False)
    assert (siw.uverbs, siw.can_open) == ("", False)
    assert not siw.ports[0].is_active


def test_no_kernel_side(tmp_path: Path) -> None:
    assert devices.find_devices(tmp_path) == []


def test_limits_are_unknown_without_pyverbs(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ImportError("libibverbs.so.1: cannot open shared object file")

    monkeypatch.setattr(pyverbs_import, "load_pyverbs", missing)
    for device in devices.find_devices(sysfs):
        assert device.limits is None
        assert "libibverbs.so.1" in device.limits_unknown


@pytest.mark.parametrize("most", [0, 1, 16, 512, 513, 956, 4095, 4096])
def test_largest_request_is_found(most: int) -> None:
    asked = []

    def granted(size: int) -> int | None:
        asked.append(size)
        return max(16, size) if size <= most else None

    assert devices.largest(granted, 4096) == (most, max(16, most))
    assert len(asked) <= 14


def test_interfaces_have_their_addresses() -> None:
    found = netlink.interfaces()
    assert set(found) == {name for _, name in socket.if_nameindex()}
    assert "127.0.0.1" in found["lo"].addresses


def test_link_local_addresses() -> None:
    assert netlink.link_local(bytes.fromhex("7246 1cf8 fe8c")) == "fe80::7046:1cff:fef8:fe8c"
    assert netlink.link_local(b"") == ""


def test_an_interface_of_the_same_name_elsewhere(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another network namespace an interface may be called the same."""
    port = sysfs / "infiniband/siw0/ports/1"
    for name, text in {
        "gids/0": "fe80:0000:0000:0000:7046:1cff:fef8:fe8c",
        "gids/1": "0000:0000:0000:0000:0000:ffff:0a00:0001",
        "gid_attrs/ndevs/0": "eth0",
        "gid_attrs/ndevs/1": "eth0",
    }.items():
        (port / name).parent.mkdir(parents=True, exist_ok=True)
        (port / name).write_text(text)
    monkeypatch.setattr(devices, "SYSFS", sysfs)
    for local, addresses, is_here in (
        ("fe80::7046:1cff:fef8:fe8c", [], True),
        ("fe80::1", ["10.0.0.1"], True),
        ("fe80::1", ["10.0.0.2"], False),
    ):
        interfaces = {"eth0": netlink.Interface("eth0", True, local, addresses)}
        monkeypatch.setattr(netlink, "interfaces", lambda found=interfaces: found)
        _, siw = devices.find_devices(sysfs, with_limits=False)
        assert siw.ports[0].is_netdev_here is is_here
        assert siw.ports[0].addresses == (addresses if is_here else [])


V1 = "4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n"
V1_MOUNTS = """\
30 25 0:26 / {}/memory rw - cgroup cgroup rw,memory
31 25 0:27 / {}/cpu rw - cgroup cgroup rw,cpu,cpuacct
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
"""
V2_MOUNTS = "35 24 0:30 / {} rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "memory/job").mkdir(parents=True)
    found = read_cgroup(V1, V1_MOUNTS.replace("{}", str(tmp_path)))
    assert (found.kind, found.controllers) == ("v1", ["cpu", "cpuacct", "memory"])
    assert found.writable == [f"{tmp_path}/memory/job"]


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/cgroup.controllers").write_text("cpu memory pids\n")
    found = read_cgroup("0::/job\n", V2_MOUNTS.replace("{}", str(tmp_path)))
    assert (found.kind, found.controllers) == ("v2", ["cpu", "memory", "pids"])
    assert found.writable == [f"{tmp_path}/job"]


def test_cgroups_of_both_versions_and_of_none(tmp_path: Path) -> None:
    mounts = (V1_MOUNTS + V2_MOUNTS).replace("{}", str(tmp_path))
    assert read_cgroup(V1, mounts).kind == "hybrid"
    assert read_cgroup("", "24 1 8:1 / / rw - ext4 /dev/root rw\n").kind == "none"
