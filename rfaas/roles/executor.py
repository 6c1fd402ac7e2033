"""The executor: one per node; turns leases into workers.

A thin shell around three things: the pool of workers, the authority that
grants leases, and the links of clients.  What a client opened ends with its
link.  Several requests of one link are worked on at once, so that a worker
that is slow to load does not keep a link's end from being noticed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from rfaas import __version__, addresses
from rfaas.clock import Clock, Steps
from rfaas.config import ContainerConfig, ControlConfig, ExecutorConfig
from rfaas.control import aio, cluster_key
from rfaas.control.aio import AsyncLink, Listener
from rfaas.control.authority import Authority, ManagerAuthority, OwnAuthority, Told
from rfaas.core.supervisor import Over
from rfaas.core.tokens import Claims
from rfaas.errors import (
    InternalError,
    NotPermittedError,
    PeerLostError,
    ProtocolError,
    RfaasError,
    UsageError,
    WorldError,
    unexpected,
)
from rfaas.launch.images import Images
from rfaas.launch.incoming import Incoming
from rfaas.launch.keep import owner_of
from rfaas.launch.libraries import Libraries
from rfaas.launch.node import PRIVATE, cores_of, memory_of
from rfaas.launch.pool import Pool
from rfaas.launch.zygote import Started
from rfaas.proto import messages as m
from rfaas.proto.codec import names_page
from rfaas.proto.report_messages import GetOutput, WorkerOutput
from rfaas.proto.worker_messages import ContainerTask
from rfaas.transport import fitting, transport

REQUESTS_PER_LINK_MAX = 16
REFUSED_TOKENS_MAX = 3  # of one link: guessing is made slow
TICK_S = 0.1

_ON_OPEN_LEASES = (m.StartWorker, m.StopWorker, m.SendLibrary, m.ListFunctions)

log = logging.getLogger("rfaas.executor")


class Client:
    """A link of a client, and what it has opened."""

    def __init__(self, link: AsyncLink, libraries: Libraries) -> None:
        self.link = link
        self.leases: set[str] = set()
        self.incoming = Incoming(libraries)
        self.refused = 0  # tokens that were forged, or another client's

    def notify(self, notice: m.Message) -> None:
        with suppress(PeerLostError):
            self.link.send(notice)


class Executor:
    """See the module's docstring; `run` makes one and lives its life."""

    def __init__(
        self,
        config: ExecutorConfig,
        clock: Clock,
        zygote: Started,
        ready: Callable[[str], None],
        lost: Callable[[str], None],
        device: str = "",
        control: ControlConfig = ControlConfig(),  # noqa: B008 - frozen
        images: Images | None = None,
    ) -> None:
        lent = cores_of(config, device)
        self._lends = {"processors": lent.text} if lent.text else {}
        self._config = config
        self._device = device
        self._control = control
        self._images = images or Images(ContainerConfig())
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._clients: dict[str, Client] = {}  # by lease
        self._refused = 0  # tokens
        self._granted: dict[str, Client] = {}  # by lease that we granted and nobody has opened
        self._pool = Pool(config, lent, clock, zygote, self._exited, self._over, lost)
        self._node = m.JoinNode(
            node=config.name,
            address=config.address,
            incarnation=secrets.token_hex(16),
            cores=len(lent.cpus),
            memory_bytes=memory_of(config),
            isolation=(),  # the zygote says it
            oversubscribe=config.oversubscribe,
        )
        self._welcome = m.Welcome(version=m.PROTOCOL_VERSION, role="executor", name=config.name)
        self._ready = ready
        self._lost = lost
        self._authority: Authority = OwnAuthority(self._node, clock)
        self.listener = Listener(self._welcome, self._serve)

    async def start(
        self, private: socket.socket | None, waiting: Callable[[str], None]
    ) -> asyncio.Task[None] | None:
        """Serve: at the configured address, or `private` alone (the task ends with that link)."""
        levels = await self._pool.offered()
        lacks = {level: lacks for level in levels if (lacks := self._pool.lacks(level))}
        self._node = replace(self._node, isolation=levels, lacks=lacks, gpus=len(self._pool.gpus))
        if private is not None:
            self._authority = OwnAuthority(self._node, self._clock)
            return self.listener.adopt(private)
        self.listener = await aio.listen(
            self._config.address,
            self._welcome,
            self._serve,
            self._device,
            cluster_key.admit(self._control),
        )
        address = self.listener.address
        self._node = replace(self._node, address=address)
        self._authority = OwnAuthority(self._node, self._clock)
        where = f"executor {self._config.name} ready on {address}"
        manager = self._config.resource_manager
        if manager == "none":
            flag = f"--executor {addresses.announced(address, os.uname().nodename)}"
            self._ready(
                f"{where}; next: rfaas call {flag} functions/libfunctions.so echo README.md"
            )
        else:
            waiting(f"waiting for the resource manager at {manager}")
            flag = "" if addresses.is_local(manager) else f"--resource-manager {manager} "
            authority = self._authority = ManagerAuthority(
                manager,
                self._node,
                self._clock,
                self._pool.usage,
                Told(
                    revoke=self._pool.end_lease,
                    terminate=self._terminate,
                    joined=lambda: self._ready(
                        f"{where}, lends {self._node.cores} cores; "
                        f"next: rfaas call {flag}functions/libfunctions.so echo README.md"
                    ),
                    lost=self._lost,
                ),
                self._device,
                self._control,
            )
            authority.crashes = self._pool.crashes
        return None

    async def tick(self) -> None:
        """Let time pass, for ever."""
        with aio.no_silent_end("the executor's clock", self._lost):
            while True:
                await asyncio.sleep(TICK_S)
                self._pool.tick()

    async def close(self) -> None:
        """End every lease, worker and link."""
        await self._pool.close()
        await self._authority.close()
        await self.listener.close()

    # What the pool says

    def _exited(self, lease: str, worker: int, text: str) -> None:
        client = self._clients.get(lease)
        if client is not None:
            output = self._pool.outputs.tail(lease, worker)[-m.OUTPUT_BYTES_MAX :]
            client.notify(m.WorkerExited(lease=lease, worker=worker, text=text, output=output))

    def _over(self, over: Over) -> None:
        log.info(
            "lease %s is over (%s): %d calls, %.3f s executing, %.3f s polling",
            over.lease[:8],
            over.cause,
            over.usage.calls,
            over.usage.executing_ns / 1e9,
            over.usage.polling_ns / 1e9,
        )
        self._authority.over(over)
        client = self._clients.pop(over.lease, None)
        if client is not None:
            client.leases.discard(over.lease)
            client.notify(m.LeaseEnded(lease=over.lease, cause=over.cause, usage=over.usage))

    def _terminate(self, notice: m.LeaseTerminating) -> None:
        """The manager will end a lease: end it by our clock, and tell its client."""
        self._pool.terminate(notice.lease, notice.cause, notice.remaining_s)
        client = self._clients.get(notice.lease)
        if client is not None:
            client.notify(notice)

    # Links

    async def _serve(self, link: AsyncLink, hello: m.Hello) -> None:
        link.lose_after(self._authority.silence_s)
        client = Client(link, self._pool.libraries)
        tasks: set[asyncio.Task[None]] = set()
        try:
            while (message := await link.receive()) is not None:
                task = asyncio.get_running_loop().create_task(self._reply(client, message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(0)  # who never stops asking must not keep others waiting
                if (
                    isinstance(message, (m.SendLibrary, m.LendLibrary))
                    or len(tasks) >= REQUESTS_PER_LINK_MAX
                ):
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            client.incoming.close()
            for lease in list(client.leases):
                self._pool.end_lease(lease, "client-lost")
            for lease in [one for one, asker in self._granted.items() if asker is client]:
                del self._granted[lease]
                self._authority.over(Over(lease, "client-lost", m.Usage()))

    def _check_own(self, client: Client, lease: str) -> None:
        """What is done to a lease that is open here comes over the link that opened it."""
        if self._clients.get(lease, client) is not client:
            raise NotPermittedError(f"lease {lease[:8]} is another client's")

    async def _reply(self, client: Client, message: m.Message) -> None:
        fds: tuple[int, ...] = ()
        reply: m.Message
        try:
            if isinstance(message, _ON_OPEN_LEASES):
                self._check_own(client, message.lease)
            match message:
                case m.StartWorker():
                    reply, fds = await self._start_worker(client, message)
                case m.OpenLease():
                    reply = await self._open(client, message)
                case m.StopWorker():
                    usage = await self._pool.stop(message.lease, message.reason, message.worker)
                    reply = m.WorkerStopped(usage=usage)
                case m.ReleaseLease():
                    reply = await self._release(client, message)
                case m.SendLibrary():
                    reply = client.incoming.take(message)
                case m.LendLibrary():
                    reply = await client.incoming.read(client.link, message)
                case GetOutput():
                    reply = self._output(client, message)
                case m.ListFunctions():
                    reply = self._functions(message)
                case m.RequestLease():
                    if self._config.name == PRIVATE and message.isolation == "default":
                        message = replace(message, isolation=self._pool.default_level())
                    reply = await self._authority.answer(message, client.link.nonce)
                    if isinstance(reply, m.LeaseGranted):
                        self._keep_granted(client, reply.lease)
                        log.info(
                            "lease %s granted %d cores to %s",
                            reply.lease[:8],
                            reply.cores,
                            message.client,
                        )
                case m.RenewLease():
                    reply = await self._authority.answer(message, client.link.nonce)
                    if message.lease in self._granted:
                        self._granted[message.lease] = client
                case m.GetStatus():
                    reply = self._status()
                case m.AdoptLink():
                    reply = self._adopt(client)
                case _:
                    raise ProtocolError(f"an executor does not answer {type(message).__name__}")
            client.link.send(replace(reply, id=message.id), fds)
        except PeerLostError:
            pass  # what it has opened ends with its link
        except RfaasError as error:
            await aio.refuse(client.link, message.id, error)
        except Exception as error:  # without an answer, the client would wait for an hour
            log.exception("cannot answer %s of %s", type(message).__name__, client.link.peer)
            await aio.refuse(client.link, message.id, unexpected(error, type(message).__name__))
        else:
            return
        if fds and isinstance(message, m.StartWorker):  # it serves, and its client knows nothing
            with suppress(RfaasError):
                await self._pool.stop(message.lease, "its client could not be told of it")

    def _keep_granted(self, client: Client, lease: str) -> None:
        """Its cores are free again when the client goes before it has opened the lease."""
        self._granted[lease] = client
        if len(self._granted) > self._node.cores * self._node.oversubscribe:  # the oldest is over
            del self._granted[next(iter(self._granted))]

    async def _open(self, client: Client, request: m.OpenLease, wanted: str = "") -> m.LeaseOpened:
        claims = await self._claims(client, request)
        if wanted and claims.lease != wanted:
            raise ProtocolError(f"the token is not that of lease {wanted[:8]}")
        lease = await self._pool.open(claims)
        owner = self._clients.setdefault(claims.lease, client)
        if owner is not client:
            raise ProtocolError(f"lease {claims.lease[:8]} is open on another link")
        client.leases.add(claims.lease)
        self._granted.pop(claims.lease, None)
        left_s = max(0.0, lease.ends_at_s - self._clock.monotonic_s())
        return m.LeaseOpened(lease=claims.lease, remaining_s=left_s)

    async def _claims(self, client: Client, request: m.OpenLease) -> Claims:
        """What a token grants; who shows too many that are not its own is sent away."""
        if client.refused >= REFUSED_TOKENS_MAX:  # its link is about to be closed
            raise NotPermittedError(f"{client.refused} tokens were refused on this link")
        try:
            return self._authority.claims(request, client.link.nonce)
        except (ProtocolError, NotPermittedError) as error:
            client.refused += 1
            self._refused += 1
            if client.refused >= REFUSED_TOKENS_MAX:
                log.warning("%s showed %d tokens in vain", client.link.peer, client.refused)
                await aio.refuse(client.link, request.id, error)
                await client.link.close()
            raise

    async def _release(self, client: Client, request: m.ReleaseLease) -> m.Message:
        if request.lease in client.leases:
            client.leases.discard(request.lease)
            self._clients.pop(request.lease, None)
            await self._pool.close_lease(request.lease, "released")
            return m.Done()
        reply = await self._authority.answer(request, client.link.nonce)  # or it was not its own
        self._granted.pop(request.lease, None)
        return reply

    async def _start_worker(
        self, client: Client, request: m.StartWorker
    ) -> tuple[m.WorkerStarted, tuple[int, ...]]:
        steps = Steps()
        if request.opens is not None:
            await self._open(client, request.opens, request.lease)
        carrier = transport(fitting(request.transport, client.link.passes_fds))
        try:
            host = carrier.host(self._device)
        except WorldError as error:
            text = f"node {self._config.name} cannot serve over {carrier.name}: {error.text}"
            raise type(error)(text, hint=error.hint) from None
        container = await self._container(request.lease)
        if container is not None:
            steps.done("image")
        owner = owner_of(client.link, request, self._authority.owns)
        worker, process, lease = await self._pool.start(
            request, carrier.name, host, container, owner, steps
        )
        log.info(
            "lease %s: worker %d, isolation %s, serves %d lanes on processors %s",
            request.lease[:8],
            process.pid,
            self._pool.described(lease.claims.isolation),
            process.lanes,
            ",".join(map(str, lease.cpus)),
        )
        names, more = names_page(process.functions, 0)
        started = m.WorkerStarted(
            worker=worker.number,
            transport=carrier.name,
            lanes=process.lanes,
            slots=process.slots,
            slot_bytes=process.slot_bytes,
            cpus=lease.cpus,
            functions=names,
            more=more,
            endpoint=process.endpoint,
            steps_ns=process.steps_ns(),
            isolation=lease.claims.isolation,
            kept=process.was_kept,
            lacks=self._pool.lacks(lease.claims.isolation),
            gpus=lease.gpus,
        )
        return started, carrier.offer(process.rings_fd)

    async def _container(self, lease: str) -> ContainerTask | None:
        """What the lease's worker runs in, fetched if need be; None where that is this machine."""
        claims = self._pool.claims(lease)
        if claims.isolation != "container":
            return None

        def say(text: str) -> None:
            client = self._clients.get(lease)
            if client is not None:
                client.notify(m.ImageProgress(lease=lease, text=text))

        return await self._images.task(claims.image, say)

    def _output(self, client: Client, request: GetOutput) -> WorkerOutput:
        # Its own client may read it, and who may open our socket's file: the executor's user.
        known = request.lease in client.leases or client.link.passes_fds
        written = self._pool.outputs.part(request) if known else None
        if written is None:
            raise UsageError(f"lease {request.lease[:8]} has had no worker on this node")
        return written

    def _functions(self, request: m.ListFunctions) -> m.Functions:
        process = self._pool.process(request.lease)
        names, more = names_page(process.functions if process else [], request.start)
        return m.Functions(functions=names, more=more)

    def _adopt(self, client: Client) -> m.Done:
        fds = client.link.take_fds()
        if self._config.name != PRIVATE or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise ProtocolError("only a private executor adopts a link, one at a time")
        self.listener.adopt(socket.socket(fileno=fds[0]))
        return m.Done()

    def _status(self) -> m.StatusReport:
        usage = self._pool.usage().values()
        return m.StatusReport(
            role="executor",
            name=self._config.name,
            version=__version__,
            pid=os.getpid(),
            uptime_s=self._clock.monotonic_s() - self._started_s,
            address=self._node.address,
            facts={
                "cores": self._node.cores,
                **self._lends,
                "GPUs": ", ".join(self._pool.gpus) or "none",
                "isolation": ", ".join(map(self._pool.described, self._node.isolation)),
                "leases": len(usage),
                "workers kept": self._pool.kept,
                "calls of live leases": sum(one.calls for one in usage),
                "tokens refused": self._refused,
            },
        )


async def run(  # noqa: PLR0913 - what it is made of
    config: ExecutorConfig,
    clock: Clock,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    zygote: Started,
    private: socket.socket | None = None,
    waiting: Callable[[str], None] = lambda _: None,
    device: str = "",
    *,
    control: ControlConfig = ControlConfig(),  # noqa: B008 - frozen
    container: ContainerConfig = ContainerConfig(),  # noqa: B008 - frozen
) -> None:
    """Live as an executor until `stop` is set, or the link of a private one ends.

    Args:
        ready: called once, with the line that says what to type next.
        zygote: of `launch.zygote.start`, now the executor's.
        private: the link of the one client to serve.
        waiting: called, before `ready`, when it listens and has yet to join its manager.
        device: the RDMA device that workers listen on; "": the first that can be used.
        control: who may connect, and how the manager finds out whose node this is.
        container: how images are run.

    Raises:
        AddressInUseError, SystemCallError: it cannot listen.
        InternalError: the zygote is gone.
    """
    broken: list[str] = []

    def lost(why: str) -> None:
        broken.append(why)
        stop.set()

    loop = asyncio.get_running_loop()
    images = Images(container)
    executor = Executor(config, clock, zygote, ready, lost, device, control, images)
    ticking = loop.create_task(executor.tick())
    waits: list[asyncio.Task[object]] = [loop.create_task(stop.wait())]
    try:
        serving = await executor.start(private, waiting)
        if serving is not None:
            waits.append(serving)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ticking.cancel()
        waits[0].cancel()
        await asyncio.gather(ticking, waits[0], return_exceptions=True)
        await executor.close()
    if broken:
        raise InternalError(broken[0])
