"""Resource limits that a process sets for itself and hands down: rlimits."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rfaas.errors import SystemCallError

if TYPE_CHECKING:
    from rfaas.proto.worker_messages import Limits

# No core is that small, and at just this limit none is given to a program of core(5) either:
# with 0, each crash would start that, as root and outside of all limits.
CORE_BYTES = 1
# Its user is shared with others, who would have none left for their timers: sigqueue(3).
SIGNALS = 1024
# Descriptors on their way (scm(7)) are counted by user, too, against the limit of who sends.
FILES_SENT = 512
FILES_MIN = 32  # sandbox.open_files
# What a worker needs before the function allocates anything, beside its lanes' stacks.
_BASE_BYTES = 256 * 1024 * 1024
_STACK_BYTES = 8 * 1024 * 1024  # of a thread where the stack's size has no limit; more than glibc's


def set_all(limits: Limits, *, whole: bool) -> None:
    """Set what `limits` says.

    Args:
        whole: there is no control group: shared memory and processes count here as well.

    Raises:
        SystemCallError: the system refuses one.
    """
    for what, kind, value in wanted(limits, whole=whole):
        limit(what, kind, value)


def wanted(limits: Limits, *, whole: bool) -> Iterator[tuple[str, int, int]]:
    """The same as (what, resource, value), for who sets them elsewhere."""
    yield "core dumps", resource.RLIMIT_CORE, CORE_BYTES
    yield "pending signals", resource.RLIMIT_SIGPENDING, SIGNALS
    if limits.open_files:
        yield "open files", resource.RLIMIT_NOFILE, min(limits.open_files, _files_max())
    if limits.file_bytes:
        yield "files' size", resource.RLIMIT_FSIZE, limits.file_bytes
    # A stack is counted in full, touched or not: pthread_create(3) maps it at once.
    base_bytes = _BASE_BYTES + limits.lanes * stack_bytes() + limits.memory_bytes
    if limits.memory_bytes:  # private and writable; rings are shared and not counted
        yield "private memory", resource.RLIMIT_DATA, base_bytes
    if limits.memory_bytes and whole:
        yield "mapped memory", resource.RLIMIT_AS, base_bytes + limits.shared_bytes
    if limits.processes and whole:  # of this user in this user namespace, the worker's own
        yield "processes", resource.RLIMIT_NPROC, limits.processes + limits.lanes + 2


def _files_max() -> int:
    """So many that the executor, where it is the same user, has room left for those it sends."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else max(FILES_MIN, hard - FILES_SENT)


def stack_bytes() -> int:
    """The size of a lane's stack: the default of pthread_create(3)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _STACK_BYTES if soft == resource.RLIM_INFINITY else soft


def limit(what: str, kind: int, value: int) -> None:
    """Set one, as far down as it is from outside.  Raises SystemCallError."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError) as error:
        raise SystemCallError(f"cannot limit {what} to {value}: {error}") from None
