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
        return [_lane(fds[0], lane * stride, slots, slot_bytes) for lane in range(lanes)]


def _lane(fd: int, offset: int, slots: int, slot_bytes: int) -> Lane:
    lane = Lane(fd, offset)
    if (lane.slots, lane.slot_bytes) != (slots, slot_bytes):
        raise ProtocolError(
            f"the executor announced {slots} slots of {slot_bytes} bytes, "
            f"its ring has {lane.slots} of {lane.slot_bytes}"
        )
    return lane


TRANSPORT = SharedMemory()
