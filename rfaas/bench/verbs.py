"""Calls over RDMA against bare writes between the same two devices.

The bare peer is a process of its own, on the processor of the measured worker.
Each of the two sleeps while the other is measured, and blocks of both take turns.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn

from rfaas.bench import perftest
from rfaas.errors import InternalError, WorkerCrashedError
from rfaas.launch.local import python
from rfaas.native import _bench
from rfaas.native._worker import die_with_parent
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import device as devices
from rfaas.transport import ring, verbs, verbs_errors

if TYPE_CHECKING:
    from rfaas.client import Lease
    from rfaas.native._window import Lane

HOT_TIMEOUT_MS = 3  # of both peers; between two blocks both fall asleep
WARM_UP = 50
BLOCK = 200
PEER_SLOTS = 16
FLOW_DEPTH = 8  # writes, or calls, on their way
FLOW_ROUNDS = 7


def hot(lease: Lease, lane: Lane, echo: int, data: bytearray, calls: int) -> tuple[Any, Any]:
    """Round trips in nanoseconds: (bare, calls)."""
    bare, native = array("Q"), array("Q")
    native_part = verbs_errors.load()
    with peer(lease, len(data)) as bare_lane:
        for _ in range(max(1, calls // BLOCK)):
            time.sleep(2 * HOT_TIMEOUT_MS / 1e3)
            checked(native_part.bare(bare_lane, data, WARM_UP))
            bare.extend(checked(native_part.bare(bare_lane, data, BLOCK)))
            time.sleep(2 * HOT_TIMEOUT_MS / 1e3)
            _bench.measure(lane, echo, data, WARM_UP)
            native.extend(_bench.measure(lane, echo, data, BLOCK))
    return bare, native


def ratio(bare: array[int], native: array[int]) -> float:
    """The median over all blocks of how much longer a block's median call takes."""
    ratios = [
        median(native[at : at + BLOCK]) / median(bare[at : at + BLOCK])
        for at in range(0, len(bare), BLOCK)
    ]
    return median(ratios)


def flow(lease: Lease, size: int) -> dict[str, object]:
    """Bytes a second into the worker: calls that take `size` bytes in place, and bare writes."""
    native_part = verbs_errors.load()
    lane, sink = lease._lanes[0], lease.functions.index("sink")
    count = max(64, min(4096, (64 << 20) // size))
    data = bytes(size)
    rates: dict[str, list[float]] = {"bare": [], "calls": []}
    with peer(lease, size) as bare_lane:
        for turn in range(FLOW_ROUNDS + 1):
            time.sleep(2 * HOT_TIMEOUT_MS / 1e3)
            taken = native_part.stream(bare_lane, size, FLOW_DEPTH, count)
            if not taken:
                raise WorkerCrashedError("the bare peer was lost while it was measured")
            time.sleep(2 * HOT_TIMEOUT_MS / 1e3)
            called = _bench.pipeline(lane, sink, data, FLOW_DEPTH, count, in_place=True)
            if turn:  # the first touches the memory
                rates["bare"].append(size * count * 1e9 / taken)
                rates["calls"].append(size * count * 1e9 / called)
    ratios = [calls / bare for calls, bare in zip(rates["calls"], rates["bare"], strict=True)]
    outside = perftest.bytes_per_s(lease, size)
    return {
        "size_bytes": size,
        **({"ib_bw_bytes_per_s": outside} if outside else {}),
        "bare_bytes_per_s": median(rates["bare"]),
        "calls_bytes_per_s": median(rates["calls"]),
        "ratio": round(median(ratios), 3),
    }


def checked(samples: array[int] | None) -> array[int]:
    """What was measured, if the peer was there to the end."""
    if samples is None:
        raise WorkerCrashedError("the bare peer was lost while it was measured")
    return samples


@contextmanager
def peer(lease: Lease, size: int) -> Iterator[Lane]:
    """A lane to a process that answers bare writes, at the device of the lease's worker."""
    endpoint = lease.endpoint
    if endpoint is None:
        raise InternalError("the lease does not go over verbs")
    slot_bytes = wire.slot_bytes_for(size)
    # Not a fork: a device that is open already is of no use to a child.
    code = "from rfaas.bench.verbs import answer; answer()"
    words = python(code, endpoint.host, str(slot_bytes), str(lease.cpus[0]))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port, _, secret = process.stdout.readline().strip().partition(" ")
            if not secret:
                raise WorkerCrashedError("the bare peer did not start")
            at = Endpoint(host=endpoint.host, port=int(port), secret=bytes.fromhex(secret))
            yield verbs.connect(at, 0, PEER_SLOTS, slot_bytes, source_of(lease))
        finally:
            process.kill()


def mode(lease: Lease) -> str:
    """Who owns the worker's end: "trusted", the worker itself, or "endpoint"."""
    return "endpoint" if "node.endpoint" in lease.steps_ns else "trusted"


def source_of(lease: Lease) -> str:
    """The address that the lease connects from."""
    device = lease._session.config.rdma.device
    return devices.choose(device).host if device else ""


def answer() -> NoReturn:
    """The bare peer's process: answer writes until it is killed."""
    host, slot_bytes, cpu = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(signal.SIGKILL, "rfaas-bench")
    rings = ring.create(1, PEER_SLOTS, slot_bytes)
    secret = os.urandom(wire.SECRET_BYTES)
    lanes = verbs_errors.load().WorkerLanes(
        None,
        rings,
        wire.ring_bytes(PEER_SLOTS, slot_bytes),
        ring.create_account(1),
        (cpu,),
        HOT_TIMEOUT_MS,
        host,
        secret,
    )
    print(lanes.port, secret.hex(), flush=True)
    while True:
        select.select(lanes.filenos(), [], [])
        lanes.step()
