"""Calls over RDMA against bare writes between the same two devices.

The bare peer is a process of its own, on the processor of the measured worker.
Each of the two sleeps while the other is measured, and blocks of both take turns.
"""

from __future__ import annotations

import os
import signal
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn

from rfaas.errors import InternalError, WorkerCrashedError
from rfaas.native import _bench
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


def hot(lease: Lease, lane: Lane, echo: int, data: bytearray, calls: int) -> tuple[Any, Any]:
    """Round trips in nanoseconds: (bare, calls)."""
    bare, native = array("Q"), array("Q")
    native_part = verbs_errors.load()
    with peer(lease, len(data)) as bare_lane:
        for _ in range(max(1, calls // BLOCK)):
            time.sleep(2 * HOT_TIMEOUT_MS / 1e3)
            _checked(native_part.bare(bare_lane, data, WARM_UP))
            bare.extend(_checked(native_part.bare(bare_lane, data, BLOCK)))
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


def stream(lease: Lease, size: int, count: int, depth: int) -> int:
    """Nanoseconds that `count` bare writes of `size` bytes take, `depth` at once."""
    with peer(lease, size) as lane:
        return int(verbs_errors.load().stream(lane, size, depth, count))


def _checked(samples: array[int] | None) -> array[int]:
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
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        _answer(writer, endpoint.host, slot_bytes, lease.cpus[0])
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            told = pipe.read(2 + wire.SECRET_BYTES)
        if len(told) != 2 + wire.SECRET_BYTES:
            raise WorkerCrashedError("the bare peer did not start")
        at = Endpoint(host=endpoint.host, port=int.from_bytes(told[:2], "little"), secret=told[2:])
        yield verbs.connect(at, 0, PEER_SLOTS, slot_bytes, source_of(lease))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def source_of(lease: Lease) -> str:
    """The address that the lease connects from."""
    device = lease._session.config.rdma.device
    return devices.choose(device).host if device else ""


def _answer(writer: int, host: str, slot_bytes: int, cpu: int) -> NoReturn:
    try:
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
        os.write(writer, lanes.port.to_bytes(2, "little") + secret)
        os.close(writer)
        while True:
            lanes.step()
            time.sleep(0.05)
    finally:
        os._exit(70)
