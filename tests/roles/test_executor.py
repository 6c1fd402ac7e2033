"""What an executor decides by itself, without a process."""

from __future__ import annotations

import asyncio
import os

import pytest

from rfaas.config import ExecutorConfig
from rfaas.control.aio import no_silent_end
from rfaas.core.topology import Facts
from rfaas.diagnose import processors
from rfaas.launch.node import cores_of, partners_of, private


def test_private_executors_begin_on_different_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """They know nothing of each other; lanes are handed out from the last."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 7})
    last = []
    for pid in range(100, 104):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        cpus = cores_of(private(ExecutorConfig())).cpus
        assert sorted(cpus) == [2, 3, 5, 7]
        last.append(cpus[-1])
        assert cores_of(private(ExecutorConfig(cores=1))).cpus == cpus[-1:]
    assert sorted(last) == [2, 3, 5, 7]
    assert cores_of(ExecutorConfig(name="n1")).cpus == (2, 3, 5, 7)


def test_what_a_machine_lends_of_its_physical_cores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str | None] = []

    def find(cpus: list[int], nic: str | None) -> Facts:
        asked.append(nic)
        return Facts({cpu: cpu // 2 for cpu in cpus}, {cpu: cpu // 4 for cpu in cpus}, 0)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(processors, "find", find)
    with caplog.at_level("INFO"):
        found = cores_of(ExecutorConfig(name="n1", cores=2), "mlx5_0")
        assert found.cpus == (1, 3)  # of the NIC's node
        assert partners_of(found) == {3: 0, 1: 2}  # nor their own siblings, nor another node
        assert not caplog.messages
        assert cores_of(ExecutorConfig(name="n1")).cpus == tuple(range(8))
    told = "lends processors: 8 on 4 physical cores of 2 NUMA nodes, the NIC on node 0"
    assert caplog.messages == [told]
    cores_of(private(ExecutorConfig()), "mlx5_0")
    assert asked == ["mlx5_0", "", None]


def test_more_cores_than_processors_are_not_pinned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    found = cores_of(ExecutorConfig(name="n1", cores=3))
    assert found.cpus == (-1, -1, -1)
    assert partners_of(found) == {}
    assert "executor.cores is 3, this process may use 2 processors" in caplog.text


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
