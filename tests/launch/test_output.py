"""What workers wrote, kept and handed out in parts: the last of each, of the last few."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from rfaas.launch.output import (
    ENDED_KEPT_MAX,
    KEPT_BYTES,
    WORKERS_KEPT_MAX,
    Output,
    Outputs,
)
from rfaas.proto.messages import OUTPUT_BYTES_MAX
from rfaas.proto.report_messages import GetOutput, WorkerOutput

LEASE = "a" * 32


def in_a_loop(work: Callable[[Outputs], Awaitable[None]]) -> None:
    async def run() -> None:
        outputs = Outputs()
        try:
            await work(outputs)
        finally:
            outputs.close()

    asyncio.run(run())


def begun(outputs: Outputs, worker: int, lease: str = LEASE) -> int:
    """The end of the pipe that a worker would have, the caller's."""
    output = Output(aloud=False)
    outputs.keep(lease, worker, output)
    fd = os.dup(output.fd)
    output.started()
    return fd


def wrote(outputs: Outputs, worker: int, data: bytes, lease: str = LEASE) -> None:
    """A worker that printed that, and ended."""
    fd = begun(outputs, worker, lease)
    for at in range(0, len(data), 4096):
        os.write(fd, data[at : at + 4096])
        outputs.tail(lease, worker)  # the pipe is as large as what is kept
    os.close(fd)
    outputs.end(lease, worker)
    outputs.end(lease, worker)


def parts(outputs: Outputs) -> dict[int, bytes]:
    """All that is known of the lease, asked for as a client does."""
    found: dict[int, bytes] = {}
    asked = GetOutput(lease=LEASE)
    while (part := outputs.part(asked)) is not None:
        found[part.worker] = found.get(part.worker, b"") + part.data
        assert len(part.data) <= OUTPUT_BYTES_MAX
        end = part.start + len(part.data)
        if end < part.end:
            asked = GetOutput(lease=LEASE, worker=part.worker, start=end)
        elif part.later:
            asked = GetOutput(lease=LEASE, worker=part.later)
        else:
            break
    return found


def test_each_worker_of_a_lease_is_kept() -> None:
    async def work(outputs: Outputs) -> None:
        wrote(outputs, 3, b"the first\n")
        wrote(outputs, 7, b"")
        fd = begun(outputs, 9)
        os.write(fd, b"still there\n")
        assert parts(outputs) == {3: b"the first\n", 7: b"", 9: b"still there\n"}
        assert outputs.tail(LEASE, 3) == b"the first\n"
        assert outputs.tail(LEASE, 4) == b""
        os.close(fd)

    in_a_loop(work)


@pytest.mark.parametrize("more", [-1, 0, 1, KEPT_BYTES])
def test_the_end_of_each_in_parts(more: int) -> None:
    data = os.urandom(KEPT_BYTES + more)

    async def work(outputs: Outputs) -> None:
        wrote(outputs, 1, data)
        wrote(outputs, 2, data[::-1])
        assert parts(outputs) == {1: data[-KEPT_BYTES:], 2: data[::-1][-KEPT_BYTES:]}
        part = outputs.part(GetOutput(lease=LEASE, worker=1, start=0))
        assert part == WorkerOutput(
            worker=1,
            data=data[max(0, more) :][:OUTPUT_BYTES_MAX],
            start=max(0, more),
            end=len(data),
            later=2,
        )
        last = outputs.part(GetOutput(lease=LEASE, worker=1, start=len(data)))
        assert last is not None
        assert (last.data, last.start) == (b"", len(data))

    in_a_loop(work)


def test_a_part_of_what_goes_on() -> None:
    """Positions are of all that it wrote: what came since moves nothing."""

    async def work(outputs: Outputs) -> None:
        fd = begun(outputs, 1)
        os.write(fd, b"a" * KEPT_BYTES)
        first = outputs.part(GetOutput(lease=LEASE))
        assert first is not None
        os.write(fd, b"b" * 100)
        second = outputs.part(GetOutput(lease=LEASE, worker=1, start=OUTPUT_BYTES_MAX))
        assert second is not None
        assert first.data + second.data == b"a" * KEPT_BYTES
        assert (second.start, second.end) == (OUTPUT_BYTES_MAX, KEPT_BYTES + 100)
        gone = outputs.part(GetOutput(lease=LEASE, worker=1, start=10))
        assert gone is not None
        assert gone.start == 100
        os.close(fd)

    in_a_loop(work)


def test_so_many_workers_of_a_lease() -> None:
    async def work(outputs: Outputs) -> None:
        for worker in range(1, WORKERS_KEPT_MAX + 1):
            wrote(outputs, worker, b"%d" % worker)
        assert list(parts(outputs)) == list(range(1, WORKERS_KEPT_MAX + 1))
        wrote(outputs, WORKERS_KEPT_MAX + 1, b"one more")
        assert list(parts(outputs)) == list(range(2, WORKERS_KEPT_MAX + 2))
        # A worker that was forgotten while it was read: the next one, from its beginning.
        part = outputs.part(GetOutput(lease=LEASE, worker=1, start=1))
        assert part is not None
        assert (part.worker, part.start, part.data) == (2, 0, b"2")

    in_a_loop(work)


def test_so_many_that_ended_and_all_that_live() -> None:
    async def work(outputs: Outputs) -> None:
        fd = begun(outputs, 1, "b" * 32)
        wrote(outputs, 2, b"x")
        for worker in range(3, ENDED_KEPT_MAX + 2):
            wrote(outputs, worker, b"y", f"{worker:032x}")
        assert parts(outputs) == {2: b"x"}
        wrote(outputs, ENDED_KEPT_MAX + 2, b"z", "c" * 32)
        assert parts(outputs) == {}
        os.write(fd, b"lives")
        assert outputs.tail("b" * 32, 1) == b"lives"
        os.close(fd)

    in_a_loop(work)
