"""`rfaas bench faults`: how soon a client hears of a fault, and nothing of its function is left.

At each level, on a private executor with one core: a function leaves daemons behind, then
crashes, exits, or loops until its deadline, deaf to signals.  Timed from the call (of a deadline:
from when it was due):

    told    the client has its error
    gone    the worker and all daemons have ended, by pidfd_open(2)
    free    another lease of the one core is open at the node

Who is left is looked for in all of /proc, by a name that the function gave itself.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import struct
import threading
import time
from contextlib import suppress

from msgspec.structs import replace

from rfaas.bench.measure import peer_library, stats
from rfaas.client import Lease, Session
from rfaas.config import Config
from rfaas.errors import (
    CapacityError,
    DeadlineExceededError,
    InternalError,
    UsageError,
    WorkerCrashedError,
)

FAULTS = {"segfault": 0, "abort": 1, "exit": 2, "deadline": 3}  # bench/peer.h
LEVELS = ("none", "process", "sandbox", "bubblewrap", "container")
ASKED_MS = {"told_of_crash": 50, "told_of_deadline": 100, "gone": 100}
DAEMONS = 3
DEADLINE_S = 0.05
GONE_TIMEOUT_S = 2.0  # what has not ended by then is left
_NAME_BYTES = 14  # of 15, PR_SET_NAME
_ENDED = ("Z", "X")  # proc_pid_stat(5)

Samples = dict[str, list[float]]


def run(config: Config, rounds: int) -> dict[str, object]:
    """Measure at the configured level, or, where none is asked for, at each that can be had."""
    if config.client.executor not in ("", "private"):
        raise UsageError(
            f"faults are measured on a private executor, not on {config.client.executor}",
            hint="it looks for processes on this machine: leave --executor out",
        )
    executor = replace(config.executor, cores=1, keep_warm_s=0.0)
    config = replace(config, client=replace(config.client, executor="private"), executor=executor)
    asked = config.lease.isolation
    levels: list[dict[str, object]] = []
    with Session(config) as session:
        for level in LEVELS if asked == "default" else (asked,):
            if level == "container" and not config.lease.image and asked == "default":
                levels.append({"isolation": level, "refused": "no image is named: --image"})
                continue
            try:
                levels.append(_level(session, level, rounds))
            except CapacityError as error:
                if asked != "default":
                    raise
                levels.append({"isolation": level, "refused": error.text})
    return {
        "benchmark": "faults",
        "rounds": rounds,
        "asked_ms": ASKED_MS,
        "levels": levels,
    }


def _level(session: Session, level: str, rounds: int) -> dict[str, object]:
    samples: dict[str, Samples] = {fault: {} for fault in FAULTS}
    seen = left = 0
    lease = _lease(session, level)
    head = {"isolation": level, "transport": lease.transport, "lacks": list(lease.lacks)}
    try:
        for _ in range(rounds):
            for fault, found in samples.items():
                tree = Tree(_leave(lease))
                try:
                    lease = _fault(session, lease, fault, tree, found)
                finally:
                    seen += len(tree.pids)
                    left += tree.end()
    finally:
        lease.close()
    report = {
        fault: {f"{what}_ms": stats(values) for what, values in found.items()}
        for fault, found in samples.items()
    }
    return head | report | {"processes": seen, "left": left}


def _lease(session: Session, level: str) -> Lease:
    image = session.config.lease.image if level == "container" else ""
    return session.lease(1, peer_library(), isolation=level, image=image)


def _leave(lease: Lease) -> str:
    """Have the function leave its daemons behind; the name by which they are found."""
    name = secrets.token_hex(_NAME_BYTES // 2)
    task = struct.pack("<I16s", DAEMONS, name.encode())
    (daemons,) = struct.unpack("<I", lease.call("leave", task))
    if daemons != DAEMONS:
        raise InternalError(f"the function could leave {daemons} of {DAEMONS} daemons behind")
    return name


def _fault(session: Session, lease: Lease, fault: str, tree: Tree, found: Samples) -> Lease:
    """Time one fault; returns the lease that has the core afterwards."""
    late_ns = round(DEADLINE_S * 1e9) if fault == "deadline" else 0
    task = struct.pack("<I", FAULTS[fault])
    begun = time.monotonic_ns() + late_ns
    tree.watch()
    try:
        lease.call("fault", task, timeout=DEADLINE_S if late_ns else None)
    except (WorkerCrashedError, DeadlineExceededError) as error:
        told = time.monotonic_ns()
        if isinstance(error, DeadlineExceededError) != bool(late_ns):
            raise
    else:
        raise InternalError(f"a function that was to fail by {fault} has returned")
    level = lease.isolation
    lease.close()
    asked = time.monotonic_ns()
    again = _lease(session, level)
    free = asked + again.steps_ns["request"] + again.steps_ns["connect"]
    times = {"told": told, "gone": tree.gone_ns(), "free": free}
    for what, at in times.items():
        found.setdefault(what, []).append((at - begun) / 1e6)
    return again


class Tree:
    """The processes that have a thread of that name: found, watched, and counted if left."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fds: dict[int, int] = {}  # by process
        for pid in find(name):
            self._fds[pid] = os.pidfd_open(pid)
        self.pids = set(self._fds)
        self._gone_ns = 0
        self._watcher = threading.Thread(target=self._watch, name="rfaas-bench")
        if len(self.pids) != DAEMONS + 1:
            self.end()
            raise InternalError(
                f"of a function with {DAEMONS} daemons, {len(self.pids)} processes are found"
            )

    def watch(self) -> None:
        """Note when the last of them ends, from now on."""
        self._watcher.start()

    def gone_ns(self) -> int:
        """When that was, of the monotonic clock; of what is left: when it was given up."""
        self._watcher.join()
        return self._gone_ns

    def end(self) -> int:
        """How many live still, or have come since; they are killed.  To be called once."""
        if self._watcher.is_alive():
            self._watcher.join()
        left = find(self._name) - self.pids
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid, fd in self._fds.items():
            if not _has_ended(fd):
                left.add(pid)
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        return len(left)

    def _watch(self) -> None:
        give_up_at = time.monotonic() + GONE_TIMEOUT_S
        poller = select.poll()
        for fd in self._fds.values():
            poller.register(fd, select.POLLIN)
        living = len(self._fds)
        while living and (left_s := give_up_at - time.monotonic()) > 0:
            for fd, _ in poller.poll(left_s * 1e3):
                poller.unregister(fd)
                living -= 1
        self._gone_ns = time.monotonic_ns()


def find(name: str) -> set[int]:
    """The processes with a thread of that name that have not ended."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has gone while we looked
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/stat") as file:
                    comm, _, rest = file.read().partition("(")[2].rpartition(") ")
                if comm == name and rest[0] not in _ENDED:
                    found.add(int(pid))
    return found


def _has_ended(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
