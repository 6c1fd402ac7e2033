"""Ends that come while a worker is only being started."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.control import sockets
from rfaas.control.link import Link, greet
from rfaas.errors import LeaseEndedError, WorkerCrashedError
from rfaas.proto.messages import (
    PROTOCOL_VERSION,
    Done,
    Error,
    GetStatus,
    Hello,
    LeaseGranted,
    LibraryStored,
    Message,
    OpenLease,
    ReleaseLease,
    RequestLease,
    SendLibrary,
    StartWorker,
    StatusReport,
)
from rfaas.proto.proof import prove
from tests.harness.processes import PATIENCE_S, descendants, until, workers_of
from tests.harness.site import Site

HELLO = Hello(version=PROTOCOL_VERSION, role="client", name="test")


def opened(link: Link, library: bytes) -> StartWorker:
    """A lease that is open on the link, with its library there; what starts its worker."""
    granted = link.ask(
        RequestLease(client="test", cores=1, memory_bytes=1 << 26, duration_s=60), LeaseGranted
    )
    proof = prove(granted.secret, link.nonce, granted.lease)
    link.request(OpenLease(token=granted.token, proof=proof))
    sha256 = hashlib.sha256(library).hexdigest()
    whole = SendLibrary(
        lease=granted.lease, sha256=sha256, size_bytes=len(library), offset=0, data=library
    )
    assert link.ask(whole, LibraryStored).received == len(library)
    return StartWorker(
        lease=granted.lease, sha256=sha256, slots=1, slot_bytes=4096, hot_timeout_ms=0
    )


def test_release_before_the_worker_is_there(site: Site, shipped: Path) -> None:
    """The zygote is stopped meanwhile; the worker that it then forks is killed at once."""
    site.set(executor__load_timeout_s=600)  # which is not what ends it
    node = site.start("executor", "--resource-manager", "none")
    (zygote,) = descendants(node.pid)
    address = site.address("executor")
    link = greet(sockets.connect(address), "the executor", HELLO)
    try:
        start = opened(link, shipped.read_bytes())
        os.kill(zygote, signal.SIGSTOP)
        try:
            link.send(replace(start, id=1001))
            link.send(ReleaseLease(id=1002, lease=start.lease))
            link.ask(GetStatus(), StatusReport)  # answered after both were taken up
        finally:
            os.kill(zygote, signal.SIGCONT)
        replies: dict[int, Message] = {}
        while len(replies) < 2:
            reply = link.receive(time.monotonic() + PATIENCE_S)
            if reply is None:
                pytest.fail(f"no answer within {PATIENCE_S:g} s, only {replies}")
            if reply.id:
                replies[reply.id] = reply
        assert isinstance(replies[1002], Done)
        refused = replies[1001]
        assert isinstance(refused, Error)
        assert refused.code in (WorkerCrashedError.code, LeaseEndedError.code)
    finally:
        link.close()
    until(lambda: not workers_of(node.pid), "the worker is gone")


def test_config_commands(site: Site) -> None:
    file = site.path / "mine.toml"
    file.write_text("[lane]\nslots = 4\n")
    done = site.run("config", "check", "--config", file)
    assert done.stdout.decode() == f"OK: file {file}\n"
    assert site.run("config", "check").stdout == b"OK: no file is read, defaults hold\n"
    assert not site.run("config", "show").stdout.endswith(b"\n\n")


def test_an_executor_that_is_not_there(site: Site) -> None:
    done = site.run("status", "--executor", "unix:/nobody")
    assert done.returncode == 69
    assert done.stderr.decode() == (
        "rfaas: no executor: nobody answers at unix:/nobody: No such file or directory\n"
        "hint: start one with: rfaas serve --role executor --resource-manager none "
        "--address unix:/nobody\n"
    )
