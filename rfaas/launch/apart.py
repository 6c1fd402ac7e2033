"""A worker apart from its NIC: the executor's view of the pair of worker and endpoint.

Two processes are one `WorkerProcess` to the pool: they start together, each ends
with the other, and the pool hears of a death when both are gone, so that what was
counted is final and the cores are free.

    worker dies      its rings are marked as ended: the endpoint answers what is in
                     flight; then its link is closed, and it goes; killed if it does not
    endpoint dies    the worker is killed
    lease over       a worker that is kept parts from its endpoint
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from msgspec.structs import replace

from rfaas.control.aio import AsyncLink
from rfaas.errors import InternalError, PeerLostError, WorkerCrashedError, from_wire
from rfaas.launch.deaths import exit_text
from rfaas.launch.endpoint import NONSENSE_STATUS
from rfaas.launch.workers import WorkerProcess, Zygote
from rfaas.proto.messages import Endpoint, Error
from rfaas.proto.worker_messages import (
    LoadLibrary,
    RingsServed,
    ServeRings,
    SpawnWorker,
    WorkerDied,
)
from rfaas.transport import ring

LEVEL = "none"  # of isolation: nothing of the client's runs there
FAREWELL_S = 1.0  # for an endpoint whose worker is dead to answer and go; it needs milliseconds


class WorkerApart(WorkerProcess):
    """See the module's docstring.

    Args:
        partners: the processor for an endpoint's lane beside that of a worker's lane.  Where
            one is missing, all of them share the worker's processors and give way to it.
    """

    def __init__(
        self, number: int, lanes: int, slots: int, slot_bytes: int, partners: Mapping[int, int]
    ) -> None:
        super().__init__(number, lanes, slots, slot_bytes)
        self._partners = partners
        self._feeder = EndpointProcess()
        self._worker_death: WorkerDied | None = None
        self._is_over = False
        self._parting: asyncio.Event | None = None  # set when the endpoint of one kept is gone
        self._died: Callable[[WorkerDied | None], None] = lambda _: None

    async def start(
        self,
        zygote: Zygote,
        order: SpawnWorker,
        task: LoadLibrary,
        library_fd: int,
        died: Callable[[WorkerDied | None], None],
    ) -> None:
        """Fork both; `died` gets the worker's death, when both are gone."""
        self._died = died
        self._make_memory()
        shares = not all(cpu in self._partners for cpu in task.cpus)
        serve = ServeRings(
            ring_bytes=task.ring_bytes,
            cpus=task.cpus if shares else tuple(self._partners[cpu] for cpu in task.cpus),
            hot_timeout_ms=task.hot_timeout_ms,
            host=task.host,
            shares=shares,
            counts=task.counts,
            turns=task.turns > 0,
        )
        # On one processor both cannot spin: the worker sleeps at once, its endpoint is hot.
        hot_timeout_ms = 0 if shares else task.hot_timeout_ms
        alone = replace(task, transport="shm", host="", counts=None, hot_timeout_ms=hot_timeout_ms)
        fds = [self.rings_fd, self._account_fd]
        feeding = asyncio.get_running_loop().create_task(
            self._feeder.start(zygote, serve, fds, lambda death: self._feeder_died(zygote, death))
        )
        scratch = ring.create_account(self.lanes)  # the worker's own counts bill nobody
        try:
            fds = [library_fd, self.rings_fd, scratch]
            await self._load(zygote, order, alone, fds, self._worker_died)
            self.endpoint = await feeding
            self.steps.done("endpoint")  # how long it took longer than its worker
        finally:
            os.close(scratch)
            feeding.cancel()
            with suppress(asyncio.CancelledError, Exception):  # the first error is the one to tell
                await feeding

    async def _part(self) -> None:
        """The endpoint answers what is in flight and goes; the next lease has another one."""
        self._parting = asyncio.Event()
        self.end_rings()
        self._feeder.finish()
        if not self._feeder.is_gone:
            await self._parting.wait()

    def _worker_died(self, death: WorkerDied | None) -> None:
        self._worker_death, self._is_over = death, True
        self.end_rings()
        self._feeder.finish()
        self._look()

    def _feeder_died(self, zygote: Zygote, death: WorkerDied | None) -> None:
        if self._parting is not None:
            self._parting.set()
        elif not self._is_over:
            self.epitaph = (
                "the worker was stopped: it answered what it was never asked"
                if death and death.status == NONSENSE_STATUS << 8
                else f"the worker's endpoint died: {exit_text(death)}"
                if death
                else ""
            )
            self.doomed = True
            if self.pid:
                zygote.kill(self.pid)
        self._look()

    def _look(self) -> None:
        if self._is_over and self._feeder.is_gone:
            self._died(self._worker_death)

    async def close(self) -> None:
        """Let go of the memory and the links; an endpoint whose worker was never forked goes."""
        self._feeder.finish()
        await self._feeder.close()
        await super().close()


class EndpointProcess:
    """The endpoint of one worker; `is_gone` also while it was never forked."""

    def __init__(self) -> None:
        self.is_gone = True
        self.pid = 0
        self._link: AsyncLink | None = None
        self._kill: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._finished = False

    async def start(
        self,
        zygote: Zygote,
        task: ServeRings,
        fds: list[int],
        died: Callable[[WorkerDied | None], None],
    ) -> Endpoint:
        """Fork it and have it serve the rings; returns where it listens.

        Raises:
            RfaasError: what it said, or that it died.
        """

        def ended(death: asyncio.Future[WorkerDied]) -> None:
            self.is_gone = True
            if self._timer is not None:
                self._timer.cancel()
            died(None if death.exception() else death.result())

        self.is_gone = False
        try:
            self.pid, death, self._link = await zygote.spawn(SpawnWorker(isolation=LEVEL))
        except BaseException:
            self.is_gone = True
            raise
        self._kill = lambda: zygote.kill(self.pid)
        death.add_done_callback(ended)
        if self._finished:
            self._kill()
        self._link.send(task, fds)
        message = await self._link.receive()
        match message:
            case RingsServed():
                return message.endpoint
            case Error():
                raise from_wire(message.code, message.text, message.hint)
            case None:
                raise WorkerCrashedError("the worker's endpoint died while it started")
        raise InternalError(f"the endpoint sent {type(message).__name__}")

    def finish(self) -> None:
        """Have it answer what is in flight and end; it is killed if it takes too long."""
        if self._finished:
            return
        self._finished = True
        if self._link is not None and not self.is_gone:
            loop = asyncio.get_running_loop()
            self._closing = loop.create_task(self._link.close())
            self._timer = loop.call_later(FAREWELL_S, self._overdue)

    async def close(self) -> None:
        """Let go of its link."""
        if self._closing is not None:
            await self._closing
        elif self._link is not None:
            await self._link.close()

    def _overdue(self) -> None:
        with suppress(PeerLostError):  # the zygote is gone, and it with it
            self._kill()
