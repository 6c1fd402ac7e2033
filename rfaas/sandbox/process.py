"""Level `process`: a process of its own with resource limits.

It keeps a crash, a leak or a flood of one lease from the others.  It does not
hold a hostile function: the worker still runs as the executor's user and sees
its files.
"""

from __future__ import annotations

import resource

from rfaas.errors import SystemCallError

# What a worker needs before the function allocates anything, beside its lanes' stacks.
_BASE_BYTES = 256 * 1024 * 1024
_STACK_BYTES = 8 * 1024 * 1024  # of a thread where the stack's size has no limit; more than glibc's


class ProcessLevel:
    """The calling process, with limits on private memory, files' size and core dumps."""

    name = "process"
    trusted = True

    def enter(self, memory_bytes: int, lanes: int) -> None:
        """Limit private memory to `memory_bytes` (0: no limit) over what a bare worker has."""
        _limit("core dumps", resource.RLIMIT_CORE, 0)
        if memory_bytes:
            # RLIMIT_DATA counts private writable memory; rings are shared and not counted.
            # It counts a stack in full, touched or not: pthread_create(3) maps it at once.
            base_bytes = _BASE_BYTES + lanes * stack_bytes()
            _limit("private memory", resource.RLIMIT_DATA, base_bytes + memory_bytes)


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
