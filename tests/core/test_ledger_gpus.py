"""GPUs in the ledger: who gets how many, of which nodes, and what a refusal says."""

from __future__ import annotations

from itertools import count

import pytest

from rfaas.core.lease import Ask, Lease, Placement
from rfaas.core.ledger import Ledger, Quota
from rfaas.core.placement import ALL
from rfaas.errors import CapacityError, UsageError

MIB = 1 << 20
NUMBERS = count(1)


def make(*nodes: tuple[int, int], quota: Quota | None = None) -> Ledger:
    """A ledger with nodes a, b, ... of so many cores and GPUs, and 64 MiB each."""
    ledger = Ledger(1.0, 3, 3600, quota=quota or Quota(), new_id=lambda: f"{next(NUMBERS):032x}")
    for name, (cores, gpus) in zip("abcdefgh", nodes, strict=False):
        ledger.join(name, "unix:/n", "1" * 32, cores, 64 * MIB, ("process",), (), 0, gpus)
    return ledger


def ask(cores: int, gpus: int, placement: Placement = "pack", wait_s: float = 0.0) -> Ask:
    return Ask(
        lease=f"{next(NUMBERS):032x}",
        client="ann@here:1",
        account="ann",
        cores=cores,
        memory_bytes=MIB,
        duration_s=60.0,
        isolation="process",
        placement=placement,
        wait_s=wait_s,
        gpus=gpus,
    )


def granted(ledger: Ledger, wanted: Ask) -> Lease:
    lease = ledger.ask(wanted, 0)
    assert lease is not None
    return lease


def parts(ledger: Ledger, wanted: Ask) -> dict[str, tuple[int, int]]:
    found = ledger.parts(granted(ledger, wanted))
    return {part.node: (part.cores, part.gpus) for part in found}


def test_who_needs_none_leaves_them_to_others() -> None:
    """Also where the node without is larger; and the fewest that do are taken."""
    ledger = make((2, 4), (8, 0), (2, 1))
    assert parts(ledger, ask(2, 0)) == {"b": (2, 0)}
    assert parts(ledger, ask(1, 1)) == {"c": (1, 1)}
    assert parts(ledger, ask(1, 1)) == {"a": (1, 1)}
    assert parts(ledger, ask(6, 0)) == {"b": (6, 0)}
    assert parts(ledger, ask(1, 0)) == {"c": (1, 0)}
    assert [(one.gpus, one.gpus_free) for one in ledger.nodes(0)] == [(4, 3), (0, 0), (1, 0)]
    assert ledger.totals()[4:] == (5, 3)


def test_over_several_nodes_they_go_by_cores() -> None:
    """4 cores and 2 GPUs are two units of 2 cores and 1 GPU."""
    assert parts(make((3, 1), (8, 0), (5, 1)), ask(4, 2)) == {"c": (2, 1), "a": (2, 1)}
    spread = make((8, 4), (8, 4), (8, 1))
    assert parts(spread, ask(6, 3, "spread")) == {"a": (2, 1), "b": (2, 1), "c": (2, 1)}
    with pytest.raises(CapacityError, match="cannot lease 3 cores, 2 GPUs and 1 MiB"):
        make((4, 1), (4, 1)).ask(ask(3, 2), 0)  # one unit: it stays together


def test_whole_nodes() -> None:
    ledger = make((4, 0), (4, 2))
    assert parts(ledger, ask(ALL, 1)) == {"b": (4, 1)}
    with pytest.raises(CapacityError, match="all cores of a node, 1 GPU and"):
        ledger.ask(ask(ALL, 1), 0)


def test_they_are_free_when_the_lease_ends_and_whoever_waits_gets_them() -> None:
    ledger = make((4, 1))
    first = granted(ledger, ask(1, 1))
    waits = ask(1, 1, wait_s=9)
    assert ledger.ask(waits, 0) is None
    assert ledger.settle(1) == []
    ledger.end(first.lease, "released", 1)
    (settled,) = ledger.settle(1)
    assert settled.granted is not None
    assert (settled.granted.lease, settled.granted.gpus) == (waits.lease, 1)


def test_refusals_say_what_there_is() -> None:
    with pytest.raises(CapacityError, match="no node that offers isolation 'process' lends a GPU"):
        make((4, 0)).ask(ask(1, 1), 0)
    ledger = make((16, 0), (4, 2), (4, 2))
    with pytest.raises(CapacityError) as large:
        ledger.ask(ask(1, 3, "node"), 0)
    assert "has 4 of 4 cores, 2 of 2 GPUs and 64 MiB of 64 MiB free" in large.value.text
    assert large.value.hint == (
        "no node is that large, busy or not; ask for at most 4 cores, 2 GPUs and 64 MiB"
    )
    with pytest.raises(CapacityError, match="together have 24 cores and 4 GPUs free"):
        ledger.ask(ask(5, 5), 0)
    granted(ledger, ask(2, 4))
    with pytest.raises(CapacityError, match="0 of 2 GPUs") as busy:
        ledger.ask(ask(1, 1), 0)
    assert busy.value.hint == "busy now; ask again when a lease has ended"


def test_a_bound_for_each_client() -> None:
    ledger = make((8, 4), quota=Quota(gpus_max=2))
    lease = granted(ledger, ask(1, 2))
    with pytest.raises(CapacityError, match="cannot lease 1 GPUs: ann holds 2 of the 2 that one"):
        ledger.ask(ask(1, 1), 0)
    granted(ledger, ask(1, 0))
    ledger.end(lease.lease, "released", 0)
    granted(ledger, ask(1, 1))


@pytest.mark.parametrize("gpus", [-1, 4097])
def test_what_no_node_can_have(gpus: int) -> None:
    with pytest.raises(UsageError, match=f"{gpus} GPUs cannot be, 0 to 4096 are allowed"):
        make((4, 1)).ask(ask(1, gpus), 0)
