"""What a node tells its resource manager, and an executor that grants by itself its clients."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rfaas.clock import ManualClock
from rfaas.control.authority import ManagerAuthority, OwnAuthority, Told
from rfaas.core.supervisor import Over
from rfaas.errors import CapacityError
from rfaas.proto import messages
from rfaas.proto.messages import Usage
from tests.roles.manager_site import FIRST, GIB, Site, play, until

NODE = messages.JoinNode(
    node="n1",
    address="unix:/run/n1",
    incarnation=FIRST,
    cores=4,
    memory_bytes=1024 * GIB,
    isolation=("process",),
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_row_37_an_end_that_the_manager_had_not_saved_is_told_again(
    site: Site, tmp_path: Path
) -> None:
    """Killed between hearing of it and the disk, it would hold the lease until it expires."""

    async def scene() -> None:
        joined = asyncio.Event()
        told = Told(lambda *_: None, lambda _: None, joined.set, lambda _: None)
        used = Usage(allocated_ns=5, calls=3)
        async with site.manager():
            authority = ManagerAuthority(site.address, NODE, site.clock, dict, told)
            await joined.wait()
            client = await site.caller()
            lease = (await client.request(isolation="process")).lease
            saved = {path: path.read_bytes() for path in tmp_path.glob("store.db*")}
            authority.over(Over(lease, "client-lost", used))
            await until(client.leases, {lease: "client-lost"})
        for path in tmp_path.glob("store.db*"):
            path.unlink()
        for path, data in saved.items():
            path.touch(0o600)
            path.write_bytes(data)
        async with site.manager() as manager:
            client = await site.caller()
            assert await client.leases() == {lease: "live"}
            executors = manager.state.executors
            while "n1" not in executors:  # it looks for the manager after a pause of its own
                await client.nodes()
            await until(client.leases, {lease: "client-lost"})
            found = manager.state.ledger.find(lease)
            assert found is not None
            assert found.usage == used
            await authority.close()

    play(scene())


def test_who_leaves_as_its_turn_comes_holds_nothing() -> None:
    """The grant and the end of its link fall into one turn of the loop."""
    request = messages.RequestLease(
        client="tester", cores=4, memory_bytes=GIB, duration_s=60.0, isolation="process"
    )

    async def scene() -> None:
        authority = OwnAuthority(NODE, ManualClock())
        first = await authority.answer(request, b"")
        assert isinstance(first, messages.LeaseGranted)
        with pytest.raises(CapacityError):
            await authority.answer(request, b"")
        waits = messages.RequestLease(
            client="tester",
            cores=4,
            memory_bytes=GIB,
            duration_s=60.0,
            isolation="process",
            wait_s=60.0,
        )
        waiting = asyncio.create_task(authority.answer(waits, b""))
        await asyncio.sleep(0)
        authority.over(Over(first.lease, "released", Usage()))  # which grants it to who waits
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert isinstance(await authority.answer(request, b""), messages.LeaseGranted)

    play(scene())
