"""The listener of a role: peers that say nothing."""

from __future__ import annotations

import asyncio

import pytest

from rfaas.control import aio, ends
from tests.control.peers import WELCOME, answer, next_bytes


def test_a_peer_that_says_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(aio, "HELLO_TIMEOUT_S", 0.01)

    def client() -> None:
        end = ends.connect(address)
        assert b"no message came in time" in next_bytes(end)
        end.close()

    async def run() -> None:
        listener = await aio.listen(address, WELCOME, answer)
        await asyncio.to_thread(client)
        await listener.close()

    asyncio.run(run())
    assert caplog.records[-1].getMessage() == "a new peer: no message came in time"
