"""Transport `shm` keeps the contract of transports."""

from __future__ import annotations

import pytest

from rfaas.transport import Transport, shm
from tests.transport import contract, contract_faults, contract_threads


@pytest.fixture
def carrier() -> Transport:
    return shm.TRANSPORT


class TestPayloads(contract.Payloads): ...


class TestFunctions(contract.Functions): ...


class TestInFlight(contract.InFlight): ...


class TestBuffers(contract.Buffers): ...


class TestThreads(contract_threads.Threads): ...


class TestEndings(contract_faults.Endings): ...


class TestWaiting(contract_faults.Waiting): ...


class TestHostileClient(contract_faults.HostileClient): ...


class TestHostileWorker(contract_faults.HostileWorker): ...


class TestAccounting(contract_faults.Accounting): ...
