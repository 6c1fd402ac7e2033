"""Sums of what the lanes of a worker counted, as the `Usage` of their lease.

The accounting page is memory that a worker writes, so its numbers are taken
for no more than they can be: a lane cannot have been busy for longer than its
core was leased, and a bill never exceeds wall time times cores.
"""

from __future__ import annotations

import struct

from rfaas.core.lease import UNUSED
from rfaas.errors import InternalError
from rfaas.proto.messages import Usage
from rfaas.proto.wire import (
    ACCOUNT_BUSY_SINCE_NS,
    ACCOUNT_CALLS,
    ACCOUNT_EXECUTING_NS,
    ACCOUNT_FAILED,
    ACCOUNT_LANE_BYTES,
    ACCOUNT_POLLING_NS,
)

COUNT_MAX = 2**63 - 1  # as messages.Count: 292 years of one core

_U64 = struct.Struct("<Q")


def allocated_ns(cores: int, seconds: float) -> int:
    """What a lease of `cores` has allocated after `seconds`."""
    return min(round(cores * seconds * 1e9), COUNT_MAX)


def usage_of(
    page: bytes | memoryview,
    lanes: int,
    allocated_ns: int,
    carried: Usage = UNUSED,
    now_ns: int = 0,
) -> Usage:
    """What a lease has used in all.

    Args:
        page: The accounting page of its worker; empty, with 0 `lanes`, for none.
        allocated_ns: What the lease has allocated from its start to now,
            whether it had a worker or not.
        carried: The usage of the lease when its last worker ended: the result
            of this function then.  Its `allocated_ns` is part of the new one.
        now_ns: CLOCK_MONOTONIC, up to which a call that runs is counted; 0: it is not.
    """
    if len(page) < lanes * ACCOUNT_LANE_BYTES:
        raise InternalError(f"an accounting page of {len(page)} bytes is short for {lanes} lanes")

    def total(field: int) -> int:
        lines = range(field, lanes * ACCOUNT_LANE_BYTES, ACCOUNT_LANE_BYTES)
        return sum(int(_U64.unpack_from(page, offset)[0]) for offset in lines)

    def running() -> int:
        lines = range(ACCOUNT_BUSY_SINCE_NS, lanes * ACCOUNT_LANE_BYTES, ACCOUNT_LANE_BYTES)
        since = [int(_U64.unpack_from(page, offset)[0]) for offset in lines]
        return sum(max(0, now_ns - start) for start in since if start)

    executing_ns = min(carried.executing_ns + total(ACCOUNT_EXECUTING_NS) + running(), allocated_ns)
    polling_ns = min(carried.polling_ns + total(ACCOUNT_POLLING_NS), allocated_ns - executing_ns)
    calls = min(carried.calls + total(ACCOUNT_CALLS), COUNT_MAX)
    return Usage(
        allocated_ns=allocated_ns,
        polling_ns=polling_ns,
        executing_ns=executing_ns,
        calls=calls,
        failed=min(carried.failed + total(ACCOUNT_FAILED), calls),
    )
