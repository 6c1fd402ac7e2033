"""Sums of the lanes' counters, honest and not."""

from __future__ import annotations

import struct

import pytest

from rfaas.core.accounting import (
    COUNT_MAX,
    LATE_NS,
    Counts,
    Watched,
    allocated_ns,
    counts_of,
    summed,
)
from rfaas.core.accounting import usage_of as usage_of_counts
from rfaas.core.lease import UNUSED
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


def usage_of(
    data: bytes | memoryview, lanes: int, allocated: int, carried: Usage = UNUSED
) -> Usage:
    return usage_of_counts(summed(counts_of(data, lanes)), allocated, carried)


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
    assert used == Usage(
        allocated_ns=1000,
        executing_ns=1000,
        calls=COUNT_MAX,
        failed=COUNT_MAX,
        busy=COUNT_MAX,
    )
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


# Counts that a function can write ----------------------------------------


def test_the_processor_time_is_the_least() -> None:
    counts = Counts(calls=3, executing_ns=10, polling_ns=20)
    assert usage_of_counts(counts, SECOND_NS, busy_min_ns=30).executing_ns == 10
    more = usage_of_counts(counts, SECOND_NS, busy_min_ns=130)
    assert (more.executing_ns, more.polling_ns) == (110, 20)
    assert usage_of_counts(counts, 100, busy_min_ns=SECOND_NS).executing_ns == 100


def test_what_was_counted_stays_counted() -> None:
    watched = Watched(1, 0)
    (seen,) = watched.look(page((7, 2, 300, 400)), SECOND_NS)
    assert seen == Counts(7, 2, 300, 400)
    assert watched.look(page((0, 0, 0, 0)), 2 * SECOND_NS) == [seen]
    assert watched.look(page((8, 2, 310, 400)), 3 * SECOND_NS) == [Counts(8, 2, 310, 400)]


def test_no_lane_was_busy_for_longer_than_time_passed() -> None:
    watched = Watched(1, 0)
    honest = page((5, 0, 100, 200))
    watched.look(honest, SECOND_NS)
    forged = bytes([255]) * wire.ACCOUNT_LANE_BYTES
    (seen,) = watched.look(forged, SECOND_NS + 1000, [(5, 6)])
    assert seen == Counts(6, 6, 100 + 1000 + LATE_NS, 200, busy=6)
    assert watched.look(honest, 2 * SECOND_NS, [(6, 6)]) == [seen]


def test_a_late_count_is_believed_once_its_worker_is_dead() -> None:
    watched = Watched(1, 0)
    watched.look(page((1, 0, 0, 0)), SECOND_NS)
    late = page((1, 0, SECOND_NS, 2 * SECOND_NS))
    (seen,) = watched.look(late, SECOND_NS + 1000, last=True)
    assert seen.executing_ns + seen.polling_ns == SECOND_NS + 1000


def test_calls_are_those_of_the_ring() -> None:
    watched = Watched(2, 0)
    assert watched.look(page((0, 0, 0, 0), (999, 1, 0, 0)), 1, [(4, 5), (7, 9)]) == [
        Counts(calls=4),
        Counts(calls=9, failed=1),
    ]
