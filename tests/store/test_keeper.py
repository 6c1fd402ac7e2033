"""The keeper: what the ledger forgets, the store forgets with the next save."""

from __future__ import annotations

import pytest

from rfaas.clock import ManualClock
from rfaas.core import book
from rfaas.core.ledger import Ledger
from rfaas.store import NodeRecord
from rfaas.store.keeper import Keeper
from rfaas.store.sqlite import SqliteStore


def test_a_node_that_makes_room_leaves_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "NODES_MAX", 2)
    ledger, store = Ledger(1.0, 5, 60.0), SqliteStore(":memory:")
    keeper = Keeper(ledger, store, ManualClock())

    def join(name: str, now_s: float) -> None:
        ledger.join(name, "unix:/run/n", "1" * 32, 4, 8, ("process",), (), now_s)
        keeper.mark_node(
            NodeRecord(
                node=name,
                address="unix:/run/n",
                incarnation="1" * 32,
                cores=4,
                memory_bytes=8,
                isolation=("process",),
                key=bytes(32),
            )
        )
        keeper.save()

    join("a", 1)
    join("b", 2)
    ledger.lose("a", 3)
    join("c", 4)
    assert [node.node for node in store.load().nodes] == ["b", "c"]
    assert keeper.node("a") is None
    join("b", 5)
    assert [node.node for node in store.load().nodes] == ["b", "c"]
    store.close()
