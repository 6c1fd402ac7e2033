"""Facts of machines, as recorded or as they would be."""

from __future__ import annotations

from typing import Any

import msgspec

from rfaas.diagnose.checks import examine
from rfaas.diagnose.records import Cgroup, Device, Facts, Finding, Gid, Limits, Port, Wants

WANTS = Wants(window_bytes=512 << 20, slots=16, slot_bytes=16 << 20)

PORT = Port(
    number=1,
    state="active",
    physical_state="LinkUp",
    link_layer="Ethernet",
    speed="100 Gb/sec (4X EDR)",
    netdev="eth2",
    addresses=["fe80::1", "10.0.0.2"],
    gids=[Gid(index=3, gid="0000:0000:0000:0000:0000:ffff:0a00:0002", kind="RoCE v2")],
)
LIMITS = Limits(
    qp_max=131072,
    qp_wr_max=32768,
    cq_max=16777216,
    cqe_max=4194303,
    mr_max=16777216,
    mr_bytes_max=2**64 - 1,
    sge_max=30,
    rd_atomic_max=16,
    atomics="device",
    inline_bytes_max=956,
    inline_bytes_granted=956,
)
CARD = Device(
    name="mlx5_0",
    transport="RoCE",
    driver="mlx5_core",
    firmware="22.41.1000",
    node_guid="0c42:a103:0065:1f2a",
    uverbs="/dev/infiniband/uverbs0",
    can_open=True,
    ports=[PORT],
    limits=LIMITS,
)
NODE = Facts(
    host="node1",
    kernel="6.1.0-40-amd64",
    is_root=False,
    python="3.11.2",
    native_verbs=True,
    cores=64,
    governors=["performance"],
    shm_bytes_free=64 << 30,
    modules={"ib_uverbs": "there", "rdma_ucm": "there", "rdma_rxe": "loadable"},
    libraries={"libibverbs.so.1": "", "librdmacm.so.1": ""},
    pyverbs="/usr/lib/python3/dist-packages/pyverbs",
    devices=[CARD],
    netdevs=["eno1", "eth2"],
    huge_pages=512,
    huge_pages_free=500,
    huge_page_bytes=2 << 20,
    clock_source="tsc",
    is_clock_synchronised=True,
    cgroup=Cgroup(
        kind="v2",
        controllers=["cpu", "cpuset", "memory", "pids"],
        writable=["/sys/fs/cgroup/user.slice"],
        has_kill=True,
    ),
    landlock_abi=4,
    has_seccomp_filter=True,
    programs={"bwrap": "/usr/bin/bwrap", "runc": "/usr/sbin/runc", "skopeo": "/usr/bin/skopeo"},
)


def facts(**changes: Any) -> Facts:
    """A good node with changes."""
    return msgspec.structs.replace(NODE, **changes)


def port(**changes: Any) -> Port:
    """A good port with changes."""
    return msgspec.structs.replace(PORT, **changes)


def device(**changes: Any) -> Device:
    """A good card with changes."""
    return msgspec.structs.replace(CARD, **changes)


def found(check: str, facts_: Facts, wants: Wants = WANTS) -> list[Finding]:
    """What one check says."""
    return [finding for finding in examine(facts_, wants) if finding.check == check]


def only(check: str, facts_: Facts, wants: Wants = WANTS) -> Finding:
    """The one thing that a check says."""
    (finding,) = found(check, facts_, wants)
    return finding
