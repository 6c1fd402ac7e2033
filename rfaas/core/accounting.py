"""Sums of what the lanes of a worker counted, as the `Usage` of their lease.

The accounting page is memory that a worker writes, so its numbers are taken
for no more than they can be: a lane cannot have been busy for longer than its
core was leased, and a bill never exceeds wall time times cores.  Where the function may be a
stranger's they are taken for no less either (`Watched`): what was counted once stays counted,
and what the kernel saw the worker compute was busy time.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from rfaas.core.lease import UNUSED
from rfaas.errors import InternalError
from rfaas.proto.messages import Usage
from rfaas.proto.wire import (
    ACCOUNT_BUSY,
    ACCOUNT_BUSY_SINCE_NS,
    ACCOUNT_CALLS,
    ACCOUNT_EXECUTING_NS,
    ACCOUNT_FAILED,
    ACCOUNT_LANE_BYTES,
    ACCOUNT_POLLING_NS,
)

COUNT_MAX = 2**63 - 1  # as messages.Count: 292 years of one core
LATE_NS = 10_000_000  # by which a busy lane may be late with its counts

_U64 = struct.Struct("<Q")


def allocated_ns(cores: int, seconds: float) -> int:
    """What a lease of `cores` has allocated after `seconds`."""
    return min(round(cores * seconds * 1e9), COUNT_MAX)


class Counts(NamedTuple):
    """What one worker has counted, all its lanes together."""

    calls: int = 0
    failed: int = 0
    executing_ns: int = 0
    polling_ns: int = 0
    busy: int = 0  # requests turned away, which are no calls


def counts_of(page: bytes | memoryview, lanes: int, now_ns: int = 0) -> list[Counts]:
    """What an accounting page says, lane by lane.

    Args:
        page: of at least so many lanes.
        now_ns: CLOCK_MONOTONIC, up to which a call that runs is counted; 0: it is not.
    """
    if len(page) < lanes * ACCOUNT_LANE_BYTES:
        raise InternalError(f"an accounting page of {len(page)} bytes is short for {lanes} lanes")

    def one(start: int) -> Counts:
        def word(field: int) -> int:
            return int(_U64.unpack_from(page, start + field)[0])

        since_ns = word(ACCOUNT_BUSY_SINCE_NS)
        running_ns = max(0, now_ns - since_ns) if since_ns else 0
        executing_ns = word(ACCOUNT_EXECUTING_NS) + running_ns
        return Counts(
            word(ACCOUNT_CALLS),
            word(ACCOUNT_FAILED),
            executing_ns,
            word(ACCOUNT_POLLING_NS),
            word(ACCOUNT_BUSY),
        )

    return [one(lane * ACCOUNT_LANE_BYTES) for lane in range(lanes)]


def summed(counts: Sequence[Counts]) -> Counts:
    """All of them together."""
    return Counts(*map(sum, zip(*counts, strict=True))) if counts else Counts()


def usage_of(
    counts: Counts, allocated_ns: int, carried: Usage = UNUSED, busy_min_ns: int = 0
) -> Usage:
    """What a lease has used in all.

    Args:
        counts: What its worker has counted; none for none.
        allocated_ns: What the lease has allocated from its start to now,
            whether it had a worker or not.
        carried: The usage of the lease when its last worker ended: the result
            of this function then.  Its `allocated_ns` is part of the new one.
        busy_min_ns: What the worker has polled and executed at least, whatever it says.
    """
    missing_ns = max(0, busy_min_ns - counts.executing_ns - counts.polling_ns)
    executing_ns = min(carried.executing_ns + counts.executing_ns + missing_ns, allocated_ns)
    polling_ns = min(carried.polling_ns + counts.polling_ns, allocated_ns - executing_ns)
    calls = min(carried.calls + counts.calls, COUNT_MAX)
    return Usage(
        allocated_ns=allocated_ns,
        polling_ns=polling_ns,
        executing_ns=executing_ns,
        calls=calls,
        failed=min(carried.failed + counts.failed, calls),
        busy=min(carried.busy + counts.busy, COUNT_MAX),
    )


class Watched:
    """What a worker says of itself, where its function may write that too.

    A count never falls, and a lane's time never grows by more than the time that passed.
    A function that writes over its counts wins nothing by less; by more it loses, until its
    lane writes the next count, what it claimed since the last look.

    Args:
        now_ns: CLOCK_MONOTONIC before the worker could count anything.
    """

    def __init__(self, lanes: int, now_ns: int) -> None:
        self._start_ns = self._looked_ns = now_ns
        self._lanes = [Counts()] * lanes

    def look(
        self,
        page: bytes | memoryview,
        now_ns: int,
        calls: Sequence[tuple[int, int]] = (),
        *,
        last: bool = False,
    ) -> list[Counts]:
        """What is believed of the page, lane by lane.

        Args:
            calls: How many calls each lane has answered (0 where not all answers are of calls)
                and was asked, if something else than the page tells.
            last: The worker is dead, and writes no more: what it wrote late counts as well.
        """
        most_ns = now_ns - self._start_ns
        more_ns = most_ns if last else now_ns - self._looked_ns + LATE_NS
        self._looked_ns = now_ns
        said = counts_of(page, len(self._lanes), now_ns)
        for lane, (claim, known) in enumerate(zip(said, self._lanes, strict=True)):
            left_ns = min(more_ns, most_ns - known.executing_ns - known.polling_ns)
            executing_ns = _more(claim.executing_ns, known.executing_ns, left_ns)
            polling_ns = _more(claim.polling_ns, known.polling_ns, left_ns - executing_ns)
            number = max(claim.calls, known.calls)
            busy = claim.busy
            if calls:
                answered, asked = calls[lane]
                busy = min(busy, asked)
                number = max(answered, min(claim.calls, asked), known.calls)
            self._lanes[lane] = Counts(
                number,
                min(number, max(claim.failed, known.failed)),
                known.executing_ns + executing_ns,
                known.polling_ns + polling_ns,
                max(busy, known.busy),
            )
        return self._lanes


def _more(claim_ns: int, known_ns: int, more_max_ns: int) -> int:
    return max(0, min(claim_ns - known_ns, more_max_ns))
