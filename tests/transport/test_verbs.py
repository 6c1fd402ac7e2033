"""Transport `verbs` keeps the contract of transports; needs RDMA devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.rdma import End
from tests.transport import contract, contract_faults, contract_threads
from tests.transport.served import Serve, Served
from tests.transport.served_verbs import VerbsServed

pytestmark = pytest.mark.rdma


@pytest.fixture
def serve(verbs_ends: tuple[End, End], library: Path) -> Iterator[Serve]:
    """Starts what is served, as of `Served`; all of it is gone when the test is over."""
    started: list[Served] = []

    def start(**options: Any) -> Served:
        served = VerbsServed(verbs_ends, options.pop("library", library), **options)
        started.append(served)
        return served

    yield start
    for served in started:
        served.close()


class TestPayloads(contract.Payloads): ...


class TestFunctions(contract.Functions): ...


class TestInFlight(contract.InFlight): ...


class TestBuffers(contract.Buffers):
    @pytest.mark.skip(reason="an input has left with `submit`: there is nothing to be in place")
    def test_used_in_place(self) -> None:  # type: ignore[override]
        """Over RDMA, what is written into a buffer after `submit` comes too late."""


class TestThreads(contract_threads.Threads): ...


class TestEndings(contract_faults.Endings): ...


class TestWaiting(contract_faults.Waiting): ...


class TestAccounting(contract_faults.Accounting): ...
