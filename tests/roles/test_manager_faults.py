"""Rows of the matrix of faults that a resource manager answers for, with a clock of our own."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfaas.control.authority import ask_of
from rfaas.core.ledger import Ledger
from rfaas.core.tokens import verify
from rfaas.errors import CapacityError, LeaseEndedError, ProtocolError, UsageError
from rfaas.proto import messages
from rfaas.proto.codec import decode
from rfaas.proto.messages import LeaseTerminating, RequestLease, RevokeLease
from tests.roles.manager_site import GIB, Site, play, until

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, -1, 1, 65536, 65537, 2**60, 2**60 + 1, 2**63, math.nan, math.inf]),
    st.sampled_from(["all", "", "1", None, True, b"1", [1]]),
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@given(cores=NUMBERS, memory=NUMBERS, duration=NUMBERS, wait=NUMBERS)
def test_row_7_negative_zero_huge_nan_sizes(
    cores: object, memory: object, duration: object, wait: object
) -> None:
    """Refused as it is read, or by the ledger; what is granted is what a node has."""
    ledger = Ledger(10.0, 3, 3600.0)
    ledger.join("n1", "unix:/n1", "1" * 32, 4, 1 << 30, ("process",), (), 0.0)
    fields = {"client": "c", "cores": cores, "memory_bytes": memory, "duration_s": duration}
    try:
        body = msgpack.packb(("RequestLease", fields | {"wait_s": wait}))
    except OverflowError:  # msgpack has no such integer: it cannot be sent
        return
    try:
        asked = decode(body)
        assert isinstance(asked, RequestLease)
        ledger.ask(ask_of(asked, "c", "a" * 32), 0.0)
    except (ProtocolError, UsageError, CapacityError):
        pass
    for lease in ledger.leases(0.0):
        assert 1 <= lease.cores <= 4
        assert 1 <= lease.memory_bytes <= 1 << 30
        assert 0 < lease.remaining_s <= 3600
    assert 0 <= ledger.nodes(0.0)[0].cores_free <= 4


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_row_42_clock_jump_while_leases_run(site: Site, jump_s: float) -> None:
    """The wall clock of the manager jumps: leases go by monotonic time, none is revived."""

    async def scene() -> None:
        async with site.manager():
            executor = await site.caller("executor")
            joined = await executor.join()
            client = await site.caller()
            granted = await client.request(duration_s=60)
            site.clock.jump(jump_s)
            assert (await client.leases())[granted.lease] == "live"
            site.clock.advance(20)
            await executor.beat()
            renewed = await client.renew(granted.lease, 60)
            verify(renewed.token, joined.key, "n1", site.clock.wall_s())
            site.clock.jump(-jump_s)
            for _ in range(3):
                site.clock.advance(19.9)
                await executor.beat()
                assert (await client.leases())[granted.lease] == "live"
            site.clock.advance(0.3)
            assert (await client.leases())[granted.lease] == "expired"
            site.clock.jump(-2 * 3600)
            with pytest.raises(LeaseEndedError):
                await client.renew(granted.lease)
            assert await client.nodes() == {"n1": ("up", 4)}

    play(scene())


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_row_42_clock_jump_over_a_restart(site: Site, jump_s: float) -> None:
    """What is left of a lease is what the wall says, and never more than it was granted for."""

    async def scene() -> None:
        async with site.manager():
            await site.executor()
            granted = await (await site.caller()).request(duration_s=60)
        site.clock.jump(jump_s)
        async with site.manager():
            executor = await site.caller("executor")
            client = await site.caller()
            again = await executor.join(live=(granted.lease,))
            state = (await client.leases())[granted.lease]
            if jump_s > 0:  # refused with a reason, at the node as well
                assert (state, again.revoked) == ("expired", (granted.lease,))
            else:
                assert (state, again.revoked) == ("live", ())
                reply = await client.ask(messages.ListLeases(), messages.Leases)
                assert [one.remaining_s for one in reply.leases] == [60]

    play(scene())


def test_row_36_executor_lost_and_back(site: Site) -> None:
    """Its workers are adopted or reaped, never doubled."""

    async def scene() -> None:
        async with site.manager():
            executor = await site.executor(cores=2)
            client = await site.caller()
            old = await client.request(cores=2)
            await executor.close()
            await until(client.leases, {old.lease: "node-lost"})
            with pytest.raises(LeaseEndedError, match="is over: node-lost"):
                await client.renew(old.lease)
            back = await site.caller("executor")
            joined = await back.join(cores=2, live=(old.lease,))
            assert joined.revoked == (old.lease,)  # reaped
            new = await client.request(cores=2)
            with pytest.raises(CapacityError):
                await client.request(cores=1)
            assert await client.nodes() == {"n1": ("up", 0)}
            await client.release(new.lease)

    play(scene())


def test_row_34_client_vanishes(site: Site) -> None:
    """Its link ends, and within a beat its cores are free and whoever waits has them."""

    async def scene() -> None:
        async with site.manager():
            executor = await site.executor(cores=2)
            gone, waits = await site.caller(), await site.caller()
            lease = await gone.request(cores=2)
            waiting = asyncio.create_task(waits.request(cores=2, wait_s=60.0))
            look = await site.caller()
            while (await look.ask(messages.GetStatus(), messages.StatusReport)).facts[
                "requests waiting"
            ] != 1:
                pass
            await gone.close()
            granted = await waiting
            assert await executor.notice() == RevokeLease(lease=lease.lease, cause="client-lost")
            assert granted.cores == 2

    play(scene())


def test_row_34_client_vanishes_that_also_waits(site: Site) -> None:
    """Its own end frees what it waited for: nobody is left to have it, so it is free."""

    async def scene() -> None:
        async with site.manager() as manager:
            await site.executor(cores=4)
            gone, other = await site.caller(), await site.caller()
            held = [(await gone.request(cores=2)).lease for _ in range(2)]
            for number in range(3):
                asked = messages.RequestLease(
                    id=1000 + number,
                    client="tester",
                    cores=1 + number,
                    memory_bytes=GIB,
                    duration_s=3600.0,
                    wait_s=600.0,
                )
                gone.link.send(asked)
            while manager.state.ledger.waiting != 3:
                await other.nodes()
            await gone.close()
            await until(other.leases, dict.fromkeys(held, "client-lost"))
            assert await other.nodes() == {"n1": ("up", 4)}
            assert manager.state.ledger.waiting == 0
            assert manager.state.waiting == {}
            await other.request(cores=4)

    play(scene())


def test_revoked_with_notice_and_then_for_good(site: Site) -> None:
    site.heartbeat_s = 0.05

    async def scene() -> None:
        async with site.manager() as manager:
            executor = await site.executor()
            client = await site.caller()
            granted = await client.request()
            manager.leases.revoke(granted.lease, 5.0)
            assert await executor.notice() == LeaseTerminating(
                lease=granted.lease, cause="revoked", remaining_s=5.0
            )
            with pytest.raises(LeaseEndedError, match="is being ended: revoked"):
                await client.renew(granted.lease)
            assert (await client.leases())[granted.lease] == "terminating"
            site.clock.advance(5.0)
            assert await executor.notice() == RevokeLease(lease=granted.lease, cause="revoked")
            assert (await client.leases())[granted.lease] == "revoked"
            with pytest.raises(LeaseEndedError):
                manager.leases.revoke(granted.lease)
            kinds = [one.kind for one in manager.events.since(0)]
            assert kinds == ["node-joined", "lease-granted", "lease-terminating", "lease-ended"]

    play(scene())


def test_nodes_are_drained_removed_and_added(site: Site) -> None:
    async def scene() -> None:
        async with site.manager() as manager:
            executor = await site.executor()
            client = await site.caller()
            granted = await client.request()
            manager.nodes.drain("n1")
            with pytest.raises(CapacityError):
                await client.request()
            assert await client.nodes() == {"n1": ("draining", 3)}
            await client.renew(granted.lease)
        async with site.manager() as manager:
            executor = await site.executor()
            client = await site.caller()
            assert await client.nodes() == {"n1": ("draining", 3)}  # over a restart, too
            manager.nodes.drain("n1", draining=False)
            await client.request()
            manager.nodes.remove("n1")
            assert {(await executor.notice()) is not None for _ in range(3)} == {True}
            assert await client.nodes() == {}
            with pytest.raises(Exception, match="node n1 was removed"):
                await (await site.caller("executor")).join()
            manager.nodes.add("n1")
            await (await site.caller("executor")).join()
            assert await client.nodes() == {"n1": ("up", 4)}

    play(scene())


def test_quotas_hold_over_links(site: Site) -> None:
    site.quota = (3, 2)

    async def scene() -> None:
        async with site.manager():
            await site.executor(cores=8)
            first, second = await site.caller(), await site.caller()
            await first.request(cores=2, client="ann@here:1")
            with pytest.raises(CapacityError, match="ann@here holds 2 of the 3"):
                await second.request(cores=2, client="ann@here:2")
            await second.request(cores=1, client="ann@here:2")
            await second.request(cores=3, client="bob@here:2")

    play(scene())
