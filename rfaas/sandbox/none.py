"""Level `none`: nothing is confined, and the lane itself calls the function.

For functions that are trusted as much as whoever runs the executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.sandbox.forked import Forked, fork

if TYPE_CHECKING:
    from rfaas.config import ContainerConfig, SandboxConfig
    from rfaas.proto.worker_messages import Lack, Limits
    from rfaas.sandbox import Birth


class NoneLevel:
    """A process of its own, as all workers are, and no more."""

    name = "none"
    trusted = True

    def lacks(self, node: SandboxConfig, container: ContainerConfig) -> list[Lack]:
        return []

    def start(self, birth: Birth) -> Forked:
        return fork(birth)

    def enter(self, limits: Limits, degrade: Sequence[str] = ()) -> None:
        pass


LEVEL = NoneLevel()
