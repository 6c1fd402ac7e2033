"""Whose turn it is on a processor that workers of several leases share: a lock for each.

A lane may call only while it holds the lock of its processor (flock(2), native/lane.c), which
the kernel takes from it when its process is gone, however it ends.  Each lane gets an open file
of its own, of its own processor, of a file that is sealed against everything: what it can do
to others is to hold that lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from rfaas.transport import ring


class Turns:
    """The locks of a node's shared cores, made as they are needed; `close` them."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}

    def open(self, places: Iterable[int]) -> list[int]:
        """A descriptor of the lock of each core, the caller's to close."""
        opened: list[int] = []
        try:
            for place in places:
                if place not in self._files:
                    self._files[place] = ring.sealed(f"rfaas-turn-{place}", [], 0, never=True)
                # By its name: a lock belongs to an open file, so each lane has one of its own.
                path = f"/proc/self/fd/{self._files[place]}"
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    def close(self) -> None:
        """Can be called twice; who holds a lock keeps it until it is gone."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
