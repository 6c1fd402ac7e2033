"""The zygote itself, forked from here: what it does when the system fails it."""

from __future__ import annotations

import asyncio
import errno
import os
import sys

import pytest

from rfaas.config import SandboxConfig
from rfaas.control.link import Link
from rfaas.errors import InternalError, PeerLostError, SystemCallError
from rfaas.launch import zygote
from rfaas.launch.workers import ZYGOTE_GONE, Zygote
from rfaas.proto.worker_messages import SpawnWorker

ORDER = SpawnWorker(isolation="none")


def wait_for_end(link: Link) -> int:
    """A worker that loads nothing."""
    try:
        link.receive()
    except PeerLostError:
        pass
    return 7


def few_forks() -> zygote.WorkerMain:
    """Runs in the zygote alone: its first forks fail as in a full pids cgroup, and for memory."""
    fork, failures = os.fork, [errno.ENOMEM, errno.EAGAIN]

    def failing() -> int:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return fork()

    os.fork = failing
    return wait_for_end


def no_worker() -> zygote.WorkerMain:
    sys.stderr = os.fdopen(2, "w", buffering=1)  # pytest's own would keep what is written
    raise RuntimeError("what it loads is broken")


def test_a_fork_that_fails_is_the_loss_of_who_asked() -> None:
    async def scene(started: zygote.Started) -> None:
        lost: list[str] = []
        parent = Zygote(started.pid, started.sock, lost.append)
        for text in ("Resource temporarily unavailable", "Cannot allocate memory"):
            with pytest.raises(SystemCallError, match=f"cannot fork a worker: {text}") as refused:
                await parent.spawn(ORDER)
            assert "limit of processes" in refused.value.hint
        _, death, link = await parent.spawn(ORDER)
        await link.close()
        assert os.waitstatus_to_exitcode((await death).status) == 7
        await parent.close()
        assert not lost

    asyncio.run(scene(zygote.start(few_forks, SandboxConfig())))


def test_a_zygote_that_fails_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    async def scene(started: zygote.Started) -> None:
        lost: list[str] = []
        parent = Zygote(started.pid, started.sock, lost.append)
        with pytest.raises(InternalError, match="the zygote is gone"):
            await parent.spawn(ORDER)
        assert lost == [ZYGOTE_GONE]
        await parent.close()

    asyncio.run(scene(zygote.start(no_worker, SandboxConfig())))
    assert "RuntimeError: what it loads is broken" in capfd.readouterr().err
