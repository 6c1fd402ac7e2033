"""The workers of a node: carries out what `core.supervisor` decides.

It owns processes, their memory and the library cache, and knows no links to
clients or managers: what they must hear of goes to `exited` and `over`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

from msgspec.structs import replace

from rfaas.clock import Clock, Steps
from rfaas.config import ExecutorConfig
from rfaas.core.keeping import Shape
from rfaas.core.supervisor import (
    Action,
    Exited,
    Kill,
    LeaseOnNode,
    Over,
    Part,
    Supervisor,
    Worker,
)
from rfaas.core.tokens import Claims
from rfaas.core.topology import Topology
from rfaas.errors import (
    CapacityError,
    LibraryError,
    LibraryMissingError,
    PeerLostError,
    RfaasError,
    UsageError,
)
from rfaas.launch.accounts import Accounts
from rfaas.launch.apart import WorkerApart
from rfaas.launch.deaths import crash_cause, exit_text
from rfaas.launch.keep import Keep, Owner, shape_of
from rfaas.launch.levels import DEFAULT, Levels
from rfaas.launch.libraries import Libraries
from rfaas.launch.meter import Meter
from rfaas.launch.node import PRIVATE, gpus_of, partners_of, windows_of
from rfaas.launch.output import Output, Outputs
from rfaas.launch.turns import Turns
from rfaas.launch.warm import Warm
from rfaas.launch.workers import WorkerProcess, Zygote
from rfaas.launch.zygote import Started
from rfaas.proto.messages import StartWorker, Usage
from rfaas.proto.wire import ring_bytes
from rfaas.proto.worker_messages import (
    ContainerTask,
    Gpu,
    Limits,
    LoadLibrary,
    SpawnWorker,
    WorkerDied,
)
from rfaas.sandbox import KEPT, level

PART_TIMEOUT_S = 0.5  # for a worker to leave its lease, if it is to be kept; it takes milliseconds
PATIENCE_MIN_S = 0.05  # between two looks at what is ending, even with no stop_grace_s

log = logging.getLogger("rfaas.executor")


class Pool:
    """See the module's docstring.

    Args:
        lent: the processors of the cores that may be leased.
        zygote: now the pool's.
        exited: called with (lease, worker's number, text) when a worker is gone.
        over: called with what is known of a lease when it is over.
        lost: called, with why, if the zygote is gone and no worker can be started any more.
    """

    def __init__(
        self,
        config: ExecutorConfig,
        lent: Topology,
        clock: Clock,
        zygote: Started,
        exited: Callable[[str, int, str], None],
        over: Callable[[Over], None],
        lost: Callable[[str], None],
    ) -> None:
        self.outputs = Outputs()
        self.libraries = Libraries(config.library_cache_bytes_max)
        self.gpus: dict[str, Gpu] = {}  # by name; known once `offered` has looked
        self._lent = lent
        self._config = config
        self._clock = clock
        self._supervisor = Supervisor((), config.workers_crashed_max)  # `offered` makes the one
        self._partners = partners_of(lent)
        self._turns = Turns()
        self._accounts = Accounts()
        self._node = zygote.node
        self._levels = Levels(zygote.node, {})
        self._zygote = Zygote(zygote.pid, zygote.sock, lost)
        private = config.name == PRIVATE
        self._warm = Warm(zygote.node, self._zygote, clock, private=private)
        self._keep = Keep(config, len(lent.cpus), self._zygote, clock)
        self._shapes: dict[int, tuple[Shape, Owner]] = {}  # of workers, by number
        self._processes: dict[int, WorkerProcess] = {}
        self.crashes: Counter[str] = Counter()  # workers that died of themselves, by cause
        self._exited = exited
        self._over = over
        self._changed = asyncio.Condition()
        self._closing: set[asyncio.Task[None]] = set()
        self._patience_s = max(config.stop_grace_s, PATIENCE_MIN_S)

    @property
    def leases(self) -> dict[str, LeaseOnNode]:
        return self._supervisor.leases

    async def offered(self) -> tuple[str, ...]:
        """The levels of isolation that this node grants: allowed here, and to be had here.

        Raises:
            ConfigError: a level that `sandbox.levels` names does not exist, or cannot be had; a
            GPU that `executor.gpus` names is not there.
        """
        self.gpus = {gpu.name: gpu for gpu in gpus_of(self._config)}
        config = self._config
        self._supervisor = Supervisor(
            self._lent.cpus,
            config.workers_crashed_max,
            list(self.gpus),
            config.oversubscribe,
            self._lent.facts,
        )
        self._levels = Levels(self._node, await self._zygote.levels())
        # Its client is told with its lease; all others by our log.
        self._levels.tell(quiet=self._config.name == PRIVATE)
        if DEFAULT in self._levels.offered and self._config.name != PRIVATE:
            self._warm.want(DEFAULT, always=True)  # a private one may never have such a lease
        return self._levels.offered

    def default_level(self) -> str:
        """What a private executor gives a lease that does not say."""
        return self._levels.default()

    def lacks(self, level: str) -> tuple[str, ...]:
        """The parts that a level lacks here."""
        return tuple(one.part for one in self._levels.found[level])

    def described(self, level: str) -> str:
        """The level, and what it lacks, in words."""
        lacks = self.lacks(level)
        return f"{level} (without {', '.join(lacks)})" if lacks else level

    async def open(self, claims: Claims) -> LeaseOnNode:
        """Take a lease on, or its renewal; waits a moment for cores that are about to be free."""
        deadline = self._clock.monotonic_s() + self._config.stop_grace_s
        while True:
            now, wall = self._clock.monotonic_s(), self._clock.wall_s()
            try:
                return self._supervisor.open(claims, now, wall)
            except CapacityError:
                if not await self._wait_for_change(deadline - now):
                    raise

    async def start(
        self,
        request: StartWorker,
        transport: str,
        host: str,
        container: ContainerTask | None = None,
        owner: Owner = Owner(),  # noqa: B008 - a constant
        steps: Steps | None = None,
    ) -> tuple[Worker, WorkerProcess, LeaseOnNode]:
        """Start the worker of a lease with a library that is here.

        Args:
            transport: what feeds its rings.
            host: the address where it listens, if it does.
            container: what it runs in, at level `container`.
            owner: whose the lease is; a worker that was kept for him is taken.
            steps: what was done for the request so far.

        Raises:
            LibraryMissingError: the library is not here; send it.
            LeaseEndedError: the lease is over, or ended while the worker came up.
            RfaasError: whatever the worker met; it is gone then.
        """
        library_fd = self.libraries.find(request.sha256)
        if library_fd is None:
            raise LibraryMissingError(f"library {request.sha256[:12]} is not on this node; send it")
        lease = self._supervisor.live(request.lease)
        if lease.claims.shared and lease.claims.isolation in KEPT:
            raise UsageError(
                f"level {lease.claims.isolation} has no leases that share processors",
                hint="ask for isolation sandbox, or for a lease that does not share",
            )
        while lease.worker is not None and lease.worker.state == "stopping":
            await self._wait_for_change(self._patience_s)
        windows_bytes = len(lease.cpus) * ring_bytes(request.slots, request.slot_bytes)
        if transport == "verbs":
            self._check_windows(windows_bytes)
        worker = self._supervisor.start(request.lease)
        process = self._process(worker.number, request, lease, transport)
        self._processes[worker.number] = process
        process.steps = steps or process.steps
        try:
            if transport == "verbs":
                process.account = self._accounts.open(host, len(lease.cpus))
            if lease.gpus or lease.claims.shared:  # it would hold them on, or be in others' way
                owner = owner._replace(keeps=False)
            ring_fed = transport != "verbs" or isinstance(process, WorkerApart)
            shape = shape_of(request, lease, transport, ring_fed=ring_fed)
            self._shapes[worker.number] = shape, owner
            order = SpawnWorker(
                isolation=lease.claims.isolation,
                limits=Limits(
                    lanes=len(lease.cpus),
                    memory_bytes=lease.claims.memory_bytes,
                    shared_bytes=windows_bytes,
                    locked_bytes=0 if ring_fed else windows_bytes,
                    processes=self._node.processes,
                    open_files=self._node.open_files,
                    file_bytes=self._node.file_size,
                ),
                cpus=lease.cpus,
                container=container,
                gpus=tuple(self.gpus[name] for name in lease.gpus),
            )
            task = LoadLibrary(
                ring_bytes=process.ring_bytes,
                cpus=lease.cpus,
                hot_timeout_ms=0 if lease.claims.shared else request.hot_timeout_ms,
                isolation=order.isolation,
                limits=order.limits,
                degrade=tuple(self._node.degrade.split()),
                transport=transport,
                host=host,
                counts=process.account.place if process.account is not None else None,
                turns=len(lease.places) if lease.claims.shared else 0,
            )
            process.turns = self._turns.open(lease.places) if task.turns else []
            process.steps.done("open")
            kept = await self._keep.take(shape, owner, order)
            process.was_kept = kept is not None
            process.spare = kept or self._warm.take(order)
            process.output = (process.spare and process.spare.output) or Output(
                aloud=self._config.name == PRIVATE
            )
            self.outputs.keep(request.lease, worker.number, process.output)
            await asyncio.wait_for(
                process.start(
                    self._zygote, order, task, library_fd, lambda d: self._died(worker, d)
                ),
                self._config.load_timeout_s,
            )
            self._supervisor.live(request.lease)  # or it ended while the worker came up
        except asyncio.TimeoutError:
            await self._end(worker, process, "it took too long to load")
            raise LibraryError(
                f"the library was not loaded within {self._config.load_timeout_s:g} s",
                hint="does a constructor of it wait for something?",
            ) from None
        except RfaasError:
            await self._end(worker, process, "it did not load")
            self._supervisor.live(request.lease)  # if it ended meanwhile, that is why
            raise
        except BaseException:
            await self._end(worker, process, "it did not load")
            raise
        self._supervisor.loaded(worker)
        self._warm.want(order.isolation)
        return worker, process, lease

    def _check_windows(self, bytes_wanted: int) -> None:
        """Whether the windows of one more worker fit beside those of the others; CapacityError."""
        taken = sum(one.windows_bytes for one in self._processes.values())
        left = windows_of(self._config) - taken
        if bytes_wanted > left:
            raise CapacityError(
                f"the lease's windows of {bytes_wanted} bytes are too many for node "
                f"{self._config.name}: {left} bytes are left for them",
                hint="ask for fewer or smaller ones (lane.slots, lane.slot_bytes), or raise "
                "executor.windows_max there",
            )

    def claims(self, lease: str) -> Claims:
        """What a live lease grants."""
        return self._supervisor.live(lease).claims

    def _process(
        self, number: int, request: StartWorker, lease: LeaseOnNode, transport: str
    ) -> WorkerProcess:
        size = (len(lease.cpus), request.slots, request.slot_bytes)
        shares = lease.claims.shared > 0  # what takes turns is the loop over a ring
        trusted = self._config.endpoint == "auto" and level(lease.claims.isolation).trusted
        process: WorkerProcess
        if transport == "verbs" and (shares or not trusted):
            process = WorkerApart(number, *size, self._partners)
        else:
            process = WorkerProcess(number, *size)
        if transport == "verbs":
            process.windows_bytes = process.lanes * process.ring_bytes
        if not level(lease.claims.isolation).trusted:
            process.meter = Meter(process, by_page=transport == "shm", shares=shares)
        return process

    def process(self, lease: str) -> WorkerProcess | None:
        """The process that serves a live lease."""
        worker = self._supervisor.live(lease).worker
        return self._processes.get(worker.number) if worker else None

    async def stop(self, lease: str, reason: str, worker: int = 0) -> Usage:
        """End the worker of a live lease; returns what the lease has used, once it is gone.

        Where `worker` is given and another one serves by now, nothing is ended.
        """
        found = self._supervisor.live(lease)
        if worker and found.worker is not None and found.worker.number != worker:
            return found.used
        process = self.process(lease)
        self._do(self._supervisor.stop(lease, reason))
        if process is not None:
            await process.gone.wait()
        return found.used

    async def close_lease(self, lease: str, cause: str) -> None:
        """End a lease; returns when its worker is gone, or kept, and its cores are free."""
        keep = cause == "released" and self._may_keep(lease)
        self._do(self._supervisor.close(lease, cause, self._clock.monotonic_s(), keep=keep))
        while lease in self._supervisor.leases:
            await self._wait_for_change(self._patience_s)

    def end_lease(self, lease: str, cause: str) -> None:
        """The same, without waiting."""
        self._do(self._supervisor.close(lease, cause, self._clock.monotonic_s()))

    def terminate(self, lease: str, cause: str, remaining_s: float) -> None:
        """A lease will end in `remaining_s`, whatever token is shown until then."""
        self._supervisor.terminate(lease, cause, self._clock.monotonic_s() + remaining_s)

    def tick(self) -> None:
        """End what is due."""
        self._do(self._supervisor.tick(self._clock.monotonic_s()))
        self._warm.tick()
        # Not when a worker starts: what is kept uses no core, and to kill it takes the zygote
        # milliseconds, for which the lease that needs the room should not wait.
        self._keep.tick(*self._supervisor.in_use())

    @property
    def kept(self) -> int:
        """How many workers outlive their leases now."""
        return len(self._keep)

    def usage(self) -> dict[str, Usage]:
        """What each lease here has used so far."""
        return {lease: self._usage(lease) for lease in self._supervisor.leases}

    async def close(self) -> None:
        """End all leases (their node is lost), all workers and the zygote."""
        for lease in list(self._supervisor.leases):
            self.end_lease(lease, "node-lost")
        deadline = self._clock.monotonic_s() + self._config.stop_grace_s
        while self._processes and (left := deadline - self._clock.monotonic_s()) > 0:
            await self._wait_for_change(left)
        await self._warm.close()
        await self._zygote.close()
        await asyncio.gather(*self._closing)
        await self._keep.close()  # now that no worker parts from its lease any more
        for process in self._processes.values():
            process.end_rings()
            await process.close()
        self._accounts.close()
        self._turns.close()
        self.libraries.close()
        self.outputs.close()

    def _usage(self, lease: str) -> Usage:
        found = self._supervisor.leases[lease]
        allocated = self._supervisor.allocated_ns(lease, self._clock.monotonic_s())
        process = self._processes.get(found.worker.number) if found.worker else None
        if process is None:
            process = WorkerProcess(0, 0, 1, 4096)
        used = process.usage(allocated, found.used)
        gpu_ns = self._supervisor.gpu_ns(lease, self._clock.monotonic_s())
        return replace(used, gpu_ns=gpu_ns) if gpu_ns else used

    def _may_keep(self, lease: str) -> bool:
        """Whether the worker of a lease that is given back may outlive it: nothing runs there."""
        found = self._supervisor.leases.get(lease)
        if found is None or found.worker is None or found.worker.number not in self._shapes:
            return False
        process = self._processes.get(found.worker.number)
        wants = self._keep.wants(*self._shapes[found.worker.number])
        return wants and process is not None and not process.is_busy

    async def _part(self, worker: Worker, process: WorkerProcess) -> None:
        """Have a worker outlive its lease, or kill it; its lease is over then."""
        shape, owner = self._shapes[worker.number]
        try:
            left = await asyncio.wait_for(process.leave(self._zygote), PART_TIMEOUT_S)
        except (RfaasError, asyncio.TimeoutError) as error:
            log.info("lease %s: its worker is not kept: %s", worker.lease[:8], error)
            with suppress(PeerLostError):  # the zygote is gone, and it with it
                self._zygote.kill(process.pid)
            return
        log.info("lease %s: worker %d is kept", worker.lease[:8], process.pid)
        self.outputs.end(worker.lease, worker.number)
        self._keep.add(worker.number, *left, shape, owner.name, worker.lease)
        self._finish(worker, process, "its lease is over")

    async def _end(self, worker: Worker, process: WorkerProcess, reason: str) -> None:
        """Kill a worker that did not come up, and wait until it is gone."""
        if not process.pid:
            if process.spare is not None:  # it has waited, or was kept, for nothing
                self._zygote.kill(process.spare.pid)
            self._finish(worker, process, "it was never started")
        elif not process.gone.is_set():
            worker.state, worker.reason = "stopping", worker.reason or reason
            self._zygote.kill(process.pid)
        await process.gone.wait()

    def _died(self, worker: Worker, death: WorkerDied | None) -> None:
        process = self._processes[worker.number]
        self.outputs.end(worker.lease, worker.number)
        output = self.outputs.tail(worker.lease, worker.number)
        text = "its zygote is gone"
        if death is not None:
            text = f"the worker died: {exit_text(death, output, process.limits)}"
        if worker.state != "stopping":
            self.crashes[crash_cause(death)] += 1
        text = process.epitaph or text
        log.info("lease %s: worker %d: %s", worker.lease[:8], process.pid, worker.reason or text)
        self._finish(worker, process, text)

    def _finish(self, worker: Worker, process: WorkerProcess, text: str) -> None:
        usage = self._usage(worker.lease)
        self.outputs.end(worker.lease, worker.number)  # also of one that was never started
        del self._processes[worker.number]
        self._shapes.pop(worker.number, None)
        self._do(self._supervisor.exited(worker, text, usage, self._clock.monotonic_s()))
        process.end_rings()  # after the notice: who finds the ring ended finds out why
        process.gone.set()
        task = asyncio.get_running_loop().create_task(self._let_go(process))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _let_go(self, process: WorkerProcess) -> None:
        await process.close()
        async with self._changed:
            self._changed.notify_all()

    async def _wait_for_change(self, timeout_s: float) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), max(timeout_s, 0.0))
            except asyncio.TimeoutError:
                return False
            return True

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Kill():
                    process = self._processes.get(action.worker)
                    if process is not None and process.pid:
                        process.look()
                        self._zygote.kill(process.pid)
                    elif process is not None:
                        process.doomed = True
                case Part():
                    parting = self._part(action.worker, self._processes[action.worker.number])
                    task = asyncio.get_running_loop().create_task(parting)
                    self._closing.add(task)
                    task.add_done_callback(self._closing.discard)
                case Exited():
                    self._exited(action.lease, action.worker, action.text)
                case Over():
                    self._over(action)
