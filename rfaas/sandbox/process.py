"""Level `process`: a process of its own with resource limits.

It keeps a crash, a leak or a flood of one lease from the others.  It does not
hold a hostile function: the worker still runs as the executor's user and sees
its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.sandbox import limits as rlimits
from rfaas.sandbox.forked import Forked, fork

if TYPE_CHECKING:
    from rfaas.config import SandboxConfig
    from rfaas.proto.worker_messages import Lack, Limits
    from rfaas.sandbox import Birth


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
        rlimits.set_all(limits, whole=False)


LEVEL = ProcessLevel()
