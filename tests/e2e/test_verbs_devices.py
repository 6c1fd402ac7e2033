"""RDMA devices that cannot carry calls: both sides say so, each about its own, and how."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from rfaas.errors import WorkerCrashedError
from tests.harness.rdma import End, cable_cut, no_address, packets_lost
from tests.harness.site import RFAAS, Site
from tests.transport.served_verbs import open_devices

pytestmark = pytest.mark.rdma
Ends = tuple[End, End]
WINDOW = ("--transport", "verbs", "--slot-bytes", "64KiB")


@pytest.fixture(scope="session")
def ends(rdma_ends: Ends) -> Ends:
    """Two devices of a guest, where they may be disturbed."""
    if rdma_ends[0] == rdma_ends[1] or "RFAAS_GUEST" not in os.environ:
        pytest.skip("only in the guest are the devices ours to take away")
    open_devices(rdma_ends[0])
    return rdma_ends


@contextmanager
def iwarp(end: End) -> Iterator[None]:
    """A device in software that speaks iWARP, beside the RoCE one."""
    link = ["rdma", "link"]
    subprocess.run([*link, "add", "siw0", "type", "siw", "netdev", end.netdev], check=True)
    try:
        yield
    finally:
        subprocess.run([*link, "delete", "siw0"], check=True)


Disturb = Callable[[End], AbstractContextManager[None]]
FAULTS = [
    pytest.param(cable_cut, "", "{end.device}: it is down (port 1 is down)", id="down"),
    pytest.param(
        no_address,
        "",
        "{end.device}: it has no IP address, which rdma_cm binds to (netdev {end.netdev})",
        id="no address",
    ),
    pytest.param(
        iwarp,
        "siw0",
        "siw0: iWARP has no RDMA WRITE WITH IMM, which calls are made of",
        id="iWARP",
    ),
]


@pytest.mark.parametrize(("disturb", "device", "said"), FAULTS[1:])  # a cable has two ends
def test_at_the_client(
    site: Site, shipped: Path, ends: Ends, disturb: Disturb, device: str, said: str
) -> None:
    end, server = ends
    site.start("all", "--device", server.device)
    with disturb(end):
        done = site.run("call", *WINDOW, "--device", device or end.device, shipped, "echo")
    assert (done.returncode, done.stdout) == (69, b"")
    assert said.format(end=end) in done.stderr.decode()


@pytest.mark.parametrize(("disturb", "device", "said"), FAULTS)
def test_at_the_executor(
    site: Site, shipped: Path, ends: Ends, disturb: Disturb, device: str, said: str
) -> None:
    """Its word reaches the client, which does not take it for a library that is to be sent."""
    client, end = ends
    with disturb(end):
        site.start("all", "--device", device or end.device)
        done = site.run("call", *WINDOW, "--device", client.device, shipped, "echo")
    assert (done.returncode, done.stdout) == (69, b"")
    assert said.format(end=end) in done.stderr.decode()


def test_a_wrong_name_at_the_executor(site: Site, shipped: Path, ends: Ends) -> None:
    client, end = ends
    site.start("all", "--device", "rxe9")
    done = site.run("call", *WINDOW, "--device", client.device, shipped, "echo")
    assert done.returncode == 78
    assert "there is no RDMA device or netdev 'rxe9', there is " in done.stderr.decode()
    assert f"{end.device} ({end.netdev})" in done.stderr.decode()


@pytest.mark.parametrize("slot_bytes", ["16MiB", "1MiB"], ids=["default", "small"])
def test_a_usual_limit_on_locked_memory(
    site: Site, shipped: Path, ends: Ends, slot_bytes: str
) -> None:
    """8 MiB, for all: these devices fetch pages on demand, and nothing has to be set."""
    limited = ["setpriv", "--bounding-set", "-ipc_lock", "prlimit", "--memlock=8388608"]
    call = ["call", "--transport", "verbs", "--slot-bytes", slot_bytes, str(shipped), "echo"]
    done = subprocess.run(
        [*limited, RFAAS, *call, __file__],
        env=site.environ,
        cwd=site.path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, Path(__file__).read_bytes(), b"")


@pytest.mark.slow
def test_calls_in_flight(site: Site, hostile: Path, ends: Ends) -> None:
    """All fail with the cause, and the lease goes on with another worker.

    Not with a cut cable: what the kernel sends while a link is down breaks its own queue pair
    for good with SoftRoCE (`rdma resource show qp`: GSI, ERR), and nobody connects any more.
    """
    client, server = ends
    site.start("all", "--device", server.device)
    site.set(lane__transport="verbs", lane__slot_bytes=65536, rdma__device=client.device)
    minute = (60_000).to_bytes(4, "little")
    lost = r"IBV_WC_RETRY_EXC_ERR|RDMA_CM_EVENT_UNREACHABLE"
    with site.session() as session, session.lease(library=str(hostile)) as lease:
        assert lease.call("capacity_of") == (65536).to_bytes(4, "little")
        futures = [lease.submit("sleep_ms", minute) for _ in range(4)]
        with packets_lost(client):
            for future in futures:
                with pytest.raises(WorkerCrashedError, match=lost):
                    future.result()
        assert lease.call("capacity_of") == (65536).to_bytes(4, "little")


def test_back_again(site: Site, shipped: Path, ends: Ends) -> None:
    """Nothing has to be started anew when the device has come back."""
    client, server = ends
    site.start("all", "--device", server.device)
    with cable_cut(server):
        assert site.run("call", *WINDOW, shipped, "echo").returncode == 69
    command = ("call", *WINDOW, "--device", client.device, shipped, "echo", __file__)
    done = site.run(*command)
    assert (done.returncode, done.stdout, done.stderr) == (0, Path(__file__).read_bytes(), b"")
