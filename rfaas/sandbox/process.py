"""Level `process`: a process of its own with resource limits.

It keeps a crash, a leak or a flood of one lease from the others.  It does not
hold a hostile function: the worker still runs as the executor's user and sees
its files.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.errors import SystemCallError
from rfaas.sandbox.forked import Forked, fork

if TYPE_CHECKING:
    from rfaas.config import SandboxConfig
    from rfaas.proto.worker_messages import Lack, Limits
    from rfaas.sandbox import Birth

# What a worker needs before the function allocates anything, beside its lanes' stacks.
_BASE_BYTES = 256 * 1024 * 1024
_STACK_BYTES = 8 * 1024 * 1024  # of a thread where the stack's size has no limit; more than glibc's


class ProcessLevel:
    """The calling process, with limits on private memory, files' size and core dumps."""

    name = "process"
    trusted = True

    def lacks(self, node: SandboxConfig) -> list[Lack]:
        return []

    def start(self, birth: Birth) -> Forked:
        return fork(birth)

    def enter(self, limits: Limits, degrade: Sequence[str] = ()) -> None:
        """Limit private memory to that of the lease over what a bare worker has."""
        _limit("core dumps", resource.RLIMIT_CORE, 0)
        if limits.memory_bytes:
            # RLIMIT_DATA counts private writable memory; rings are shared and not counted.
            # It counts a stack in full, touched or not: pthread_create(3) maps it at once.
            base_bytes = _BASE_BYTES + limits.lanes * stack_bytes()
            _limit("private memory", resource.RLIMIT_DATA, base_bytes + limits.memory_bytes)


def stack_bytes() -> int:
    """The size of a lane's stack: the default of pthread_create(3)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _STACK_BYTES if soft == resource.RLIM_INFINITY else soft


def _limit(what: str, kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError) as error:
        raise SystemCallError(f"cannot limit {what} to {value}: {error}") from None


LEVEL = ProcessLevel()
