"""What must go wrong well over RDMA, beside the contract: connections, resources, refusals."""

from __future__ import annotations

import os
import re
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rfaas.errors import RfaasError, SystemCallError, UnavailableError, WorkerCrashedError
from rfaas.native._window import Lane
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import ring, verbs, verbs_errors
from tests.harness.rdma import End, cable_cut
from tests.transport.served_verbs import VerbsServed

pytestmark = pytest.mark.rdma

ROOT = Path(__file__).parents[2]
CYCLES = int(os.environ.get("RFAAS_CONNECT_CYCLES", "100"))  # 10000 by hand: minutes
SLOTS, SLOT_BYTES = 4, wire.PAGE_BYTES


@contextmanager
def answering(end: End) -> Iterator[Endpoint]:
    """Lanes of this process that answer every write by a bare one."""
    secret = os.urandom(wire.SECRET_BYTES)
    rings, account = ring.create(1, SLOTS, SLOT_BYTES), ring.create_account(1)
    size = wire.ring_bytes(SLOTS, SLOT_BYTES)
    native = verbs_errors.load()
    lanes = native.WorkerLanes(None, rings, size, account, (-1,), 1, end.address, secret)
    over, end_it = os.pipe()

    def attend() -> None:
        while True:
            ready, _, _ = select.select([over, *lanes.filenos()], [], [])
            if over in ready:
                return
            lanes.step()

    thread = threading.Thread(target=attend)
    thread.start()
    try:
        yield Endpoint(host=end.address, port=lanes.port, secret=secret)
    finally:
        os.close(end_it)
        thread.join()
        lanes.stop()
        for fd in (over, rings, account):
            os.close(fd)


def apart(work: Callable[[End, End], object], ends: tuple[End, End]) -> None:
    """Do `work` in a new process: a device that this one has open is of no use to its forks."""
    plain = tuple(tuple(end) for end in ends)
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from {work.__module__} import End, "
        f"{work.__name__}; "
        f"{work.__name__}(*(End(*end) for end in {plain!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def held() -> dict[str, int]:
    """What this process holds: descriptors, and the kernel's RDMA objects by kind."""
    found = {"descriptors": len(os.listdir("/proc/self/fd"))}
    shown = subprocess.run(["rdma", "resource", "show"], capture_output=True, text=True, check=True)
    for kind, count in re.findall(r"\b(qp|cq|mr|pd|cm_id) (\d+)", shown.stdout):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def exchange(end: End, server: End) -> None:
    with answering(server) as endpoint:
        lane = verbs.connect(endpoint, 0, SLOTS, SLOT_BYTES, end.address)
        assert verbs_errors.load().bare(lane, b"x" * 100, 2) is not None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_connections_leave_nothing(verbs_ends: tuple[End, End]) -> None:
    apart(connect_and_disconnect, verbs_ends)


def connect_and_disconnect(client: End, server: End) -> None:
    for _ in range(5):
        exchange(client, server)
    before, memory = held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(CYCLES):
        exchange(client, server)
    assert held() == before
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown_kib < 2048 + CYCLES / 10, f"{grown_kib} KiB in {CYCLES} cycles"


def test_nobody_listens(verbs_ends: tuple[End, End]) -> None:
    client, server = verbs_ends
    nobody = Endpoint(host=server.address, port=1, secret=bytes(wire.SECRET_BYTES))
    before = held()
    with pytest.raises(UnavailableError, match=r"nobody listens there \(RDMA_CM_EVENT_REJECTED"):
        verbs.connect(nobody, 0, SLOTS, SLOT_BYTES, client.address)
    assert held() == before


def test_no_such_address(verbs_ends: tuple[End, End]) -> None:
    nowhere = Endpoint(host="127.0.0.1", port=1, secret=bytes(wire.SECRET_BYTES))
    with pytest.raises(RfaasError, match=r"cannot connect to the worker at 127\.0\.0\.1 port 1"):
        verbs.connect(nowhere, 0, SLOTS, SLOT_BYTES, "")


def test_another_geometry(verbs_ends: tuple[End, End]) -> None:
    apart(another_geometry, verbs_ends)


def another_geometry(client: End, server: End) -> None:
    exchange(client, server)  # opens both devices for good
    before = held()
    refused = pytest.raises(UnavailableError, match="the worker refused: it has windows of another")
    with answering(server) as endpoint, refused:
        verbs.connect(endpoint, 0, wire.SLOTS_MAX, SLOT_BYTES, client.address)
    assert held() == before


def test_memlock_too_small(verbs_ends: tuple[End, End]) -> None:
    apart(memlock_too_small, verbs_ends)


def memlock_too_small(client: End, server: End) -> None:
    """Root may lock what it wants, so a child becomes somebody else."""
    with answering(server) as endpoint:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
                os.setresuid(65534, 65534, 65534)
                verbs.connect(endpoint, 0, SLOTS, 1 << 20, client.address)
                os.write(writer, b"it was let")
            except SystemCallError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
    assert "its windows are 8 MiB" in said
    assert "may lock 1 MiB (RLIMIT_MEMLOCK)" in said
    assert "ulimit -l" in said


@pytest.mark.slow
def test_cable_cut_in_mid_call(verbs_ends: tuple[End, End], library: Path) -> None:
    """No packet comes through: the write is retried, and then the call fails with the cause."""
    if verbs_ends[0] == verbs_ends[1] or "RFAAS_GUEST" not in os.environ:
        pytest.skip("only in the guest is the cable ours to cut")
    served = VerbsServed(verbs_ends, library, slots=SLOTS)
    try:
        lane: Lane = served.lane
        assert served.calls.call("echo", b"before") == b"before"
        with cable_cut(verbs_ends[1]), pytest.raises(WorkerCrashedError):
            served.calls.call("echo", b"lost")
        error = verbs.explain(lane)
        assert error is not None
        # The write's retries run out, or rdma_cm hears of the netdev first.
        assert "the connection to the worker is broken: " in error.text
    finally:
        served.close()
