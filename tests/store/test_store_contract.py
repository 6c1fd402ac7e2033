"""What every store must do: the same tests over each implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from rfaas.core.billing import Bill
from rfaas.proto.messages import Usage
from rfaas.store import LeaseRecord, NodeRecord, Store, Stored
from rfaas.store.sqlite import SqliteStore

NODE = NodeRecord(
    node="n1",
    address="unix:/run/n1",
    incarnation="1" * 32,
    cores=4,
    memory_bytes=2**60,
    isolation=("none", 'a "quoted", level'),
    key=bytes(range(32)),
)
LEASE = LeaseRecord(
    lease="a" * 32,
    client="tester \N{SNOWMAN} '); DROP TABLE leases; --",
    node="n1",
    cores=2,
    memory_bytes=1 << 30,
    isolation="process",
    duration_s=60.0,
    granted_at_s=1.8e9 + 0.123456,
    ends_at_s=1.8e9 + 60.123456,
    fence=3,
    usage=Usage(allocated_ns=2**63 - 1, polling_ns=1, executing_ns=2, calls=3, failed=4),
)


def sqlite_file(path: Path) -> Store:
    return SqliteStore(str(path / "store.db"))


def sqlite_file_full(path: Path) -> Store:
    return SqliteStore(str(path / "store.db"), "full")


def sqlite_memory(_: Path) -> Store:
    return SqliteStore(":memory:")


@pytest.fixture(params=[sqlite_file, sqlite_file_full, sqlite_memory])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store: Store = request.param(tmp_path)
    yield store
    store.close()


def lease(number: int, **changes: object) -> LeaseRecord:
    return msgspec.structs.replace(LEASE, lease=f"{number:032x}", fence=number, **changes)


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.load() == Stored((), (), 0)


def test_what_was_saved_comes_back(store: Store) -> None:
    store.save([NODE], [LEASE])
    assert store.load() == Stored((NODE,), (LEASE,), 3)


def test_saving_nothing_changes_nothing(store: Store) -> None:
    store.save([NODE], [LEASE])
    store.save()
    assert store.load() == Stored((NODE,), (LEASE,), 3)


def test_saving_again_replaces(store: Store) -> None:
    store.save([NODE], [LEASE])
    joined = msgspec.structs.replace(NODE, incarnation="2" * 32, cores=8, key=bytes(32))
    ended = msgspec.structs.replace(LEASE, state="released", usage=Usage(calls=9))
    store.save([joined], [ended])
    assert store.load() == Stored((joined,), (ended,), 3)


def test_order_is_by_name_and_fence(store: Store) -> None:
    names = [msgspec.structs.replace(NODE, node=name) for name in ("c", "a", "b")]
    store.save(names, [lease(2), lease(3), lease(1)])
    stored = store.load()
    assert [node.node for node in stored.nodes] == ["a", "b", "c"]
    assert [lease.fence for lease in stored.leases] == [1, 2, 3]


def test_the_fence_never_goes_back(store: Store) -> None:
    store.save(leases=[lease(9, state="released")])
    store.save(leases=[lease(4)])
    store.prune(0)
    assert [one.fence for one in store.load().leases] == [4]
    assert store.load().fence == 9


def test_pruning_keeps_the_live_and_the_last_that_ended(store: Store) -> None:
    store.save(leases=[lease(0, ends_at_s=0.0)])
    store.save(leases=[lease(n, state="expired", ends_at_s=100.0 - n) for n in range(1, 6)])
    store.prune(5)
    assert len(store.load().leases) == 6
    store.prune(2)
    assert [one.fence for one in store.load().leases] == [0, 1, 2]


def test_all_or_none(store: Store) -> None:
    """A save that fails in its middle leaves nothing of itself."""
    store.save(leases=[lease(1)])

    with pytest.raises(KeyError):
        store.save([NODE], Tripping([lease(2), lease(3)]))
    assert store.load() == Stored((), (lease(1),), 1)
    store.save(leases=[lease(4)])
    assert store.load().fence == 4


class Tripping(list[LeaseRecord]):
    """Records of which the last cannot be had."""

    def __iter__(self) -> Iterator[LeaseRecord]:
        yield from self[:-1]
        raise KeyError("the machine trips here")


def test_closing_twice(store: Store) -> None:
    store.close()
    store.close()


@pytest.mark.parametrize("opened", [sqlite_file, sqlite_file_full])
def test_a_later_process_finds_it(opened: Callable[[Path], Store], tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.save([NODE], [LEASE])
    first.close()
    second = opened(tmp_path)
    assert second.load() == Stored((NODE,), (LEASE,), 3)
    second.close()


def test_forgotten_nodes_are_gone(store: Store) -> None:
    other = msgspec.structs.replace(NODE, node="n2")
    store.save(nodes=[NODE, other])
    store.save(nodes=[msgspec.structs.replace(other, cores=8)], forgotten=["n1", "unknown"])
    assert [(node.node, node.cores) for node in store.load().nodes] == [("n2", 8)]


# Bills ------------------------------------------------------------------------


def bill(number: int, day: str = "2026-11-23", client: str = "a", calls: int = 1) -> Bill:
    usage = Usage(allocated_ns=10 * calls, polling_ns=calls, executing_ns=2 * calls, calls=calls)
    return Bill(day=day, lease=f"{number:032x}", client=client, node="n1", usage=usage)


def test_bills_of_a_day_add_up(store: Store) -> None:
    store.save(bills=[bill(1, calls=3), bill(2)])
    store.save(bills=[bill(1, calls=4), bill(1, day="2026-11-24", calls=5)])
    assert store.bills() == [
        bill(1, calls=7),
        bill(2),
        bill(1, day="2026-11-24", calls=5),
    ]


def test_bills_by_day_client_and_page(store: Store) -> None:
    days = ("2026-11-22", "2026-11-23", "2026-11-24")
    made = [bill(n, day, client) for day in days for n, client in enumerate(("a", "b"))]
    store.save(bills=made)
    assert store.bills(since=days[1]) == made[2:]
    assert store.bills(until=days[1]) == made[:4]
    assert store.bills(client="b") == made[1::2]
    assert store.bills(since=days[1], until=days[1], client="b") == [made[3]]
    page = store.bills(most=4)
    assert page == made[:4]
    assert store.bills(after=(page[-1].day, page[-1].lease)) == made[4:]


def test_bills_outlive_their_leases(store: Store) -> None:
    store.save(leases=[lease(1, state="released")], bills=[bill(1)])
    store.prune(0)
    assert store.load().leases == ()
    assert store.bills() == [bill(1)]


def test_a_bill_is_kept_with_its_lease_or_not_at_all(store: Store) -> None:
    with pytest.raises(KeyError):
        store.save(leases=Tripping([lease(1), lease(2)]), bills=[bill(1)])
    assert store.bills() == []
