"""Connections over RDMA that come and go leave nothing: no descriptor, RDMA object, or memory."""

from __future__ import annotations

import os
import re
import select
import signal
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from rfaas.core.elf import read_functions
from rfaas.native._worker import Library, die_with_parent
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.proto.worker_messages import LoadLibrary
from rfaas.transport import ring, verbs
from rfaas.transport.serve import serve
from tests.harness.rdma import End
from tests.transport.served import Calls
from tests.transport.verbs_tools import SLOT_BYTES, SLOTS, apart, held

pytestmark = pytest.mark.rdma

# RFAAS_CONNECT_CYCLES=10000 takes minutes.
CYCLES = int(os.environ.get("RFAAS_CONNECT_CYCLES", "1000"))
WARM_UP = 20  # by then there is what is kept for the life of a process
GROWN_KIB_MAX = 1024  # of either process


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_connections_leave_nothing(verbs_ends: tuple[End, End], library: Path) -> None:
    apart(come_and_go, verbs_ends, str(library), CYCLES)


def come_and_go(client: End, server: End, library: str, cycles: int) -> None:
    """Each cycle makes a worker's lane and a client's, calls over them, and takes both away.

    Each side is a process of its own: threads of one would mostly wait for each other.
    """
    orders, order = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        for fd in (order, told):
            os.close(fd)
        work(server, Path(library), orders, tell)
    names = [name for name, _ in read_functions(Path(library).read_bytes(), os.uname().machine)]

    def cycle(number: int) -> None:
        os.write(order, b".")
        endpoint = msgspec.msgpack.decode(os.read(told, 4096), type=Endpoint)
        calls = Calls(spin_us=0, timeout_s=0)
        calls._install([verbs.connect(endpoint, 0, SLOTS, SLOT_BYTES, client.address)], names)
        assert calls.call("echo", b"%d" % number) == b"%d" % number
        calls._install([], ())
        os.write(order, b".")
        assert os.read(told, 1) == b"."

    for number in range(WARM_UP):
        cycle(number)
    both = ("self", str(pid))
    objects, before = held(), [belongings(process) for process in both]
    for number in range(cycles):
        cycle(number)
    assert held() == objects
    for process, (descriptors, kib) in zip(both, before, strict=True):
        now, kib_now = belongings(process)
        assert now == descriptors
        assert kib_now - kib <= GROWN_KIB_MAX, f"{process}: {kib_now - kib} KiB in {cycles} cycles"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def belongings(process: str) -> tuple[int, int]:
    """How many descriptors a process has open, and KiB of memory that it has in use."""
    folder = Path("/proc") / process
    found = re.search(r"^VmRSS:\s+(\d+) kB$", (folder / "status").read_text(), re.MULTILINE)
    assert found
    return len(list((folder / "fd").iterdir())), int(found[1])


def work(end: End, path: Path, orders: int, tell: int) -> NoReturn:
    """At each order serve one client anew, until the next."""
    try:
        die_with_parent(signal.SIGKILL, "rfaas-test")
        fd = os.open(path, os.O_RDONLY)
        library = Library(fd)
        library.bind(read_functions(path.read_bytes(), os.uname().machine))
        os.close(fd)
        task = LoadLibrary(
            ring_bytes=wire.ring_bytes(SLOTS, SLOT_BYTES),
            cpus=(-1,),
            hot_timeout_ms=0,
            isolation="none",
            transport="verbs",
            host=end.address,
        )
        while os.read(orders, 1):
            rings, account = ring.create(1, SLOTS, SLOT_BYTES), ring.create_account(1)
            running = serve(task, library, rings, account)
            os.write(tell, msgspec.msgpack.encode(running.endpoint))
            poller = select.poll()
            for fd in (orders, *running.filenos()):
                poller.register(fd, select.POLLIN)
            while orders not in [fd for fd, _ in poller.poll()]:
                running.step()
            os.read(orders, 1)
            running.stop()
            del running
            os.close(rings)
            os.close(account)
            os.write(tell, b".")
    except BaseException:  # noqa: BLE001 - or the fork would go on as a second client
        traceback.print_exc()
    os._exit(70)
