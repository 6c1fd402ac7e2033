"""A resource manager to test: started, asked, stopped and started again in one process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rfaas.clock import ManualClock
from rfaas.config import ResourceManagerConfig
from rfaas.control.aio import AsyncLink, connect
from rfaas.errors import (
    from_wire,
)
from rfaas.proto import messages
from rfaas.proto.messages import PROTOCOL_VERSION, Message, Usage
from rfaas.proto.proof import prove
from rfaas.roles import resource_manager

GIB = 1 << 30
FIRST, SECOND = "1" * 32, "2" * 32  # incarnations
TRIES_MAX = 1000

Kind = TypeVar("Kind", bound=Message)


class Caller:
    """One end of a link: asks, and keeps the notices that come in between."""

    def __init__(self, link: AsyncLink, secrets: dict[str, bytes]) -> None:
        self.link = link
        self.secrets = secrets  # of leases, by id
        self.notices: deque[Message] = deque()
        self.asked = 0

    async def ask(self, message: Message, kind: type[Kind]) -> Kind:
        self.asked += 1
        fields = {name: getattr(message, name) for name in message.__struct_fields__}
        self.link.send(type(message)(**(fields | {"id": self.asked})))
        while (reply := await self.take()).id != self.asked:
            if isinstance(reply, messages.Error):  # the last word on this link
                break
            self.notices.append(reply)
        if isinstance(reply, messages.Error):
            raise from_wire(reply.code, reply.text, reply.hint)
        assert isinstance(reply, kind)
        return reply

    async def notice(self) -> Message:
        return self.notices.popleft() if self.notices else await self.take()

    async def take(self) -> Message:
        message = await asyncio.wait_for(self.link.receive(), 10)
        assert message is not None, "the manager ended the link"
        return message

    async def request(
        self, cores: int | str = 1, duration_s: float = 60.0, **more: object
    ) -> messages.LeaseGranted:
        fields = {"client": "tester", "memory_bytes": GIB, "duration_s": duration_s} | more
        asked = messages.RequestLease(cores=cores, **fields)  # type: ignore[arg-type]
        granted = await self.ask(asked, messages.LeaseGranted)
        self.secrets[granted.lease] = granted.secret
        self.secrets.update((one.lease, one.secret) for one in granted.rest)
        return granted

    def proof(self, lease: str) -> bytes:
        """As the client of a lease gives it on this link; of another's lease a wrong one."""
        return prove(self.secrets.get(lease, b"guessed"), self.link.nonce, lease)

    async def renew(self, lease: str, duration_s: float = 60.0) -> messages.LeaseGranted:
        asked = messages.RenewLease(lease=lease, duration_s=duration_s, proof=self.proof(lease))
        return await self.ask(asked, messages.LeaseGranted)

    async def release(self, lease: str) -> None:
        asked = messages.ReleaseLease(lease=lease, proof=self.proof(lease))
        await self.ask(asked, messages.Done)

    async def nodes(self) -> dict[str, tuple[str, int]]:
        """State and free cores of each node."""
        reply = await self.ask(messages.ListNodes(), messages.Nodes)
        return {one.node: (one.state, one.cores_free) for one in reply.nodes}

    async def leases(self) -> dict[str, str]:
        """State of each lease, ended ones too."""
        reply = await self.ask(messages.ListLeases(all=True), messages.Leases)
        return {one.lease: one.state for one in reply.leases}

    async def join(
        self,
        node: str = "n1",
        *,
        cores: int = 4,
        incarnation: str = FIRST,
        live: tuple[str, ...] = (),
    ) -> messages.NodeJoined:
        asked = messages.JoinNode(
            node=node,
            address=f"unix:/run/{node}"[:255],
            incarnation=incarnation,
            cores=cores,
            memory_bytes=1024 * GIB,
            isolation=("none", "process", "sandbox"),
            leases=live,
        )
        return await self.ask(asked, messages.NodeJoined)

    async def beat(self, node: str = "n1", usage: dict[str, Usage] | None = None) -> None:
        await self.ask(messages.Beat(node=node, usage=usage or {}), messages.BeatTaken)

    async def close(self) -> None:
        await self.link.close()


class Site:
    """A manager's address, store and clock; it can be started more than once."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}/rm.sock"
        self.store = str(path / "store.db")
        self.clock = ManualClock()
        self.heartbeat_s = 10.0
        self.lines: list[str] = []
        self.secrets: dict[str, bytes] = {}  # what one client program knows, over all its links
        self._callers: list[Caller] = []

    def config(self) -> ResourceManagerConfig:
        return ResourceManagerConfig(
            address=self.address,
            store=self.store,
            heartbeat_s=self.heartbeat_s,
            missed_beats_max=3,
            lease_duration_max_s=3600.0,
        )

    @asynccontextmanager
    async def manager(self) -> AsyncIterator[None]:
        ready, stop = asyncio.Event(), asyncio.Event()

        def note(line: str) -> None:
            self.lines.append(line)
            ready.set()

        running = asyncio.create_task(resource_manager.run(self.config(), self.clock, note, stop))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if not running.done():
                yield
        finally:
            stop.set()
            await running
            for caller in self._callers:
                await caller.close()
            self._callers.clear()

    async def caller(self, role: str = "client") -> Caller:
        hello = messages.Hello(version=PROTOCOL_VERSION, role=role, name=f"some-{role}")
        caller = Caller(await connect(self.address, hello), self.secrets)
        self._callers.append(caller)
        return caller

    async def executor(self, node: str = "n1", cores: int = 4) -> Caller:
        executor = await self.caller("executor")
        await executor.join(node, cores=cores)
        return executor


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 30))


async def until(look: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Ask until the answer is as wanted: for what happens after a link has ended."""
    found: object = None
    for _ in range(TRIES_MAX):
        if (found := await look()) == wanted:
            return
    pytest.fail(f"still {found} after {TRIES_MAX} answers, not {wanted}")
