"""Workers behind endpoints, over RDMA: the pair starts, serves, and ends as one."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rfaas.errors import PeerLostError, WorkerCrashedError
from tests.functions.build import build_library
from tests.harness.gate import Gate
from tests.harness.processes import (
    Child,
    descendants,
    endpoints_of,
    until,
    wait_for_end,
    workers_of,
)
from tests.harness.rdma import End
from tests.harness.site import Site
from tests.transport.served_verbs import open_devices

pytestmark = pytest.mark.rdma
Ends = tuple[End, End]
HOLDS = """
library, data = sys.argv[1:]
session = rfaas.connect()
lease = session.lease(library=library)
lease.call("hold", data.encode())
"""


@pytest.fixture(scope="session")
def ends(rdma_ends: Ends) -> Ends:
    """Devices that this process has open already, as it does for the rest of its life."""
    open_devices(rdma_ends[0])
    return rdma_ends


@pytest.fixture
def node(site: Site, ends: Ends) -> Iterator[Child]:
    """A node that trusts no worker with its NIC, and a configuration to reach it."""
    site.set(executor__endpoint="always")
    started = site.start("all", "--device", ends[1].device)
    site.set(lane__transport="verbs", lane__slot_bytes=65536, rdma__device=ends[0].device)
    yield started
    if started.process.poll() is None:
        assert endpoints_of(started.pid) == workers_of(started.pid) == []


def pair(node: Child) -> tuple[int, int]:
    """The one worker and the one endpoint of a node."""
    (worker,), (endpoint,) = workers_of(node.pid), endpoints_of(node.pid)
    return worker, endpoint


@pytest.mark.parametrize("cores", ["1", "2"])
def test_a_call(site: Site, node: Child, shipped: Path, seed: int, cores: str) -> None:
    file = site.path / "input"
    file.write_bytes(random.Random(seed).randbytes(50_000))
    done = site.run("call", "--cores", cores, "--repeat", "50", shipped, "echo", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, file.read_bytes(), b"")


def test_a_private_executor(site: Site, ends: Ends, shipped: Path) -> None:
    """Nothing is left of it, or its client would not end."""
    site.set(executor__endpoint="always", lane__transport="verbs", lane__slot_bytes=65536)
    done = site.run("call", "--device", ends[0].device, shipped, "echo", "-", stdin=b"alone")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"alone", b"")


def test_a_worker_crashes(site: Site, node: Child, hostile: Path) -> None:
    with site.session() as session, session.lease(library=str(hostile)) as lease:
        assert lease.call("capacity_of") == (65536).to_bytes(4, "little")
        before = pair(node)
        futures = [lease.submit("crash_segv"), *(lease.submit("capacity_of") for _ in range(3))]
        for future in futures:
            with pytest.raises(WorkerCrashedError, match="SIGSEGV"):
                future.result()
        assert lease.call("capacity_of") == (65536).to_bytes(4, "little")  # by a new pair
        wait_for_end(*before)
        assert set(pair(node)).isdisjoint(before)


def test_an_endpoint_is_killed(
    site: Site, node: Child, held: Path, gate: Callable[[], Gate]
) -> None:
    one = gate()
    with site.session() as session, session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        worker = one.begun()
        before = pair(node)
        assert worker == before[0]
        os.kill(before[1], signal.SIGKILL)
        with pytest.raises(WorkerCrashedError, match="endpoint died: killed by SIGKILL"):
            future.result()
        one.ended()
        assert bytes(lease.call("copy", b"next")) == b"next"
        wait_for_end(*before)


def test_a_client_is_killed(site: Site, node: Child, held: Path, gate: Callable[[], Gate]) -> None:
    one = gate()
    client = site.client(HOLDS, held, one.path)
    one.begun()
    both = pair(node)
    client.signal(signal.SIGKILL)
    client.wait()
    one.ended()
    wait_for_end(*both)
    with site.session() as session:
        until(lambda: [n.cores_free for n in session.nodes()] == [2], "2 free cores")
        assert [lease.state for lease in session.leases(all=True)] == ["client-lost"]


def test_an_executor_is_killed(
    site: Site, node: Child, held: Path, gate: Callable[[], Gate]
) -> None:
    one = gate()
    with site.session() as session, session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        one.begun()
        family = [*descendants(node.pid)]
        assert set(pair(node)) < set(family)
        site.kill(node)
        with pytest.raises(PeerLostError):
            future.result()
        one.ended()
        wait_for_end(*family)


def test_a_library_that_does_not_load_leaves_no_endpoint(site: Site, node: Child) -> None:
    broken = site.path / "broken.so"
    broken.write_bytes(b"\x7fELF" + bytes(200))
    done = site.run("call", broken, "echo")
    assert done.returncode != 0
    until(lambda: not endpoints_of(node.pid), "no endpoint")


def test_a_function_cannot_forge_its_bill(site: Site, node: Child, libraries: Path) -> None:
    """It reaches a page of counts, but not the one that counts."""
    forger = build_library(libraries, "forger")
    with site.session() as session, session.lease(library=forger) as lease:
        for _ in range(3):
            assert int.from_bytes(lease.call("forge"), "little") == 1
        lease.close()
        (ended,) = session.leases(all=True)
    assert ended.usage.calls == 3
    assert 0 < ended.usage.executing_ns < ended.usage.allocated_ns < 2**40


@pytest.mark.parametrize("endpoint", ["always", "auto"])
def test_counts_are_told_over_rdma(site: Site, ends: Ends, held: Path, endpoint: str) -> None:
    """Within a second and without being asked, over a connection of their own."""
    site.set(executor__endpoint=endpoint, resource_manager__heartbeat_s=0.1)
    site.start("all", "--device", ends[1].device)
    site.set(lane__transport="verbs", lane__slot_bytes=65536, rdma__device=ends[0].device)
    with site.session() as session, session.lease(library=held) as lease:
        lease.call("copy", b"x")
        before = queue_pairs()
        until(lambda: queue_pairs() == before + 2, "one more connection, with two ends")
        for _ in range(99):
            lease.call("copy", b"x")
        until(lambda: session.leases()[0].usage.calls == 100, "100 calls told")


@pytest.mark.parametrize("endpoint", ["always", "auto"])
def test_the_last_call_is_billed_though_all_are_killed(
    site: Site, ends: Ends, held: Path, endpoint: str
) -> None:
    """What was not told any more stands on the page that was shared."""
    site.set(executor__endpoint=endpoint)
    node = site.start("all", "--device", ends[1].device)
    site.set(lane__transport="verbs", lane__slot_bytes=65536, rdma__device=ends[0].device)
    with site.session() as session, session.lease(library=held) as lease:
        for _ in range(100):
            lease.call("copy", b"x")
        name = "rfaas-endpoint" if endpoint == "always" else "rfaas-worker"
        for pid in workers_of(node.pid, name):
            os.kill(pid, signal.SIGKILL)
        until(lambda: session.leases()[0].usage.calls == 100, "100 calls billed")
        lease.close()
        (ended,) = session.leases(all=True)
    assert ended.usage.calls == 100
    assert 0 < ended.usage.executing_ns + ended.usage.polling_ns <= ended.usage.allocated_ns


def queue_pairs() -> int:
    """Of all devices of this machine, rdma-resource(8)."""
    shown = subprocess.run(["rdma", "resource", "show"], capture_output=True, text=True, check=True)
    return sum(map(int, re.findall(r"\bqp (\d+)", shown.stdout)))
