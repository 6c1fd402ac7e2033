"""The endpoint's process: trusted, beside a worker that is not, for as long as that one lives.

Forked by the zygote like a worker.  It owns the NIC's connections, their memory
regions and keys, and counts what the lease is billed for; the worker sees its
ring and nothing else.  It runs nothing of the client's.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING

from rfaas.errors import PeerLostError, RfaasError
from rfaas.native._worker import die_with_parent
from rfaas.proto.messages import Error
from rfaas.proto.worker_messages import RingsServed
from rfaas.transport.counts import Counts
from rfaas.transport.endpoint import EndpointLanes

if TYPE_CHECKING:
    from rfaas.control.link import Link
    from rfaas.proto.worker_messages import ServeRings

NONSENSE_STATUS = 74  # EX_IOERR: the worker wrote on its ring what makes no sense


def run(link: Link, task: ServeRings) -> int:
    """Serve until the executor closes the link, or the worker cannot be believed; exit status."""
    die_with_parent(signal.SIGKILL, "rfaas-endpoint")
    try:
        rings_fd, account_fd = link.take_fds()
        try:
            lanes = EndpointLanes(task, rings_fd, account_fd)
            counts = Counts(task.counts, account_fd, len(task.cpus))
        except RfaasError as error:
            link.send(Error(id=task.id, code=error.code, text=error.text, hint=error.hint))
            return 1
        for fd in (rings_fd, account_fd):
            os.close(fd)
        link.send(RingsServed(id=task.id, endpoint=lanes.endpoint))
        return _attend(link, lanes, counts)
    except PeerLostError:
        return 0


def _attend(link: Link, lanes: EndpointLanes, counts: Counts) -> int:
    poller = select.poll()
    for fd in (link.fileno(), *lanes.filenos()):
        poller.register(fd, select.POLLIN)
    try:
        while True:
            for fd, _ in poller.poll(counts.wait_ms):
                if fd == link.fileno():
                    link.receive()  # nothing more is sent: this raises, at the end
                elif not _step(lanes):
                    return NONSENSE_STATUS
            counts.tell()
    finally:
        lanes.stop()  # answers what is in flight
        counts.tell(last=True)
        counts.close()


def _step(lanes: EndpointLanes) -> bool:
    known = set(lanes.faults)
    believed = lanes.step()
    for index in lanes.faults.keys() - known:
        print(f"rfaas endpoint: lane {index}: {lanes.faults[index]}", file=sys.stderr, flush=True)
    return believed
