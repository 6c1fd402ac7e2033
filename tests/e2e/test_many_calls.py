"""Ids that wrap, and sizes at their ends."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.harness.site import Site

SLOT = 8192

# A lane whose first number is given, served in its own process: a ring's first number is
# for those who make it to say, and executors say 0.
LANE = """
import os, struct
from rfaas.core.elf import read_functions
from rfaas.native._calls import Lanes
from rfaas.native._window import Lane
from rfaas.native._worker import Library, WorkerLanes
from rfaas.proto import wire
from rfaas.transport import ring

library, first = sys.argv[1], int(sys.argv[2])
rings, account = ring.create(1, 16, 8192, first=first), ring.create_account(1)
image = os.open(library, os.O_RDONLY)
loaded = Library(image)
table = read_functions(open(library, "rb").read(), os.uname().machine)
loaded.bind(table)
worker = WorkerLanes(loaded, rings, wire.ring_bytes(16, 8192), account, [-1], 1)
class Calls(Lanes):
    def _check(self, lane):  # a slow machine: there is no link to look at
        pass
lanes = Calls()
lanes._install([Lane(rings, 0)], [one.name for one in table])
inputs = [struct.pack("<d", value) * (1 + value % 20) for value in range(3000)]
found = [bytes(lanes.call("double_f64", data)) for data in inputs[:1500]]
found += lanes.map("double_f64", inputs[1500:])
assert found == [struct.pack("<d", 2 * value) * (1 + value % 20) for value in range(3000)]
lanes._install([], [])
worker.stop()
say("all right")
"""


@pytest.mark.parametrize("calls_before_the_wrap", [17, 31, 32, 33, 1000, 1500, 1501, 2995])
def test_ids_wrap_at_2_to_32(site: Site, counter: Path, calls_before_the_wrap: int) -> None:
    """Some calls one by one, some with many in flight; a lap of the ring before, at least."""
    lane = site.client(LANE, counter, str(2**32 - calls_before_the_wrap))
    assert lane.lines.next() == "all right", lane.stderr
    assert lane.wait() == 0


def test_70_000_calls_on_one_lane(site: Site, counter: Path) -> None:
    """More than 2**16, with answers that cannot be mixed up, one by one and pipelined."""
    number = struct.Struct("<Q")
    with site.private_session() as session, session.lease(library=counter) as lease:
        for wanted in range(1, 1001):
            assert bytes(lease.call("count")) == number.pack(wanted)
        futures = [lease.submit("count") for _ in range(1000)]
        for wanted, future in enumerate(futures, start=1001):
            assert bytes(future.result()) == number.pack(wanted)
        counts = [number.unpack(one)[0] for one in lease.map("count", [b""] * 70_000)]
        assert counts == list(range(2001, 72_001))
        assert bytes(lease.call("count")) == number.pack(72_001)


SIZES = [0, 1, 103, 104, 105, 4095, 4096, 4097, SLOT - 1, SLOT]


def test_sizes_at_their_ends(site: Site, shipped: Path) -> None:
    """0 bytes; 104 travel in the cell, 105 do not; a page; a slot."""
    with (
        site.private_session() as session,
        session.lease(library=shipped, slot_bytes=SLOT) as lease,
    ):
        inputs = [bytes([1 + size % 255]) * size for size in SIZES]
        for data in inputs:
            assert bytes(lease.call("echo", data)) == data
            assert bytes(lease.submit("echo", data).result()) == data
            buffer = lease.buffer(len(data))
            buffer[:] = data
            assert bytes(lease.call("echo", buffer)) == data
            del buffer
        assert list(lease.map("echo", inputs)) == inputs


def test_empty_input_and_output(site: Site, hostile: Path, shipped: Path) -> None:
    with site.private_session() as session:
        with session.lease(library=hostile) as lease:
            assert bytes(lease.call("empty_output")) == b""
            assert bytes(lease.call("empty_output", bytes(60_000))) == b""
            assert lease.submit("empty_output", b"x").result().nbytes == 0
            assert list(lease.map("empty_output", [b"", b"x", bytes(60_000)])) == [b""] * 3
        with session.lease(library=shipped) as lease:
            assert bytes(lease.call("echo")) == b""
            assert bytes(lease.call("echo", memoryview(b""))) == b""
