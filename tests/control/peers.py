"""Both ends of a control link, for tests: who listens, and what it answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from rfaas.control import aio, ends
from rfaas.control.aio import AsyncLink
from rfaas.control.carrier import Carrier
from rfaas.proto.codec import Framer, decode
from rfaas.proto.messages import (
    PROTOCOL_VERSION,
    AdoptLink,
    Done,
    Error,
    GetStatus,
    Hello,
    LeaseEnded,
    ListNodes,
    Message,
    Welcome,
)

HELLO = Hello(version=PROTOCOL_VERSION, role="client", name="tester")
WELCOME = Welcome(version=PROTOCOL_VERSION, role="executor", name="node7")
NOTICE = LeaseEnded(lease="0" * 32, cause="expired")


async def answer(peer: AsyncLink, hello: Hello) -> None:
    """What the listener's side does: each kind of request shows one thing."""
    while (message := await peer.receive()) is not None:
        match message:
            case GetStatus():
                peer.send(NOTICE)
                peer.send(NOTICE)
                peer.send(Error(id=message.id, code="capacity", text="too much", hint="less"))
            case AdoptLink():
                fds = peer.take_fds()
                peer.send(Done(id=message.id), fds)
                for fd in fds:
                    os.close(fd)
            case ListNodes():
                return
            case _:
                peer.send(Done(id=message.id))


def served(address: str, client: Callable[[], None]) -> None:
    """Run a blocking client, in a thread, against a listener."""

    async def run() -> None:
        listener = await aio.listen(address, WELCOME, answer)
        try:
            await asyncio.to_thread(client)
        finally:
            await listener.close()
            await listener.close()

    asyncio.run(run())


def raw(address: str, data: bytes) -> list[Message]:
    """Send bytes as they are; what comes back until the peer closes."""
    received = b""
    end = ends.connect(address)
    send_all(end, data)
    while part := next_bytes(end):
        received += part
    end.close()
    return [decode(body) for body in Framer().feed(received)]


def send_all(end: Carrier, data: bytes) -> None:
    """All of it, waiting for room."""
    left = memoryview(data)
    while left:
        try:
            left = left[end.send(left) :]
        except BlockingIOError:
            end.wait(None, to_send=True)


def next_bytes(end: Carrier) -> bytes:
    """Some bytes, once there are any; b"" at the end."""
    while True:
        try:
            return end.receive()[0]
        except BlockingIOError:
            end.wait(None)
