"""The whole path over RDMA: `rfaas serve` at one device, `rfaas call` from another."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas.errors import CapacityError, PeerLostError, WorkerCrashedError
from tests.harness.gate import Gate
from tests.harness.processes import until
from tests.harness.rdma import End
from tests.harness.site import Site
from tests.transport.served_verbs import open_devices

pytestmark = pytest.mark.rdma
Ends = tuple[End, End]
WINDOW = ("--transport", "verbs", "--slot-bytes", "64KiB")


@pytest.fixture(scope="session")
def ends(rdma_ends: Ends) -> Ends:
    """Devices that this process has open already, as it does for the rest of its life."""
    open_devices(rdma_ends[0])
    return rdma_ends


@pytest.fixture
def file(tmp_path: Path, seed: int) -> Path:
    path = tmp_path / "input.bin"
    path.write_bytes(random.Random(seed).randbytes(50_000))
    return path


def test_alone(site: Site, shipped: Path, ends: Ends, file: Path) -> None:
    """A private executor, found and left by the same device."""
    done = site.run("call", *WINDOW, "--device", ends[0].device, shipped, "echo", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, file.read_bytes(), b"")


@pytest.mark.parametrize("by", ["device", "netdev", "itself"])
def test_between_two_devices(site: Site, shipped: Path, ends: Ends, file: Path, by: str) -> None:
    client, server = ends
    site.start("all", "--device", server.device)
    flags = {"device": ("--device", client.device), "netdev": ("--device", client.netdev)}
    arguments = (*WINDOW, *flags.get(by, ()), "--cores", "2", "--repeat", "100")
    done = site.run("call", *arguments, shipped, "echo", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, file.read_bytes(), b"")


def test_a_wrong_name_lists_those_there_are(site: Site, shipped: Path, ends: Ends) -> None:
    site.start("all")
    done = site.run("call", *WINDOW, "--device", "mlx9_0", shipped, "echo")
    said = done.stderr.decode()
    assert done.returncode == 78
    assert "rdma.device: there is no RDMA device or netdev 'mlx9_0', there is " in said
    assert f"{ends[0].device} ({ends[0].netdev})" in said


def test_a_crash_fails_what_is_in_flight(site: Site, hostile: Path, ends: Ends) -> None:
    client, server = ends
    site.start("all", "--device", server.device)
    site.set(lane__transport="verbs", lane__slot_bytes=65536, rdma__device=client.device)
    with site.session() as session, session.lease(library=str(hostile)) as lease:
        assert lease.transport == "verbs"
        assert lease.call("capacity_of") == (65536).to_bytes(4, "little")
        futures = [lease.submit("crash_segv"), *(lease.submit("capacity_of") for _ in range(3))]
        for future in futures:
            with pytest.raises(WorkerCrashedError, match="SIGSEGV"):
                future.result()
        assert lease.call("capacity_of") == (65536).to_bytes(4, "little")  # by a new worker


def test_all_of_it_over_rdma(site: Site, shipped: Path, ends: Ends, file: Path, seed: int) -> None:
    """Manager, executor and client meet over RDMA; a library of several parts is read there."""
    client, server = ends
    device = ("--device", server.device)
    line = site.start_unready("resource-manager", "--address", "verbs:*:0", *device).lines.next()
    manager = line.split()[4].rstrip(";,") if line else ""
    assert manager.startswith(f"verbs:{server.address}:")
    flags = ("--address", "verbs:*:0", "--resource-manager", manager)
    executor = site.start("executor", *flags, *device, "--log-level", "debug")
    library = site.path / "large.so"
    library.write_bytes(shipped.read_bytes() + random.Random(seed).randbytes(3_000_000))
    asked = ("--resource-manager", manager, "--device", client.device, "--slot-bytes", "64KiB")
    done = site.run("call", *asked, library, "echo", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, file.read_bytes(), b"")
    site.set(client__resource_manager=manager, rdma__device=client.device)
    with site.session() as session, session.lease(library=library.read_bytes() + b"other") as lease:
        assert lease.transport == "verbs"
        assert lease.call("echo", b"x") == b"x"
        assert lease.steps_ns["send_library"] > 0
    assert len(re.findall(r"library \w+: \d{7} bytes read over RDMA", executor.stderr)) == 2


def test_a_client_that_is_killed_ends_its_leases(site: Site, shipped: Path, ends: Ends) -> None:
    client, server = ends
    device = ("--device", server.device)
    line = site.start_unready("resource-manager", "--address", "verbs:*:0", *device).lines.next()
    manager = line.split()[4].rstrip(";,") if line else ""
    site.start("executor", "--address", "verbs:*:0", "--resource-manager", manager, *device)
    site.set(client__resource_manager=manager, rdma__device=client.device)
    killed = site.client(
        "session = rfaas.connect()\nlease = session.lease(library=sys.argv[1], cores=2)\n"
        "say(lease.call('echo', b'x').tobytes())\nsys.stdin.read()\n",
        shipped,
    )
    assert killed.lines.next() == "b'x'"
    with site.session() as session:
        assert session.nodes()[0].cores_free == 0
        killed.signal(signal.SIGKILL)
        killed.wait()
        until(lambda: session.nodes()[0].cores_free == 2, "the cores are free again")


def test_an_executor_that_is_killed_fails_the_calls(
    site: Site, held: Path, ends: Ends, gate: Callable[[], Gate]
) -> None:
    client, server = ends
    site.set(lane__slot_bytes=65536, rdma__device=client.device)
    flags = ("--address", "verbs:*:0", "--resource-manager", "none", "--device", server.device)
    child = site.start_unready("executor", *flags)
    line = child.lines.next() or ""
    site.set(client__executor=line.split()[4].rstrip(";,"), lane__transport="verbs")
    door = gate()
    with site.session() as session, session.lease(library=str(held)) as lease:
        future = lease.submit("hold", door.data)
        door.begun()
        site.kill(child)
        with pytest.raises((PeerLostError, WorkerCrashedError)):
            future.result(timeout=20)
        door.ended()


def test_windows_that_are_too_many(site: Site, shipped: Path, ends: Ends) -> None:
    """A client says how large they are, and a node how many it has room for."""
    client, server = ends
    site.set(rdma__device=client.device, executor__windows_max="8MiB", lane__slots=16)
    flags = ("--address", "verbs:*:0", "--resource-manager", "none", "--device", server.device)
    line = site.start_unready("executor", *flags).lines.next() or ""
    site.set(client__executor=line.split()[4].rstrip(";,"), lane__transport="verbs")
    with site.session() as session, session.lease(library=shipped, slot_bytes=65536) as lease:
        assert bytes(lease.call("echo", b"x")) == b"x"  # 2 of 8 MiB, and some pages
        with pytest.raises(CapacityError, match=r"are too many for node .* are left for them"):
            session.lease(library=shipped, slot_bytes="256KiB")
        with session.lease(library=shipped, slot_bytes=65536) as another:
            assert bytes(another.call("echo", b"y")) == b"y"
