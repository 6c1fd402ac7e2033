"""What workers write to stdout and stderr: the end of it is kept, for a crash report and for logs.

The pipe is read at a bounded rate: a function that floods it waits, and nobody else.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from rfaas import terminal
from rfaas.proto.messages import OUTPUT_BYTES_MAX
from rfaas.proto.report_messages import GetOutput, WorkerOutput

KEPT_BYTES = 64 * 1024  # of each worker
PART_BYTES = 64 * 1024  # of one read, then a pause: at most 6 MB/s of a flood
PAUSE_S = 0.01
WORKERS_KEPT_MAX = 4  # of a lease: the one that serves, and those that ended before it
ENDED_KEPT_MAX = 256  # workers that have ended, of all leases together; the oldest go first


class Output:
    """The output of one worker; `fd` is its end of the pipe, until it is started."""

    def __init__(self, *, aloud: bool) -> None:
        """With `aloud`, it goes to our own stderr as well."""
        self._kept = bytearray()
        self._dropped = 0  # bytes, before those
        self._ours = terminal.Harmless() if aloud and os.isatty(2) else None
        self._aloud = aloud
        self._reader, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._reader, self._read)

    @property
    def written(self) -> int:
        """How many bytes it has written in all, as far as they were looked at."""
        return self._dropped + len(self._kept)

    def started(self) -> None:
        """The worker has its end: ours of it is closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def tail(self) -> bytes:
        """The last KEPT_BYTES of it."""
        if self._reader >= 0:
            self._take()  # what lies in the pipe, and has not been looked at
        return bytes(self._kept)

    def close(self) -> None:
        self.started()
        if self._pause is not None:
            self._pause.cancel()
        if self._reader >= 0:
            self._take()
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1
            if self._ours is not None:
                self._pass_on(self._ours.feed(b"", last=True))

    def _read(self) -> None:
        size = self._take()
        if not size:
            self._loop.remove_reader(self._reader)
        elif size == PART_BYTES:
            self._loop.remove_reader(self._reader)
            self._pause = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._reader, self._read)

    def _take(self) -> int:
        try:
            data = os.read(self._reader, PART_BYTES)
        except BlockingIOError:
            return -1
        self._kept += data
        past = max(0, len(self._kept) - KEPT_BYTES)
        del self._kept[:past]
        self._dropped += past
        if self._aloud and data:
            self._pass_on(self._ours.feed(data) if self._ours is not None else data)
        return len(data)

    def _pass_on(self, data: bytes) -> None:
        with suppress(OSError):
            os.write(2, data)


class Outputs:
    """What the workers of leases have written, also of leases that are over.

    Of a lease, its last WORKERS_KEPT_MAX workers; of those that have ended, the last
    ENDED_KEPT_MAX of all leases.
    """

    def __init__(self) -> None:
        self._by_lease: dict[str, dict[int, Output]] = {}  # then by worker, the oldest first
        self._ended: dict[tuple[str, int], None] = {}  # in that order

    def keep(self, lease: str, worker: int, output: Output) -> None:
        """From now on, `output` is what that worker of a lease has written, its latest."""
        workers = self._by_lease.setdefault(lease, {})
        workers[worker] = output
        if len(workers) > WORKERS_KEPT_MAX:
            self._forget(lease, next(iter(workers)))

    def end(self, lease: str, worker: int) -> None:
        """The worker is gone: take what it left.  Can be called twice."""
        if (found := self._by_lease.get(lease, {}).get(worker)) is None:
            return
        found.close()
        self._ended[lease, worker] = None
        if len(self._ended) > ENDED_KEPT_MAX:
            self._forget(*next(iter(self._ended)))

    def close(self) -> None:
        for workers in self._by_lease.values():
            for output in workers.values():
                output.close()
        self._by_lease.clear()
        self._ended.clear()

    def tail(self, lease: str, worker: int) -> bytes:
        """The end of what a worker has written, b"" where nothing is known of it."""
        found = self._by_lease.get(lease, {}).get(worker)
        return found.tail() if found else b""

    def part(self, asked: GetOutput) -> WorkerOutput | None:
        """The part of it that was asked for; None: of no such worker anything is known."""
        workers = self._by_lease.get(asked.lease, {})
        numbers = [number for number in workers if number >= asked.worker]
        if not numbers:
            return None
        output = workers[numbers[0]]
        tail = output.tail()
        first = output.written - len(tail)
        # A position is one of that worker's alone: of another one, what is kept begins again.
        start = max(first, asked.start if numbers[0] == asked.worker else 0)
        return WorkerOutput(
            worker=numbers[0],
            data=tail[start - first : start - first + OUTPUT_BYTES_MAX],
            start=start,
            end=output.written,
            later=numbers[1] if len(numbers) > 1 else 0,
        )

    def _forget(self, lease: str, worker: int) -> None:
        self._ended.pop((lease, worker), None)
        workers = self._by_lease[lease]
        workers.pop(worker).close()
        if not workers:
            del self._by_lease[lease]
