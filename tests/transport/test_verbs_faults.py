"""What must go wrong well over RDMA, beside the contract: connections, resources, refusals."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import pytest

from rfaas.errors import RfaasError, SystemCallError, UnavailableError
from rfaas.native._window import Lane
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import verbs, verbs_errors
from tests.harness.rdma import End
from tests.transport.served_verbs import open_devices
from tests.transport.verbs_tools import (
    SLOT_BYTES,
    SLOTS,
    answering,
    answering_apart,
    apart,
    held,
    output,
)

pytestmark = pytest.mark.rdma


def exchange(end: End, server: End) -> None:
    with answering(server) as endpoint:
        lane = verbs.connect(endpoint, 0, SLOTS, SLOT_BYTES, end.address)
        assert verbs_errors.load().bare(lane, b"x" * 100, 2) is not None


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


@pytest.mark.skipif("RFAAS_GUEST" not in os.environ, reason="who has which address: a guest's")
def test_an_address_that_nobody_has(
    verbs_ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for several times within the time that there is."""
    client, _ = verbs_ends
    monkeypatch.setattr(verbs, "CONNECT_TIMEOUT_S", 1.0)
    nobody = client.address.rpartition(".")[0] + ".99"
    there = Endpoint(host=nobody, port=1, secret=bytes(wire.SECRET_BYTES))
    before = held()
    with pytest.raises(UnavailableError, match=r"could not resolve the address: .*after \d tries"):
        verbs.connect(there, 0, SLOTS, SLOT_BYTES, client.address)
    assert held() == before


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
    said = apart(memlock_too_small, verbs_ends, True)
    assert "its windows are 8 MiB" in said
    assert "may lock 1 MiB (RLIMIT_MEMLOCK)" in said
    assert "ulimit -l" in said


def test_memlock_too_small_for_what_is_paged(verbs_ends: tuple[End, End]) -> None:
    if "ODP_SUPPORT" not in output("ibv_devinfo", "-v", "-d", verbs_ends[0].device):
        pytest.skip(f"{verbs_ends[0].device} fetches no pages on demand")
    assert apart(memlock_too_small, verbs_ends, False) == "it was let\n"


def memlock_too_small(client: End, server: End, locks_always: bool) -> None:
    """Root may lock what it wants, so a child becomes somebody else."""
    native = verbs_errors.load()
    with answering(server, slot_bytes=1 << 20) as endpoint:
        pid = os.fork()
        if not pid:
            try:
                native.lock_always(locks_always)
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
                os.setresuid(65534, 65534, 65534)
                lane = verbs.connect(endpoint, 0, SLOTS, 1 << 20, client.address)
                assert native.bare(lane, bytes(1 << 20), 2) is not None
                print("it was let", flush=True)
            except SystemCallError as error:
                print(error, flush=True)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("kind", ["descriptors", "memory"])
def test_resources_run_out(verbs_ends: tuple[End, End], kind: str) -> None:
    """At each step in turn: a queue, a registration, a channel."""
    refused = apart(resources_run_out, verbs_ends, kind).splitlines()
    assert len(set(refused)) >= 2, refused
    for line in refused:
        assert re.match(r"cannot (connect to the worker at|make|open a lane)\b", line), line
        assert re.search(r"EMFILE|ENOMEM|Too many open files|Cannot allocate", line), line


def resources_run_out(client: End, server: End, kind: str) -> None:
    which, step = {
        "descriptors": (resource.RLIMIT_NOFILE, 1),
        "memory": (resource.RLIMIT_AS, wire.PAGE_BYTES),
    }[kind]
    limit = resource.getrlimit(which)
    with answering_apart(server) as worker:
        open_devices(client)
        before, spare = held(), -4  # numbers of descriptors have gaps
        lane: Lane | None = None
        while lane is None:
            has = before["descriptors"] if kind == "descriptors" else virtual_bytes()
            resource.setrlimit(which, (has + spare, limit[1]))
            try:
                lane = verbs.connect(worker.endpoint, 0, SLOTS, SLOT_BYTES, client.address)
            except SystemCallError as error:
                resource.setrlimit(which, limit)
                print(error.text)
                assert held() == before
            finally:
                resource.setrlimit(which, limit)
            spare += step
        assert verbs_errors.load().bare(lane, b"x" * 100, 2) is not None


def virtual_bytes() -> int:
    """Of address space, which RLIMIT_AS counts."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * wire.PAGE_BYTES


def test_a_worker_out_of_queue_pairs(verbs_ends: tuple[End, End]) -> None:
    said = apart(a_worker_out_of_queue_pairs, verbs_ends)
    assert "the worker refused: it could not make a queue pair" in said


def a_worker_out_of_queue_pairs(client: End, server: End) -> None:
    """Its memory is used up when its client comes; it serves the next one, when it has some."""

    def starve(orders: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes(), limit[1]))
        os.read(orders, 1)
        resource.setrlimit(resource.RLIMIT_AS, limit)

    with answering_apart(server, starve) as worker:
        try:
            verbs.connect(worker.endpoint, 0, SLOTS, SLOT_BYTES, client.address)
        except UnavailableError as error:
            print(error)
        os.write(worker.order, b".")
        assert os.read(worker.done, 1) == b"."
        lane = verbs.connect(worker.endpoint, 0, SLOTS, SLOT_BYTES, client.address)
        assert verbs_errors.load().bare(lane, b"x" * 100, 2) is not None


def test_a_worker_out_of_threads(verbs_ends: tuple[End, End]) -> None:
    """Nobody is accepted whom nobody serves."""
    apart(a_worker_out_of_threads, verbs_ends)


def a_worker_out_of_threads(client: End, server: End) -> None:
    """Its lane is of a processor that there is not, and the lane's thread cannot be made."""
    with answering(server, cpu=1023) as endpoint:
        for _ in range(2):  # the second is not told that the lane is taken
            before = held()
            with pytest.raises(UnavailableError, match="it could not start a thread"):
                verbs.connect(endpoint, 0, SLOTS, SLOT_BYTES, client.address)
            if _:
                assert held() == before
