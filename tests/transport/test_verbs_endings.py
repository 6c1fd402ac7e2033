"""How a connection over RDMA ends in mid-call: every call in flight fails, and is told the cause.

What ends it is the network here, and the other process; what a peer does to its own
connection is in test_verbs_wire.py and test_verbs_hosts.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rfaas.errors import WorkerCrashedError
from rfaas.transport import verbs
from tests.harness.rdma import End, cable_cut, packets_lost
from tests.transport.served import Gate
from tests.transport.served_verbs import VerbsServed

pytestmark = pytest.mark.rdma

Cut = Callable[[End], AbstractContextManager[None]]

IN_FLIGHT = 4


def ours_to_cut(ends: tuple[End, End]) -> None:
    if ends[0] == ends[1] or "RFAAS_GUEST" not in os.environ:
        pytest.skip("only in the guest is the cable ours to cut")


@pytest.mark.slow
@pytest.mark.parametrize("spin_us", [0, 60_000_000], ids=["asleep", "spinning"])
@pytest.mark.parametrize(
    ("cut", "side", "cause"),
    [
        (cable_cut, 0, r"port 1 of our device is down"),
        (cable_cut, 1, r"port 1 of our device is down"),
        (packets_lost, 0, r"IBV_WC_RETRY_EXC_ERR|RDMA_CM_EVENT_UNREACHABLE"),
        (packets_lost, 1, r"IBV_WC_RETRY_EXC_ERR|RDMA_CM_EVENT_UNREACHABLE"),
    ],
    ids=["our cable cut", "their cable cut", "our packets lost", "their packets lost"],
)
def test_network(
    verbs_ends: tuple[End, End], library: Path, cut: Cut, side: int, cause: str, spin_us: int
) -> None:
    ours_to_cut(verbs_ends)
    served = VerbsServed(verbs_ends, library, slots=IN_FLIGHT, spin_us=spin_us)
    try:
        assert served.calls.call("echo", b"before") == b"before"
        with cut(verbs_ends[side]):
            all_fail(served, cause)
    finally:
        served.close()


def all_fail(served: VerbsServed, cause: str) -> None:
    """Calls that are sent now fail, the first of them with this cause."""
    lane = served.lane
    lost = [served.calls.submit("echo", b"lost") for _ in range(IN_FLIGHT)]
    assert all(isinstance(future.exception(), WorkerCrashedError) for future in lost)
    error = verbs.explain(lane)
    assert error is not None
    assert error.text.startswith("the connection to the worker is broken: ")
    assert re.search(cause, error.text), error.text


@pytest.mark.parametrize("spin_us", [0, 60_000_000], ids=["asleep", "spinning"])
def test_process_killed(
    verbs_ends: tuple[End, End], library: Path, gate: Gate, spin_us: int
) -> None:
    served = VerbsServed(verbs_ends, library, slots=IN_FLIGHT, spin_us=spin_us)
    try:
        lane = served.lane
        lost = [served.calls.submit("hold", gate.data) for _ in range(IN_FLIGHT)]
        gate.entered()
        served.kill()
        assert all(isinstance(future.exception(), WorkerCrashedError) for future in lost)
        error = verbs.explain(lane)
        assert error is not None
        assert "its process ended (RDMA_CM_EVENT_DISCONNECTED)" in error.text
    finally:
        served.close()
