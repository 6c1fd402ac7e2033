"""The stream of events: order, bounds, who listens."""

from __future__ import annotations

from rfaas.core.events import EVENTS_KEPT_MAX, Event, Events


def test_events_are_numbered_and_told_in_order() -> None:
    events, heard = Events(), list[Event]()
    end = events.subscribe(heard.append)
    events.emit("node-joined", 1.5, node="a", cores=4)
    events.emit("lease-granted", 2.5, node="a", lease="f" * 32, client="me", cores=2)
    end()
    end()
    events.emit("node-lost", 3.5, node="a")
    assert [(one.number, one.kind, one.at_s) for one in heard] == [
        (1, "node-joined", 1.5),
        (2, "lease-granted", 2.5),
    ]
    assert [one.kind for one in events.since(1)] == ["lease-granted", "node-lost"]


def test_no_more_than_so_many_are_kept() -> None:
    events = Events()
    for _ in range(EVENTS_KEPT_MAX + 1):
        events.emit("node-joined", 0.0)
    kept = events.since(0)
    assert (len(kept), kept[0].number) == (EVENTS_KEPT_MAX, 2)
