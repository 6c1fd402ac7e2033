"""What goes wrong with links over RDMA, in words.

The native part tells numbers and steps; what completions and events mean is
the same as for calls (`transport/verbs_errors.py`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from rfaas.errors import AddressInUseError, RfaasError, SystemCallError, UnavailableError
from rfaas.transport.verbs_errors import COMPLETIONS, EVENTS, native

if TYPE_CHECKING:
    from rfaas.addresses import Address
    from rfaas.native._rdma_stream import StreamFault

REFUSALS = {
    "stranger": "what connected is no link of rfaas",
    "version": "its links are of another version",
    "geometry": "its link has receives of an impossible number or size",
    "queues": "a queue pair or memory for one more link cannot be had",
}
MEMLOCK_HINT = "each link locks 16 KiB: is the memory-lock limit (`ulimit -l`) reached?"


def load() -> Any:
    """The native part.

    Raises:
        UnavailableError: this machine lacks librdmacm, or this rfaas was built without it.
    """
    try:
        return native("_rdma_stream")
    except ImportError as error:
        built = "_rdma_stream" not in str(error)
        raise UnavailableError(
            f"addresses of the form verbs:HOST:PORT cannot be used here: {error}",
            hint="install librdmacm and libibverbs (Debian: librdmacm1 ibverbs-providers), or "
            "use tcp:HOST:PORT"
            if built
            else "build rfaas where the headers are (Debian: librdmacm-dev), or use tcp:HOST:PORT",
        ) from None


def of_fault(fault: StreamFault | None) -> str:
    """What broke a link, in one line."""
    if fault is None:
        return "the link is closed"
    if fault.where in ("send", "receive"):
        name, meaning = COMPLETIONS.get(fault.status, (f"status {fault.status}", fault.text))
        return f"{meaning} (a {fault.where} completed with IBV_WC_{name}: {fault.text})"
    if fault.where == "event":
        meaning = EVENTS.get(fault.text, "that was not expected")
        return f"{meaning} ({fault.text}, status {fault.detail})"
    if fault.where == "wire":
        return f"the peer broke the protocol below: {fault.step} ({fault.status:#x})"
    name = errno.errorcode.get(fault.status, str(fault.status))
    return f"could not {fault.step}: {fault.text} ({name})"


def of_connect(fault: StreamFault, address: Address) -> RfaasError:
    """The error for a connection that could not be made."""
    if fault.refusal:
        why = {"version": "it speaks another version of links over RDMA"}.get(
            fault.refusal, REFUSALS.get(fault.refusal, fault.refusal)
        )
        hint = "install the same rfaas on both nodes" if fault.refusal == "version" else ""
        return UnavailableError(f"{address} refused the link: {why}", hint=hint)
    hint = ""
    if fault.where == "step" and fault.status in (errno.ENODEV, errno.EADDRNOTAVAIL):
        hint = "`rfaas doctor --need verbs` says what is missing here"
    elif fault.where == "step" and fault.status in (errno.ENOMEM, errno.EAGAIN):
        hint = MEMLOCK_HINT
    elif fault.where == "event":
        hint = "does somebody listen there, and does a firewall let UDP 4791 (RoCE) through?"
    return UnavailableError(f"nobody answers at {address}: {of_fault(fault)}", hint=hint)


def of_listen(fault: StreamFault, address: Address) -> RfaasError:
    """The error for an address that cannot be listened at."""
    if fault.status == errno.EADDRINUSE:
        return AddressInUseError(
            f"somebody listens at {address} already",
            hint="stop that process, or give this one another port",
        )
    hint = ""
    if fault.status in (errno.ENODEV, errno.EADDRNOTAVAIL):
        hint = "it must be the address of an RDMA device: `rfaas devices` lists them; or write *"
    return SystemCallError(f"cannot listen at {address}: {of_fault(fault)}", hint=hint)
