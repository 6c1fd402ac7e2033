"""The ledger's requests: several nodes, whole nodes, the queue and its turns, quotas, notice."""

from __future__ import annotations

from itertools import count

import pytest

from rfaas.core import waiting
from rfaas.core.lease import Ask, Ended, Lease, Placement
from rfaas.core.ledger import Ledger, Quota
from rfaas.core.placement import ALL, PARTS_MAX
from rfaas.core.waiting import PASSED_MAX
from rfaas.errors import CapacityError, LeaseEndedError, UnavailableError

GIB = 1 << 30
NUMBERS = count(1)


def make(*cores: int, quota: Quota | None = None, gib: int = 64) -> Ledger:
    """A ledger with nodes a, b, ... of so many cores."""
    ledger = Ledger(1.0, 3, 3600, quota=quota or Quota(), new_id=lambda: f"{next(NUMBERS):032x}")
    for name, many in zip("abcdefgh", cores, strict=False):
        ledger.join(name, f"unix:/{name}", "1" * 32, many, gib * GIB, ("process",), (), 0)
    return ledger


def ask(
    cores: int,
    account: str = "ann",
    *,
    memory_bytes: int = 1 << 20,
    placement: Placement = "pack",
    wait_s: float = 0.0,
    duration_s: float = 60.0,
) -> Ask:
    return Ask(
        lease=f"{next(NUMBERS):032x}",
        client=f"{account}@here:1",
        account=account,
        cores=cores,
        memory_bytes=memory_bytes,
        duration_s=duration_s,
        isolation="process",
        placement=placement,
        wait_s=wait_s,
    )


def granted(ledger: Ledger, wanted: Ask, now_s: float = 0) -> Lease:
    lease = ledger.ask(wanted, now_s)
    assert lease is not None
    return lease


def parts(ledger: Ledger, wanted: Ask) -> dict[str, int]:
    return {part.node: part.cores for part in ledger.parts(granted(ledger, wanted))}


def free(ledger: Ledger) -> list[int]:
    return [node.cores_free for node in ledger.nodes(0)]


# Several nodes


def test_pack_takes_one_node_where_one_has_room() -> None:
    ledger = make(8, 4)
    lease = granted(ledger, ask(4))
    assert (lease.node, lease.bundle) == ("b", "")
    assert ledger.parts(lease) == [lease]


def test_pack_takes_the_fewest_nodes_and_the_smallest_gap_for_the_rest() -> None:
    ledger = make(4, 8, 2, 8)
    assert parts(ledger, ask(17)) == {"b": 8, "d": 8, "c": 1}
    assert free(ledger) == [4, 0, 1, 0]


def test_spread_is_even_and_what_a_node_lacks_the_others_make_up_for() -> None:
    assert parts(make(8, 8, 8), ask(9, placement="spread")) == {"a": 3, "b": 3, "c": 3}
    assert parts(make(8, 1, 8), ask(9, placement="spread")) == {"a": 4, "b": 1, "c": 4}
    assert parts(make(8, 8), ask(1, placement="spread")).popitem()[1] == 1


def test_memory_goes_by_cores_and_decides_too() -> None:
    ledger = make(8, 8, gib=3)
    lease = granted(ledger, ask(6, memory_bytes=6 * GIB))
    assert [(part.cores, part.memory_bytes // GIB) for part in ledger.parts(lease)] == [
        (3, 3),
        (3, 3),
    ]
    with pytest.raises(CapacityError, match="all nodes together have 10 cores free"):
        ledger.ask(ask(9, memory_bytes=GIB), 0)


def test_all_or_none() -> None:
    ledger = make(4, 4)
    with pytest.raises(CapacityError, match=r"the largest node, a, has 4 of 4 cores .* together"):
        ledger.ask(ask(9), 0)
    with pytest.raises(CapacityError) as refused:
        ledger.ask(ask(8, placement="node"), 0)
    assert "together" not in str(refused.value)
    assert free(ledger) == [4, 4]


def test_no_more_parts_than_a_frame_can_grant() -> None:
    ledger = Ledger(1.0, 3, 3600, new_id=lambda: f"{next(NUMBERS):032x}")
    for number in range(PARTS_MAX + 1):
        ledger.join(f"n{number}", "unix:/n", "1" * 32, 1, GIB, ("process",), (), 0)
    with pytest.raises(CapacityError):
        ledger.ask(ask(PARTS_MAX + 1), 0)
    assert len(parts(ledger, ask(PARTS_MAX))) == PARTS_MAX


def test_a_bundle_ends_when_one_of_it_does() -> None:
    ledger = make(2, 2, 2)
    lease = granted(ledger, ask(6))
    first, second, third = ledger.parts(lease)
    assert ledger.end(second.lease, "client-lost", 1)
    assert ledger.tick(1) == [
        Ended(first.lease, first.node, "client-lost"),
        Ended(third.lease, third.node, "client-lost"),
    ]
    assert free(ledger) == [2, 2, 2]
    assert not ledger.end(first.lease, "released", 2)


def test_a_bundle_ends_with_a_node_and_expires_together() -> None:
    ledger = make(2, 2)
    for cause in ("node-lost", "expired"):
        lease = granted(ledger, ask(4, duration_s=2))
        ended = ledger.lose("a", 1) if cause == "node-lost" else []
        ended += ledger.tick(2)
        assert lease.lease in {one.lease for one in ended}
        assert {one.cause for one in ended} == {cause}
        assert len(ended) == 2
        ledger.join("a", "unix:/a", "1" * 32, 2, GIB, ("process",), (), 2)


def test_a_bundle_is_renewed_as_a_whole() -> None:
    ledger = make(2, 2)
    lease = granted(ledger, ask(4, duration_s=2))
    other = ledger.parts(lease)[1]
    before = other.fence
    ledger.renew(other.lease, 10, 1)
    assert other.fence > before
    assert {part.ends_at_s for part in ledger.parts(lease)} == {11}


def test_a_bundle_that_was_torn_by_a_restart_ends() -> None:
    def lease(node: str, fence: int, state: str = "live") -> Lease:
        return Lease(
            node * 32, "c", node, 2, GIB, "process", 60, 0, 50, fence, "a" * 32, "c", "", state
        )

    for leases in (
        [lease("a", 1, "released"), lease("b", 2)],
        [lease("a", 1), lease("b", 2, "released")],
        [lease("a", 1), lease("c", 2), lease("b", 3)],  # c is not known any more
    ):
        ledger = Ledger(1.0, 3, 3600)
        for name in "ab":
            ledger.restore_node(name, "unix:/", "1" * 32, 2, GIB, ("process",), 0)
        live = {one.lease for one in leases if one.state == "live"}
        for one in leases:
            ledger.restore_lease(one, 0)
        assert {one.lease for one in ledger.tick(0)} == live
        assert ledger.leases(0) == []
        assert free(ledger) == [2, 2]


# Whole nodes


def test_all_of_a_node_is_the_smallest_idle_one() -> None:
    ledger = make(4, 8, 2)
    ledger.ask(ask(1), 0)  # on c
    lease = granted(ledger, ask(ALL))
    assert (lease.node, lease.cores) == ("a", 4)
    lease = granted(ledger, ask(1, memory_bytes=ALL))
    assert (lease.node, lease.cores, lease.memory_bytes) == ("b", 1, 64 * GIB)
    with pytest.raises(CapacityError, match="cannot lease all cores of a node and 1 MiB"):
        ledger.ask(ask(ALL), 0)
    with pytest.raises(CapacityError, match="cannot lease 1 core and all its memory"):
        ledger.ask(ask(1, memory_bytes=ALL), 0)


# The queue


def test_who_waits_is_served_when_cores_are_free() -> None:
    ledger = make(4)
    first = granted(ledger, ask(4))
    wanted = ask(2, wait_s=10)
    assert ledger.ask(wanted, 1) is None
    assert ledger.settle(1) == []
    ledger.end(first.lease, "released", 2)
    (settled,) = ledger.settle(2)
    assert settled.granted is not None
    assert (settled.granted.lease, settled.granted.granted_at_s) == (wanted.lease, 2)
    assert ledger.waiting == 0


def test_who_waits_too_long_is_refused() -> None:
    ledger = make(4)
    granted(ledger, ask(4))
    ledger.ask(ask(2, wait_s=10), 0)
    assert ledger.settle(9.9) == []
    (settled,) = ledger.settle(10)
    assert settled.granted is None
    assert "has 0 of 4 cores" in str(settled.error)
    assert "after 10 s of waiting" in str(settled.error)
    assert ledger.settle(11) == []


def test_who_waits_may_wait_for_a_node_to_join() -> None:
    ledger = make()
    wanted = ask(2, wait_s=10)
    assert ledger.ask(wanted, 0) is None
    ledger.join("a", "unix:/a", "1" * 32, 4, GIB, ("process",), (), 1)
    assert [one.ask.lease for one in ledger.settle(1)] == [wanted.lease]


def test_whoever_holds_least_is_first() -> None:
    ledger = make(4)
    holds = granted(ledger, ask(1, "ann"))
    big = granted(ledger, ask(3, "cem"))
    ledger.ask(ask(2, "ann", wait_s=9), 0)
    bobs = ask(2, "bob", wait_s=9)
    ledger.ask(bobs, 0)
    ledger.end(big.lease, "released", 1)
    assert [one.ask.lease for one in ledger.settle(1)] == [bobs.lease]
    assert holds.state == "live"


def test_a_newcomer_does_not_jump_the_queue() -> None:
    ledger = make(4)
    full = granted(ledger, ask(4, "ann"))
    ledger.ask(ask(4, "bob", wait_s=9), 0)
    ledger.end(full.lease, "released", 1)
    with pytest.raises(CapacityError):
        ledger.ask(ask(1, "bob"), 1)  # before `settle`: it stands in its own line
    assert [one.ask.account for one in ledger.settle(1)] == ["bob"]


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    ledger = make(4)
    running = [granted(ledger, ask(1, "ann")) for _ in range(4)]
    large = ask(4, "bob", wait_s=1000)
    assert ledger.ask(large, 0) is None
    for _ in range(PASSED_MAX):  # others come and go, one core at a time
        ledger.end(running.pop(0).lease, "released", 1)
        running.append(granted(ledger, ask(1, "cem"), 1))
    ledger.end(running.pop(0).lease, "released", 1)
    with pytest.raises(CapacityError):
        ledger.ask(ask(1, "cem"), 1)
    for lease in running:
        ledger.end(lease.lease, "released", 2)
    assert [one.ask.lease for one in ledger.settle(2)] == [large.lease]


def test_what_can_never_be_blocks_nobody() -> None:
    ledger = make(4)
    ledger.ask(ask(64, "bob", wait_s=1000), 0)
    for _ in range(PASSED_MAX + 2):
        lease = granted(ledger, ask(1, "cem"), 1)
        ledger.end(lease.lease, "released", 1)


def test_who_left_the_queue_gets_nothing() -> None:
    ledger = make(4)
    full = granted(ledger, ask(4))
    wanted = ask(2, wait_s=10)
    ledger.ask(wanted, 0)
    assert ledger.cancel(wanted.lease)
    ledger.end(full.lease, "released", 1)
    assert ledger.settle(1) == []
    assert free(ledger) == [4]


@pytest.mark.parametrize("leaves", [True, False])
def test_who_stood_behind_another_is_served_when_that_leaves(leaves: bool) -> None:
    """Nothing was freed: what was there was kept from them by their own turn alone."""
    ledger = make(4)
    granted(ledger, ask(3, "bob"))
    large, small = ask(2, wait_s=5), ask(1, wait_s=60)
    assert ledger.ask(large, 0) is None
    assert ledger.ask(small, 0) is None
    assert ledger.settle(1) == []
    if leaves:
        assert ledger.cancel(large.lease)
    settled = ledger.settle(6)
    assert [one.ask for one in settled if one.granted] == [small]
    assert [one.ask for one in settled if one.error] == [large] * (not leaves)
    assert ledger.waiting == 0


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "QUEUE_MAX", 2)
    ledger = make(1)
    granted(ledger, ask(1))
    for _ in range(2):
        assert ledger.ask(ask(1, wait_s=5), 0) is None
    with pytest.raises(CapacityError, match="2 requests wait already"):
        ledger.ask(ask(1, wait_s=5), 0)


# Quotas


def test_cores_of_one_client_are_bounded() -> None:
    ledger = make(16, quota=Quota(cores_max=6))
    mine = granted(ledger, ask(4))
    with pytest.raises(CapacityError, match="ann holds 4 of the 6 that one client may"):
        ledger.ask(ask(3), 0)
    granted(ledger, ask(6, "bob"))
    waits = ask(6, wait_s=10)
    assert ledger.ask(waits, 0) is None
    with pytest.raises(CapacityError, match="cannot lease 7 cores: ann holds 4 of the 6"):
        ledger.ask(ask(7, wait_s=10), 0)  # it could wait for ever
    for _ in range(PASSED_MAX + 1):  # who waits for its own leases keeps nobody
        other = granted(ledger, ask(1, "cem"))
        ledger.end(other.lease, "released", 0)
    ledger.end(mine.lease, "released", 1)
    assert [one.ask.lease for one in ledger.settle(1)] == [waits.lease]


def test_leases_of_one_client_are_bounded() -> None:
    ledger = make(16, quota=Quota(leases_max=2))
    granted(ledger, ask(1))
    granted(ledger, ask(1))
    with pytest.raises(CapacityError, match="ann holds 2, the most that one client may"):
        ledger.ask(ask(1), 0)


def test_a_bundle_is_one_lease_of_its_client() -> None:
    ledger = make(2, 2, 2, quota=Quota(leases_max=2))
    wide = granted(ledger, ask(3, placement="spread"))
    assert len(ledger.parts(wide)) == 3
    granted(ledger, ask(1))
    with pytest.raises(CapacityError, match="ann holds 2, the most"):
        ledger.ask(ask(1), 0)
    ledger.end(ledger.parts(wide)[1].lease, "released", 1)
    ledger.tick(1)
    granted(ledger, ask(1), 1)
    with pytest.raises(CapacityError, match="ann holds 2, the most"):
        ledger.ask(ask(1), 1)


def test_who_waited_in_vain_for_its_own_leases_is_told_so() -> None:
    ledger = make(8, quota=Quota(cores_max=2))
    granted(ledger, ask(2))
    assert ledger.ask(ask(1, wait_s=3), 0) is None
    (settled,) = ledger.settle(3)
    assert "ann holds 2 of the 2 that one client may after 3 s of waiting" in str(settled.error)


def test_all_of_a_node_counts_as_its_cores() -> None:
    ledger = make(8, quota=Quota(cores_max=6))
    with pytest.raises(CapacityError, match="cannot lease 8 cores: ann holds 0 of the 6"):
        ledger.ask(ask(ALL), 0)


# Notice, draining


def test_revoked_with_notice() -> None:
    ledger = make(4)
    lease = granted(ledger, ask(1))
    assert ledger.revoke(lease.lease, 5, 10) == [lease]
    assert ledger.leases(10)[0].state == "terminating"
    assert ledger.revoke(lease.lease, 7, 11) == []  # it has shorter notice
    with pytest.raises(LeaseEndedError, match=r"is being ended: revoked in 4\.0 s"):
        ledger.renew(lease.lease, 60, 11)
    ledger.beat("a", {}, 14.9)
    assert ledger.tick(14.9) == []
    assert ledger.tick(15) == [Ended(lease.lease, "a", "revoked")]
    assert ledger.revoke(lease.lease, 1, 15) == []


def test_notice_does_not_lengthen_a_lease() -> None:
    ledger = make(4)
    lease = granted(ledger, ask(1, duration_s=2))
    ledger.revoke(lease.lease, 50, 1)
    assert ledger.tick(2) == [Ended(lease.lease, "a", "revoked")]


def test_a_draining_node_gets_nothing_new_and_keeps_what_it_has() -> None:
    ledger = make(4, 8)
    lease = granted(ledger, ask(2))
    ledger.drain("a")
    assert [node.state for node in ledger.nodes(0)] == ["draining", "up"]
    assert granted(ledger, ask(1)).node == "b"
    ledger.renew(lease.lease, 60, 1)
    ledger.beat("a", {}, 1)
    ledger.join("a", "unix:/a", "2" * 32, 4, GIB, ("process",), (lease.lease,), 2)
    assert ledger.nodes(2)[0].state == "draining"
    ledger.drain("a", False)
    assert granted(ledger, ask(1), 2).node == "a"
    with pytest.raises(UnavailableError, match="node x is unknown"):
        ledger.drain("x")


def test_removing_a_node_revokes_its_leases() -> None:
    ledger = make(4)
    lease = granted(ledger, ask(2))
    assert ledger.remove("a", 1) == [Ended(lease.lease, "a", "revoked")]
    assert ledger.remove("a", 1) == []
    assert ledger.nodes(1) == []
