"""Making and checking rings: sealed memory files in the layout of `proto/wire.py`.

The trusted side makes a ring and hands its descriptor to the worker and to
what feeds it.  Sealed, so that nobody can shrink it under the others.
"""

from __future__ import annotations

import fcntl
import os
import struct

from rfaas.errors import SystemCallError
from rfaas.proto import wire

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
NEVER = SEALS | fcntl.F_SEAL_WRITE
_HEADER = struct.Struct("<4IQI")


def create(lanes: int, slots: int, slot_bytes: int, *, first: int = 0) -> int:
    """Rings for so many lanes, one after another; returns the caller's descriptor of them.

    Args:
        slot_bytes: capacity of each input and each output; whole pages.
        first: sequence number before the first one; tests start near the wrap, but not
            within one lap of it: a fresh cell reads as number 0.
    """
    header = _HEADER.pack(
        wire.RING_MAGIC, wire.RING_VERSION, slots, wire.cells_for(slots), slot_bytes, first
    )
    stride = wire.ring_bytes(slots, slot_bytes)
    return sealed("rfaas-rings", [(lane * stride, header) for lane in range(lanes)], lanes * stride)


def create_account(lanes: int) -> int:
    """A new accounting page for so many lanes; returns its descriptor."""
    return sealed("rfaas-account", [], lanes * wire.ACCOUNT_LANE_BYTES)


def sealed(
    name: str,
    parts: list[tuple[int, bytes]],
    size: int,
    *,
    final: bool = True,
    never: bool = False,
) -> int:
    """A memory file of `size` bytes with `parts` at their offsets.

    Args:
        final: whether its size is.
        never: whether nobody may write to it any more.
    """
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        for offset, part in parts:
            os.pwrite(fd, part, offset)
        if final:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, NEVER if never else SEALS)
    except (OSError, OverflowError) as error:
        if fd >= 0:
            os.close(fd)
        why = error.strerror if isinstance(error, OSError) else error
        raise SystemCallError(f"cannot make {name} of {size} bytes: {why}") from None
    return fd


def answered(fd: int, ring: int, slots: int, known: int) -> int:
    """How many calls the worker has answered on the ring at offset `ring`, `known` or more.

    Taken from the answers' numbers, so no more is certain than that they were written.
    """
    return _announced(fd, ring + wire.PAGE_BYTES + _cells_bytes(slots), slots, known)


def asked(fd: int, ring: int, slots: int, known: int) -> int:
    """The same of the calls that the client has announced."""
    return _announced(fd, ring + wire.PAGE_BYTES, slots, known)


def _cells_bytes(slots: int) -> int:
    return wire.cells_for(slots) * wire.CELL_BYTES


def _announced(fd: int, first: int, slots: int, known: int) -> int:
    cells = wire.cells_for(slots)

    def ahead(count: int) -> int:
        """By how much the cell that announces number `count` is past that; negative: behind."""
        at = first + (count - 1) % cells * wire.CELL_BYTES
        number = int.from_bytes(os.pread(fd, 4, at), "little")
        return (number - count + (1 << 31)) % (1 << 32) - (1 << 31)

    found = ahead(known + 1)
    if found < 0 or found % cells:  # nothing new; or no number that belongs into this cell
        return known
    low, high = known + 1 + found, known + found + cells
    while low < high:  # the cells after it are of this lap up to the last one that was written
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ahead(middle) >= 0 else (low, middle - 1)
    return low


def is_sealed(fd: int) -> bool:
    """Whether the memory behind `fd` can no longer change its size."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False
