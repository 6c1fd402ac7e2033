"""Each check of `rfaas doctor`, on facts of machines that are not here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rfaas.diagnose.checks import CHECKS, USES, blocked, examine
from rfaas.diagnose.records import Cgroup, Facts, Wants
from tests.diagnose.machines import CARD, LIMITS, NODE, WANTS, device, facts, found, only, port

HYBRID = Cgroup(kind="hybrid", controllers=["memory"], writable=["/sys/fs/cgroup/memory"])


def test_a_good_node_has_nothing_to_mend() -> None:
    findings = examine(NODE, WANTS)
    assert [finding for finding in findings if finding.mend or finding.is_hint] == []
    assert blocked(findings) == dict.fromkeys(USES, False)
    silent = 5  # GPUs beside one, and what no key of [container] names
    assert len({finding.check for finding in findings}) >= len(CHECKS) - silent


def test_facts_are_kept_as_json() -> None:
    """Facts from a user's node can be judged here."""
    assert msgspec.json.decode(msgspec.json.encode(NODE), type=Facts) == NODE


@pytest.mark.parametrize(
    ("changes", "check", "blocks", "says", "mends"),
    [
        ({"python": "3.9.2"}, "python", USES, "3.9.2", "make build PYTHON="),
        ({"native_missing": {"_calls": "no"}}, "python", USES, "_calls does not", "make build"),
        ({"memfd_error": "ENOSYS"}, "shared memory", USES, "ENOSYS", "CONFIG_MEMFD_CREATE"),
        (
            *({"shm_bytes_free": None, "shm_error": "gone"}, "shared memory", ()),
            *("no /dev/shm: gone", "mount -t tmpfs"),
        ),
        ({"shm_bytes_free": 1 << 20}, "shared memory", (), "1 MiB free", "remount,size"),
        ({"cores": 1}, "cores", (), "take turns", "hot_timeout_ms"),
        ({"governors": ["powersave"]}, "cores", (), "powersave", "cpupower"),
        (
            *({"clock_source": "hpet", "clock_sources": ["tsc", "hpet"]}, "clock", ()),
            *("hpet", "echo tsc >/sys"),
        ),
        ({"clock_source": "hpet", "clock_sources": ["hpet"]}, "clock", (), "system call", ""),
        ({"is_clock_synchronised": False}, "clock", (), "not synchronised", "chrony"),
        ({"huge_pages_free": 0}, "huge pages", (), "none free", "vm.nr_hugepages=256"),
        (
            *({"user_namespace_error": "EPERM"}, "user namespaces", ("sandbox",)),
            *("EPERM", "max_user_namespaces"),
        ),
        ({"landlock_abi": 0}, "landlock", ("sandbox",), "none", "lsm=landlock"),
        ({"landlock_abi": 3}, "landlock", (), "ABI 3", "6.7"),
        ({"has_seccomp_filter": False}, "seccomp", ("sandbox",), "no filters", "SECCOMP_FILTER"),
        (
            *({"bubblewrap_error": "not installed", "programs": {}}, "bubblewrap", ()),
            *("no level `bubblewrap`: bwrap: not installed", "apt-get install bubblewrap"),
        ),
        (
            *({"bubblewrap_error": "No permissions to create new namespace"}, "bubblewrap", ()),
            *("No permissions", "user namespaces"),
        ),
        (
            {"programs": {}},
            "containers",
            ("container",),
            "no engine is installed",
            "apt-get install runc",
        ),
        (
            *({"programs": {"runc": "/usr/sbin/runc"}}, "containers", ()),
            *("no skopeo", "apt-get install skopeo"),
        ),
        (
            *({"programs": {"podman": "/usr/bin/podman"}}, "containers", ()),
            *("no newuidmap", "apt-get install uidmap"),
        ),
        (
            *({"programs": {"crun": "x", "skopeo": "x"}, "cgroup": HYBRID}, "containers"),
            *(("container",), "refuses hybrid", "apt-get install runc"),
        ),
        ({"cgroup": Cgroup(kind="none")}, "cgroups", ("sandbox",), "none mounted", "Delegate=yes"),
        ({"open_files_hard": 20}, "open files", USES, "at most 20: enough for 0", "ulimit -Hn"),
        ({"open_files_hard": 64}, "open files", (), "enough for 5 workers", "LimitNOFILE"),
        ({"pyverbs": ""}, "pyverbs", (), "unknown", "python3-pyverbs"),
        ({"native_verbs": False}, "transport", ("verbs",), "without", "libibverbs-dev"),
        (
            *({"libraries": {"libibverbs.so.1": "no file"}}, "libraries", ("verbs",)),
            *("no file", "apt-get install libibverbs1"),
        ),
        (
            *({"modules": {"ib_uverbs": "loadable", "rdma_ucm": "there"}}, "kernel modules"),
            *(("verbs",), "no ib_uverbs", "modprobe ib_uverbs"),
        ),
        (
            *({"modules": {"ib_uverbs": "there", "rdma_ucm": "absent"}}, "kernel modules"),
            *(("verbs",), "no rdma_ucm", "a kernel with rdma_ucm"),
        ),
    ],
)
def test_each_fault(
    changes: dict[str, Any], check: str, blocks: tuple[str, ...], says: str, mends: str
) -> None:
    finding = only(check, facts(**changes))
    assert tuple(finding.blocks) == blocks
    assert says in finding.text
    assert mends in "\n".join(finding.mend)


def test_whose_rdma_core_is_said() -> None:
    finding = only("libraries", facts(rdma_core="carried rdma-core 44.0"))
    assert not finding.blocks
    assert "libibverbs.so.1 and librdmacm.so.1 load: carried rdma-core 44.0; py" in finding.text


def test_without_a_device_one_is_made_in_software() -> None:
    finding = only("device", facts(devices=[]))
    assert list(finding.blocks) == ["verbs"]
    assert finding.mend == ["modprobe rdma_rxe", "rdma link add rxe0 type rxe netdev eno1"]


def test_a_module_that_is_there_is_not_loaded() -> None:
    finding = only("device", facts(devices=[], netdevs=[], modules={"rdma_rxe": "there"}))
    assert finding.mend == ["rdma link add rxe0 type rxe netdev eth0"]


def test_without_the_module_the_guest_is_named() -> None:
    finding = only("device", facts(devices=[], modules={"rdma_rxe": "absent"}))
    assert "6.1.0-40-amd64" in finding.mend[0]
    assert "packaging/softroce/run" in finding.mend[1]


@pytest.mark.parametrize(
    ("broken", "says", "mends"),
    [
        (device(ports=[]), "no port", ""),
        (device(transport="iWARP"), "no RDMA WRITE WITH IMM", "rdma link add"),
        (device(uverbs="", can_open=False), "no uverbs node", "modprobe ib_uverbs"),
        (device(can_open=False), "no permission", "chmod 666 /dev/infiniband/uverbs0"),
        (device(ports=[port(is_netdev_here=False)]), "another network namespace", ""),
        (
            device(ports=[port(state="down", is_netdev_up=False)]),
            *("eth2 is down", "ip link set eth2 up"),
        ),
        (device(ports=[port(state="down")]), "port down", "cable"),
        (
            device(ports=[port(state="init", link_layer="InfiniBand")]),
            *("port init", "opensm"),
        ),
        (device(ports=[port(netdev="", addresses=[])]), "no network interface", "ib_ipoib"),
        (device(ports=[port(addresses=[])]), "no address on eth2", "ip address add"),
        (device(ports=[port(addresses=["fe80::1"])]), "no address on eth2", "ip address add"),
    ],
)
def test_a_device_that_cannot_be_used(broken: Any, says: str, mends: str) -> None:
    finding = only("device", facts(devices=[broken]))
    assert list(finding.blocks) == ["verbs"]
    assert finding.text.startswith("mlx5_0: ")
    assert says in finding.text
    assert mends in "\n".join(finding.mend)


def test_a_broken_device_beside_a_good_one_is_a_hint() -> None:
    broken = device(name="mlx5_1", ports=[port(state="down")])
    good, bad = found("device", facts(devices=[CARD, broken]))
    assert (good.is_hint, good.text) == (False, "mlx5_0: RoCE, active, 10.0.0.2")
    assert (bad.is_hint, list(bad.blocks)) == (True, [])


def test_atomics() -> None:
    without = msgspec.structs.replace(LIMITS, atomics="none")
    assert only("atomics", facts(devices=[device(limits=without)])).is_hint
    assert found("atomics", facts(devices=[device(limits=None)])) == []


@pytest.mark.parametrize(("limit_bytes", "blocks"), [(512 << 20, []), ((512 << 20) - 1, ["verbs"])])
def test_locked_memory_at_its_limit(limit_bytes: int, blocks: list[str]) -> None:
    one = facts(memlock_bytes=limit_bytes, memlock_bytes_hard=limit_bytes)
    assert list(only("locked memory", one).blocks) == blocks


def test_locked_memory_as_on_a_badly_set_up_node() -> None:
    finding = only("locked memory", facts(memlock_bytes=8 << 20, memlock_bytes_hard=8 << 20))
    assert "limit 8 MiB" in finding.text
    assert "16 slots of 16 MiB locks 512 MiB" in finding.text
    assert "limits.d" in finding.mend[0]
    # What it proposes instead fits.
    slot_bytes = int(finding.mend[-1].rpartition("=")[2])
    smaller = Wants(window_bytes=2 * 16 * slot_bytes, slots=16, slot_bytes=slot_bytes)
    fits = only("locked memory", facts(memlock_bytes=8 << 20), smaller)
    assert list(fits.blocks) == []


def test_a_soft_limit_is_raised_by_oneself() -> None:
    finding = only("locked memory", facts(memlock_bytes=8 << 20, memlock_bytes_hard=-1))
    assert finding.mend[0] == "ulimit -l unlimited"


def test_a_limit_that_pages_on_demand_go_round() -> None:
    paging = device(limits=msgspec.structs.replace(LIMITS, pages_on_demand=True))
    low = {"memlock_bytes": 8 << 20, "memlock_bytes_hard": 8 << 20}
    assert list(only("locked memory", facts(devices=[paging], **low)).blocks) == []
    both = facts(devices=[paging, device(limits=LIMITS)], **low)
    assert list(only("locked memory", both).blocks) == ["verbs"]


def test_a_limit_that_does_not_count() -> None:
    finding = only("locked memory", facts(memlock_bytes=0, ignores_memlock=True))
    assert "CAP_IPC_LOCK" in finding.text
    assert list(finding.blocks) == []


def test_a_configuration_without_verbs() -> None:
    wants = msgspec.structs.replace(WANTS, knows_verbs=False)
    assert list(only("transport", NODE, wants).blocks) == ["verbs"]


def test_what_a_sandbox_may_lack_blocks_nothing() -> None:
    wants = msgspec.structs.replace(WANTS, degrade=["landlock", "cgroup"])
    findings = examine(facts(landlock_abi=0, cgroup=Cgroup(kind="none")), wants)
    assert not blocked(findings)["sandbox"]
    said = {finding.check: finding.text for finding in findings}
    assert said["landlock"].endswith("sandboxes are without")
    assert said["cgroups"].endswith("sandboxes are without")
