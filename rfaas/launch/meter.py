"""What a worker whose function may lie has used: its counts, held against what others see.

Its accounting page is memory of the process that runs the function.  Beside it stand the
kernel's count of the processor time of all that the worker has started, and the numbers of
the calls on its rings.  The kernel's count comes from the worker's control group; where there
is none, from the processes beneath it, less those that died without a parent that waited
for them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from rfaas.core.accounting import Counts, Watched, summed
from rfaas.sandbox import cgroups
from rfaas.transport import ring

if TYPE_CHECKING:
    from rfaas.launch.workers import WorkerProcess

START_NS = 20_000_000  # of processor time that a worker's own start may take


class Meter:
    """See the module's docstring.

    Args:
        by_page: whether its lanes' page and rings are what its function can write.
        shares: whether some of its answers are none of calls: the processor was another's.
    """

    def __init__(self, worker: WorkerProcess, *, by_page: bool, shares: bool = False) -> None:
        self._worker = worker
        self._by_page = by_page
        self._shares = shares
        self._watched = Watched(worker.lanes, time.monotonic_ns())
        self._answered = [0] * worker.lanes
        self._asked = [0] * worker.lanes
        self._pid = 0
        self._cpu_fd = -1
        self._spent_ns = START_NS  # before the library came: ours
        self._cpu_ns = 0

    def follow(self, pid: int, cpu_file: str = "", *, waited: bool = False) -> None:
        """Watch a process and all that it starts, or the control group whose file that is.

        Args:
            waited: it has started already, and waits: what it has used so far is not counted.
        """
        self._pid = pid
        if cpu_file and self._cpu_fd < 0:
            with suppress(OSError):  # it is gone already
                self._cpu_fd = os.open(cpu_file, os.O_RDONLY | os.O_CLOEXEC)
        if waited:
            self.look()
            self._spent_ns = self._cpu_ns

    def end(self, cpu_ns: int) -> None:
        """It is dead, and that is what the kernel counted last."""
        self._cpu_ns = max(self._cpu_ns, cpu_ns)
        self.close()
        self._pid = 0

    def counts(self, page: bytes, *, last: bool) -> tuple[Counts, int]:
        """What its lanes have counted, and how long they were busy at the very least, in ns."""
        self.look()
        now_ns = time.monotonic_ns()
        calls = self._calls() if self._by_page else ()
        counts = summed(self._watched.look(page, now_ns, calls, last=last))
        return counts, max(0, self._cpu_ns - self._spent_ns)

    def look(self) -> None:
        """Take the kernel's count."""
        if self._cpu_fd >= 0:
            with suppress(OSError):  # the group is gone: its end tells
                self._cpu_ns = max(self._cpu_ns, cgroups.cpu_ns(os.pread(self._cpu_fd, 4096, 0)))
        elif self._pid:
            self._cpu_ns = max(self._cpu_ns, sum(processes_ns(self._pid)))

    def close(self) -> None:
        """Let go of what it reads.  Can be called twice."""
        if self._cpu_fd >= 0:
            os.close(self._cpu_fd)
        self._cpu_fd = -1

    def _calls(self) -> list[tuple[int, int]]:
        worker = self._worker
        for lane in range(worker.lanes):
            at = (worker.rings_fd, lane * worker.ring_bytes, worker.slots)
            self._answered[lane] = ring.answered(*at, self._answered[lane])
            self._asked[lane] = max(self._answered[lane], ring.asked(*at, self._asked[lane]))
        answered = [0] * worker.lanes if self._shares else self._answered
        return list(zip(answered, self._asked, strict=True))


def processes_ns(pid: int) -> Iterator[int]:
    """The processor time of a process and of each beneath it, with that of dead children.

    Of the dead, those that were waited for: proc_pid_stat(5).
    """
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    found = [str(pid)]
    for one in found:
        try:
            with open(f"/proc/{one}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            tasks = os.listdir(f"/proc/{one}/task")
        except OSError:
            continue
        yield sum(map(int, fields[14 - 3 : 18 - 3])) * tick_ns  # the first after the name is 3
        for task in tasks:
            with suppress(OSError), open(f"/proc/{one}/task/{task}/children") as children:
                found += children.read().split()
