"""The book: what is kept of nodes and leases stays bounded, and what was interrupted counted."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from rfaas.core.book import Book
from rfaas.core.ledger import Ledger

GIB = 1 << 30


def make() -> Ledger:
    ledger = Ledger(1.0, 3, 3600)
    join(ledger, 0)
    return ledger


def join(ledger: Ledger, now_s: float) -> None:
    ledger.join("a", "unix:/a", "1" * 32, 4, GIB, ("process",), (), now_s)


def test_a_node_that_comes_and_goes_is_watched_once() -> None:
    """Each return of a node left a deadline of its silence behind, looked at for ever."""
    ledger = make()
    for number in range(100):
        ledger.lose("a", number / 10)
        join(ledger, number / 10)
        ledger.tick(number / 10)
        assert len(ledger._silences) == 1
    for now_s in (11.0, 12.0, 12.8):
        ledger.tick(now_s)
    assert ledger.node_report("a", 12.8).state == "up"
    ledger.tick(12.9)
    assert ledger.node_report("a", 12.9).state == "lost"
    assert ledger._silences == []
    join(ledger, 13)
    for now_s in (14.0, 15.0, 16.0):
        ledger.tick(now_s)
    assert ledger.node_report("a", 16).state == "lost", "watched again"


class Interrupted(BaseException):
    """As Ctrl-C and a test's time limit are: raised between any two instructions."""


def test_what_is_interrupted_as_it_is_entered_can_still_be_closed() -> None:
    """A lease that was there and not counted made `_close` fail with a KeyError, of its account."""
    code, steps = Book._enter.__code__, 0

    def interrupt(after: int) -> Any:
        left = after

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code is not code:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left < 0:
                    raise Interrupted
            return trace

        return trace

    for steps in range(1000):
        ledger, before = make(), sys.gettrace()
        sys.settrace(interrupt(steps))
        try:
            ledger.request("bob", 1, 1, 60.0, "process", f"{1:032x}", 0)
        except Interrupted:
            pass
        else:
            break
        finally:
            sys.settrace(before)
        for lease in ledger.leases(0):
            assert ledger.end(lease.lease, "released", 0)
    assert 20 < steps < 1000
