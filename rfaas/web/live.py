"""What the dashboard shows, sent by the second to all who look.

The picture is taken once, whoever and however many look, and only while
somebody does; it is bounded, so that a cluster of thousands of nodes costs the
same as one of hundreds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from rfaas.web.server import STREAMS_MAX
from rfaas.web.view import Picture, View

NODES_MAX = 256
LEASES_MAX = 64  # those that end first, as far as LEASES_LOOKED_AT_MAX reach
LEASES_LOOKED_AT_MAX = 2048
EVENTS_MAX = 40
PERIOD_S = 1.0
FULL = b'event: full\ndata: {"code":"capacity","text":"too many look on already"}\n\n'


class Live:
    """The stream of pictures."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._watchers: set[asyncio.Queue[bytes]] = set()
        self._task: asyncio.Task[None] | None = None

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events for one who looks on, without an end."""
        if len(self._watchers) >= STREAMS_MAX:
            yield FULL
            return
        # One that is slow gets the newest picture, and never hears of those it missed.
        queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._watchers.add(queue)
        try:
            yield _event(self.picture())
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._paint())
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def close(self) -> None:
        """Stop painting; can be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def picture(self) -> Picture:
        """All of it, as of now."""
        view = self._view
        nodes = view.nodes("", NODES_MAX)
        status = view.status()
        totals, states = view.totals(), view.lease_states()
        leases = view.leases(False, "", LEASES_LOOKED_AT_MAX)
        soonest = sorted(leases, key=lambda lease: lease.remaining_s)[:LEASES_MAX]
        return Picture(
            at_s=view.wall_s(),
            status=status,
            nodes=nodes,
            hot=view.meters.hot,
            leases=soonest,
            nodes_more=max(0, totals.up + totals.lost - NODES_MAX),
            leases_more=max(0, states["live"] + states["terminating"] - len(soonest)),
            samples=list(view.meters.samples),
            events=view.events_after(-EVENTS_MAX),
        )

    async def _paint(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if not self._watchers:
                self._task = None
                return
            data = _event(self.picture())
            for queue in self._watchers:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(data)


def _event(picture: Picture) -> bytes:
    return b"event: picture\ndata: " + msgspec.json.encode(picture) + b"\n\n"
