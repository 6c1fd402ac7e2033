"""The wire over RDMA as an independent peer speaks it: pyverbs, and nothing of ours.

The peer keeps to the rules and breaks them; what it breaks is its own
connection, and nothing else.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rfaas.proto import wire
from rfaas.proto.wire import Status
from rfaas.transport import verbs
from tests.harness.rdma import End
from tests.transport.contract import SLOT_BYTES, pattern
from tests.transport.served import eventually
from tests.transport.served_verbs import VerbsServed

if TYPE_CHECKING:
    from rfaas.native._window import Lane
    from rfaas.native._worker import Library

pytestmark = pytest.mark.rdma

PEER = Path(__file__).with_name("pyverbs_peer.py")
SLOTS = 4
REM_ACCESS_ERR, RETRY_EXC_ERR, RNR_RETRY_EXC_ERR = 10, 12, 13  # ibv_poll_cq(3)
STRANGER, VERSION, SECRET, LANE, GEOMETRY, TAKEN = range(1, 7)  # native/verbs_wire.h


class Alone(VerbsServed):
    """A worker that our own client has not connected to; what it says goes to `log`."""

    log = Path()

    def _run(self, library: Library, hot_timeout_ms: int, say: int) -> None:
        with self.log.open("w") as sys.stderr:
            super()._run(library, hot_timeout_ms, say)

    def says(self, text: str) -> None:
        """Return when the worker has said it."""
        eventually(lambda: text in self.log.read_text())

    def accept(self, lanes: int, slots: int, slot_bytes: int) -> list[Lane]:
        return []

    def ours(self, number: int) -> Lane:
        """Our own client's lane to it after all."""
        assert self.endpoint is not None
        address = self._client.address
        return verbs.connect(self.endpoint, number, self.slots, self.slot_bytes, address)

    def order(self, *steps: dict[str, Any], **changes: Any) -> str:
        """What the peer is to do, in JSON."""
        assert self.endpoint is not None
        order = {
            "source": self._client.address,
            "host": self.endpoint.host,
            "port": self.endpoint.port,
            "secret": self.endpoint.secret.hex(),
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            "steps": steps,
        }
        return json.dumps(order | changes)

    def index(self, name: str) -> int:
        return self.calls.functions.index(name)


@pytest.fixture
def served(
    verbs_ends: tuple[End, End], library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Alone]:
    monkeypatch.setattr(Alone, "log", tmp_path / "worker.log")
    served = Alone(verbs_ends, library, slots=SLOTS, slot_bytes=SLOT_BYTES, lanes=2)
    yield served
    served.close()


def run(python: str, order: str) -> list[Any]:
    """What the peer says: how it was received, then what came of each step."""
    done = subprocess.run(
        [python, "-I", PEER, order], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(python: str, order: str) -> int:
    """The reason of the refusal that it got, 0 if it was not one of ours."""
    (said,) = run(python, order)
    data = bytes.fromhex(said["refused"])
    magic, version, reason = struct.unpack_from(wire.VERBS_REFUSAL, data)
    assert (magic, version) == (wire.VERBS_MAGIC, wire.VERBS_VERSION)
    return int(reason)


def test_calls(python: str, served: Alone) -> None:
    echo, sizes = served.index("echo"), (0, 1, 64, 511, 512, 513, 3000, SLOT_BYTES)
    data = [pattern(size) for size in sizes]
    steps = [
        {"slot": turn % SLOTS, "low": echo, "data": one.hex()} for turn, one in enumerate(data)
    ]
    told, *answers = run(python, served.order(*steps))
    assert told["told"][:3] == [wire.VERBS_MAGIC, wire.VERBS_VERSION, 0]
    assert told["told"][5:] == [SLOTS, SLOT_BYTES]
    assert answers == [
        [{"slot": turn % SLOTS, "low": Status.OK, "bytes": len(one), "data": one.hex()}]
        for turn, one in enumerate(data)
    ]


def test_failures_carry_text_and_detail(python: str, served: Alone) -> None:
    names = ("return_status", "report_too_much")
    status, too_much = (served.index(name) for name in names)
    steps: list[dict[str, Any]] = [
        {"slot": 1, "low": status, "data": struct.pack("<I", 7).hex()},
        {"slot": 2, "low": 999, "size": 8},
        {"slot": 0, "low": served.index("echo"), "size": SLOT_BYTES + 8},
        {"slot": 3, "low": too_much, "data": struct.pack("<I", SLOT_BYTES + 77).hex()},
    ]
    _, *answers = run(python, served.order(*steps))
    told = []
    for (answer,) in answers:
        payload = bytes.fromhex(answer["data"])
        (detail,) = struct.unpack("<I", payload[-wire.DETAIL_BYTES :])
        told.append((answer["slot"], answer["low"], detail))
    assert told == [
        (1, Status.FUNCTION_FAILED, 7),
        (2, Status.FUNCTION_UNKNOWN, 999),
        (0, Status.REQUEST_INVALID, SLOT_BYTES + 8),
        (3, Status.OUTPUT_TOO_LARGE, SLOT_BYTES + 77),
    ]


def test_all_slots_at_once(python: str, served: Alone) -> None:
    echo = served.index("echo")
    _, *answers = run(python, served.order(*[{"slot": 0, "low": echo, "size": 9, "times": SLOTS}]))
    assert [answer["low"] for answer in answers[0]] == [Status.OK] * SLOTS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"magic": 0x12345678}, STRANGER),
        ({"hello_bytes": 0}, STRANGER),
        ({"version": 2}, VERSION),
        ({"secret": "00" * 16}, SECRET),
        ({"lane": 2}, LANE),
        ({"lane": 65535}, LANE),
        ({"hello_slots": SLOTS + 1}, GEOMETRY),
    ],
)
def test_strangers_are_refused(
    python: str, served: Alone, change: dict[str, Any], reason: int
) -> None:
    assert refusal(python, served.order(**change)) == reason
    lane = served.ours(0)  # and nothing is lost by it
    served.calls._install([lane], served.calls.functions)
    assert served.calls.call("echo", b"still here") == b"still here"


def test_a_lane_is_taken_once(python: str, served: Alone) -> None:
    lane = served.ours(0)
    assert refusal(python, served.order()) == TAKEN
    served.calls._install([lane], served.calls.functions)
    assert served.calls.call("echo", b"mine") == b"mine"


@pytest.mark.parametrize(
    "fault",
    [
        {"rkey_xor": 0x55, "size": 8},
        {"offset": SLOTS * (SLOT_BYTES + 4096), "size": 8},
        {"offset": -8, "size": 8},
        {"slot": SLOTS - 1, "offset": SLOT_BYTES - 4, "size": 8},
    ],
    ids=["wrong key", "past the window", "before the window", "past the last slot"],
)
def test_a_wrong_write_ends_its_connection_alone(
    python: str, served: Alone, fault: dict[str, Any]
) -> None:
    lane = served.ours(1)
    served.calls._install([lane], served.calls.functions)
    assert served.calls.call("echo", b"before") == b"before"
    step = {"low": served.index("echo"), "completions": 1, **fault}
    _, answers = run(python, served.order(step))
    assert answers == [{"status": REM_ACCESS_ERR}]
    assert served.calls.call("echo", b"after") == b"after"


def test_a_slot_that_there_is_not(python: str, served: Alone) -> None:
    step = {"low": 0, "imm_slot": SLOTS, "completions": 1, "until_disconnected": True}
    run(python, served.order(step))
    served.says("broke the protocol: a request for a slot that there is not")


FLOOD = 6 * SLOTS  # calls at once, though a client may have but SLOTS; receives are fewer


def test_a_flood_waits_for_receives(python: str, served: Alone) -> None:
    """The device holds back who sends more than there are receives for, and nothing is lost."""
    step = {"low": served.index("sleep_ms"), "data": struct.pack("<I", 20).hex(), "times": FLOOD}
    _, answers = run(python, served.order(step, depth=FLOOD))
    assert [answer["low"] for answer in answers] == [Status.OK] * FLOOD


@pytest.mark.slow
def test_a_flood_that_waits_in_vain(python: str, served: Alone) -> None:
    """It ends its own connection."""
    lane = served.ours(1)
    served.calls._install([lane], served.calls.functions)
    step = {
        "low": served.index("sleep_ms"),
        "data": struct.pack("<I", 20_000).hex(),
        "times": FLOOD,
        "until_failed": True,
    }
    _, answers = run(python, served.order(step, depth=FLOOD))
    assert answers[0]["status"] in (RETRY_EXC_ERR, RNR_RETRY_EXC_ERR)  # SoftRoCE says the first
    assert served.calls.call("echo", b"after") == b"after"


@pytest.mark.slow
def test_a_peer_without_receives(python: str, served: Alone) -> None:
    step = {
        "low": served.index("echo"), "size": 8, "completions": 1, "until_disconnected": True,
    }  # fmt: skip
    run(python, served.order(step, receives=False))
    served.says("posted no receives (a send completed with IBV_WC_RNR_RETRY_EXC_ERR")
