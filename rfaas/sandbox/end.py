"""How a worker ended, as its level tells the zygote."""

from __future__ import annotations

from typing import NamedTuple


class End(NamedTuple):
    """The worker's own wait status, where another process was only its keeper.

    `why` is the limit that it ran into, in words, or ""; `cpu_ns` the processor time of all that
    it started.
    """

    status: int
    why: str = ""
    cpu_ns: int = 0
