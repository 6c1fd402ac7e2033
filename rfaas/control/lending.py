"""Memory that one end of a link over RDMA lends to the other: libraries go over by it.

The peer's NIC reads it, so no frame carries it and no processor copies it there.
Links over sockets do not lend, and whoever wants to falls back on messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from rfaas.errors import ProtocolError, SystemCallError

if TYPE_CHECKING:
    from rfaas.control.aio import AsyncLink
    from rfaas.control.link import Link
    from rfaas.control.rdma import RdmaCarrier


@contextmanager
def lent(link: Link, part: memoryview) -> Iterator[tuple[int, int] | None]:
    """Lend `part` to the peer meanwhile: its address and key, or None where that cannot be."""
    if not link.carrier.lends:
        yield None
        return
    carrier = cast("RdmaCarrier", link.carrier)
    try:
        found = carrier.lend(part)
    except OSError:  # it may not be locked in memory: there is another way
        yield None
        return
    try:
        yield found
    finally:
        carrier.take_back()


async def fetched(link: AsyncLink, address: int, key: int, size: int) -> bytes:
    """`size` bytes that the peer lends.

    Raises:
        ProtocolError: it lends nothing of that kind; over RDMA the link is broken by it.
        SystemCallError: memory for them cannot be locked.
    """
    if not link.carrier.lends:
        raise ProtocolError(f"{link.peer} offers memory over a link that carries none")
    try:
        return await cast("RdmaCarrier", link.carrier).fetch(address, key, size)
    except OSError as error:
        raise SystemCallError(
            f"cannot register memory to read what {link.peer} lends: {error.strerror}"
        ) from None


def forget(link: AsyncLink) -> None:
    """No more is to be read: give back the memory for it."""
    if link.carrier.lends:
        cast("RdmaCarrier", link.carrier).forget()
