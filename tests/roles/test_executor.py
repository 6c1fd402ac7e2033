"""What an executor decides by itself, without a process."""

from __future__ import annotations

import asyncio
import os

import pytest

from rfaas.config import ExecutorConfig
from rfaas.control.aio import no_silent_end
from rfaas.launch.node import cores_of, private


def test_private_executors_begin_on_different_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """They know nothing of each other; lanes are handed out from the last."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 7})
    last = []
    for pid in range(100, 104):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        cores, cpus = cores_of(private(ExecutorConfig()))
        assert cores == 4
        assert sorted(cpus) == [2, 3, 5, 7]
        last.append(cpus[-1])
        assert cores_of(private(ExecutorConfig(cores=1))) == (1, cpus[-1:])
    assert sorted(last) == [2, 3, 5, 7]
    assert cores_of(ExecutorConfig(name="n1")) == (4, [2, 3, 5, 7])


def test_a_task_does_not_end_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    lost: list[str] = []

    async def fail() -> None:
        with no_silent_end("the link", lost.append):
            raise KeyError("x")

    async def cancelled() -> None:
        with no_silent_end("the link", lost.append):
            raise asyncio.CancelledError

    asyncio.run(fail())
    assert lost == ["the link failed: KeyError: 'x'"]
    assert "Traceback" in caplog.text
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert len(lost) == 1
