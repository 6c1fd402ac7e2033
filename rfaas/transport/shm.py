"""Transport `shm`: client and worker on one machine; the client maps the rings itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.errors import ProtocolError
from rfaas.native._window import Lane
from rfaas.proto import wire
from rfaas.transport import ring

if TYPE_CHECKING:
    from rfaas.proto.messages import Endpoint


class SharedMemory:
    """See the module's docstring."""

    name = "shm"

    def host(self, device: str) -> str:
        """Nowhere: the client comes to the memory."""
        return ""

    def offer(self, rings_fd: int) -> tuple[int, ...]:
        """The descriptor of the rings: who has it is in the lane."""
        return (rings_fd,)

    def accept(
        self,
        lanes: int,
        slots: int,
        slot_bytes: int,
        fds: Sequence[int],
        endpoint: Endpoint | None = None,
        device: str = "",
    ) -> list[Lane]:
        """Map the rings, if their size is final: nobody may shrink them under us."""
        if len(fds) != 1 or not ring.is_sealed(fds[0]):
            raise ProtocolError(f"the executor offered {len(fds)} descriptors, not sealed rings")
        stride = wire.ring_bytes(slots, slot_bytes)
        return [Lane(fds[0], lane * stride) for lane in range(lanes)]


TRANSPORT = SharedMemory()
