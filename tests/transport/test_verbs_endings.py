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

from rfaas.errors import WorkerCrashedError, WorldError
from rfaas.native._calls import Call
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import verbs
from tests.harness.rdma import End, cable_cut, packets_lost
from tests.transport.served import Gate
from tests.transport.served_verbs import VerbsServed

pytestmark = pytest.mark.rdma

Cut = Callable[[End], AbstractContextManager[None]]

IN_FLIGHT = 4


LOST = r"IBV_WC_RETRY_EXC_ERR|RDMA_CM_EVENT_UNREACHABLE"
CUTS = [
    pytest.param(cable_cut, 0, "port 1 of our device is down", id="our cable cut"),
    pytest.param(cable_cut, 1, "port 1 of our device is down", id="their cable cut"),
    pytest.param(packets_lost, 0, LOST, id="our packets lost"),
    pytest.param(packets_lost, 1, LOST, id="their packets lost"),
]


NOT_REACHED = r"^cannot connect to the worker at .*: could not (resolve|find|connect)"


def ours_to_cut(ends: tuple[End, End]) -> None:
    if ends[0] == ends[1] or "RFAAS_GUEST" not in os.environ:
        pytest.skip("only in the guest is the cable ours to cut")


@pytest.mark.slow
@pytest.mark.parametrize("spin_us", [0, 60_000_000], ids=["asleep", "spinning"])
@pytest.mark.parametrize(("cut", "side", "cause"), CUTS)
def test_network(
    verbs_ends: tuple[End, End], library: Path, cut: Cut, side: int, cause: str, spin_us: int
) -> None:
    ours_to_cut(verbs_ends)
    served = VerbsServed(verbs_ends, library, slots=IN_FLIGHT, spin_us=spin_us)
    try:
        assert served.calls.call("echo", b"before") == b"before"
        with cut(verbs_ends[side]):
            fail(served, [served.calls.submit("echo") for _ in range(IN_FLIGHT)], cause)
    finally:
        served.close()


@pytest.mark.slow
@pytest.mark.parametrize("spin_us", [0, 60_000_000], ids=["asleep", "spinning"])
@pytest.mark.parametrize(("cut", "side", "cause"), CUTS)
def test_network_when_all_is_sent(
    verbs_ends: tuple[End, End],
    library: Path,
    gate: Gate,
    cut: Cut,
    side: int,
    cause: str,
    spin_us: int,
) -> None:
    """The worker has the calls, and nothing is on its way that would come back."""
    ours_to_cut(verbs_ends)
    served = VerbsServed(verbs_ends, library, slots=IN_FLIGHT, spin_us=spin_us)
    try:
        sent = [served.calls.submit("hold", gate.data) for _ in range(IN_FLIGHT)]
        gate.entered()
        with cut(verbs_ends[side]):
            fail(served, sent, cause)
    finally:
        served.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "side", "said"),
    [
        pytest.param(cable_cut, 0, r"rxe0: it is down", id="our cable cut"),
        pytest.param(cable_cut, 1, r"rxe0: it is down", id="their cable cut"),
        pytest.param(packets_lost, 0, NOT_REACHED, id="our packets lost"),
        pytest.param(packets_lost, 1, NOT_REACHED, id="their packets lost"),
    ],
)
def test_network_before_all(
    verbs_ends: tuple[End, End],
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: Cut,
    side: int,
    said: str,
) -> None:
    """Nobody is reached; when the network is back, another worker is."""
    ours_to_cut(verbs_ends)
    for is_cut in (True, False):
        served = VerbsServed(verbs_ends, library, slots=IN_FLIGHT, connects=False)
        try:
            if is_cut:
                with cut(verbs_ends[side]), monkeypatch.context() as patch:
                    patch.setattr(verbs, "CONNECT_TIMEOUT_S", 1.0)
                    with pytest.raises(WorldError, match=said):
                        served.connect()
            else:
                served.connect()
                assert served.calls.call("echo", b"after") == b"after"
        finally:
            served.close()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("10.77.0.99", r"could not resolve the address: .*\("),
        ("192.0.2.1", r"could not resolve the address: .*\("),
        ("127.0.0.1", r"could not (resolve the address|connect): .*\("),
    ],
    ids=["nobody's", "without a route", "our own"],
)
def test_addresses(
    verbs_ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch, host: str, said: str
) -> None:
    monkeypatch.setattr(verbs, "CONNECT_TIMEOUT_S", 1.0)
    at = Endpoint(host=host, port=1, secret=bytes(wire.SECRET_BYTES))
    with pytest.raises(WorldError, match=said):
        verbs.connect(at, 0, IN_FLIGHT, wire.PAGE_BYTES, verbs_ends[0].address)


def fail(served: VerbsServed, lost: list[Call], cause: str) -> None:
    """The calls fail, with this cause."""
    lane = served.lane
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
