"""Level `process`: a process of its own with resource limits, in a control group of its own.

It keeps a crash, a leak or a flood of one lease from the others, whatever it forks, and ends all
of that with it.  It does not hold a hostile function: the worker still runs as the executor's
user and sees its files, the control groups among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.sandbox import cgroups
from rfaas.sandbox import limits as rlimits
from rfaas.sandbox.forked import Forked, fork

if TYPE_CHECKING:
    from rfaas.config import ContainerConfig, SandboxConfig
    from rfaas.errors import SystemCallError
    from rfaas.proto.worker_messages import Lack, Limits
    from rfaas.sandbox import Birth


class ProcessLevel:
    """Limits on private memory, files' size and core dumps of each process, and groups over all."""

    name = "process"
    trusted = True

    def __init__(self) -> None:
        self._failed: SystemCallError | None = None  # in a worker: why it is in no group

    def lacks(self, node: SandboxConfig, container: ContainerConfig) -> list[Lack]:
        return cgroups.lacks()

    def start(self, birth: Birth) -> Forked:
        group = cgroups.of_node().limited(birth.order.limits, birth.order.cpus)
        try:
            return fork(birth, group, self._fail)
        except OSError:
            if group is not None:
                group.remove()
            raise

    def enter(self, limits: Limits, degrade: Sequence[str] = ()) -> None:
        """Limit private memory to that of the lease over what a bare worker has."""
        if self._failed is not None:
            raise self._failed
        rlimits.set_all(limits, whole=False)

    def _fail(self, error: SystemCallError) -> None:
        self._failed = error


LEVEL = ProcessLevel()
