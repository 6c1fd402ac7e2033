"""Transport `verbs` with an endpoint before the worker keeps the contract; needs RDMA devices."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfaas.errors import WorkerCrashedError
from rfaas.proto import wire
from rfaas.proto.wire import Status
from rfaas.transport import verbs
from tests.harness.rdma import End
from tests.transport import contract, contract_faults, contract_threads
from tests.transport.contract import SLOT_BYTES, pattern, u32
from tests.transport.served import Gate, Serve, Served, eventually
from tests.transport.served_endpoint import NONSENSE, EndpointServed

pytestmark = pytest.mark.rdma


@pytest.fixture(params=[False, True], ids=["apart", "together"])
def shares(request: pytest.FixtureRequest) -> bool:
    """Whether worker and endpoint take turns on one processor."""
    return bool(request.param)


@pytest.fixture
def serve(verbs_ends: tuple[End, End], library: Path, shares: bool) -> Iterator[Serve]:
    """Starts what is served, as of `Served`; all of it is gone when the test is over."""
    started: list[Served] = []

    def start(**options: Any) -> Served:
        given = options.pop("library", library)
        served = EndpointServed(verbs_ends, given, shares=shares, **options)
        started.append(served)
        return served

    yield start
    for served in started:
        served.close()


class Together:
    """Each once: three that spin on the guest's two processors are slow."""

    @pytest.fixture
    def shares(self) -> bool:
        """As in most of the guest's leases."""
        return True


class TestPayloads(Together, contract.Payloads):
    @pytest.mark.skip(reason="more than a minute in the guest, where a system call takes 8 us")
    def test_seventy_thousand_calls(self) -> None:  # type: ignore[override]
        """`test_ids_wrap` does what it is for."""


class TestFunctions(contract.Functions): ...


class TestInFlight(Together, contract.InFlight): ...


class TestBuffers(Together, contract.Buffers):
    @pytest.mark.skip(reason="an input has left with `submit`: there is nothing to be in place")
    def test_used_in_place(self) -> None:  # type: ignore[override]
        """Over RDMA, what is written into a buffer after `submit` comes too late."""


class TestThreads(Together, contract_threads.Threads): ...


class TestEndings(contract_faults.Endings): ...


class TestWaiting(contract_faults.Waiting):
    @pytest.mark.skip(
        reason="fails in the guest: 0.49 s of processor time, 0.25 allowed; cause not found"
    )
    def test_threads_that_watch_sleep(self) -> None:  # type: ignore[override]
        """As over a worker's own lanes."""


class TestAccounting(contract_faults.Accounting): ...


class TestEndpoint:
    """What only this way has: two processes, and one that does not believe the other."""

    def test_the_worker_counts_for_nobody(self, serve: Serve) -> None:
        """It has a page of its own; what is billed, the endpoint has counted."""
        served = serve()
        for _ in range(10):
            served.calls.call("echo", b"x")
        assert served.account(wire.ACCOUNT_CALLS) == 10

    def test_calls_in_flight_are_answered_when_the_worker_dies(
        self, serve: Serve, gate: Gate
    ) -> None:
        """By the endpoint, which then hangs up; the client may see that first."""
        served = serve(slots=4)
        futures = [served.calls.submit("hold", gate.data) for _ in range(4)]
        gate.entered()
        served.kill()
        for future in futures:
            assert isinstance(future.exception(), WorkerCrashedError)
        explained = verbs.explain(served.lane)
        assert explained is not None
        assert "the worker is gone" in explained.text or "disconnected" in explained.text

    @pytest.mark.parametrize(
        ("imm", "size"),
        [
            (wire.imm(3, Status.OK), 8),  # no such slot
            (wire.imm(wire.SLOTS_MAX - 1, Status.OK), 8),
            (wire.imm(2, Status.OK), 8),  # not in flight
            (wire.imm(0, Status.OK), SLOT_BYTES + 1),
            (wire.imm(0, Status.OK), 2**32 - 1),
            (wire.imm(0, Status.OK, wire.FLAG_INLINE), wire.INLINE_BYTES_MAX + 1),
            (wire.imm(0, Status.FUNCTION_FAILED), 2**32 - 1),
            (0xFFFFFFFF, 0xFFFFFFFF),
        ],
    )
    def test_an_answer_that_makes_no_sense(self, serve: Serve, imm: int, size: int) -> None:
        """It ends the lane; nothing past the slot reaches the client."""
        served = serve(library=None, slots=3, slot_bytes=SLOT_BYTES)
        futures = [served.calls.submit("echo", b"x") for _ in range(2)]
        eventually(lambda: self.requested(served, 1))
        served.respond(0, imm, size)
        for future in futures:
            assert isinstance(future.exception(), WorkerCrashedError)
        assert isinstance(served, EndpointServed)
        assert os.waitstatus_to_exitcode(served.reap_endpoint()) == NONSENSE

    def test_two_answers_to_one_call(self, serve: Serve) -> None:
        served = serve(library=None, slots=3)
        first, second = (served.calls.submit("echo", b"x") for _ in range(2))
        eventually(lambda: self.requested(served, 1))
        slot = self.slot_of(served, 0)
        served.respond(0, wire.imm(slot, Status.OK, wire.FLAG_INLINE), 8)
        assert first.result() == bytes(8)
        served.respond(1, wire.imm(slot, Status.OK, wire.FLAG_INLINE), 8)
        assert isinstance(second.exception(), WorkerCrashedError)

    @pytest.mark.parametrize("size", [0, 1, 48, 49, 104])
    def test_small_results_go_out_of_the_cell(self, serve: Serve, size: int) -> None:
        """What stands in the slot does not matter: the worker's lines have it."""
        served = serve(library=None, slots=3)
        call = served.calls.submit("echo", b"x")
        eventually(lambda: self.requested(served, 0))
        at, data = served.response_at(0), pattern(size)
        served.memory[at + wire.CELL_DATA0 : at + wire.CELL_DATA0 + min(size, 48)] = data[:48]
        if size > wire.CELL_DATA0_BYTES:
            place = at + wire.CELL_DATA1
            served.memory[place : place + size - 48] = data[48:]
        served.respond(0, wire.imm(self.slot_of(served, 0), Status.OK, wire.FLAG_INLINE), size)
        assert call.result() == data

    def test_a_request_past_its_slot_never_reaches_the_worker(self, serve: Serve) -> None:
        """Requests carry no payload in their cell: it is in the slot already."""
        served = serve(library=None, slots=3)
        served.calls.submit("echo", u32(7))
        eventually(lambda: self.requested(served, 0))
        (imm,) = struct.unpack_from("<I", served.memory, served.request_at(0) + wire.CELL_IMM)
        assert wire.imm_fields(imm)[2] == 0

    def requested(self, served: Served, index: int) -> bool:
        (seq,) = struct.unpack_from("<I", served.memory, served.request_at(index))
        return bool(seq == index + 1)

    def slot_of(self, served: Served, index: int) -> int:
        (imm,) = struct.unpack_from("<I", served.memory, served.request_at(index) + wire.CELL_IMM)
        return wire.imm_fields(imm)[0]
