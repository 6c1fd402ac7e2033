"""What goes wrong with RDMA, in words: errors of steps, of completions, of connections.

The native part knows numbers and steps (`native/_verbs.pyx`); a person needs to
know what they mean and what to do.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rfaas.errors import DeviceError, ProtocolError, RfaasError, SystemCallError, UnavailableError
from rfaas.units import format_bytes

if TYPE_CHECKING:
    from rfaas.native._verbs import Trouble

Fault = tuple[str, int, str, int]  # as of `_verbs.fault`

# enum ibv_wc_status, by number: its name, what it means here.  ibv_poll_cq(3)
COMPLETIONS = {
    1: ("LOC_LEN_ERR", "a local length was wrong"),
    2: ("LOC_QP_OP_ERR", "the queue pair refused the operation"),
    4: ("LOC_PROT_ERR", "memory that is not registered was to be sent"),
    5: ("WR_FLUSH_ERR", "the other side disconnected, or wrote where it may not"),
    8: ("BAD_RESP_ERR", "the other side's NIC answered nonsense"),
    9: ("REM_INV_REQ_ERR", "the other side's NIC refused the request as invalid"),
    10: ("REM_ACCESS_ERR", "the write was past the other side's window, or its key is wrong"),
    11: ("REM_OP_ERR", "the other side's NIC could not complete the write"),
    12: ("RETRY_EXC_ERR", "the other side does not answer: it is gone, or the network is"),
    13: ("RNR_RETRY_EXC_ERR", "the other side posted no receives"),
    21: ("GENERAL_ERR", "the NIC failed"),
}
# The same of a receive, which is ended by what the other side does.
RECEIVES = {
    "LOC_LEN_ERR": "the other side sent more than there is room for",
    "REM_ACCESS_ERR": "the other side wrote past our window, or with a wrong key",
    "REM_INV_REQ_ERR": "the other side's NIC asked for what is not allowed",
    "REM_OP_ERR": "our NIC could not complete the other side's write",
}
FLUSHED = 5

# Events that end a connection that worked.  rdma_get_cm_event(3)
ENDINGS = {
    "RDMA_CM_EVENT_DISCONNECTED": "the other side disconnected, or its process ended",
    "RDMA_CM_EVENT_UNREACHABLE": "the other side cannot be reached any more: it is gone, or the "
    "link is down",
    "RDMA_CM_EVENT_DEVICE_REMOVAL": "the device was taken away",
    "RDMA_CM_EVENT_ADDR_CHANGE": "the device's address has moved to another port",
}
_GONE = ("worker", 0, "the worker is gone", 0)  # of an endpoint
DISCONNECTED = "RDMA_CM_EVENT_DISCONNECTED"

REFUSALS = {
    "stranger": "it takes what came for that of a stranger",
    "version": "it speaks another version of the protocol",
    "secret": "the secret is wrong",
    "lane": "it has no such lane",
    "geometry": "it has windows of another size",
    "taken": "somebody else is connected to that lane",
    "queues": "it could not make a queue pair; its device may be out of them",
}

ANSWERS = {
    "stranger": "it is not one of rFaaS",
    "version": "it speaks another version of the protocol",
    "lane": "it is about another lane",
    "geometry": "its windows have another size than the executor announced",
}

# enum ib_cm_rej_reason, rdma/ib_cm.h
REJECTED = "RDMA_CM_EVENT_REJECTED"
REJECTIONS = {
    8: "nobody listens there",
    10: "it went out of business while it was asked",
    28: "who listens there refused, and gives no reason that rFaaS knows",
}

EVENTS = {
    "RDMA_CM_EVENT_ADDR_ERROR": "the address cannot be reached through an RDMA device",
    "RDMA_CM_EVENT_ROUTE_ERROR": "there is no route to the address",
    "RDMA_CM_EVENT_UNREACHABLE": "nobody answers there",
    "RDMA_CM_EVENT_REJECTED": "it was refused",
    "RDMA_CM_EVENT_CONNECT_ERROR": "the connection could not be set up",
    "RDMA_CM_EVENT_DEVICE_REMOVAL": "the device was taken away",
}


def load() -> Any:
    """The native part.

    Raises:
        DeviceError: this machine lacks librdmacm, or this rfaas was built without it.
    """
    try:
        return native("_verbs")
    except ImportError as error:
        built = "_verbs" not in str(error)
        raise DeviceError(
            f"transport verbs is not available here: {error}",
            hint="install librdmacm and libibverbs (Debian: librdmacm1 ibverbs-providers)"
            if built
            else "build rfaas where the headers are (Debian: librdmacm-dev)",
        ) from None


def native(name: str) -> Any:
    """A native module that is linked to rdma-core: the system's, or what the binary carries.

    Raises:
        ImportError: it was not built, or there is no rdma-core.
    """
    if hasattr(sys, "frozen"):
        from rfaas.diagnose import rdma_core

        return rdma_core.native(name)
    return import_module(f"rfaas.native.{name}")


def of_trouble(trouble: Trouble, what: str) -> RfaasError:
    """The error for a step that failed while we wanted to do `what`."""
    number = trouble.error
    if trouble.step == "register the window" and number in (errno.ENOMEM, errno.EAGAIN):
        return _too_little_memlock(trouble.bytes, what)
    if number == errno.EBADMSG and trouble.refusal:
        why = ANSWERS.get(trouble.refusal, "it makes no sense")
        return ProtocolError(f"cannot {what}: could not {trouble.step}: {why}")
    if trouble.refusal:
        why = f"the worker refused: {REFUSALS[trouble.refusal]}"
    elif trouble.event:
        meaning = EVENTS.get(trouble.event, "that was not expected")
        if trouble.event == REJECTED:
            meaning = REJECTIONS.get(trouble.status, meaning)
        why = f"{meaning} ({trouble.event}, status {trouble.status})"
    else:
        why = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    if trouble.tries > 1:
        why += f" after {trouble.tries} tries"
    hint = ""
    if number == errno.ENODEV and not trouble.event:
        hint = "`rfaas devices` lists the RDMA devices of this machine"
    elif number == errno.ENOMEM:
        hint = "the device may be out of queue pairs or memory regions: fewer cores or slots"
    kind = UnavailableError if trouble.event or number == errno.ETIMEDOUT else SystemCallError
    return kind(f"cannot {what}: could not {trouble.step}: {why}", hint=hint)


def of_fault(fault: Fault) -> str:
    """What broke a connection, in one line."""
    where, number, text, detail = fault
    if where in ("send", "receive"):
        name, meaning = COMPLETIONS.get(number, (f"status {number}", text))
        if where == "receive":
            meaning = RECEIVES.get(name, meaning)
        vendor_text = f", vendor's code {detail:#x}" if detail else ""
        return f"{meaning} (a {where} completed with IBV_WC_{name}: {text}{vendor_text})"
    if where == "event":
        meaning = ENDINGS.get(text, "the connection manager ended it")
        why = f", {os.strerror(-detail)}" if detail < 0 else ""
        return f"{meaning} ({text}{why})"
    if where == "port":
        return f"port {detail} of our device is {text.removeprefix('PORT_').lower()}"
    if where == "post":
        return f"the queue pair takes nothing any more ({text})"
    if where == "worker":
        return f"the endpoint says: {text}"
    return f"the other side broke the protocol: {text} ({number})"


def is_farewell(fault: Fault) -> bool:
    """Whether that is how an orderly end of the other side looks."""
    where, number, _, _ = fault
    return (where == "receive" and number == FLUSHED) or where == "event" or fault == _GONE


def is_nonsense(fault: Fault) -> bool:
    """Whether an endpoint's worker wrote what makes no sense."""
    return fault[0] == "worker" and fault[1] != 0


def _too_little_memlock(size: int, what: str) -> RfaasError:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else format_bytes(soft)
    return SystemCallError(
        f"cannot {what}: its windows are {format_bytes(size)}, which RDMA keeps in memory for "
        f"good, and this process may lock {limit} (RLIMIT_MEMLOCK)",
        hint="`ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd unit, memlock in "
        "/etc/security/limits.conf; or smaller windows: lower lane.slots or lane.slot_bytes"
        if soft != resource.RLIM_INFINITY or hard != resource.RLIM_INFINITY
        else "smaller windows: lower lane.slots or lane.slot_bytes",
    )
