"""Every error that rFaaS raises, in one tree.

Split by whose fault it is, because that decides what a person does next:

    RfaasError
    ├── UsageError                what the caller asked for cannot be right
    │   ├── ConfigError             a configuration file, variable or flag
    │   ├── LibraryError            the library cannot be loaded on that node
    │   ├── FunctionNotFoundError   the library has no such function
    │   ├── PayloadTooLargeError    the input does not fit into a slot
    │   └── ClosedError             a session, lease or buffer that we closed
    ├── WorldError                the peer, the node or the machine
    │   ├── CapacityError           not enough cores, memory or slots
    │   ├── AddressInUseError       somebody else listens there
    │   ├── UnavailableError        nobody answers there
    │   ├── DeviceError             no RDMA device, or one that cannot be used
    │   ├── ImageError              the container image cannot be had
    │   ├── LibraryMissingError     the node does not have the library (yet)
    │   ├── PeerLostError           a peer that did answer is gone
    │   ├── ProtocolError           a peer sent what the protocol forbids
    │   ├── LeaseEndedError         the lease is over (expired, revoked, lost)
    │   ├── NotPermittedError       it takes another user, root as a rule
    │   └── SystemCallError         the operating system refused
    ├── CallError                 one invocation failed; the lease lives on
    │   ├── FunctionFailedError     the function returned a status and a text
    │   ├── OutputTooLargeError     the function reported more bytes than fit
    │   ├── WorkerCrashedError      the worker died under the call
    │   ├── BusyError               it was not run: other leases had the processors
    │   └── DeadlineExceededError   the call did not return in time
    ├── NotDoneError              the caller's patience is over; the call goes on
    └── InternalError             a bug of ours

A message says what failed, on what, the value and the limit; the hint stands
on its own line.  Each class has the code that stands for it on the wire and
the exit status of the command line (after sysexits.h(3head) where it fits).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "AddressInUseError",
    "BusyError",
    "CallError",
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "DeadlineExceededError",
    "DeviceError",
    "FunctionFailedError",
    "FunctionNotFoundError",
    "ImageError",
    "InternalError",
    "LeaseEndedError",
    "LibraryError",
    "LibraryMissingError",
    "NotDoneError",
    "NotPermittedError",
    "OutputTooLargeError",
    "PayloadTooLargeError",
    "PeerLostError",
    "ProtocolError",
    "RfaasError",
    "SystemCallError",
    "UnavailableError",
    "UsageError",
    "WorkerCrashedError",
    "WorldError",
    "from_wire",
    "near",
]


class RfaasError(Exception):
    """Base of all errors; `text` is the message and `hint` what to do about it."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, text: str, *, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.text}\nhint: {self.hint}" if self.hint else self.text


class UsageError(RfaasError):
    code = "usage"
    exit_status = 2  # what argparse uses for a wrong command line


class ConfigError(UsageError):
    code = "config"
    exit_status = 78  # EX_CONFIG


class LibraryError(UsageError):
    code = "library"
    exit_status = 65  # EX_DATAERR


class FunctionNotFoundError(UsageError):
    code = "function-not-found"
    exit_status = 65


class PayloadTooLargeError(UsageError):
    code = "payload-too-large"
    exit_status = 65


class ClosedError(UsageError):
    code = "closed"


class WorldError(RfaasError):
    code = "world"
    exit_status = 69  # EX_UNAVAILABLE


class CapacityError(WorldError):
    code = "capacity"
    exit_status = 75  # EX_TEMPFAIL


class AddressInUseError(WorldError):
    code = "address-in-use"


class UnavailableError(WorldError):
    code = "unavailable"


class DeviceError(WorldError):
    code = "device"


class ImageError(WorldError):
    code = "image"


class LibraryMissingError(WorldError):
    code = "library-missing"


class PeerLostError(WorldError):
    code = "peer-lost"


class ProtocolError(WorldError):
    code = "protocol"
    exit_status = 76  # EX_PROTOCOL


class LeaseEndedError(WorldError):
    code = "lease-ended"


class NotPermittedError(WorldError):
    code = "not-permitted"
    exit_status = 77  # EX_NOPERM


class SystemCallError(WorldError):
    code = "system-call"
    exit_status = 71  # EX_OSERR


class CallError(RfaasError):
    code = "call"
    exit_status = 70  # EX_SOFTWARE: the function, not the platform


class FunctionFailedError(CallError):
    """The function returned a status; `status` is its number."""

    code = "function-failed"

    def __init__(self, text: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(text, hint=hint)
        self.status = status


class OutputTooLargeError(CallError):
    code = "output-too-large"


class WorkerCrashedError(CallError):
    """`output` is the end of what that worker of `lease` printed, as far as its node has said."""

    code = "worker-crashed"

    def __init__(self, text: str, *, hint: str = "", lease: str = "", output: bytes = b"") -> None:
        super().__init__(text, hint=hint)
        self.lease = lease
        self.output = output


class BusyError(CallError):
    """Other leases had the shared processors; nothing was run."""

    code = "busy"
    exit_status = 75  # EX_TEMPFAIL


class DeadlineExceededError(CallError, TimeoutError):
    code = "deadline-exceeded"
    exit_status = 124  # as timeout(1)


class NotDoneError(RfaasError, TimeoutError):
    code = "not-done"
    exit_status = 124


class InternalError(RfaasError):
    code = "internal"
    exit_status = 70


def _tree(root: type[RfaasError]) -> Iterable[type[RfaasError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_BY_CODE: dict[str, type[RfaasError]] = {kind.code: kind for kind in _tree(RfaasError)}


def from_wire(code: str, text: str, hint: str = "") -> RfaasError:
    """The error that a peer reported; an unknown code becomes a plain WorldError."""
    return _BY_CODE.get(code, WorldError)(text, hint=hint)


def unexpected(error: Exception, message: str) -> RfaasError:
    """What a peer hears when its `message` failed as nobody foresaw."""
    text = f"the executor cannot answer {message}: "
    if not isinstance(error, OSError):
        return InternalError(f"{text}{type(error).__name__}: {error}")
    files = "its limit of open files is reached; raise it there with `ulimit -n`"
    return SystemCallError(
        text + (error.strerror or type(error).__name__),
        hint=files if error.errno == errno.EMFILE else "",
    )


def near(name: str, names: Iterable[str], most: int = 3) -> str:
    """A hint that lists the names closest to `name`, or "" where none is near."""
    import difflib  # 3 ms that only a mistake needs

    found = difflib.get_close_matches(name, list(names), n=most, cutoff=0.5)
    return f"did you mean {', '.join(found)}?" if found else ""
