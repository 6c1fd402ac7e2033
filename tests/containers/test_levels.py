"""Workers in bubblewrap and in containers: real engines, real kills."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas.errors import DeadlineExceededError, LibraryError, WorkerCrashedError
from tests.containers.conftest import BASE, Node, name_of
from tests.harness.gate import Gate
from tests.harness.processes import until, wait_for_end

pytestmark = pytest.mark.parametrize("made", BASE, indirect=True)


def gone(node: Node) -> None:
    """Return when nothing of a container is left."""
    until(lambda: not node.processes() and not node.boxes(), "the end of all containers")


def test_call(node: Node, shipped: Path) -> None:
    with node.session() as session:
        with session.lease(library=shipped) as lease:
            assert lease.isolation == node.isolation
            assert bytes(lease.call("echo", b"small")) == b"small"
            large = os.urandom(65536)
            assert bytes(lease.call("echo", large)) == large
            assert lease.steps_ns["worker.engine"] > 0
        gone(node)
        with session.lease(cores=2, library=shipped) as lease:
            assert [bytes(one) for one in lease.map("echo", [b"a", b"b", b"c"])] == [
                *(b"a", b"b", b"c")
            ]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("crash_segv", "killed by SIGSEGV (Segmentation fault)"),
        ("crash_abort", "killed by SIGABRT (Aborted)"),
        ("call_exit", "it ended by itself with exit status 3"),
        ("call_pthread_exit", "a function called pthread_exit()"),
    ],
)
def test_crash(node: Node, hostile: Path, function: str, words: str) -> None:
    with node.session() as session, session.lease(library=hostile) as lease:
        with pytest.raises(WorkerCrashedError, match=re.escape(words)):
            lease.call(function)
        assert lease.call("empty_output") == b""


def test_deadline(node: Node, hostile: Path) -> None:
    with node.session() as session, session.lease(library=hostile) as lease:
        with pytest.raises(DeadlineExceededError):
            lease.call("loop_forever", timeout=0.05)
        gone(node)
        assert lease.call("empty_output") == b""


def test_library_that_needs_what_the_image_lacks(node: Node, libraries: Path) -> None:
    from tests.functions.build import build_library

    broken = build_library(libraries, "unresolved")
    with node.session() as session:
        with pytest.raises(LibraryError, match="undefined symbol"):
            session.lease(library=broken)
        gone(node)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_executor_ends_in_mid_call(made: Node, hostile: Path, number: int) -> None:
    node, executor = made, made.start()
    with node.session() as session:
        lease = session.lease(library=hostile)
        future = lease.submit("loop_forever")
        family = node.processes()
        assert family
        if number == signal.SIGKILL:
            node.site.kill(executor)
        else:
            executor.signal(number)
        assert future.exception() is not None
        wait_for_end(*family)
        lease.close()
    node.executor = None
    until(lambda: not node.boxes(), "no folder of a container")


def test_all_is_killed(made: Node, hostile: Path) -> None:
    """As by a power cut: the next executor takes away what is left."""
    node, executor = made, made.start()
    with node.session() as session:
        lease = session.lease(library=hostile)
        future = lease.submit("loop_forever")
        family = node.processes()
        node.site.killed = True
        keeper = next(pid for pid in family if name_of(pid) == "rfaas-keeper")
        os.kill(keeper, signal.SIGKILL)
        node.site.kill(executor)
        assert future.exception() is not None
        lease.close()
    wait_for_end(*family)
    node.start()
    gone(node)
    with node.session() as session, session.lease(library=hostile) as lease:
        assert lease.call("empty_output") == b""


def test_client_is_gone(
    node: Node, held: Path, gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import rfaas.config, rfaas.client, os\n"
        "c = rfaas.config.load(None, os.environ).config\n"
        "s = rfaas.client.Session(c)\n"
        "l = s.lease(library=sys.argv[1])\n"
        "say('leased')\n"
        "sys.stdin.read()\n"
    )
    node.site.set(client__executor=node.site.address("executor"), lease__isolation=node.isolation)
    client = node.site.client(code, held)
    client.lines.until("leased")
    assert node.processes()
    node.site.kill(client)
    gone(node)
