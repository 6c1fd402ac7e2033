"""The resource manager, whole: a real socket, real links, a clock that tests move."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path

import pytest

from rfaas.core.billing import Bill
from rfaas.core.tokens import verify
from rfaas.errors import (
    AddressInUseError,
    CapacityError,
    ConfigError,
    LeaseEndedError,
    ProtocolError,
    RfaasError,
    SystemCallError,
    UsageError,
)
from rfaas.proto import messages
from rfaas.proto.messages import RevokeLease
from rfaas.store import LeaseRecord, NodeRecord
from rfaas.store.sqlite import SqliteStore
from tests.roles.manager_site import Site, play


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# The life of a lease


def test_grant_renew_release(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.caller("executor")
            joined = await executor.join()
            assert (joined.heartbeat_s, joined.revoked) == (10.0, ())
            client = await site.caller()

            granted = await client.request(cores=3)
            assert (granted.node, granted.address) == ("n1", "unix:/run/n1")
            claims = verify(granted.token, joined.key, "n1", site.clock.wall_s())
            assert (claims.lease, claims.client, claims.cores) == (granted.lease, "tester", 3)
            assert claims.not_after_s == site.clock.wall_s() + 60
            assert await client.nodes() == {"n1": ("up", 1)}
            line = f"lease {granted.lease[:8]} granted 3 cores on n1 to tester"
            assert line in caplog.messages

            site.clock.advance(20)
            await executor.beat()
            renewed = await client.renew(granted.lease, 120)
            again = verify(renewed.token, joined.key, "n1", site.clock.wall_s())
            assert again.fence > claims.fence
            assert again.not_after_s == site.clock.wall_s() + 120

            await client.release(granted.lease)
            assert await executor.notice() == RevokeLease(lease=granted.lease, cause="released")
            assert await client.nodes() == {"n1": ("up", 4)}
            await client.release(granted.lease)
            with pytest.raises(LeaseEndedError, match="is over: released"):
                await client.renew(granted.lease)
            await executor.beat()
            assert not executor.notices

    with caplog.at_level(logging.INFO):
        play(scene())


def test_a_grant_is_saved_before_it_is_acknowledged(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: dict[str, LeaseRecord] = {}
    save = SqliteStore.save

    def spy(
        self: SqliteStore,
        nodes: list[NodeRecord],
        leases: list[LeaseRecord],
        forgotten: list[str],
        bills: list[Bill],
        barred: dict[str, bool],
    ) -> None:
        save(self, nodes, leases, forgotten, bills, barred)
        saved.update((lease.lease, lease) for lease in leases)

    monkeypatch.setattr(SqliteStore, "save", spy)

    async def scene() -> None:
        async with site.manager():
            await site.executor()
            client = await site.caller()
            granted = await client.request()
            assert saved[granted.lease].ends_at_s == pytest.approx(site.clock.wall_s() + 60)
            renewed = await client.renew(granted.lease, 600)
            assert saved[renewed.lease].ends_at_s == pytest.approx(site.clock.wall_s() + 600)
            await client.release(granted.lease)
            assert saved[renewed.lease].state == "released"

    play(scene())


def test_a_store_that_fails_refuses_grants_and_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SystemCallError("cannot write: the disk is full")

    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client = await site.caller()
            old = await client.request()
            with monkeypatch.context() as patch:
                patch.setattr(SqliteStore, "save", full)
                with pytest.raises(SystemCallError, match="the disk is full"):
                    await client.request()
                assert await client.nodes() == {"n1": ("up", 3)}
                taken_back = await executor.notice()
                assert isinstance(taken_back, RevokeLease)
                assert taken_back.cause == "revoked"
                await client.release(old.lease)
                assert await executor.notice() == RevokeLease(lease=old.lease, cause="released")
            new = await client.request()
            assert (await client.leases())[new.lease] == "live"
        store = SqliteStore(site.store)
        states = {lease.lease: lease.state for lease in store.load().leases}
        store.close()
        assert (states[old.lease], states[new.lease]) == ("released", "live")

    play(scene())
    assert sum("no lease can be granted" in line for line in caplog.messages) == 1
    assert "the store saves again" in caplog.messages


def test_a_lease_expires(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client = await site.caller()
            granted = await client.request(duration_s=5)
            site.clock.advance(4.999)
            assert (await client.leases())[granted.lease] == "live"
            site.clock.advance(0.001)
            assert (await client.leases())[granted.lease] == "expired"
            assert await executor.notice() == RevokeLease(lease=granted.lease, cause="expired")

    play(scene())


def test_a_lease_expires_though_nobody_asks(site: Site) -> None:
    site.heartbeat_s = 0.01

    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client = await site.caller()
            granted = await client.request(duration_s=0.02)
            site.clock.advance(0.02)
            assert await executor.notice() == RevokeLease(lease=granted.lease, cause="expired")

    play(scene())


def test_a_client_that_vanishes_loses_its_leases(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            client, other = await site.caller(), await site.caller()
            kept = await other.request()
            lost = {(await client.request()).lease, (await client.request()).lease}
            await client.close()
            ended = [await executor.notice(), await executor.notice()]
            assert {one.lease for one in ended if isinstance(one, RevokeLease)} == lost
            assert {one.cause for one in ended if isinstance(one, RevokeLease)} == {"client-lost"}
            assert (await other.leases())[kept.lease] == "live"
            assert await other.nodes() == {"n1": ("up", 3)}

    play(scene())


def test_a_renewed_lease_belongs_to_the_link_that_renewed_it(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            executor = await site.executor()
            first, second, third = [await site.caller() for _ in range(3)]
            marker = await first.request()
            granted = await first.request()
            await second.renew(granted.lease)
            await first.close()
            assert await executor.notice() == RevokeLease(lease=marker.lease, cause="client-lost")
            assert (await third.leases())[granted.lease] == "live"
            await second.close()
            assert await executor.notice() == RevokeLease(lease=granted.lease, cause="client-lost")

    play(scene())


def test_row_8_over_commit_race_64_clients_for_8_cores(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            await site.executor("n1", cores=3)
            await site.executor("n2", cores=5)
            clients = [await site.caller() for _ in range(64)]
            answers = await asyncio.gather(
                *(client.request() for client in clients), return_exceptions=True
            )
            won = [one for one in answers if isinstance(one, messages.LeaseGranted)]
            assert len(won) == len({one.lease for one in won}) == 8
            assert sum(isinstance(one, CapacityError) for one in answers) == 56
            assert await clients[0].nodes() == {"n1": ("up", 0), "n2": ("up", 0)}

    play(scene())


# Refusals


def test_clients_cannot_speak_as_executors(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            client = await site.caller()
            with pytest.raises(
                ProtocolError, match="does not answer JoinNode, sent by role client"
            ):
                await client.join()
            with pytest.raises(ProtocolError, match="does not answer Beat, sent by role client"):
                await client.beat()
            executor = await site.executor()
            granted = await client.request()
            client.link.send(messages.LeaseEnded(lease=granted.lease, cause="released"))
            assert await client.leases() == {granted.lease: "live"}
            with pytest.raises(
                ProtocolError, match="does not answer StopWorker, sent by role executor"
            ):
                await executor.ask(messages.StopWorker(lease=granted.lease), messages.Done)

    play(scene())


def test_absurd_amounts(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            await site.executor()
            client = await site.caller()
            nothing = messages.RequestLease(client="tester", cores=1, memory_bytes=0, duration_s=60)
            with pytest.raises(UsageError, match="0 bytes of memory cannot be"):
                await client.ask(nothing, messages.LeaseGranted)
            with pytest.raises(UsageError, match="more than 0 and at most 3600 s"):
                await client.request(duration_s=3601)
            with pytest.raises(CapacityError, match="the largest node, n1, has 4 of 4 cores"):
                await client.request(cores=5)
            for cores in (0, -1, 65537):
                with pytest.raises(ProtocolError, match=r"RequestLease is invalid.*\$\.cores"):
                    await (await site.caller()).request(cores=cores)
            with pytest.raises(ProtocolError, match=r"RequestLease is invalid.*\$\.duration_s"):
                await (await site.caller()).request(duration_s=float("inf"))
            with pytest.raises(RfaasError):
                await (await site.caller()).request(duration_s=float("nan"))
            assert await client.nodes() == {"n1": ("up", 4)}

    play(scene())


def test_an_occupied_address(site: Site, tmp_path: Path) -> None:
    async def scene() -> None:
        async with site.manager():
            other = Site(tmp_path)
            other.store = ":memory:"
            with pytest.raises(AddressInUseError):
                async with other.manager():
                    pass
            assert await (await site.caller()).nodes() == {}

    play(scene())


def test_an_occupied_store(site: Site, tmp_path: Path) -> None:
    async def scene() -> None:
        async with site.manager():
            other = Site(tmp_path)
            other.address += "2"
            with pytest.raises(SystemCallError, match="database is locked"):
                async with other.manager():
                    pass
            assert other.lines == []

    play(scene())


def test_a_store_that_is_none(site: Site) -> None:
    Path(site.store).write_bytes(b"no database " * 100)
    Path(site.store).chmod(0o600)

    async def scene() -> None:
        with pytest.raises(ConfigError, match="not a database"):
            async with site.manager():
                pass

    play(scene())
    assert site.lines == []


# Reports


def test_ready_and_status(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            assert site.lines == [
                f"resource manager ready on {site.address}; next: rfaas serve --role executor"
            ]
            path = site.address.removeprefix("unix:")
            assert stat.S_ISSOCK(os.stat(path).st_mode)
            await site.executor()
            client = await site.caller()
            await client.request(cores=3)
            site.clock.advance(7)
            status = await client.ask(messages.GetStatus(), messages.StatusReport)
            assert (status.role, status.uptime_s) == ("resource-manager", 7)
            assert status.facts == {
                "nodes up": 1,
                "nodes lost": 0,
                "cores": 4,
                "cores free": 1,
                "GPUs": 0,
                "GPUs free": 0,
                "leases live": 1,
                "leases granted": 1,
                "requests waiting": 0,
                "proofs refused": 0,
                "store": site.store,
                "store state": "saves",
            }

    play(scene())
    assert not os.path.exists(site.address.removeprefix("unix:"))


def test_long_lists_come_in_pages(site: Site) -> None:
    """Records as large as they can be: a frame holds some 60 of them."""

    async def scene() -> None:
        async with site.manager():
            await site.executor("\N{SNOWMAN}" * 255, cores=300)
            client = await site.caller()
            granted = set()
            asked = messages.RequestLease(
                client="\N{SNOWMAN}" * 255, cores=1, memory_bytes=1, duration_s=60
            )
            for _ in range(300):
                granted.add((await client.ask(asked, messages.LeaseGranted)).lease)
            found: list[str] = []
            sizes = []
            more = True
            while more:
                after = found[-1] if found else ""
                page = await client.ask(messages.ListLeases(after=after), messages.Leases)
                found += [one.lease for one in page.leases]
                sizes.append(len(page.leases))
                more = page.more
            assert found == sorted(granted)
            assert len(sizes) > 4
            assert min(sizes) > 0

    play(scene())


def test_short_records_fill_a_page_by_number(site: Site) -> None:
    async def scene() -> None:
        async with site.manager():
            await site.executor(cores=257)
            client = await site.caller()
            granted = sorted([(await client.request()).lease for _ in range(256)])
            page = await client.ask(messages.ListLeases(), messages.Leases)
            assert ([one.lease for one in page.leases], page.more) == (granted, False)
            await client.request()
            page = await client.ask(messages.ListLeases(), messages.Leases)
            assert (len(page.leases), page.more) == (256, True)

    play(scene())
