"""What must go wrong well over RDMA, beside the contract: connections, resources, refusals."""

from __future__ import annotations

import os
import resource

import pytest

from rfaas.errors import RfaasError, SystemCallError, UnavailableError
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import verbs, verbs_errors
from tests.harness.rdma import End
from tests.transport.verbs_tools import SLOT_BYTES, SLOTS, answering, apart, held, output

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
