"""Time, as something that is handed in.

Decisions in `core` get a `now_s` and never ask; the shells around them own a
`Clock`.  Tests move a `ManualClock` instead of sleeping.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a role gets its time from."""

    def monotonic_s(self) -> float:
        """Seconds that never go back; what leases and deadlines count in."""

    def wall_s(self) -> float:
        """Seconds since 1970; for people and bills, never for deadlines."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class Steps:
    """How long each step of something takes: `ns` by name, one after the other, from now on."""

    def __init__(self) -> None:
        self.ns: dict[str, int] = {}
        self._last = time.monotonic_ns()

    def done(self, step: str) -> None:
        """A step is done, which began when the one before was."""
        now = time.monotonic_ns()
        self.ns[step] = now - self._last
        self._last = now


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, monotonic_s: float = 1000.0, wall_s: float = 1.8e9) -> None:
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._wall_s

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone, as a person or NTP does."""
        self._wall_s += seconds

    def advance(self, seconds: float) -> None:
        self._monotonic_s += seconds
        self._wall_s += seconds
