"""Calls over RDMA to a worker that sleeps on its completion channel, against bare writes to one.

Whether it sleeps cannot be seen from here, so each call waits until it must.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING, Any

from rfaas.bench import verbs
from rfaas.native import _bench
from rfaas.transport import verbs_errors

if TYPE_CHECKING:
    from rfaas.client import Lease
    from rfaas.native._window import Lane

ASLEEP_S = 2 * verbs.HOT_TIMEOUT_MS / 1e3


def warm(
    lease: Lease, lane: Lane, echo: int, data: bytearray, calls: int
) -> tuple[array[int], array[int], array[int]]:
    """Round trips in nanoseconds: (bare, calls, calls from Python), one of each in turn."""
    bare, native, python = array("Q"), array("Q"), array("Q")
    native_part: Any = verbs_errors.load()
    name, frozen = lease.functions[echo], bytes(data)
    with verbs.peer(lease, len(data)) as bare_lane:
        for _ in range(calls):
            time.sleep(ASLEEP_S)
            bare.extend(verbs.checked(native_part.bare(bare_lane, data, 1)))
            time.sleep(ASLEEP_S)
            native.extend(_bench.measure(lane, echo, data, 1))
            time.sleep(ASLEEP_S)
            before = time.perf_counter_ns()
            lease.call(name, frozen)
            python.append(time.perf_counter_ns() - before)
    return bare, native, python
