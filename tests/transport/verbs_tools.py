"""What tests of connections over RDMA are made of: bare lanes, processes apart, what is held."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from rfaas.native._worker import die_with_parent
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import ring, verbs_errors
from tests.harness.rdma import End

ROOT = Path(__file__).parents[2]
SLOTS, SLOT_BYTES = 4, wire.PAGE_BYTES


@contextmanager
def answering(
    end: End, slots: int = SLOTS, slot_bytes: int = SLOT_BYTES, cpu: int = -1
) -> Iterator[Endpoint]:
    """A lane of this process, on that processor, that answers every write by a bare one."""
    secret = os.urandom(wire.SECRET_BYTES)
    rings, account = ring.create(1, slots, slot_bytes), ring.create_account(1)
    size = wire.ring_bytes(slots, slot_bytes)
    native = verbs_errors.load()
    lanes = native.WorkerLanes(None, rings, size, account, (cpu,), 1, end.address, secret)
    over, end_it = os.pipe()

    def attend() -> None:
        while True:
            ready, _, _ = select.select([over, *lanes.filenos()], [], [])
            if over in ready:
                return
            lanes.step()

    thread = threading.Thread(target=attend)
    thread.start()
    try:
        yield Endpoint(host=end.address, port=lanes.port, secret=secret)
    finally:
        os.close(end_it)
        thread.join()
        lanes.stop()
        for fd in (over, rings, account):
            os.close(fd)


@contextmanager
def answering_apart(end: End, work: Callable[[int], None] | None = None) -> Iterator[Fork]:
    """The same in a process of its own; this one must not have opened a device yet.

    Args:
        work: done there when it listens, given `Fork.order` to read; it waits for that first.
    """
    told, tell = os.pipe()
    orders, order = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            die_with_parent(signal.SIGKILL, "rfaas-test")
            with answering(end) as endpoint:
                os.write(tell, msgspec.msgpack.encode(endpoint))
                if work is not None:
                    work(orders)
                    os.write(tell, b".")
                signal.pause()
        finally:
            os._exit(70)
    try:
        yield Fork(msgspec.msgpack.decode(os.read(told, 4096), type=Endpoint), order, told)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (told, tell, orders, order):
            os.close(fd)


class Fork(NamedTuple):
    """A worker in a process of its own."""

    endpoint: Endpoint
    order: int  # what is written here, its `work` can read
    done: int  # readable when its `work` is done


def output(*words: str) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def apart(work: Callable[..., object], ends: tuple[End, End], *more: object) -> str:
    """Do `work` in a new process: a device that this one has open is of no use to its forks.

    Args:
        more: what follows the ends; made again from what `repr` says.

    Returns:
        What it printed.
    """
    plain = tuple(tuple(end) for end in ends)
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from tests.harness.rdma import End; "
        f"from {work.__module__} import {work.__name__}; "
        f"{work.__name__}(*(End(*end) for end in {plain!r}), *{more!r})"
    )
    return output(sys.executable, "-c", code)


def held() -> dict[str, int]:
    """What this process holds: descriptors, and the kernel's RDMA objects by kind."""
    found = {"descriptors": len(os.listdir("/proc/self/fd"))}
    shown = output("rdma", "resource", "show")
    for kind, count in re.findall(r"\b(qp|cq|mr|pd|cm_id) (\d+)", shown):
        found[kind] = found.get(kind, 0) + int(count)
    return found
