"""Row 41: the resource manager's disk is full, and has room again."""

from __future__ import annotations

import os
import subprocess

import pytest

from rfaas.control import link as links
from rfaas.control.link import Link
from rfaas.errors import SystemCallError
from rfaas.proto import messages as m
from rfaas.proto.proof import prove
from tests.harness.site import RFAAS, Site

MOUNT = 'mount -t tmpfs -o size=1m tmpfs /mnt && exec "$@"'
ASK = m.RequestLease(
    client="tester", cores=1, memory_bytes=1, duration_s=600.0, isolation="process"
)
LEASES_MAX = 100_000


def connect(site: Site, role: str) -> Link:
    hello = m.Hello(version=m.PROTOCOL_VERSION, role=role, name=f"some-{role}")
    return links.connect(site.address(), hello)


def test_row_41_disk_full(site: Site) -> None:
    """New leases are refused, what there is goes on, and with room it all goes on."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a disk of 1 MiB; run the tests as root")
    probe = subprocess.run(
        ["unshare", "-m", "sh", "-c", MOUNT, "sh", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"needs the right to mount, which is lacking here: {probe.stderr.strip()}")
    serve = [RFAAS, "serve", "--role", "resource-manager"]
    where = ["--set", "resource_manager.store=/mnt/store.sqlite"]
    manager = site._started(["unshare", "-m", "sh", "-c", MOUNT, "sh", *serve, *where], "manager")
    assert "ready" in str(manager.lines.next())

    def inside(script: str) -> None:
        command = ["nsenter", "-t", str(manager.pid), "-m", "sh", "-c", script]
        subprocess.run(command, check=False, capture_output=True)

    executor, client = connect(site, "executor"), connect(site, "client")
    try:
        node = m.JoinNode(
            node="n1",
            address="unix:/n1",
            incarnation="1" * 32,
            cores=60000,
            memory_bytes=1 << 50,
            isolation=("process",),
        )
        executor.ask(node, m.NodeJoined)
        held = [client.ask(ASK, m.LeaseGranted) for _ in range(3)]
        inside("dd if=/dev/zero of=/mnt/ballast bs=4k")
        with pytest.raises(SystemCallError, match="disk is full"):
            held.extend(client.ask(ASK, m.LeaseGranted) for _ in range(LEASES_MAX))
        facts = client.ask(m.GetStatus(), m.StatusReport).facts
        assert (facts["store state"], facts["leases live"]) == ("fails", len(held))
        executor.ask(m.Beat(node="n1"), m.BeatTaken)
        given = held.pop()
        proof = prove(given.secret, client.nonce, given.lease)
        client.ask(m.ReleaseLease(lease=given.lease, proof=proof), m.Done)
        inside("rm /mnt/ballast")
        held.append(client.ask(ASK, m.LeaseGranted))
        facts = client.ask(m.GetStatus(), m.StatusReport).facts
        assert (facts["store state"], facts["leases live"]) == ("saves", len(held))
    finally:
        executor.close()
        client.close()
