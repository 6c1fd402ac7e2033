"""Stopping a worker that outlives its lease, and seeing that it stays so.

It is not billed to anybody any more, so it may not use a processor: threads of its library
may still run, and so may what it has forked.  SIGSTOP cannot be caught or ignored, but a
timer can be made to send SIGCONT; who looks at the clock of the process finds that.
"""

from __future__ import annotations

import os
import signal
import time

from rfaas.errors import SystemCallError

STOP_TIMEOUT_S = 0.1  # for all its threads to stop; it takes microseconds
STOP_POLL_S = 0.0002
_STOPPED = "T"  # proc_pid_stat(5)
_STATE, _UTIME, _STIME = 0, 11, 12  # there, counted from after the name


def stop(pid: int) -> tuple[int, int]:
    """Stop a process; returns its number and the ticks of processor time that it has used.

    Raises:
        SystemCallError: it has children, which would go on, or does not stop.
        OSError: it is gone, or the kernel does not list children (CONFIG_PROC_CHILDREN).
    """
    os.kill(pid, signal.SIGSTOP)
    if started := children(pid):  # vfork(2) would have us wait in vain
        raise SystemCallError(f"{len(started)} processes that it has started are still there")
    give_up_at = time.monotonic() + STOP_TIMEOUT_S
    while not _are_stopped(pid):
        if time.monotonic() > give_up_at:
            raise SystemCallError(f"process {pid} did not stop in {STOP_TIMEOUT_S:g} s")
        time.sleep(STOP_POLL_S)
    if started := children(pid):
        raise SystemCallError(f"{len(started)} processes that it has started are still there")
    return pid, _ticks(_stat(f"/proc/{pid}/stat"))


def is_stopped(pid: int, cpu_ticks: int) -> bool:
    """Whether it has rested ever since it had used so many ticks."""
    try:
        stat = _stat(f"/proc/{pid}/stat")
    except OSError:
        return False
    return stat[_STATE] == _STOPPED and _ticks(stat) == cpu_ticks


def children(pid: int) -> set[int]:
    """The children of all threads of a process.  Raises OSError."""
    found: set[int] = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            found.update(map(int, file.read().split()))
    return found


def _are_stopped(pid: int) -> bool:
    tasks = f"/proc/{pid}/task"
    return all(_stat(f"{tasks}/{one}/stat")[_STATE] == _STOPPED for one in os.listdir(tasks))


def _stat(path: str) -> list[str]:
    with open(path) as file:
        return file.read().rpartition(")")[2].split()


def _ticks(stat: list[str]) -> int:
    return int(stat[_UTIME]) + int(stat[_STIME])
