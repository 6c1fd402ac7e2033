"""Sums of the lanes' counters, honest and not."""

from __future__ import annotations

import struct

import pytest

from rfaas.core.accounting import COUNT_MAX, allocated_ns, usage_of
from rfaas.errors import InternalError
from rfaas.proto import wire
from rfaas.proto.codec import decode, encode
from rfaas.proto.messages import Beat, Usage

SECOND_NS = 10**9


def page(*lanes: tuple[int, int, int, int]) -> bytes:
    """An accounting page: calls, failed, executing and polling nanoseconds of each lane."""
    data = bytearray(wire.PAGE_BYTES)
    for index, (calls, failed, executing_ns, polling_ns) in enumerate(lanes):
        for field, value in (
            (wire.ACCOUNT_CALLS, calls),
            (wire.ACCOUNT_FAILED, failed),
            (wire.ACCOUNT_EXECUTING_NS, executing_ns),
            (wire.ACCOUNT_POLLING_NS, polling_ns),
            (wire.ACCOUNT_SLEEPING_NS, 1 << 60),  # billed to nobody
        ):
            struct.pack_into("<Q", data, index * wire.ACCOUNT_LANE_BYTES + field, value)
    return bytes(data)


def test_lanes_are_summed_and_no_others() -> None:
    data = page((3, 1, 30, 300), (4, 0, 40, 400), (1000, 1000, 1000, 1000))
    expected = Usage(allocated_ns=SECOND_NS, polling_ns=700, executing_ns=70, calls=7, failed=1)
    assert usage_of(data, 2, SECOND_NS) == expected
    assert usage_of(memoryview(data), 2, SECOND_NS) == expected


def test_workers_one_after_another() -> None:
    first = usage_of(page((3, 1, 30, 300)), 1, 2 * SECOND_NS)
    between = usage_of(b"", 0, 3 * SECOND_NS, first)
    second = usage_of(page((5, 0, 50, 500)), 1, 4 * SECOND_NS, between)
    assert between == Usage(
        allocated_ns=3 * SECOND_NS, polling_ns=300, executing_ns=30, calls=3, failed=1
    )
    assert second == Usage(
        allocated_ns=4 * SECOND_NS, polling_ns=800, executing_ns=80, calls=8, failed=1
    )


def test_nobody_is_busy_for_longer_than_was_leased() -> None:
    assert usage_of(page((1, 0, 800, 300)), 1, 1000) == Usage(
        allocated_ns=1000, polling_ns=200, executing_ns=800, calls=1
    )
    assert usage_of(page((1, 0, 1001, 1)), 1, 1000) == Usage(
        allocated_ns=1000, polling_ns=0, executing_ns=1000, calls=1
    )


def test_a_forged_page_makes_a_usage_that_can_be_sent() -> None:
    data = b"\xff" * wire.PAGE_BYTES
    lanes = wire.PAGE_BYTES // wire.ACCOUNT_LANE_BYTES
    used = usage_of(data, lanes, 1000, Usage(calls=COUNT_MAX))
    assert used == Usage(allocated_ns=1000, executing_ns=1000, calls=COUNT_MAX, failed=COUNT_MAX)
    beat = Beat(id=1, node="n", usage={"a" * 32: used})
    assert decode(encode(beat)[4:]) == beat


def test_more_failed_than_called_cannot_be() -> None:
    assert usage_of(page((2, 9, 0, 0)), 1, 1000).failed == 2


def test_a_short_page_is_a_bug() -> None:
    assert usage_of(page()[: 2 * wire.ACCOUNT_LANE_BYTES], 2, 0) == Usage()
    with pytest.raises(InternalError, match="page of 127 bytes is short for 2 lanes"):
        usage_of(page()[: 2 * wire.ACCOUNT_LANE_BYTES - 1], 2, 0)


def test_allocated() -> None:
    assert allocated_ns(4, 1.5) == 6 * SECOND_NS
    assert allocated_ns(65536, 86400) == 65536 * 86400 * SECOND_NS
    assert allocated_ns(65536, 2 * 86400) == COUNT_MAX
