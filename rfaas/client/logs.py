"""What the functions of a lease have written, from the node that ran them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rfaas.errors import UsageError
from rfaas.proto.report_messages import GetOutput, WorkerOutput

if TYPE_CHECKING:
    from rfaas.client.session import Session
    from rfaas.control.link import Link

ID_DIGITS = 32


class Written(NamedTuple):
    """The last 64 KiB that a worker of a lease wrote to stdout and stderr."""

    worker: int  # its number
    data: bytes


def outputs_of(session: Session, lease: str) -> list[Written]:
    """What the workers of a lease wrote, the oldest first of which something is kept.

    Args:
        session: of a resource manager, or of the executor itself.
        lease: its id; where a resource manager is asked, its beginning will do.

    Raises:
        UsageError: no such lease, or several.
        RfaasError: its node is gone, or has forgotten it.
    """
    if session.status().role == "executor":
        if len(lease) != ID_DIGITS:
            raise UsageError(
                f"{lease!r} is no lease's id, which has {ID_DIGITS} digits",
                hint="only a resource manager knows leases by the beginning of their ids",
            )
        return _read(session.link, lease)
    found = [one for one in session.leases(all=True) if one.lease.startswith(lease)]
    if len(found) != 1:
        what = "no lease's id begins" if not found else f"the ids of {len(found)} leases begin"
        raise UsageError(f"{what} with {lease!r}", hint="see `rfaas leases --all --json`")
    address = next((n.address for n in session.nodes() if n.node == found[0].node), "")
    if not address:
        raise UsageError(f"node {found[0].node} of lease {found[0].lease[:8]} is gone")
    link = session.link_to(address)
    try:
        return _read(link, found[0].lease)
    finally:
        link.close()


def _read(link: Link, lease: str) -> list[Written]:
    found = []
    later = 0
    while True:
        part = link.ask(GetOutput(lease=lease, worker=later), WorkerOutput)
        # What it writes while it is read is not waited for: it may never end.
        number, end, data = part.worker, part.end, part.data
        while part.data and (start := part.start + len(part.data)) < end:
            part = link.ask(GetOutput(lease=lease, worker=number, start=start), WorkerOutput)
            if part.worker != number:  # it was forgotten meanwhile
                break
            # It may have written so much since that its next bytes are gone: without a gap, then.
            data = data + part.data if part.start == start else part.data
        found.append(Written(number, data))
        if part.worker == number and part.later <= number:
            return found
        later = part.later if part.worker == number else part.worker
