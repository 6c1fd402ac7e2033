"""Memory that one end of a link lends to the other's NIC.  Between two devices."""

from __future__ import annotations

import asyncio
import random

import pytest

from rfaas.control import lending
from rfaas.control.aio import AsyncLink
from rfaas.control.link import Link
from rfaas.errors import PeerLostError, ProtocolError
from rfaas.proto.messages import LIBRARY_LENT_BYTES_MAX, Beat
from tests.control.conftest import Pair as Sockets
from tests.control.test_rdma import Ends, paired

rdma = pytest.mark.rdma


@rdma
@pytest.mark.parametrize("size", [1, 4095, 4097, LIBRARY_LENT_BYTES_MAX])
def test_it_is_read_where_it_lies(rdma_ends: Ends, seed: int, size: int) -> None:
    """At any address, of any length up to the largest, one after another."""

    async def run() -> None:
        data = memoryview(random.Random(seed).randbytes(size + 64))
        async with paired(rdma_ends) as pair:
            peer = Link(pair.carriers[0], "the reader")
            for start in (0, 1, 64):
                part = data[start : start + size]
                with lending.lent(peer, part) as found:
                    assert found is not None
                    assert await lending.fetched(pair.links[1], *found, len(part)) == part
            lending.forget(pair.links[1])
            lending.forget(pair.links[1])

    asyncio.run(run())


@rdma
def test_what_was_taken_back_cannot_be_read(rdma_ends: Ends) -> None:
    """The NIC refuses it, and who tried loses that link and no other."""

    async def run() -> None:
        data = memoryview(bytes(4096))
        async with paired(rdma_ends) as pair, paired(rdma_ends) as neighbours:
            with lending.lent(Link(pair.carriers[0], "the reader"), data) as found:
                assert found is not None
            with pytest.raises(ProtocolError, match=r"cannot be read: .*IBV_WC_REM_"):
                await lending.fetched(pair.links[1], *found, 4096)
            with pytest.raises(PeerLostError):
                await pair.links[1].request(Beat(node="a"))
            one, other = neighbours.links
            one.send(Beat(node="a"))
            assert await other.receive() == Beat(node="a")

    asyncio.run(run())


@rdma
def test_no_more_than_was_lent(rdma_ends: Ends) -> None:
    async def run() -> None:
        data = memoryview(bytes(3 * 4096))
        async with paired(rdma_ends) as pair:
            with lending.lent(Link(pair.carriers[0], "the reader"), data[:4096]) as found:
                assert found is not None
                with pytest.raises(ProtocolError, match=r"IBV_WC_REM_"):
                    await lending.fetched(pair.links[1], *found, 4097)

    asyncio.run(run())


@rdma
def test_one_at_a_time(rdma_ends: Ends) -> None:
    """A second one is refused while the first is under way, and breaks nothing."""

    async def run() -> None:
        data = memoryview(bytes(LIBRARY_LENT_BYTES_MAX))
        async with paired(rdma_ends) as pair:
            with lending.lent(Link(pair.carriers[0], "the reader"), data) as found:
                assert found is not None
                both = (lending.fetched(pair.links[1], *found, len(data)) for _ in range(2))
                done, second = await asyncio.gather(*both, return_exceptions=True)
                assert done == data
                # A NIC in software may have read it all before the second is begun.
                assert second == data or isinstance(second, ProtocolError)
                assert await lending.fetched(pair.links[1], *found, 1) == data[:1]

    asyncio.run(run())


@rdma
def test_who_lends_may_go(rdma_ends: Ends) -> None:
    async def run() -> None:
        data = memoryview(bytes(4096))
        async with paired(rdma_ends) as pair:
            with lending.lent(Link(pair.carriers[0], "the reader"), data) as found:
                assert found is not None
                await pair.links[0].close()
                with pytest.raises(ProtocolError, match="cannot be read"):
                    await lending.fetched(pair.links[1], *found, 9)

    asyncio.run(run())


def test_sockets_lend_nothing(pair: Sockets) -> None:
    async def run() -> None:
        peer = AsyncLink(pair[1], "a client")
        with lending.lent(Link(pair[0], "an executor"), memoryview(b"x")) as found:
            assert found is None
        with pytest.raises(ProtocolError, match="a client offers memory over a link that carries"):
            await lending.fetched(peer, 0, 0, 1)
        lending.forget(peer)
        await peer.close()

    asyncio.run(run())
