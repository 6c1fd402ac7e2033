"""Links over RDMA: credits, back pressure, and what ends them.  Between two devices."""

from __future__ import annotations

import asyncio
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from rfaas.addresses import parse
from rfaas.control import aio, ends, rdma, rdma_aio, rdma_errors
from rfaas.control.aio import AsyncLink
from rfaas.control.carrier import Acceptor
from rfaas.control.rdma import RdmaCarrier
from rfaas.errors import (
    AddressInUseError,
    ConfigError,
    PeerLostError,
    SystemCallError,
    UnavailableError,
)
from rfaas.proto.codec import encode
from rfaas.proto.link_wire import (
    STREAM_BUFFER_BYTES,
    STREAM_BYTES,
    STREAM_HELLO,
    STREAM_MAGIC,
    STREAM_PEER_BUFFER_BYTES_MIN,
    STREAM_PEER_RECEIVES_MAX,
    STREAM_PEER_RECEIVES_MIN,
    STREAM_RECEIVES,
    STREAM_VERSION,
)
from rfaas.proto.messages import Beat, Done, Error, Hello, Message
from rfaas.proto.wire import VERBS_MAGIC
from tests.control.peers import HELLO, WELCOME, answer, send_all
from tests.harness.rdma import End, cable_cut

native = pytest.importorskip("rfaas.native._rdma_stream", exc_type=ImportError)

pytestmark = pytest.mark.rdma

Ends = tuple[End, End]
MESSAGES = 100_000
LARGE_EACH = 1000  # of them one of 60 KB, which is 60 fragments
PORT_DOWN = r"port 1 of our device is down \((a send completed with IBV_WC_|RDMA_CM_EVENT_)"
BURST = 500  # sent before the sender waits for room


in_guest = pytest.mark.skipif("RFAAS_GUEST" not in os.environ, reason="what it does is for a guest")


class Pair:
    """Both ends of a link, in one loop."""

    def __init__(self, one: RdmaCarrier, other: RdmaCarrier) -> None:
        self.carriers = one, other
        self.links = AsyncLink(one, "one"), AsyncLink(other, "the other")


@asynccontextmanager
async def paired(between: Ends) -> AsyncIterator[Pair]:
    """Connect from the first device to the second."""
    client, server = between
    acceptor = ends.listen(f"verbs:{server.address}:0")
    one, other = await asyncio.gather(
        ends.connect_soon(acceptor.address, client.device), first(acceptor)
    )
    assert isinstance(one, RdmaCarrier)
    pair = Pair(one, other)
    try:
        yield pair
    finally:
        for link in pair.links:
            await link.close()
        acceptor.close()


async def first(acceptor: Acceptor) -> RdmaCarrier:
    """The first that connects."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[RdmaCarrier] = loop.create_future()

    def accept() -> None:
        if (carrier := acceptor.accept()) is not None:
            assert isinstance(carrier, RdmaCarrier)
            accepted.set_result(carrier)

    loop.add_reader(acceptor.fileno(), accept)
    try:
        return await accepted
    finally:
        loop.remove_reader(acceptor.fileno())


def hello(**other: int) -> bytes:
    """What is said on connecting, with something else in its place."""
    said = {
        "magic": STREAM_MAGIC,
        "version": STREAM_VERSION,
        "receives": STREAM_RECEIVES,
        "buffer_bytes": STREAM_BUFFER_BYTES,
    }
    return struct.pack(STREAM_HELLO, *(said | other).values())


def begun(address: str, between: Ends, said: bytes) -> RdmaCarrier:
    """Connect with that hello, blocking."""
    there = parse(address)
    stream = native.connect(between[0].address, there.host, there.port, 5000, said)
    while stream.state == "opening":
        rdma.poll(stream.fileno(), None)
        stream.step()
    try:
        return rdma.opened(stream, there, there.host)
    except UnavailableError:
        stream.close()
        raise


async def ended(carrier: RdmaCarrier) -> None:
    """Return when a connection is over; nothing of it is read."""
    with suppress(OSError):
        while True:
            try:
                carrier.send(encode(Done()))
            except BlockingIOError:
                await asyncio.sleep(0.01)


async def flood(link: AsyncLink, _: Hello) -> None:
    """Say much, to whoever said hello, and answer."""
    for number in range(100):
        link.send(Error(id=1000 + number, code="usage", text="x" * 4000))
    await answer(link, _)


def pinned_bytes() -> int:
    """What RDMA has locked of our memory."""
    found = re.search(r"^VmPin:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def resources() -> dict[str, str]:
    """Queue pairs, completion queues, regions and the rest on all devices."""
    done = subprocess.run(["rdma", "resource"], check=True, capture_output=True, text=True)
    return dict(line.split(": ", 2)[1:] for line in done.stdout.splitlines())


def numbered(number: int) -> Message:
    text = "x" * (4096 if number % LARGE_EACH else 0)
    if number % LARGE_EACH == 0:
        return Error(id=number, code="usage", text=text, hint="y" * 4096)
    return Done(id=number)


async def say(link: AsyncLink, count: int) -> None:
    for number in range(count):
        link.send(numbered(number))
        if number % BURST == 0:
            await link.drain()
    await link.drain()


async def hear(link: AsyncLink, count: int) -> None:
    for number in range(count):
        message = await link.receive()
        assert message is not None
        assert message.id == number


async def blocked(link: AsyncLink, credits_left: Callable[[], int]) -> None:
    """Return when a link has more to send than the peer has room for."""
    while link.drained or credits_left() > 1:  # noqa: ASYNC110 - what is waited for runs here
        await asyncio.sleep(0)


class TestCredits:
    @pytest.mark.timeout(600)
    def test_a_hundred_thousand_each_way(self, rdma_ends: Ends) -> None:
        """And one side reads slowly: it stops now and then, until the other can send no more."""

        async def run() -> None:
            async with paired(rdma_ends) as pair:
                one, other = pair.links

                async def hear_slowly() -> None:
                    for number in range(MESSAGES):
                        if number and number % (MESSAGES // 10) == 0:
                            await blocked(one, lambda: pair.carriers[0].credits[0])
                        message = await other.receive()
                        assert message is not None
                        assert message.id == number

                await asyncio.gather(
                    say(one, MESSAGES), say(other, MESSAGES), hear(one, MESSAGES), hear_slowly()
                )

        asyncio.run(run())

    def test_who_claims_more_receives_than_it_has_breaks_its_own_link(
        self, rdma_ends: Ends
    ) -> None:
        """Its NIC says that none is there, and after some tries ours gives up."""

        async def run() -> None:
            listener = await aio.listen(f"verbs:{rdma_ends[1].address}:0", WELCOME, flood)
            liar = await asyncio.to_thread(begun, listener.address, rdma_ends, hello(receives=4096))
            honest = await aio.connect(listener.address, HELLO)
            send_all(liar, encode(HELLO))
            await ended(liar)
            assert isinstance(await honest.request(Beat(node="a")), Done)
            liar.close()
            await honest.close()
            await listener.close()

        asyncio.run(run())

    def test_memory_of_a_link(self, rdma_ends: Ends) -> None:
        """What is locked for it is what the page says, so hundreds fit into 8 MiB."""

        async def run() -> None:
            listener = await aio.listen(f"verbs:{rdma_ends[1].address}:0", WELCOME, answer)
            before = pinned_bytes()
            links = [await aio.connect(listener.address, HELLO) for _ in range(20)]
            assert pinned_bytes() - before == 2 * len(links) * STREAM_BYTES
            for one in links:
                await one.close()
            await listener.close()
            assert pinned_bytes() == before

        asyncio.run(run())


class TestStrangers:
    @pytest.mark.parametrize(
        ("said", "refusal"),
        [
            ({"magic": 0}, "stranger"),
            ({"magic": VERBS_MAGIC}, "stranger"),
            ({"version": STREAM_VERSION + 1}, "version"),
            ({"receives": STREAM_PEER_RECEIVES_MIN - 1}, "geometry"),
            ({"receives": STREAM_PEER_RECEIVES_MAX + 1}, "geometry"),
            ({"buffer_bytes": STREAM_PEER_BUFFER_BYTES_MIN - 1}, "geometry"),
        ],
    )
    def test_what_is_no_hello(
        self,
        rdma_ends: Ends,
        caplog: pytest.LogCaptureFixture,
        said: dict[str, int],
        refusal: str,
    ) -> None:
        """Refused with the reason, either way, and others are served as before."""

        async def run() -> None:
            listener = await aio.listen(f"verbs:{rdma_ends[1].address}:0", WELCOME, answer)
            with pytest.raises(UnavailableError, match="refused the link") as refused:
                await asyncio.to_thread(begun, listener.address, rdma_ends, hello(**said))
            assert rdma_errors.REFUSALS[refusal].split()[-1] in refused.value.text
            honest = await aio.connect(listener.address, HELLO)
            assert isinstance(await honest.request(Beat(node="a")), Done)
            await honest.close()
            await listener.close()

        asyncio.run(run())
        assert f"refused a connection: {rdma_errors.REFUSALS[refusal]}" in caplog.text

    def test_an_answer_that_is_none(self, rdma_ends: Ends) -> None:
        """Who connects looks as closely."""
        listener = native.Listener(rdma_ends[1].address, 0, 1)
        address = f"verbs:{rdma_ends[1].address}:{listener.port}"
        found: list[object] = []

        def serve() -> None:
            rdma.poll(listener.fileno(), None)
            found.append(listener.accept(hello(version=STREAM_VERSION + 1)))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UnavailableError, match=r"refused the link: .* another version"):
            ends.connect(address)
        thread.join()
        (stream,) = found
        assert isinstance(stream, native.Stream)
        stream.close()
        listener.close()

    def test_another_program(self, rdma_ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
        async def run() -> None:
            listener = await aio.listen(f"verbs:{rdma_ends[1].address}:0", WELCOME, answer)
            port = listener.address.rpartition(":")[2]
            command = ["rping", "-c", "-a", rdma_ends[1].address, "-p", port, "-C", "1"]
            other = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
            _, said = await other.communicate()
            assert b"RDMA_CM_EVENT_REJECTED" in said
            await listener.close()

        asyncio.run(run())
        assert "refused a connection: what connected is no link of rfaas" in caplog.text


class TestEnds:
    def test_nobody_listens(self, rdma_ends: Ends) -> None:
        address = f"verbs:{rdma_ends[1].address}:1"
        said = rf"nobody answers at {address}: .*RDMA_CM_EVENT_REJECTED"
        with pytest.raises(UnavailableError, match=said):
            ends.connect(address)
        with pytest.raises(UnavailableError, match=said):
            asyncio.run(aio.connect(address, HELLO))

    def test_a_wrong_device(self, rdma_ends: Ends) -> None:
        with pytest.raises(ConfigError, match="there is no RDMA device or netdev 'mlx9_0'"):
            ends.connect(f"verbs:{rdma_ends[1].address}:1", "mlx9_0")

    def test_an_address_without_a_device(self) -> None:
        async def run() -> None:
            with pytest.raises(SystemCallError, match="cannot listen at verbs:127") as refused:
                ends.listen("verbs:127.0.0.1:0")
            assert "the address of an RDMA device" in refused.value.hint

        asyncio.run(run())

    def test_a_port_that_is_taken(self, rdma_ends: Ends) -> None:
        async def run() -> None:
            listener = await aio.listen(f"verbs:{rdma_ends[1].address}:0", WELCOME, answer)
            with pytest.raises(AddressInUseError, match="somebody listens at"):
                ends.listen(listener.address)
            await listener.close()

        asyncio.run(run())

    def test_a_peer_that_is_killed(self, rdma_ends: Ends) -> None:
        code = (
            "import sys, time; sys.path[:] = sys.argv[1].split(chr(10))\n"
            "from rfaas.control import ends\n"
            "end = ends.connect(sys.argv[2]); print(flush=True); time.sleep(600)\n"
        )

        async def run() -> None:
            acceptor = ends.listen(f"verbs:{rdma_ends[1].address}:0")
            path = "\n".join(sys.path)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, path, acceptor.address, stdout=subprocess.PIPE
            )
            link = AsyncLink(await first(acceptor), "a peer")
            assert child.stdout is not None
            await child.stdout.readline()
            child.kill()
            assert await link.receive() is None
            with pytest.raises(PeerLostError):
                await link.request(Beat(node="a"))
            await child.wait()
            await link.close()
            acceptor.close()

        asyncio.run(run())

    @in_guest
    def test_the_cable_is_cut(self, rdma_ends: Ends) -> None:
        """Who sends hears of it from its NIC."""

        async def run() -> None:
            async with paired(rdma_ends) as pair:
                with cable_cut(rdma_ends[0]), pytest.raises(PeerLostError, match=PORT_DOWN):
                    await pair.links[0].request(Beat(node="a"))

        asyncio.run(run())

    @in_guest
    def test_a_machine_that_vanished(
        self, rdma_ends: Ends, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody sends anything: the listener asks its NIC."""
        monkeypatch.setattr(rdma_aio, "PROBE_S", 0.05)

        async def run() -> None:
            async with paired(rdma_ends) as pair:
                with cable_cut(rdma_ends[0]):
                    assert await pair.links[1].receive() is None

        asyncio.run(run())

    def test_what_was_sent_arrives_before_the_end(self, rdma_ends: Ends) -> None:
        async def run() -> None:
            for _ in range(5):
                async with paired(rdma_ends) as pair:
                    one, other = pair.links
                    one.send(Error(code="usage", text="x" * 4096))
                    await one.close()
                    message = await other.receive()
                    assert isinstance(message, Error)
                    assert await other.receive() is None

        asyncio.run(run())

    def test_many_come_and_go(self, rdma_ends: Ends) -> None:
        """Nothing is left of them: the descriptors are counted by every test, this one the rest."""

        async def run() -> None:
            listener = await aio.listen(f"verbs:{rdma_ends[1].address}:0", WELCOME, answer)
            for _ in range(30):
                link = await aio.connect(listener.address, HELLO)
                await link.close()
            await listener.close()

        before = resources()
        asyncio.run(run())
        assert resources() == before
