"""Level `process`: a process of its own with resource limits.

It keeps a crash, a leak or a flood of one lease from the others.  It does not
hold a hostile function: the worker still runs as the executor's user and sees
its files.
"""

from __future__ import annotations

import resource

from rfaas.errors import SystemCallError

# What a worker needs before the function allocates anything: interpreter and thread stacks.
_BASE_BYTES = 256 * 1024 * 1024


class ProcessLevel:
    """The calling process, with limits on private memory, files' size and core dumps."""

    name = "process"

    def enter(self, memory_bytes: int) -> None:
        """Limit private memory to `memory_bytes` (0: no limit) over what a bare worker has."""
        _limit("core dumps", resource.RLIMIT_CORE, 0)
        if memory_bytes:
            # RLIMIT_DATA counts private writable memory; rings are shared and not counted.
            _limit("private memory", resource.RLIMIT_DATA, _BASE_BYTES + memory_bytes)


def _limit(what: str, kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError) as error:
        raise SystemCallError(f"cannot limit {what} to {value}: {error}") from None


LEVEL = ProcessLevel()
