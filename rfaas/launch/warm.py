"""Workers that wait for a lease, shut in already: what takes longest is done ahead of demand.

A waiting worker has seen nothing of anybody, serves one lease, and dies with it: no
memory of one lease comes before another.  How many wait and how long is bounded by
`sandbox.pool` and `sandbox.pool_age_s`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from rfaas.clock import Clock
from rfaas.config import SandboxConfig
from rfaas.errors import PeerLostError, RfaasError, SystemCallError
from rfaas.launch.output import Output
from rfaas.launch.workers import Spare, Zygote
from rfaas.proto.worker_messages import SpawnWorker

log = logging.getLogger("rfaas.executor")


class Warm:
    """The waiting workers of one level.

    Args:
        aloud: as for `Output`.
    """

    def __init__(self, node: SandboxConfig, zygote: Zygote, clock: Clock, *, aloud: bool) -> None:
        self._size = node.pool
        self._age_s = node.pool_age_s
        self._zygote = zygote
        self._clock = clock
        self._aloud = aloud
        self._level = ""  # none wait, as long as nobody wants one
        self._spares: list[Spare] = []
        self._filling: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def want(self, level: str) -> None:
        """Have workers of this level wait from now on."""
        self._level = level
        self._fill()

    async def take(self, order: SpawnWorker) -> Spare | None:
        """A waiting worker of that level with those limits, now the caller's; or None."""
        if order.gpus:  # it is shut in already, without them
            return None
        while order.isolation == self._level and self._spares:
            spare = self._spares.pop(0)
            try:
                await self._zygote.limit(spare.pid, order)
            except SystemCallError as error:  # it has died while it waited
                log.info("a worker that waited cannot be taken: %s", error.text)
                self._drop(spare)
            except BaseException:
                self._drop(spare)
                raise
            else:
                return spare
        return None

    def tick(self) -> None:
        """Replace those that have died or waited too long."""
        oldest_s = self._clock.monotonic_s() - self._age_s
        for spare in [one for one in self._spares if one.death.done() or one.since_s < oldest_s]:
            self._spares.remove(spare)
            self._drop(spare)
        self._fill()

    async def close(self) -> None:
        """Let go of them; they end with the zygote."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        self._size = 0
        spares, self._spares = self._spares, []
        for spare in spares:
            await spare.link.close()
            if spare.output is not None:
                spare.output.close()
        await asyncio.gather(*self._closing)

    def _fill(self) -> None:
        idle = self._filling is None or self._filling.done()
        if self._level and len(self._spares) < self._size and idle:
            self._filling = asyncio.get_running_loop().create_task(self._add())

    async def _add(self) -> None:
        while len(self._spares) < self._size:
            output = None
            try:
                output = Output(aloud=self._aloud)
                order = SpawnWorker(isolation=self._level)
                pid, death, link = await self._zygote.spawn(order, output.fd)
                output.started()
            except (RfaasError, OSError) as error:
                if output is not None:
                    output.close()
                log.info("no worker can wait for a lease: %s", error)
                return  # the next tick tries again
            except BaseException:
                if output is not None:
                    output.close()
                raise
            self._spares.append(Spare(pid, death, link, output, self._clock.monotonic_s()))

    def _drop(self, spare: Spare) -> None:
        if not spare.death.done():
            with suppress(PeerLostError):  # the zygote is gone, and it with it
                self._zygote.kill(spare.pid)
        if spare.output is not None:
            spare.output.close()
        task = asyncio.get_running_loop().create_task(spare.link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
