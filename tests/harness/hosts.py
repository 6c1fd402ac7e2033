"""Hosts with a cable between them, on one machine: network namespaces that nobody else is in.

Each is held by a process of ours and ends with it, cable and all.  To cut a cable is to take
its link down: no end, no reset, no ICMP comes through, as when a host loses its power.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness.processes import PATIENCE_S, until


class Host:
    """A namespace with an address; made by `cabled`."""

    def __init__(self, number: int) -> None:
        self.address = f"10.77.0.{number}"
        self.cable = f"cable{number}"
        self.process = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL
        )

    @property
    def prefix(self) -> list[str]:
        """What a command line begins with that runs there."""
        return ["nsenter", "--target", str(self.process.pid), "--net"]

    def ip(self, *words: str) -> None:
        """Run ip(8) there."""
        command = [*self.prefix, "ip", *words]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, (words, done.stderr)

    def cut(self) -> None:
        """Take its cable out."""
        self.ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        """Put it in again."""
        self.ip("link", "set", self.cable, "up")


@contextmanager
def cabled() -> Iterator[tuple[Host, Host]]:
    """Two hosts; the test is skipped where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    hosts = Host(1), Host(2)
    try:
        own = os.readlink("/proc/self/ns/net")
        for host in hosts:
            namespace = f"/proc/{host.process.pid}/ns/net"
            until(lambda at=namespace: os.readlink(at) != own, "a network namespace")  # type: ignore[misc]
        one, two = hosts
        made = ["link", "add", one.cable, "type", "veth", "peer", "name", two.cable]
        try:
            one.ip(*made, "netns", str(two.process.pid))
        except AssertionError as error:
            pytest.skip(f"needs veth devices in network namespaces: {error}")
        for host in hosts:
            host.ip("address", "add", f"{host.address}/24", "dev", host.cable)
            host.ip("link", "set", "lo", "up")
            host.ip("link", "set", host.cable, "up")
        yield hosts
    finally:
        for host in hosts:
            host.process.kill()
            host.process.wait()
