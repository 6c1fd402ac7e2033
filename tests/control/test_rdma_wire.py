"""Links over RDMA as an independent peer speaks them: pyverbs, and nothing of ours.

It keeps to the rules with receives of another number and size, and it breaks them;
what it breaks is its own link.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.addresses import parse
from rfaas.control import aio
from rfaas.control.aio import AsyncLink
from rfaas.errors import PeerLostError
from rfaas.proto.codec import LENGTH, decode, encode
from rfaas.proto.link_wire import STREAM_BUFFER_BYTES, STREAM_CREDIT, STREAM_DATA
from rfaas.proto.messages import Beat, Done, Hello, Welcome
from tests.control.peers import HELLO, WELCOME, answer
from tests.harness.rdma import End, lacking

pytestmark = pytest.mark.rdma

Ends = tuple[End, End]
PEER = Path(__file__).with_name("pyverbs_stream.py")
PYTHON = "/usr/bin/python3"  # of the distribution: pyverbs must match its libibverbs


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> str:
    """A Python that has pyverbs."""
    found = subprocess.run([PYTHON, "-c", "import pyverbs.cmid"], capture_output=True, check=False)
    if found.returncode:
        lacking(request.config, "no Python with pyverbs; Debian's package is python3-pyverbs")
    return PYTHON


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "it closed"),
        ([{"kind": STREAM_DATA, "credits": 0, "bytes": 8, "imm": False}], "broke the protocol"),
        ([{"kind": 7, "credits": 0, "bytes": 8}], "broke the protocol below: a message"),
        ([{"kind": STREAM_DATA, "credits": 0, "bytes": 0}], "broke the protocol below: a message"),
        ([{"kind": STREAM_CREDIT, "credits": 1, "bytes": 8}], "broke the protocol below"),
        ([{"kind": STREAM_CREDIT, "credits": 60_000, "bytes": 0}], "more credits than receives"),
        ([{"kind": STREAM_DATA, "credits": 0, "bytes": STREAM_BUFFER_BYTES + 1}], "IBV_WC_LOC_"),
    ],
)
def test_who_breaks_the_rules_loses_the_link(
    rdma_ends: Ends, python: str, steps: list[dict[str, int]], said: str
) -> None:
    client, server = rdma_ends

    async def run() -> None:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve(link: AsyncLink, hello: Hello) -> None:
            if hello.name != HELLO.name:
                await answer(link, hello)
                return
            try:
                ended.set_result(f"said {await link.request(Beat(node='a'))}")
            except PeerLostError as error:
                ended.set_result(error.text)

        listener = await aio.listen(f"verbs:{server.address}:0", WELCOME, serve)
        order = {
            "source": client.address,
            "host": server.address,
            "port": parse(listener.address).port,
            "frame": encode(HELLO).hex(),
            "steps": steps,
        }
        peer = await asyncio.create_subprocess_exec(
            python,
            PEER,
            json.dumps(order),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert peer.stdout is not None
        welcome = decode(bytes.fromhex((await peer.stdout.readline()).decode())[LENGTH.size :])
        assert isinstance(welcome, Welcome)
        if not steps:
            assert await peer.stdout.readline() == b"0\n"
            await peer.communicate(b"")  # it goes
        assert said in await ended
        await peer.communicate(b"")
        honest = await aio.connect(listener.address, replace(HELLO, name="honest"))
        assert isinstance(await honest.request(Beat(node="a")), Done)
        await honest.close()
        await listener.close()

    asyncio.run(run())
