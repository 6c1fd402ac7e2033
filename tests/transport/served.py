"""A worker that serves, and a client's lanes to it: what the contract of transports is run on.

No executor: the worker is forked from the test, so it has the descriptors of
the test's gates, and it is killed by its id at the end.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rfaas.core.elf import read_functions
from rfaas.errors import ClosedError, DeadlineExceededError, WorkerCrashedError
from rfaas.native._calls import Call, Lanes
from rfaas.native._worker import Library, WorkerLanes, die_with_parent, end_ring
from rfaas.proto import wire
from rfaas.transport import ring

if TYPE_CHECKING:
    from rfaas.native._window import Lane
    from rfaas.transport import Transport

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_RESERVED = struct.Struct("<4I")  # seq0, imm, size, detail


class Gate:
    """Holds calls of `hold` back: they say that they have begun, and wait to be let through."""

    def __init__(self) -> None:
        self._entered, self._enter = os.pipe()
        self._wait, self._let = os.pipe()
        self.data = struct.pack("<2i", self._enter, self._wait)

    def entered(self) -> None:
        """Return when one more call has begun."""
        assert os.read(self._entered, 1) == b"."

    def let(self, calls: int = 1) -> None:
        """Let so many calls end, now or when they come."""
        os.write(self._let, b"." * calls)

    def close(self) -> None:
        for fd in (self._entered, self._enter, self._wait, self._let):
            os.close(fd)


class Calls(Lanes):
    """The client: its hooks do what `rfaas.client.Lease` does, without links and leases."""

    def __init__(self, spin_us: float, timeout_s: float) -> None:
        super().__init__(spin_us, timeout_s)
        self.watched: list[Call] = []

    def _revive(self) -> None:
        raise ClosedError("there is no lane")

    def _check(self, lane: Lane) -> None:
        pass

    def _lost(self, lane: Lane) -> None:
        lane.failure = WorkerCrashedError("the worker is gone", hint="it was killed")

    def _broken(self, lane: Lane) -> None:
        assert lane.failure is not None
        raise lane.failure

    def _late(self, lane: Lane, name: str, timeout_s: float) -> DeadlineExceededError:
        return DeadlineExceededError(f"a call of {name} took more than {timeout_s:g} s")

    def _call_back(self, callback: Callable[[Call], object], call: Call) -> None:
        callback(call)

    def _watch(self, call: Call) -> None:
        self.watched.append(call)


class Served:
    """Rings, the worker that serves them if there is one, and the client's lanes."""

    def __init__(
        self,
        carrier: Transport,
        library: Path | None,
        *,
        lanes: int = 1,
        slots: int = 16,
        slot_bytes: int = 2 * wire.PAGE_BYTES,
        hot_timeout_ms: int = 2,
        spin_us: float = 50,
        timeout_s: float = 0.0,
        first: int = 0,
    ) -> None:
        """Start it; without a library nobody serves, and the test plays the worker."""
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.pid = 0
        self.status: int | None = None
        self._lanes = lanes
        self._stride = wire.ring_bytes(slots, slot_bytes)
        self.rings_fd = ring.create(lanes, slots, slot_bytes, first=first)
        self._account_fd = ring.create_account(lanes)
        self.memory = mmap.mmap(self.rings_fd, 0)
        self.calls = Calls(spin_us, timeout_s)
        try:
            functions = ["echo"]
            if library is not None:
                functions = self._start(library, hot_timeout_ms)
            fds = carrier.offer(self.rings_fd)
            self.calls._install(carrier.accept(lanes, slots, slot_bytes, fds), functions)
        except BaseException:
            self.close()
            raise

    @property
    def lane(self) -> Lane:
        return self.calls._lanes[0]

    # The worker

    def _start(self, library: Path, hot_timeout_ms: int) -> list[str]:
        table = read_functions(library.read_bytes(), os.uname().machine)
        ready, say = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._work(say, library, list(table), hot_timeout_ms)
        os.close(say)
        with open(ready, "rb") as pipe:
            said = pipe.read()
        assert said, "the worker did not start"
        self._began(said)
        return [function.name for function in table]

    def _work(
        self, say: int, library: Path, table: list[tuple[str, int]], timeout_ms: int
    ) -> NoReturn:
        try:
            faulthandler.disable()  # its crashes are meant
            die_with_parent(signal.SIGKILL, "rfaas-test")
            os.dup2(2, 1)
            fd = os.open(library, os.O_RDONLY)
            loaded = Library(fd)
            loaded.bind(table)
            self._run(loaded, timeout_ms, say)
        except BaseException:  # noqa: BLE001 - or the fork would go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(70)

    def _began(self, said: bytes) -> None:
        """In the test: the worker serves, and this is what it said."""

    def _run(self, library: Library, hot_timeout_ms: int, say: int) -> None:
        """In the worker: serve, say something, and live until it is killed."""
        cpus = [-1] * self._lanes
        running = WorkerLanes(
            library, self.rings_fd, self._stride, self._account_fd, cpus, hot_timeout_ms
        )
        os.write(say, b"ready")
        os.close(say)
        while running is not None:
            signal.pause()

    def reap(self) -> int:
        """Wait until the worker is dead; tell its client, as an executor does. The status."""
        _, self.status = os.waitpid(self.pid, 0)
        self.pid = 0
        self.end()
        return self.status

    def kill(self) -> None:
        """Kill the worker, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        self.reap()

    def end(self) -> None:
        """Say on the rings that nobody serves them any more."""
        for lane in range(self._lanes):
            end_ring(self.rings_fd, lane * self._stride)

    def close(self) -> None:
        if self.pid:
            self.kill()
        self.calls._install([], ())
        self.memory.close()
        os.close(self.rings_fd)
        os.close(self._account_fd)

    # What stands in memory

    def header(self, field: int) -> int:
        """A 32-bit word of the first lane's header."""
        return int(_U32.unpack_from(self.memory, field)[0])

    def account(self, field: int, lane: int = 0) -> int:
        """A counter of the accounting page."""
        line = os.pread(self._account_fd, 8, lane * wire.ACCOUNT_LANE_BYTES + field)
        return int(_U64.unpack(line)[0])

    def request_at(self, index: int) -> int:
        """Where the first lane's cell of that request is."""
        return wire.PAGE_BYTES + index % wire.cells_for(self.slots) * wire.CELL_BYTES

    def response_at(self, index: int) -> int:
        return self.request_at(index) + wire.cells_for(self.slots) * wire.CELL_BYTES

    def put(self, at: int, index: int, imm: int, size: int, detail: int = 0) -> None:
        """Write a cell, as whoever does not keep to the rules may."""
        _RESERVED.pack_into(self.memory, at, 0, imm, size, detail)
        for flag in (wire.CELL_SEQ1, wire.CELL_SEQ0):
            _U32.pack_into(self.memory, at + flag, (index + 1) % 2**32)

    def request(self, index: int, imm: int, size: int) -> tuple[int, int, int]:
        """Announce raw, with a worker that never sleeps: (slot, status, detail) of its answer."""
        self.put(self.request_at(index), index, imm, size)
        at = self.response_at(index)
        eventually(lambda: _U32.unpack_from(self.memory, at)[0] == index + 1)
        _, answer, _, detail = _RESERVED.unpack_from(self.memory, at)
        slot, status, _ = wire.imm_fields(answer)
        return slot, status, detail

    def respond(self, index: int, imm: int, size: int, detail: int = 0) -> None:
        """Answer raw, in the place of a worker."""
        self.put(self.response_at(index), index, imm, size, detail)


Serve = Callable[..., Served]  # the fixture: options as of `Served`


def eventually(condition: Callable[[], bool]) -> None:
    """Return when another process or thread has made it so; the test's timeout is the bound."""
    while not condition():
        os.sched_yield()
