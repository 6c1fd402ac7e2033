"""The whole path over RDMA: `rfaas serve` at one device, `rfaas call` from another."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rfaas.errors import WorkerCrashedError
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
