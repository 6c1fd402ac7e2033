"""Worker processes as the executor sees them: spawn, load, watch, end.

A worker's memory is made here: its rings, which the client maps, and its
accounting page, which nobody but it and we ever see.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from msgspec.structs import replace

from rfaas.clock import Steps
from rfaas.control.aio import AsyncLink, no_silent_end
from rfaas.core.accounting import Counts, counts_of, summed, usage_of
from rfaas.errors import (
    ConfigError,
    DeviceError,
    InternalError,
    LibraryError,
    PeerLostError,
    ProtocolError,
    RfaasError,
    SystemCallError,
    WorkerCrashedError,
    from_wire,
)
from rfaas.launch.accounts import Account
from rfaas.launch.deaths import exit_text
from rfaas.launch.meter import Meter
from rfaas.launch.output import Output
from rfaas.native._worker import end_ring
from rfaas.paths import system_text
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint, Error, Usage
from rfaas.proto.worker_messages import (
    KillWorker,
    Lack,
    LanesLeft,
    LeaveLanes,
    LevelsFound,
    LibraryLoaded,
    Limits,
    LoadLibrary,
    Places,
    ProcessResumed,
    ProcessStopped,
    ResumeProcess,
    SpawnWorker,
    StopProcess,
    WorkerDied,
    WorkerSpawned,
)
from rfaas.sandbox import KEPT, cgroups
from rfaas.transport import ring

SAID = frozenset(  # kinds of error that a worker tells of
    kind.code for kind in (ConfigError, DeviceError, LibraryError, ProtocolError, SystemCallError)
)
CLOSE_TIMEOUT_S = 2.0  # for the zygote to end its workers; it needs a few milliseconds
CLOSE_POLL_S = 0.002
ZYGOTE_GONE = "the zygote is gone: no worker can be started"


class Zygote:
    """The executor's side of the zygote (`launch/zygote.py`).

    `lost` is called once, with why, if it dies before it was closed.
    """

    def __init__(self, pid: int, sock: socket.socket, lost: Callable[[str], None]) -> None:
        self._pid = pid
        self._groups = ""  # how the names of its control groups begin
        with suppress(OSError):  # it is gone already, and has made none
            self._groups = cgroups.name_of(pid)
        self._link = AsyncLink(sock, "the zygote")
        self._lost = lost
        self._asking: dict[int, asyncio.Future[Any]] = {}  # what was asked, by its id
        self._deaths: dict[int, asyncio.Future[WorkerDied]] = {}
        self._places = Places({}, {})
        self.groups: dict[int, cgroups.Group] = {}  # of workers that have some, by process id
        self._levels: asyncio.Future[dict[str, tuple[Lack, ...]]]
        self._levels = asyncio.get_running_loop().create_future()
        self._next_id = 0
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def levels(self) -> dict[str, tuple[Lack, ...]]:
        """The levels of isolation that there are, and what each lacks on this node."""
        return await asyncio.shield(self._levels)

    async def spawn(
        self, order: SpawnWorker, output_fd: int = 2
    ) -> tuple[int, asyncio.Future[WorkerDied], AsyncLink]:
        """A new worker: its process id, the future of its death, and its link.

        What it writes goes to `output_fd`, which stays the caller's.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        link = AsyncLink(ours, "a worker")
        try:
            with theirs:
                answer = self._ask(order, [theirs.fileno(), output_fd])
            pid, death = await answer
        except BaseException:
            await link.close()
            raise
        return pid, death, link

    def limit(self, pid: int, order: SpawnWorker) -> None:
        """Give a worker that waited, or was kept, the limits of its lease.

        Raises:
            SystemCallError: they cannot be set: it is gone.
        """
        try:
            if pid in self.groups:
                self.groups[pid].limit(order.limits, order.cpus)
        except OSError as error:
            raise SystemCallError(f"cannot limit a worker: {system_text(error)}") from None

    async def resume(self, pid: int) -> None:
        """Let a worker that was stopped go on.

        Raises:
            SystemCallError: it is gone.
        """
        await self._ask(ResumeProcess(pid=pid))

    async def stop(self, pid: int) -> ProcessStopped:
        """Stop all threads of a worker that is kept.

        Raises:
            SystemCallError: it cannot be, or it is not alone.
        """
        stopped: ProcessStopped = await self._ask(StopProcess(pid=pid))
        return stopped

    def _ask(
        self, order: SpawnWorker | ResumeProcess | StopProcess, fds: Sequence[int] = ()
    ) -> asyncio.Future[Any]:
        self._next_id += 1
        answer = self._asking[self._next_id] = asyncio.get_running_loop().create_future()
        self._link.send(replace(order, id=self._next_id), fds)
        return answer

    def kill(self, pid: int) -> None:
        """Kill a worker and what it started; its death comes as an event."""
        self._link.send(KillWorker(pid=pid))

    async def close(self) -> None:
        """End the zygote, and with it every worker, and wait for it."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._link.close()
        if not await _within(lambda: os.waitpid(self._pid, os.WNOHANG)[0] != 0):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)  # noqa: ASYNC222 - it was killed
        # A zygote that was killed has removed no groups; its workers are about to be gone.
        if self._groups:
            places, _ = cgroups.find()
            await _within(lambda: not cgroups.sweep(places, self._groups))

    async def _read(self) -> None:
        with no_silent_end("the link to the zygote", lambda _: None):  # what follows is the same
            await self._read_all()
        error = InternalError(ZYGOTE_GONE)
        waiting = [*self._asking.values(), *self._deaths.values()]
        if not self._levels.done():
            self._levels.set_exception(error)
            self._levels.exception()  # who asks for it later hears it all the same
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        self._lost(ZYGOTE_GONE)

    async def _read_all(self) -> None:
        while (message := await self._link.receive()) is not None:
            match message:
                case LevelsFound():
                    self._places = message.places
                    self._levels.set_result(message.levels)
                case WorkerSpawned():
                    death = asyncio.get_running_loop().create_future()
                    self._deaths[message.pid] = death
                    if message.group:
                        self.groups[message.pid] = cgroups.Group(self._places, message.group)
                    _answer(self._asking.pop(message.id), (message.pid, death))
                case ProcessResumed() | ProcessStopped():
                    _answer(self._asking.pop(message.id), message)
                case Error() if message.id in self._asking:
                    error = from_wire(message.code, message.text, message.hint)
                    _answer(self._asking.pop(message.id), error)
                case WorkerDied():
                    self.groups.pop(message.pid, None)
                    _tell(self._deaths.pop(message.pid), message)


def _answer(asked: asyncio.Future[Any], answer: object) -> None:
    """Who asked may have gone."""
    if asked.done():
        return
    if isinstance(answer, RfaasError):
        asked.set_exception(answer)
    else:
        asked.set_result(answer)


def _tell(death: asyncio.Future[WorkerDied], message: WorkerDied) -> None:
    """A worker's death is told once, by its keeper or by the zygote."""
    if not death.done():
        death.set_result(message)


async def _within(look: Callable[[], bool]) -> bool:
    """Whether `look` returns true within CLOSE_TIMEOUT_S."""
    for _ in range(round(CLOSE_TIMEOUT_S / CLOSE_POLL_S)):
        if look():
            return True
        await asyncio.sleep(CLOSE_POLL_S)
    return False


class Spare(NamedTuple):
    """A worker process without a lease: it waits in the pool, or was kept, without an output."""

    pid: int
    death: asyncio.Future[WorkerDied]
    link: AsyncLink
    output: Output | None
    since_s: float


class WorkerProcess:
    """A worker and its memory; made by `start_worker`, to be closed once it is dead."""

    def __init__(self, number: int, lanes: int, slots: int, slot_bytes: int) -> None:
        self.number = number
        self.lanes = lanes
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.ring_bytes = wire.ring_bytes(slots, slot_bytes)
        self.windows_bytes = 0  # of its rings, where a NIC may lock them
        self.pid = 0
        self.limits = Limits()
        self.doomed = False  # to be killed as soon as it is there
        self.epitaph = ""  # what it died of, if its wait status does not tell
        self.output: Output | None = None  # where what it writes goes, lent until it is gone
        self.spare: Spare | None = None  # the process that waited for this, or was kept
        self.was_kept = False
        self.turns: list[int] = []  # of its lanes, until it has them
        self.functions: list[str] = []
        self.endpoint: Endpoint | None = None
        self.steps = Steps()  # of its start, in the executor; the one who was asked began it
        self._own_steps_ns: dict[str, int] = {}  # of that, its own
        self.rings_fd = -1
        self.account: Account | None = None  # what it tells over RDMA, lent by the pool
        self.meter: Meter | None = None  # where its function may be a stranger's
        self._account_fd = -1
        self._link: AsyncLink | None = None
        self._death: asyncio.Future[WorkerDied] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._left: asyncio.Future[None] | None = None  # it has left its lanes
        self._told: Callable[[asyncio.Future[WorkerDied]], None] = lambda _: None
        self.gone = asyncio.Event()  # set by the executor when all that follows is done

    async def start(
        self,
        zygote: Zygote,
        order: SpawnWorker,
        task: LoadLibrary,
        library_fd: int,
        died: Callable[[WorkerDied | None], None],
    ) -> None:
        """Fork the process and have it load the library; `died` gets its death, or
        None where the zygote is gone.

        Raises:
            RfaasError: what the worker said.
            WorkerCrashedError: it died instead.
        """
        self._make_memory()
        await self._load(zygote, order, task, [library_fd, self.rings_fd, self._account_fd], died)

    def _make_memory(self) -> None:
        self.rings_fd = ring.create(self.lanes, self.slots, self.slot_bytes)
        self._account_fd = ring.create_account(self.lanes)

    async def _load(
        self,
        zygote: Zygote,
        order: SpawnWorker,
        task: LoadLibrary,
        fds: list[int],
        died: Callable[[WorkerDied | None], None],
    ) -> None:
        fds = [*fds, *self.turns]
        self.limits = order.limits
        if self.spare is not None:
            self.pid, self._death, self._link, *_ = self.spare
        else:
            output_fd = self.output.fd if self.output else 2
            self.pid, self._death, self._link = await zygote.spawn(order, output_fd)
        is_kept = order.isolation in KEPT
        if self.meter is not None:
            group = zygote.groups.get(self.pid)
            # A keeper and its engine are ours: without a group, it says what is not.
            pid = 0 if is_kept else self.pid
            self.meter.follow(pid, group.cpu_file if group else "", waited=self.spare is not None)
        self._told = lambda death: self._ended(death, died)
        self._death.add_done_callback(self._told)
        if self.doomed:
            zygote.kill(self.pid)
        if self.output and self.output.fd >= 0 and self.spare is not None:  # it was kept
            fds = [*fds, self.output.fd]
        # Before it is sent: the worker's own steps are then surely part of the next one.
        self.steps.done("hand_over" if self.spare is not None else "fork")
        self._link.send(task, fds)
        self._drop_turns()
        if self.output:
            self.output.started()
        while (message := await self._link.receive()) is not None:
            match message:
                case Error():
                    # A constructor may say it too, and must not say what we would act upon.
                    code = message.code if is_kept or message.code in SAID else LibraryError.code
                    raise from_wire(code, message.text, message.hint)
                case LibraryLoaded():
                    self._take(message)
                    if self.meter is not None and is_kept:
                        self.meter.follow(message.inside)
                    if not message.more:
                        self.steps.done("wake")
                        own_ns = sum(self._own_steps_ns.values())  # as it says itself
                        self.steps.ns["wake"] -= min(own_ns, self.steps.ns["wake"])
                        listen = self._listen(self._link, zygote, is_kept=is_kept)
                        self._listening = asyncio.create_task(listen)
                        return
                    await asyncio.sleep(0)  # who never stops must not keep others waiting
                case _:
                    raise LibraryError(f"the worker sent {type(message).__name__} while loading")
        death = await asyncio.shield(self._death)
        raise WorkerCrashedError(
            f"the worker died while it loaded the library: {exit_text(death, limits=self.limits)}"
        )

    def _ended(
        self, death: asyncio.Future[WorkerDied], died: Callable[[WorkerDied | None], None]
    ) -> None:
        result = None if death.exception() else death.result()
        if self.meter is not None:
            self.meter.end(result.cpu_ns if result else 0)
        died(result)

    def _take(self, message: LibraryLoaded) -> None:
        self.functions += message.functions
        if message.more and not message.functions:
            raise LibraryError("the worker tells of functions without end")
        if len(self.functions) > wire.FUNCTIONS_MAX:  # a constructor can say anything
            raise LibraryError("the worker tells of more functions than there can be")
        self._own_steps_ns = message.steps_ns
        self.endpoint = message.endpoint

    def steps_ns(self) -> dict[str, int]:
        """Each step of its start, by name, up to now: together they are all of it."""
        self.steps.done("reply")
        node = {f"node.{step}": ns for step, ns in self.steps.ns.items()}
        return node | {f"worker.{step}": ns for step, ns in self._own_steps_ns.items()}

    def look(self) -> None:
        """It is about to be killed: what lives of it now is counted for the last time."""
        if self.meter is not None:
            self.meter.look()

    async def leave(self, zygote: Zygote) -> tuple[Spare, ProcessStopped]:
        """Have a worker whose lease is over outlive it; what is left here is memory to close.

        Returns the process, now the caller's, which is stopped.

        Raises:
            SystemCallError: it cannot be stopped; it is to be killed.
            PeerLostError: it is gone.
        """
        link, death = self._link, self._death
        if link is None or death is None or death.done():
            raise PeerLostError("the worker is gone")
        self._left = asyncio.get_running_loop().create_future()
        link.send(LeaveLanes())
        await asyncio.shield(self._left)
        await self._stop_listening()
        stopped = await zygote.stop(self.pid)
        await self._part()
        if death.done():
            raise PeerLostError("the worker died")
        # Nothing is waited for from here on: its death is told to one side or to the other.
        death.remove_done_callback(self._told)
        self._link = None
        if self.account is not None:  # what stands on its page is final, as of one that is dead
            self.account.close()
            self.account = None
        return Spare(self.pid, death, link, None, 0.0), stopped

    async def _part(self) -> None:
        """Let go of what serves beside it."""

    async def _listen(self, link: AsyncLink, zygote: Zygote, *, is_kept: bool) -> None:
        """Hear a keeper, which tells of its worker's death before all of its container is taken
        away, and a worker that leaves its lanes.

        What else comes from a worker, its function has written there: it ends with that.
        """
        try:
            while (message := await link.receive()) is not None:
                if is_kept and isinstance(message, WorkerDied) and self._death is not None:
                    _tell(self._death, message)
                elif isinstance(message, LanesLeft) and self._left and not self._left.done():
                    self._left.set_result(None)
                else:
                    raise ProtocolError(f"a worker sent {type(message).__name__}")
        except ProtocolError:
            self.epitaph = self.epitaph or "the worker was stopped: it said what nobody asked for"
            with suppress(PeerLostError):  # the zygote is gone, and it with it
                zygote.kill(self.pid)
        except PeerLostError:
            pass
        if self._left and not self._left.done():
            self._left.set_exception(PeerLostError("the worker is gone"))

    def usage(self, allocated_ns: int, carried: Usage) -> Usage:
        """What its lease has used so far, on top of what earlier workers had."""
        if self._account_fd < 0:
            return usage_of(Counts(), allocated_ns, carried)
        # What was told while it lives; what stands on its page, to the last call, once it is dead.
        told = self.account.read() if self.account is not None and not self._is_dead else None
        page = told or os.pread(self._account_fd, self.lanes * wire.ACCOUNT_LANE_BYTES, 0)
        if self.meter is not None:
            counts, busy_ns = self.meter.counts(page, last=self._is_dead)
            return usage_of(counts, allocated_ns, carried, busy_ns)
        lanes = counts_of(page, self.lanes, time.monotonic_ns())
        return usage_of(summed(lanes), allocated_ns, carried)

    @property
    def _is_dead(self) -> bool:
        return self._death is not None and self._death.done()

    @property
    def is_busy(self) -> bool:
        """Whether a call runs, by what the page says now."""
        page = os.pread(self._account_fd, self.lanes * wire.ACCOUNT_LANE_BYTES, 0)
        since = range(wire.ACCOUNT_BUSY_SINCE_NS, len(page), wire.ACCOUNT_LANE_BYTES)
        return any(any(page[at : at + 8]) for at in since)

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    def _drop_turns(self) -> None:
        """A lock is held by whoever has its file open: from here on, the worker alone."""
        turns, self.turns = self.turns, []
        for fd in turns:
            os.close(fd)

    def end_rings(self) -> None:
        """Tell whoever waits on the rings that nobody serves them any more."""
        for lane in range(self.lanes if self.rings_fd >= 0 else 0):
            end_ring(self.rings_fd, lane * self.ring_bytes)

    async def close(self) -> None:
        """Let go of the memory and the link of a worker that is dead."""
        await self._stop_listening()
        self._drop_turns()
        if self.account is not None:
            self.account.close()
            self.account = None
        if self.meter is not None:
            self.meter.close()
        if self._link is not None:
            await self._link.close()
        elif self.spare is not None and not self.pid:
            await self.spare.link.close()
        if self.output is not None and not self.pid:
            self.output.close()
        for fd in (self.rings_fd, self._account_fd):
            if fd >= 0:
                os.close(fd)
        self.rings_fd = self._account_fd = -1
