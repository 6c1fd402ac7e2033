"""Workers that outlive their lease: stopped, and handed to the next lease of their client.

What a lease had is gone with it: its rings and its counts are memory of its own, which the
worker has let go of, and the next lease brings new ones, all zero.  What stays is the
process: the library is loaded, and its state is as the last call has left it.  Who may have
it, and what goes first, is `core.keeping`'s to say.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from rfaas.clock import Clock
from rfaas.config import ExecutorConfig
from rfaas.control.aio import AsyncLink
from rfaas.core.keeping import Keeping, Shape
from rfaas.core.supervisor import LeaseOnNode
from rfaas.errors import PeerLostError, RfaasError
from rfaas.launch.node import memory_of
from rfaas.launch.workers import Spare, Zygote
from rfaas.proto.messages import StartWorker
from rfaas.proto.worker_messages import ProcessStopped, SpawnWorker
from rfaas.sandbox import stopping

LEVELS = ("none", "process", "sandbox")  # in others a program of C serves one lease and ends

_UCRED = struct.Struct("3i")  # process, user, group: unix(7)

log = logging.getLogger("rfaas.executor")


class Owner(NamedTuple):
    """Whose a lease is: the `name` that its link is authenticated by, "" where it is not, and
    the leases which were its own before, of which it gave proof."""

    name: str = ""
    former: frozenset[str] = frozenset()
    keeps: bool = True  # whether it has and leaves kept workers at all


def owner_of(
    link: AsyncLink, request: StartWorker, owns: Callable[[str, bytes, bytes], bool]
) -> Owner:
    """Whose the lease is that a worker is asked for.

    Args:
        owns: whether (a lease, a proof, the link's nonce) show that the lease is that client's.
    """
    if not request.keep_warm:
        return Owner(keeps=False)
    name = f"user {link.user}" if link.user else ""
    if not name and link.passes_fds:
        with socket.socket(fileno=os.dup(link.carrier.fileno())) as sock:
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        name = f"uid {_UCRED.unpack(peer)[1]}"
    shown = [one.lease for one in request.former if owns(one.lease, one.proof, link.nonce)]
    return Owner(name, frozenset(shown))


def shape_of(request: StartWorker, lease: LeaseOnNode, transport: str, *, ring_fed: bool) -> Shape:
    """What another lease must have in common with this one, to have its worker."""
    return Shape(
        sha256=request.sha256,
        isolation=lease.claims.isolation,
        transport=transport,
        ring_fed=ring_fed,
        lanes=len(lease.cpus),
        memory_bytes=lease.claims.memory_bytes,
        slots=request.slots,
        slot_bytes=request.slot_bytes,
    )


class Keep:
    """See the module's docstring; `cores` are those that the node lends."""

    def __init__(self, config: ExecutorConfig, cores: int, zygote: Zygote, clock: Clock) -> None:
        self._book = Keeping(cores, memory_of(config), config.keep_warm_s, config.keep_warm_max)
        self._zygote = zygote
        self._clock = clock
        self._kept: dict[int, tuple[Spare, ProcessStopped]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def wants(self, shape: Shape, owner: Owner) -> bool:
        """Whether a worker of that shape may outlive its lease."""
        return self._book.is_on and owner.keeps and shape.ring_fed and shape.isolation in LEVELS

    def add(
        self,
        number: int,
        spare: Spare,
        stopped: ProcessStopped,
        shape: Shape,
        owner: str,
        lease: str,
    ) -> None:
        """Keep a worker that has parted from its lease."""
        self._kept[number] = (spare, stopped)
        self._book.keep(number, shape, owner, lease, self._clock.monotonic_s())

    async def take(self, shape: Shape, owner: Owner, order: SpawnWorker) -> Spare | None:
        """A kept worker of that client and shape, which runs again and is the caller's; or None."""
        if not self.wants(shape, owner):
            return None
        now = self._clock.monotonic_s
        while (number := self._book.take(shape, owner.name, owner.former, now())) is not None:
            spare, stopped = self._kept.pop(number)
            is_stopped = stopping.is_stopped(stopped.stopped, stopped.cpu_ticks)
            if not is_stopped or spare.link.is_over:
                self._drop(spare)
                continue
            try:
                self._zygote.limit(spare.pid, order)
                await self._zygote.resume(spare.pid)
            except RfaasError as error:  # it has died meanwhile
                log.info("a worker that was kept cannot be taken: %s", error.text)
                self._drop(spare)
            except BaseException:
                self._drop(spare)
                raise
            else:
                return spare
        return None

    def tick(self, cores: int, memory_bytes: int) -> None:
        """Let go of those that are past their time, have died, or have used a processor, and of
        what is too much now that workers of leases use so many cores and bytes of memory."""
        for number, (spare, stopped) in list(self._kept.items()):
            dead = spare.death.done()
            if dead or not stopping.is_stopped(stopped.stopped, stopped.cpu_ticks):
                if not dead:
                    log.warning("worker %d was kept and ran all the same: it is ended", spare.pid)
                self._book.forget(number)
                del self._kept[number]
                self._drop(spare)
        for number in self._book.spare(cores, memory_bytes, self._clock.monotonic_s()):
            self._drop(self._kept.pop(number)[0])

    async def close(self) -> None:
        """Let go of them; they end with the zygote."""
        for number, (spare, _) in list(self._kept.items()):
            self._book.forget(number)
            await spare.link.close()
        self._kept.clear()
        await asyncio.gather(*self._closing)

    def _drop(self, spare: Spare) -> None:
        if not spare.death.done():
            with suppress(PeerLostError):  # the zygote is gone, and it with it
                self._zygote.kill(spare.pid)
        task = asyncio.get_running_loop().create_task(spare.link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
