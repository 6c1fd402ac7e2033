"""The resource manager and its executors: lost, back, replaced; and over its own restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from rfaas.clock import ManualClock
from rfaas.core.tokens import verify
from rfaas.errors import CapacityError, ProtocolError, UnavailableError
from rfaas.proto import messages
from rfaas.proto.messages import RevokeLease, Usage
from rfaas.store.sqlite import SqliteStore
from tests.roles.manager_site import SECOND, Site, play, until


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# Nodes


def test_an_executor_that_vanishes_takes_its_leases_along(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client = await site.caller()
            granted = await client.request()
            await executor.close()
            await until(client.nodes, {"n1": ("lost", 4)})
            assert (await client.leases())[granted.lease] == "node-lost"
            with pytest.raises(CapacityError, match="no node is up"):
                await client.request()
            back = await site.caller("executor")
            joined = await back.join(live=(granted.lease,))
            assert joined.revoked == (granted.lease,)
            assert await client.nodes() == {"n1": ("up", 4)}

    play(scene())


def test_a_silent_executor_is_lost_and_may_join_again(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client = await site.caller()
            granted = await client.request()
            for passes_s in (15, 14.999):  # 15 s at once are no absence of the manager
                site.clock.advance(passes_s)
                assert await client.nodes() == {"n1": ("up", 3)}
            site.clock.advance(0.001)
            assert await client.nodes() == {"n1": ("lost", 4)}
            with pytest.raises(UnavailableError, match="node n1 is not up here") as refused:
                await executor.beat()
            assert refused.value.hint == "join again"
            assert await executor.notice() == RevokeLease(lease=granted.lease, cause="node-lost")
            await executor.join(live=(granted.lease,))
            assert await client.nodes() == {"n1": ("up", 4)}

    play(scene())


def test_a_manager_that_was_away_takes_no_node_for_silent(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client = await site.caller()
            granted = await client.request(duration_s=3600)
            site.clock.advance(1000)
            await executor.beat()
            assert await client.nodes() == {"n1": ("up", 3)}
            assert await client.leases() == {granted.lease: "live"}

    play(scene())


def test_what_the_executor_reports_is_listed_and_kept(site: Site) -> None:
    used = Usage(allocated_ns=5, polling_ns=4, executing_ns=3, calls=2, failed=1)

    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client = await site.caller()
            live, over = await client.request(), await client.request()
            await executor.beat(usage={live.lease: used, "f" * 32: used})
            executor.link.send(messages.LeaseEnded(lease=over.lease, cause="released", usage=used))
            await executor.beat()
            reply = await client.ask(messages.ListLeases(all=True), messages.Leases)
            assert {one.lease: (one.state, one.usage) for one in reply.leases} == {
                live.lease: ("live", used),
                over.lease: ("released", used),
            }
            assert not executor.notices  # it knows
            assert await client.nodes() == {"n1": ("up", 3)}
        store = SqliteStore(site.store)
        stored = store.load()
        store.close()
        assert [lease.usage for lease in stored.leases] == [used, used]

    play(scene())


def test_an_executor_speaks_for_its_own_node(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            await site.executor("n1")
            other = await site.executor("n2", cores=1)
            client = await site.caller()
            granted = await client.request(cores=2)
            assert granted.node == "n1"
            with pytest.raises(UnavailableError, match="node n1 has not joined on this link"):
                await other.beat("n1")
            other.link.send(messages.LeaseEnded(lease=granted.lease, cause="released"))
            with pytest.raises(ProtocolError, match="node n3 joins on the link of node n2"):
                await other.join("n3")
            assert (await client.leases())[granted.lease] == "live"

    play(scene())


def test_the_last_link_of_a_node_counts(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            first = await site.executor()
            client = await site.caller()
            granted = await client.request()
            second = await site.caller("executor")
            joined = await second.join(incarnation=SECOND)
            assert joined.revoked == ()
            # The process that served it is told on its own link.
            assert await first.notice() == RevokeLease(lease=granted.lease, cause="node-lost")
            with pytest.raises(UnavailableError, match="has not joined on this link"):
                await first.beat()
            await first.close()
            await second.beat()
            for _ in range(3):
                assert await client.nodes() == {"n1": ("up", 4)}
            assert not second.notices

    play(scene())


# A manager that restarts


def test_a_restart_keeps_leases(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.caller("executor")
            joined = await executor.join()
            client = await site.caller()
            unseen, served = await client.request(), await client.request()
            ended = await client.request()
            await client.release(ended.lease)
        site.clock.advance(5)
        async with site.manager():
            client = await site.caller()
            assert await client.nodes() == {"n1": ("lost", 2)}
            with pytest.raises(CapacityError, match="no node is up"):
                await client.request()
            executor = await site.caller("executor")
            # The executor heard of `ended` no more, and of `unseen` not yet.
            again = await executor.join(live=(served.lease, ended.lease))
            assert again.revoked == (ended.lease,)
            assert again.key == joined.key
            verify(unseen.token, again.key, "n1", site.clock.wall_s())
            assert await client.nodes() == {"n1": ("up", 2)}
            reply = await client.ask(messages.ListLeases(), messages.Leases)
            assert [one.remaining_s for one in reply.leases] == pytest.approx([55, 55])

            renewed = await client.renew(served.lease)
            before = verify(served.token, again.key, "n1", site.clock.wall_s())
            after = verify(renewed.token, again.key, "n1", site.clock.wall_s())
            assert after.fence > before.fence
            fresh = await client.request(cores=2)
            assert verify(fresh.token, again.key, "n1", site.clock.wall_s()).fence > after.fence

            other = await site.caller()
            await other.release(unseen.lease)
            assert await executor.notice() == RevokeLease(lease=unseen.lease, cause="released")
            await client.close()  # owns what it renewed
            causes = {await executor.notice(), await executor.notice()}
            assert causes == {
                RevokeLease(lease=served.lease, cause="client-lost"),
                RevokeLease(lease=fresh.lease, cause="client-lost"),
            }

    play(scene())


def test_an_executor_that_restarted_meanwhile_has_a_new_key(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.caller("executor")
            joined = await executor.join()
            granted = await (await site.caller()).request()
        async with site.manager():
            executor, client = await site.caller("executor"), await site.caller()
            again = await executor.join(incarnation=SECOND)
            assert again.key != joined.key
            assert await client.leases() == {granted.lease: "node-lost"}
            with pytest.raises(ProtocolError, match="not signed for node n1"):
                verify(granted.token, again.key, "n1", site.clock.wall_s())

    play(scene())


def test_an_executor_that_does_not_come_back_is_lost(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            await site.executor()
            granted = await (await site.caller()).request()
        async with site.manager():
            client = await site.caller()
            site.clock.advance(29.999)
            assert await client.leases() == {granted.lease: "live"}
            site.clock.advance(0.001)
            assert await client.leases() == {granted.lease: "node-lost"}

    play(scene())


@pytest.mark.parametrize(("jump_s", "left_s"), [(-3600, 60), (30, 30), (3600, None)])
def test_the_wall_clock_jumps_over_a_restart(
    site: Site, jump_s: float, left_s: float | None
) -> None:
    """No lease is longer for it than it was granted for."""

    async def scene() -> None:
        async with site.manager():
            await site.executor()
            granted = await (await site.caller()).request()
        site.clock = ManualClock(wall_s=1.8e9 + jump_s)
        async with site.manager():
            client = await site.caller()
            reply = await client.ask(messages.ListLeases(), messages.Leases)
            if left_s is None:
                assert await client.leases() == {granted.lease: "expired"}
            else:
                assert [one.remaining_s for one in reply.leases] == pytest.approx([left_s])

    play(scene())
