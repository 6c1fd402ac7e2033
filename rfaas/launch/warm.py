"""Workers that wait for a lease, shut in already: what takes longest is done ahead of demand.

A waiting worker has seen nothing of anybody, serves one lease, and dies with it: no
memory of one lease comes before another.  How many wait of each level and how long is
bounded by `sandbox.pool` and `sandbox.pool_age_s`.
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

LEVELS = ("none", "process", "sandbox")  # in others another program starts with its lease
REFILL_S = 0.0005  # after a lease has begun: its first call comes before the fork of the next

log = logging.getLogger("rfaas.executor")


class Warm:
    """The waiting workers of a node.

    Args:
        private: for one client, who may want no second lease: none waits before he does.  What
            they write is passed on to our own stderr.
    """

    def __init__(self, node: SandboxConfig, zygote: Zygote, clock: Clock, *, private: bool) -> None:
        self._size = node.pool
        self._age_s = node.pool_age_s
        self._zygote = zygote
        self._clock = clock
        self._private = private
        self._wanted: set[str] = set()  # levels that leases have wanted
        self._until_s: dict[str, float] = {}  # until when workers of a level wait
        self._spares: dict[str, list[Spare]] = {level: [] for level in LEVELS}
        self._filling: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def want(self, level: str, *, always: bool = False) -> None:
        """Have workers of this level wait, until no lease has wanted one for `sandbox.pool_age_s`.

        Args:
            always: whether anybody wants them or not.
        """
        is_first = level not in self._wanted
        self._wanted.add(level)
        if level in LEVELS and not (self._private and is_first):
            until_s = float("inf") if always else self._clock.monotonic_s() + self._age_s
            self._until_s[level] = max(until_s, self._until_s.get(level, 0.0))
            self._fill()

    def take(self, order: SpawnWorker) -> Spare | None:
        """A waiting worker of that level with those limits, now the caller's; or None."""
        if order.gpus:  # it is shut in already, without them
            return None
        spares = self._spares.get(order.isolation, [])
        while spares:
            spare = spares.pop(0)
            try:
                self._zygote.limit(spare.pid, order)
            except SystemCallError as error:
                log.info("a worker that waited cannot be taken: %s", error.text)
            else:
                if not spare.link.is_over:
                    return spare
            self._drop(spare)  # it has died while it waited
        return None

    def tick(self) -> None:
        """Replace those that have died or waited too long."""
        oldest_s = self._clock.monotonic_s() - self._age_s
        for spares in self._spares.values():
            for spare in [one for one in spares if one.death.done() or one.since_s < oldest_s]:
                spares.remove(spare)
                self._drop(spare)
        self._fill()

    async def close(self) -> None:
        """Let go of them; they end with the zygote."""
        self._size = 0
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        for spares in self._spares.values():
            while spares:
                spare = spares.pop()
                await spare.link.close()
                if spare.output is not None:
                    spare.output.close()
        await asyncio.gather(*self._closing)

    def _short(self) -> str | None:
        """A level of which too few wait."""
        now_s = self._clock.monotonic_s()
        for level, until_s in self._until_s.items():
            if now_s < until_s and len(self._spares[level]) < self._size:
                return level
        return None

    def _fill(self) -> None:
        idle = self._filling is None or self._filling.done()
        if idle and self._short() is not None:
            self._filling = asyncio.get_running_loop().create_task(self._add())

    async def _add(self) -> None:
        await asyncio.sleep(REFILL_S)
        while (level := self._short()) is not None:
            output = None
            try:
                output = Output(aloud=self._private)
                order = SpawnWorker(isolation=level)
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
            spare = Spare(pid, death, link, output, self._clock.monotonic_s())
            self._spares[level].append(spare)

    def _drop(self, spare: Spare) -> None:
        if not spare.death.done():
            with suppress(PeerLostError):  # the zygote is gone, and it with it
                self._zygote.kill(spare.pid)
        if spare.output is not None:
            spare.output.close()
        task = asyncio.get_running_loop().create_task(spare.link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
