"""How a worker ended, as its level tells the zygote."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rfaas.proto.worker_messages import LimitReached


class End(NamedTuple):
    """The worker's own wait status, where another process was only its keeper.

    `reached` is the limit that it ran into; `cpu_ns` the processor time of all that it started.
    """

    status: int
    reached: LimitReached = ""
    cpu_ns: int = 0
