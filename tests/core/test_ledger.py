"""The ledger: joins, grants, refusals word for word, ends, restarts."""

from __future__ import annotations

import math

import pytest

from rfaas.core import book
from rfaas.core.book import CORES_MAX, ENDED_MAX, MEMORY_BYTES_MAX
from rfaas.core.lease import CAUSES, Ended, Lease
from rfaas.core.ledger import Ledger
from rfaas.errors import CapacityError, LeaseEndedError, UnavailableError, UsageError
from rfaas.proto.messages import Usage

GIB = 1 << 30
A, B, C = ("a" * 32, "b" * 32, "c" * 32)
FIRST, SECOND = ("1" * 32, "2" * 32)  # incarnations


def make(*nodes: tuple[str, int, int]) -> Ledger:
    """A ledger with these nodes (name, cores, GiB), joined at 0."""
    ledger = Ledger(heartbeat_s=1.0, missed_beats_max=3, duration_max_s=3600)
    for name, cores, gib in nodes:
        join(ledger, name, cores=cores, memory_bytes=gib * GIB)
    return ledger


def join(
    ledger: Ledger,
    node: str,
    *,
    cores: int = 4,
    memory_bytes: int = 8 * GIB,
    incarnation: str = FIRST,
    isolation: tuple[str, ...] = ("none", "process"),
    live: tuple[str, ...] = (),
    now_s: float = 0,
) -> list[str]:
    address = f"unix:/run/{node}"
    return ledger.join(node, address, incarnation, cores, memory_bytes, isolation, live, now_s)


def request(
    ledger: Ledger,
    lease: str = A,
    *,
    cores: int = 1,
    memory_bytes: int = GIB,
    duration_s: float = 60,
    isolation: str = "process",
    now_s: float = 0,
) -> str:
    """Request a lease and return its node."""
    grant = ledger.request("tester", cores, memory_bytes, duration_s, isolation, lease, now_s)
    assert (grant.lease, grant.cores, grant.duration_s) == (lease, cores, duration_s)
    assert ledger.address(grant.node) == f"unix:/run/{grant.node}"
    return grant.node


def free(ledger: Ledger) -> dict[str, tuple[int, int]]:
    return {one.node: (one.cores_free, one.memory_free_bytes // GIB) for one in ledger.nodes(0)}


# Placement


def test_the_fullest_node_that_fits_is_taken() -> None:
    ledger = make(("big", 16, 64), ("small", 4, 8), ("tiny", 1, 1))
    assert request(ledger, A, cores=2) == "small"
    assert request(ledger, B, cores=4) == "big"
    assert request(ledger, C, cores=1) == "tiny"
    assert free(ledger) == {"big": (12, 63), "small": (2, 7), "tiny": (0, 0)}


def test_memory_alone_can_decide() -> None:
    ledger = make(("a", 4, 2), ("b", 8, 16))
    assert request(ledger, memory_bytes=3 * GIB) == "b"


def test_a_whole_node_fits_and_one_more_does_not() -> None:
    ledger = make(("a", 4, 8))
    with pytest.raises(CapacityError):
        request(ledger, cores=5)
    with pytest.raises(CapacityError):
        request(ledger, cores=4, memory_bytes=8 * GIB + 1)
    assert request(ledger, cores=4, memory_bytes=8 * GIB) == "a"
    assert free(ledger) == {"a": (0, 0)}


def test_refused_without_nodes() -> None:
    with pytest.raises(CapacityError) as refused:
        request(make(), cores=2)
    assert str(refused.value) == (
        "cannot lease 2 cores and 1 GiB of memory: no node is up\n"
        "hint: start one: rfaas serve --role executor"
    )


def test_refused_because_busy() -> None:
    ledger = make(("a", 4, 8), ("b", 2, 32))
    request(ledger, A, cores=3, memory_bytes=1536 << 20)
    with pytest.raises(CapacityError) as refused:
        request(ledger, B, cores=4, memory_bytes=GIB + 1)
    assert str(refused.value) == (
        "cannot lease 4 cores and 1 GiB of memory: the largest node, a, "
        "has 1 of 4 cores and 6.5 GiB of 8 GiB free\n"
        "hint: busy now; ask again when a lease has ended"
    )


def test_refused_for_ever() -> None:
    ledger = make(("a", 4, 8), ("b", 1, 64))
    with pytest.raises(CapacityError) as refused:
        request(ledger, cores=4, memory_bytes=9 * GIB)
    assert str(refused.value) == (
        "cannot lease 4 cores and 9 GiB of memory: the largest node, a, "
        "has 4 of 4 cores and 8 GiB of 8 GiB free\n"
        "hint: no node is that large, busy or not; ask for at most 4 cores and 8 GiB"
    )


def test_refused_isolation_names_what_there_is() -> None:
    ledger = make(("a", 4, 8))
    join(ledger, "b", isolation=("process", "sandbox"))
    assert request(ledger, A, isolation="sandbox") == "b"
    with pytest.raises(CapacityError) as refused:
        request(ledger, B, isolation="sandbx")
    assert str(refused.value) == (
        "cannot lease 1 core and 1 GiB of memory: no node offers isolation 'sandbx', "
        "offered: none, process, sandbox\n"
        "hint: did you mean sandbox?"
    )


def test_a_busy_node_of_another_level_is_not_named() -> None:
    ledger = make(("huge", 64, 64))
    join(ledger, "b", cores=2, isolation=("sandbox",))
    with pytest.raises(CapacityError, match="the largest node, b, has 2 of 2 cores"):
        request(ledger, cores=3, isolation="sandbox")


@pytest.mark.parametrize("cores", [0, -1, CORES_MAX + 1, math.nan, math.inf])
def test_absurd_cores(cores: int) -> None:
    with pytest.raises(UsageError, match=r"cores cannot be, 1 to 65536 are allowed"):
        request(make(("a", 4, 8)), cores=cores)


@pytest.mark.parametrize("memory_bytes", [0, -1, MEMORY_BYTES_MAX + 1, math.nan])
def test_absurd_memory(memory_bytes: int) -> None:
    with pytest.raises(UsageError, match=r"bytes of memory cannot be, 1 to 1152921504606846976"):
        request(make(("a", 4, 8)), memory_bytes=memory_bytes)


@pytest.mark.parametrize("duration_s", [0, -1, 3600.1, math.nan, math.inf])
def test_absurd_duration(duration_s: float) -> None:
    ledger = make(("a", 4, 8))
    with pytest.raises(UsageError, match=r"more than 0 and at most 3600 s are allowed"):
        request(ledger, duration_s=duration_s)
    request(ledger, duration_s=3600)
    with pytest.raises(UsageError, match=r"at most 3600 s"):
        ledger.renew(A, duration_s, 1)


def test_largest_amounts_are_no_usage_error() -> None:
    with pytest.raises(CapacityError):
        request(make(("a", 4, 8)), cores=CORES_MAX, memory_bytes=MEMORY_BYTES_MAX)


def test_an_id_is_granted_once() -> None:
    ledger = make(("a", 4, 8))
    request(ledger)
    with pytest.raises(UsageError, match="lease aaaaaaaa exists already"):
        request(ledger)
    assert free(ledger) == {"a": (3, 7)}


# Ends


@pytest.mark.parametrize("cause", sorted(CAUSES))
def test_ends_once(cause: str) -> None:
    ledger = make(("a", 4, 8))
    request(ledger)
    assert ledger.end(A, cause, 5)
    assert not ledger.end(A, "released", 6)
    assert not ledger.end(B, cause, 6)
    assert free(ledger) == {"a": (4, 8)}
    (report,) = ledger.leases(9, all=True)
    assert (report.state, report.age_s, report.remaining_s) == (cause, 5, 0)
    assert ledger.leases(9) == []


def test_an_unknown_cause_ends_nothing() -> None:
    ledger = make(("a", 4, 8))
    request(ledger)
    with pytest.raises(UsageError, match="'bored' ends no lease, one of client-lost, expired"):
        ledger.end(A, "bored", 1)
    assert len(ledger.leases(1)) == 1


def test_the_last_word_on_usage_counts() -> None:
    ledger = make(("a", 4, 8))
    request(ledger)
    ledger.end(A, "expired", 5)
    assert not ledger.end(A, "expired", 6, Usage(calls=7))
    assert ledger.leases(6, all=True)[0].usage == Usage(calls=7)


def test_expires_at_its_deadline_and_not_before() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, duration_s=2)
    assert ledger.tick(1.999) == []
    ledger.beat("a", {}, 1.999)
    assert ledger.tick(2) == [Ended(A, "a", "expired")]
    assert ledger.tick(2) == []
    assert free(ledger) == {"a": (4, 8)}


def test_a_late_tick_ends_a_lease_at_its_deadline() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, duration_s=2)
    ledger.tick(1000)
    assert ledger.leases(1000, all=True)[0].age_s == 2


def test_renewing_moves_the_deadline_both_ways() -> None:
    ledger = make(("a", 4, 8))
    first = ledger.request("tester", 1, GIB, 2, "process", A, 0).fence
    assert ledger.renew(A, 10, 1).fence > first
    ledger.beat("a", {}, 5)
    assert ledger.tick(5) == []
    ledger.renew(A, 0.5, 5)
    assert ledger.tick(5.5) == [Ended(A, "a", "expired")]


def test_what_is_over_cannot_be_renewed() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, A, duration_s=2)
    request(ledger, B)
    ledger.end(B, "released", 1)
    with pytest.raises(LeaseEndedError, match=r"lease aaaaaaaa on a is over: expired 0.5 s ago"):
        ledger.renew(A, 10, 2.5)  # although no tick has ended it yet
    with pytest.raises(LeaseEndedError, match=r"lease bbbbbbbb on a is over: released 1.5 s ago"):
        ledger.renew(B, 10, 2.5)
    with pytest.raises(LeaseEndedError, match="lease cccccccc is unknown"):
        ledger.renew(C, 10, 2.5)


def test_ended_leases_are_kept_up_to_a_bound() -> None:
    ledger = make(("a", 4, 8))
    for number in range(ENDED_MAX + 1):
        request(ledger, f"{number:032x}")
        ledger.end(f"{number:032x}", "released", 0)
    assert len(ledger.leases(0, all=True)) == ENDED_MAX
    assert ledger.find(f"{0:032x}") is None
    assert ledger.find(f"{1:032x}") is not None


# Nodes


def test_a_silent_node_is_lost_with_its_leases() -> None:
    ledger = make(("a", 4, 8), ("b", 8, 8))
    request(ledger, A)
    ledger.beat("a", {}, 1)
    ledger.beat("b", {}, 2)
    assert ledger.tick(3.999) == []
    assert ledger.tick(4) == [Ended(A, "a", "node-lost")]
    assert [one.state for one in ledger.nodes(4)] == ["lost", "up"]
    with pytest.raises(UnavailableError, match="node a is not up here") as refused:
        ledger.beat("a", {}, 4)
    assert refused.value.hint == "join again"
    assert request(ledger, B, now_s=4) == "b"


def test_a_ledger_that_was_away_takes_no_node_for_silent() -> None:
    """Its silence may be 3 s: after more than half of that without a tick it starts anew."""
    ledger = make(("a", 4, 8))
    request(ledger, A)
    assert ledger.tick(1) == []
    assert ledger.tick(1 + 1.501) == []  # silent until 2.501 + 3 from now on
    for now_s in (4, 5.5):
        assert ledger.tick(now_s) == []
    assert ledger.tick(5.501) == [Ended(A, "a", "node-lost")]
    assert ledger.tick(1000) == []
    assert [one.state for one in ledger.nodes(1000)] == ["lost"]  # and stays so


def test_a_ledger_that_was_away_waits_anew_for_restored_nodes() -> None:
    ledger = Ledger(heartbeat_s=1.0, missed_beats_max=3, duration_max_s=3600)
    ledger.restore_node("a", "unix:/run/a", FIRST, 4, 8 * GIB, ("process",), 0)
    ledger.restore_lease(restored(A, ends_at_s=500.0), 0)
    assert ledger.tick(0) == []
    assert ledger.tick(100) == []
    assert join(ledger, "a", live=(A,), now_s=100) == []


def test_leases_expire_also_while_the_ledger_is_away() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, A, duration_s=10)
    assert ledger.tick(0) == []
    assert ledger.tick(10) == [Ended(A, "a", "expired")]
    assert [one.state for one in ledger.nodes(10)] == ["up"]


def test_an_unknown_node_cannot_beat() -> None:
    with pytest.raises(UnavailableError):
        make().beat("a", {}, 0)


def test_a_node_with_an_infinite_heartbeat_is_never_silent() -> None:
    ledger = Ledger(math.inf, 3, 3600)
    join(ledger, "a")
    request(ledger, duration_s=3600)
    assert ledger.tick(3599) == []


def test_lost_is_listed_and_left_is_forgotten() -> None:
    ledger = make(("a", 4, 8), ("b", 4, 8))
    request(ledger, A)
    request(ledger, B, cores=4)
    assert ledger.lose("a", 1) == [Ended(A, "a", "node-lost")]
    assert ledger.lose("a", 1) == []
    assert ledger.leave("b", 1) == [Ended(B, "b", "node-lost")]
    assert ledger.leave("b", 1) == []
    assert [(one.node, one.state, one.leases) for one in ledger.nodes(1)] == [("a", "lost", 0)]


def test_beats_bring_the_usage_of_the_nodes_own_leases() -> None:
    ledger = make(("a", 1, 8), ("b", 2, 8))
    request(ledger, A)
    request(ledger, B)
    ledger.end(A, "expired", 1)
    used = Usage(calls=3)
    ledger.beat("a", {A: used, B: used, C: used}, 2)
    assert [one.usage for one in ledger.leases(2, all=True)] == [used, Usage()]
    assert ledger.nodes(5)[0].beat_age_s == 3


def test_the_same_incarnation_keeps_leases_it_does_not_know_yet() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, A)
    request(ledger, B)
    ledger.end(B, "revoked", 1)
    assert join(ledger, "a", live=(B, C), now_s=2) == [B, C]
    assert ledger.tick(2) == []
    assert free(ledger) == {"a": (3, 7)}


def test_a_new_incarnation_keeps_what_it_still_serves() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, A)
    request(ledger, B)
    assert join(ledger, "a", incarnation=SECOND, live=(B,), now_s=2) == []
    assert ledger.tick(2) == [Ended(A, "a", "node-lost")]
    assert free(ledger) == {"a": (3, 7)}


def test_a_node_that_shrank_keeps_the_oldest_leases() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, A, cores=2)
    request(ledger, B, cores=2)
    assert join(ledger, "a", incarnation=SECOND, cores=3, live=(B, A), now_s=2) == [B]
    assert ledger.tick(2) == [Ended(B, "a", "node-lost")]
    assert free(ledger) == {"a": (1, 7)}


def test_a_node_cannot_claim_anothers_lease() -> None:
    ledger = make(("a", 4, 8))
    request(ledger, A)
    assert join(ledger, "b", live=(A,)) == [A]
    assert ledger.leases(0)[0].node == "a"
    assert ledger.tick(0) == []


def test_a_lost_node_comes_back_without_its_leases() -> None:
    ledger = make(("a", 4, 8))
    request(ledger)
    ledger.lose("a", 1)
    assert join(ledger, "a", live=(A,), now_s=2) == [A]
    assert free(ledger) == {"a": (4, 8)}
    assert ledger.nodes(2)[0].state == "up"


def test_nodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "NODES_MAX", 2)
    ledger = make(("a", 4, 8), ("b", 4, 8))
    with pytest.raises(CapacityError, match="node c cannot join: 2 nodes are the most"):
        join(ledger, "c")
    assert join(ledger, "a", now_s=1) == []
    ledger.lose("a", 2)
    ledger.lose("b", 3)
    assert join(ledger, "c", now_s=4) == []
    assert ledger.names == {"a", "c"}  # b was silent for longer
    assert join(ledger, "d", now_s=5) == []
    assert ledger.names == {"c", "d"}


def test_a_node_without_cores_cannot_join() -> None:
    with pytest.raises(UsageError, match="0 cores cannot be"):
        join(make(), "a", cores=0)


# Restart


def restored(lease: str = A, **changes: object) -> Lease:
    fields: dict[str, object] = {
        "lease": lease,
        "client": "tester",
        "node": "a",
        "cores": 3,
        "memory_bytes": GIB,
        "isolation": "process",
        "duration_s": 60.0,
        "granted_at_s": -10.0,
        "ends_at_s": 50.0,
        "fence": 7,
    }
    return Lease(**(fields | changes))  # type: ignore[arg-type]


def restarted(*leases: Lease) -> Ledger:
    """A ledger of a manager that has just started with node a and these leases."""
    ledger = make()
    ledger.restore_node("a", "unix:/run/a", FIRST, 4, 8 * GIB, ("process",), 0)
    for lease in leases:
        ledger.restore_lease(lease, 0)
    return ledger


def test_a_restored_node_is_lost_until_it_joins() -> None:
    ledger = restarted(restored())
    assert ledger.nodes(0)[0].state == "lost"
    assert free(ledger) == {"a": (1, 7)}
    with pytest.raises(CapacityError, match="no node is up"):
        request(ledger, B)
    assert join(ledger, "a", live=(A,), now_s=1) == []
    assert ledger.tick(1) == []
    assert request(ledger, B, now_s=1) == "a"
    with pytest.raises(CapacityError):
        request(ledger, C, now_s=1)


def test_leases_of_a_restored_node_wait_for_it_so_long() -> None:
    ledger = restarted(restored())
    assert ledger.tick(2.999) == []
    assert ledger.tick(3) == [Ended(A, "a", "node-lost")]
    assert join(ledger, "a", live=(A,), now_s=4) == [A]


def test_a_restored_lease_can_be_renewed_before_its_node_is_back() -> None:
    ledger = restarted(restored())
    assert ledger.renew(A, 100, 1).fence == 8
    assert ledger.address("a") == "unix:/run/a"


def test_a_restored_lease_expires() -> None:
    ledger = restarted(restored(ends_at_s=0.5))
    assert ledger.tick(0.5) == [Ended(A, "a", "expired")]


def test_a_restored_lease_without_room_ends() -> None:
    ledger = restarted(restored(A), restored(B), restored(C, node="gone"))
    assert ledger.tick(0) == [Ended(B, "a", "node-lost"), Ended(C, "gone", "node-lost")]
    assert free(ledger) == {"a": (1, 7)}


def test_a_restored_ended_lease_takes_no_room() -> None:
    ledger = restarted(restored(state="released", ends_at_s=-5.0))
    assert free(ledger) == {"a": (4, 8)}
    assert [(one.state, one.age_s) for one in ledger.leases(0, all=True)] == [("released", 5)]
    assert not ledger.end(A, "expired", 1)


def test_fences_go_on() -> None:
    ledger = restarted(restored())
    ledger.restore_fence(41)
    join(ledger, "a")
    assert ledger.request("tester", 1, GIB, 60, "process", B, 0).fence == 42


# Reports


def test_pages() -> None:
    ledger = make(*((name, 1, 1) for name in "dbca"))
    assert [one.node for one in ledger.nodes(0, most=2)] == ["a", "b"]
    assert [one.node for one in ledger.nodes(0, after="b", most=2)] == ["c", "d"]
    for lease in (C, A, B):
        request(ledger, lease)
    ledger.end(B, "released", 0)
    assert [one.lease for one in ledger.leases(0, after=A)] == [C]
    assert [one.lease for one in ledger.leases(0, all=True, after=A, most=1)] == [B]
