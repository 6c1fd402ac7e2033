"""What workers write to stdout and stderr: the end of it is kept, for a crash report and for logs.

The pipe is read at a bounded rate: a function that floods it waits, and nobody else.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from contextlib import suppress

KEPT_BYTES = 64 * 1024
PART_BYTES = 64 * 1024  # of one read, then a pause: at most 6 MB/s of a flood
PAUSE_S = 0.01
LEASES_KEPT_MAX = 256  # of leases that are over; the oldest go first


class Output:
    """The output of one worker; `fd` is its end of the pipe, until it is started."""

    def __init__(self, *, aloud: bool) -> None:
        """With `aloud`, it goes to our own stderr as well."""
        self._kept = bytearray()
        self._aloud = aloud
        self._reader, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._reader, self._read)

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
        del self._kept[:-KEPT_BYTES]
        if self._aloud and data:
            with suppress(OSError):
                os.write(2, data)
        return len(data)


class Outputs:
    """What the workers of leases have written, by lease; also of leases that are over."""

    def __init__(self) -> None:
        self._by_lease: OrderedDict[str, Output] = OrderedDict()

    def keep(self, lease: str, output: Output) -> None:
        """From now on, `output` is what that lease has written."""
        self._by_lease.pop(lease, None)
        self._by_lease[lease] = output
        if len(self._by_lease) > LEASES_KEPT_MAX:
            _, oldest = self._by_lease.popitem(last=False)
            oldest.close()

    def end(self, lease: str) -> None:
        """The lease's worker is gone: take what it left."""
        if found := self._by_lease.get(lease):
            found.close()

    def close(self) -> None:
        for output in self._by_lease.values():
            output.close()
        self._by_lease.clear()

    def tail(self, lease: str) -> bytes | None:
        """The end of what a lease's latest worker has written; None: of it nothing is known."""
        found = self._by_lease.get(lease)
        return found.tail() if found else None
