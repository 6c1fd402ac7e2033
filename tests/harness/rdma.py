"""The RDMA devices that tests run between.

Two ends: two devices with a cable, as the guest of packaging/softroce has them, or one
device twice (`--rdma-device NAME`; given twice, two devices).  Two hosts: the guest's
network namespaces.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from rfaas.diagnose.devices import find_devices
from rfaas.diagnose.records import Device
from rfaas.diagnose.report import is_usable, shorter

HOSTS = ("host0", "host1")
NAMESPACES = Path("/run/netns")  # of ip-netns(8)
CABLE_ROUTES = "/run/job/cable-routes.sh"  # packaging/softroce/guest
GUEST_HINT = "`make test-rdma` runs them in a guest that has two"


class End(NamedTuple):
    """One end: a device, and the address by which librdmacm finds it."""

    device: str
    netdev: str
    address: str
    gid_index: int  # of the table of its port, for those who connect without librdmacm


class Host(NamedTuple):
    """One of two hosts."""

    name: str
    end: End

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs on it."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]


def ends(config: pytest.Config) -> tuple[End, End]:
    """Two ends, or the test is skipped; with --require-rdma it fails."""
    names: list[str] = config.getoption("--rdma-device")
    usable = {device.name: device for device in find_devices(with_limits=False)}
    for name in names:
        if name not in usable or not is_usable(usable[name]):
            known = ", ".join(usable) or "none"
            pytest.fail(f"--rdma-device {name}: not a device that can be used; there are: {known}")
    if not names and "RFAAS_GUEST" in os.environ:
        # Nobody's traffic is disturbed in a guest; on a real machine a device must be named.
        names = [device.name for device in usable.values() if is_usable(device)]
    if not names:
        lacking(config, f"no RDMA device is named by --rdma-device; {GUEST_HINT}")
    return _end(usable[names[0]]), _end(usable[names[-1]])


def hosts(config: pytest.Config) -> tuple[Host, Host]:
    """Two hosts, or the test is skipped; with --require-rdma it fails."""
    if not all((NAMESPACES / name).exists() for name in HOSTS):
        lacking(config, f"no network namespaces {' and '.join(HOSTS)}; {GUEST_HINT}")
    # Which device is whose only a process inside can tell; the guest's scripts number them.
    return (
        Host(HOSTS[0], End("rxe0", "roce0", "10.77.0.1", 1)),
        Host(HOSTS[1], End("rxe1", "roce1", "10.77.0.2", 1)),
    )


@contextmanager
def cable_cut(end: End) -> Iterator[None]:
    """One end of the guest's cable is down; up again, and routed, afterwards."""
    set_link = ["ip", "link", "set", end.netdev]
    subprocess.run([*set_link, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run([*set_link, "up"], check=True)
        subprocess.run(["sh", CABLE_ROUTES], check=True)


@contextmanager
def no_address(end: End) -> Iterator[None]:
    """One end of the guest's cable has no address; it has its own again, and routes, after."""
    address = ["ip", "address"]
    subprocess.run([*address, "flush", "dev", end.netdev], check=True)
    try:
        yield
    finally:
        subprocess.run([*address, "add", f"{end.address}/24", "dev", end.netdev], check=True)
        subprocess.run(["sh", CABLE_ROUTES], check=True)


@contextmanager
def packets_lost(end: End) -> Iterator[None]:
    """Whatever leaves one end of the guest's cable gets lost, though both links are up."""
    queue = ["tc", "qdisc"]
    subprocess.run([*queue, "add", "dev", end.netdev, "root", "netem", "loss", "100%"], check=True)
    try:
        yield
    finally:
        subprocess.run([*queue, "delete", "dev", end.netdev, "root"], check=True)


def lacking(config: pytest.Config, what: str) -> NoReturn:
    """Skip, or fail where RDMA is required."""
    if config.getoption("--require-rdma"):
        pytest.fail(f"--require-rdma: {what}", pytrace=False)
    pytest.skip(what)


def _end(device: Device) -> End:
    port = next(port for port in device.ports if port.is_active and port.hosts)
    address = port.hosts[0]
    mapped = f"::ffff:{address}" if "." in address else address
    # The newest kind of RoCE stands last; InfiniBand's own GID is the first.
    index = max((gid.index for gid in port.gids if shorter(gid.gid) == mapped), default=0)
    return End(device.name, port.netdev, address, index)
