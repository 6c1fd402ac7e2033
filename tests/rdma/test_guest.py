"""The ground that RDMA tests stand on: devices, a cable, librdmacm, verbs. Nothing of ours.

If these fail, the guest or the machine is at fault; if they pass and others do not, we are.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, until
from tests.harness.rdma import End, Host, cable_cut, lacking

Ends = tuple[End, End]
Hosts = tuple[Host, Host]

in_guest = pytest.mark.skipif("RFAAS_GUEST" not in os.environ, reason="what it does is for a guest")


def attempt(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )


def output(*words: str) -> str:
    """What a command prints that must succeed."""
    done = attempt(words)
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout


def exchange(server: Sequence[str], client: Sequence[str]) -> tuple[str, str]:
    """What both print; neither tells when its server listens, so the client tries until then."""
    with subprocess.Popen(
        server,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as serving:
        try:
            said = ""

            def has_worked() -> bool:
                nonlocal said
                done = attempt(client)
                said = done.stdout
                return done.returncode == 0 or serving.poll() is not None

            until(has_worked, f"{client} ends well")
            server_said, _ = serving.communicate(timeout=PATIENCE_S)
            assert serving.returncode == 0, server_said
            return server_said, said
        finally:
            serving.kill()


def rping(server: End, client: End) -> tuple[list[str], list[str]]:
    return (
        ["rping", "-s", "-a", server.address, "-C", "3", "-v"],
        ["rping", "-c", "-a", server.address, "-I", client.address, "-C", "3"],
    )


@contextmanager
def setting(add: str, remove: str) -> Iterator[None]:
    """Something of the network for as long as a test takes."""
    output(*add.split())
    try:
        yield
    finally:
        output(*remove.split())


@pytest.mark.rdma
def test_libibverbs_sees_the_devices(rdma_ends: Ends) -> None:
    for end in rdma_ends:
        said = output("ibv_devinfo", "-d", end.device)
        assert f"hca_id:\t{end.device}" in said
        assert "PORT_ACTIVE" in said


@pytest.mark.rdma
@pytest.mark.parametrize("serving", [0, 1])
def test_librdmacm_connects(rdma_ends: Ends, serving: int) -> None:
    said, _ = exchange(*rping(rdma_ends[serving], rdma_ends[1 - serving]))
    assert said.count("server ping data: rdma-ping-") == 3


@pytest.mark.rdma
@in_guest
def test_packets_take_the_cable(rdma_ends: Ends) -> None:
    def packets(end: End) -> int:
        return int(Path(f"/sys/class/net/{end.netdev}/statistics/tx_packets").read_text())

    if rdma_ends[0] == rdma_ends[1]:
        pytest.skip("one device alone: packets to itself take no cable")
    before = [packets(end) for end in rdma_ends]
    exchange(*rping(rdma_ends[1], rdma_ends[0]))
    assert all(packets(end) - had > 6 for end, had in zip(rdma_ends, before, strict=True))


@pytest.mark.rdma
@in_guest
def test_faults_can_be_put_on_the_cable(rdma_ends: Ends) -> None:
    netdev = rdma_ends[0].netdev
    delay = f"tc qdisc add dev {netdev} root netem delay 2ms"
    with setting(delay, f"tc qdisc delete dev {netdev} root"):
        said, _ = exchange(*rping(rdma_ends[1], rdma_ends[0]))
    assert "rdma-ping-2" in said


@pytest.mark.rdma
@in_guest
def test_a_device_can_go_and_come(rdma_ends: Ends) -> None:
    """Link down and up again: what the fault tests do to connections."""
    state = Path(f"/sys/class/infiniband/{rdma_ends[0].device}/ports/1/state")
    with cable_cut(rdma_ends[0]):
        until(lambda: "DOWN" in state.read_text(), "the port is down")
    until(lambda: "ACTIVE" in state.read_text(), "the port is up again")
    exchange(*rping(rdma_ends[1], rdma_ends[0]))


@pytest.mark.rdma
def test_outside_reference_measures(rdma_ends: Ends) -> None:
    """perftest, which benchmarks put beside our own figures."""
    first, second = rdma_ends
    common = ["ib_write_lat", "-s", "64", "-n", "100", "-F"]
    server = [*common, "-d", second.device, "-x", str(second.gid_index)]
    client = [*common, "-d", first.device, "-x", str(first.gid_index), second.address]
    _, said = exchange(server, client)
    row = re.search(r"^ 64 +100 +([\d.]+) +([\d.]+) +([\d.]+)", said, re.MULTILINE)
    assert row, said
    assert 0 < float(row[1]) <= float(row[3]) <= float(row[2])  # least, typical, most


@pytest.mark.rdma_hosts
def test_hosts_connect(rdma_hosts: Hosts) -> None:
    first, second = rdma_hosts
    server, client = rping(second.end, first.end)
    said, _ = exchange(second.command(*server), first.command(*client))
    assert said.count("server ping data: rdma-ping-") == 3


@pytest.mark.rdma_hosts
def test_hosts_are_apart(rdma_hosts: Hosts) -> None:
    """Neither has the other's address or interface."""
    for own, other in (rdma_hosts, rdma_hosts[::-1]):
        said = output(*own.command("ip", "-brief", "address"))
        assert own.end.address in said
        assert own.end.netdev in said
        assert other.end.address not in said
        done = attempt(own.command("rping", "-s", "-a", other.end.address, "-C", "1"))
        assert "rdma_bind_addr" in done.stdout


def test_a_missing_device_is_said(pytestconfig: pytest.Config) -> None:
    """Skipped where RDMA may be missing, failed where it may not."""
    if pytestconfig.getoption("--require-rdma"):
        with pytest.raises(pytest.fail.Exception, match="--require-rdma: nothing"):
            lacking(pytestconfig, "nothing")
    else:
        with pytest.raises(pytest.skip.Exception, match="nothing"):
            lacking(pytestconfig, "nothing")
