"""What the kernel says of this machine's processors: physical cores, NUMA nodes, the NIC's node.

    devices/system/cpu/cpu*/topology     which processors are threads of one core
    devices/system/node/node*/cpulist    which are near the same memory
    class/infiniband/*/device/numa_node  to which of those nodes the NIC is attached

A container may show none of it, and a virtual machine not all: what is missing, or makes no
sense, is not known, and nothing is raised.  Read once, as an executor starts: some ten
microseconds for each core.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from rfaas.core.topology import UNKNOWN, Facts

SYSFS = "/sys"
READ_BYTES_MAX = 4096  # a page, as long as a file of sysfs may be
_NODE = re.compile(r"node(\d+)")


def find(cpus: Collection[int], nic: str | None = None, sysfs: str = SYSFS) -> Facts:
    """The facts of some processors.

    Args:
        nic: the RDMA device that will serve, or its netdev; "": the first that is up; None:
            it does not matter where any is.
        sysfs: where the kernel shows them; a recorded tree in tests.
    """
    if len(cpus) < 2:
        return UNKNOWN  # there is nothing to choose
    nodes = _nodes(cpus, sysfs)
    matters = nic is not None and len(set(nodes.values())) > 1
    return Facts(_cores(cpus, sysfs), nodes, _nic(nic or "", sysfs) if matters else None)


def _cores(cpus: Collection[int], sysfs: str) -> dict[int, int]:
    """Of each processor its physical core, called by the first processor of it."""
    cores: dict[int, int] = {}
    named: dict[tuple[str, str], int] = {}
    for cpu in sorted(cpus):
        if cpu in cores:
            continue
        folder = f"{sysfs}/devices/system/cpu/cpu{cpu}/topology"
        if siblings := _list(_read(f"{folder}/thread_siblings_list")):
            cores |= dict.fromkeys(siblings & set(cpus), cpu) | {cpu: cpu}
        elif (core := _read(f"{folder}/core_id")).isdigit():  # -1: the firmware did not say
            cores[cpu] = named.setdefault((_read(f"{folder}/physical_package_id"), core), cpu)
    return cores


def _nodes(cpus: Collection[int], sysfs: str) -> dict[int, int]:
    folder = f"{sysfs}/devices/system/node"
    nodes: dict[int, int] = {}
    for name in _names(folder):
        if match := _NODE.fullmatch(name):
            here = _list(_read(f"{folder}/{name}/cpulist")).intersection(cpus)
            nodes |= dict.fromkeys(here, int(match[1]))
    return nodes


def _nic(device: str, sysfs: str) -> int | None:
    """The node of a device; that of a device in software is not known."""
    folder = f"{sysfs}/class/infiniband"
    up = (name for name in _names(folder) if _is_up(f"{folder}/{name}/ports"))
    name = device or next(up, "")
    for kind in ("infiniband", "net"):
        text = _read(f"{sysfs}/class/{kind}/{name}/device/numa_node")
        if name and text.isdigit():  # -1: on none in particular
            return int(text)
    return None


def _is_up(ports: str) -> bool:
    return any("ACTIVE" in _read(f"{ports}/{port}/state") for port in _names(ports))


def _list(text: str) -> set[int]:
    """0-3,8 -> {0, 1, 2, 3, 8}"""
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found.update(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        return set()
    return found


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: str) -> str:
    """A file of sysfs, "" where there is none; half as long as by open()."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, READ_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
