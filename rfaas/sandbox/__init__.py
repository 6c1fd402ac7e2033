"""Isolation of workers: one file per level, one interface.

A level is entered by the worker itself, after its link and descriptors are
there and before a byte of the library is looked at.  What a level cannot hold
it refuses: it is never lowered.
"""

from __future__ import annotations

from typing import Protocol

from rfaas.errors import UsageError
from rfaas.sandbox import process


class Level(Protocol):
    """One level of isolation.

    `trusted`: whether the worker may own what the lease is measured and reached by (its NIC's
    connection, its accounting).  Where it may not, an endpoint process beside it does.
    """

    name: str
    trusted: bool

    def enter(self, memory_bytes: int, lanes: int) -> None:
        """Confine the calling process for good; it will run so many threads of lanes.

        Raises:
            SystemCallError: a part of the level cannot be had here.
        """


LEVELS: dict[str, Level] = {process.LEVEL.name: process.LEVEL}


def level(name: str) -> Level:
    """The level called `name`."""
    found = LEVELS.get(name)
    if found is None:
        raise UsageError(
            f"isolation level {name!r} is not available on this node",
            hint=f"it has {', '.join(LEVELS)}",
        )
    return found
