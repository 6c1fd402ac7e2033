"""SIGINT and SIGTERM, to one process and to a terminal's whole group, in each role and client."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.functions.build import build_library
from tests.harness.gate import Gate
from tests.harness.processes import Child, descendants, until, wait_for_end
from tests.harness.site import Site

INTERRUPTED = 130
SIGNALS = [signal.SIGINT, signal.SIGTERM]

Send = Callable[[Child, int], None]
WAYS: dict[str, Send] = {"alone": Child.signal, "group": Child.signal_group}


@pytest.fixture(params=list(WAYS))
def send(request: pytest.FixtureRequest) -> Send:
    """One process gets the signal, or its group, as when a terminal sends it."""
    return WAYS[request.param]


def ends_well(role: Child, number: int, send: Send) -> None:
    """A role goes, all its processes with it, without a word of trouble."""
    family = list(descendants(role.pid))
    send(role, number)
    assert role.wait() == 0, role.stderr
    wait_for_end(*family)
    assert "Traceback" not in role.stderr
    assert " ERROR " not in role.stderr


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("role", ["resource-manager", "executor", "all"])
def test_idle_role(site: Site, role: str, number: int, send: Send) -> None:
    flags = ("--resource-manager", "none") if role == "executor" else ()
    ends_well(site.start(role, *flags), number, send)
    assert list(site.runtime.iterdir()) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_roles_with_a_call_in_flight(
    site: Site, held: Path, gate: Callable[[], Gate], number: int, send: Send
) -> None:
    both, one = site.start("all"), gate()
    call = site.command("call", held, "hold", "-")
    assert call.process.stdin
    call.process.stdin.write(one.data)
    call.process.stdin.close()
    one.begun()
    ends_well(both, number, send)
    one.ended()
    assert call.wait() in (69, 70), call.stderr
    assert call.stderr.startswith("rfaas: ")
    assert "Traceback" not in call.stderr


def test_executor_that_waits_for_its_manager(site: Site, send: Send) -> None:
    executor = site.start_unready("executor")
    until(lambda: "trying again" in executor.stderr, "a warning")
    ends_well(executor, signal.SIGINT, send)


def test_executor_that_loads_a_library(site: Site, libraries: Path, send: Send) -> None:
    both = site.start("all")
    call = site.command("call", build_library(libraries, "ctor_hang"), "never_called")
    until(lambda: len(list(descendants(both.pid))) == 2, "a zygote and a worker")
    ends_well(both, signal.SIGINT, send)
    assert call.wait() in (65, 69, 70), call.stderr
    assert call.stderr.startswith("rfaas: ")


def interrupted(child: Child, number: int) -> None:
    """A client ended as it was told, and quietly."""
    status = INTERRUPTED if number == signal.SIGINT else -signal.SIGTERM
    assert child.wait() == status, child.stderr
    assert child.stderr == ""
    assert child.rest() == ""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("function", "served"), [("hold", True), ("spin", False)])
def test_client_in_mid_call(
    site: Site,
    held: Path,
    gate: Callable[[], Gate],
    number: int,
    function: str,
    send: Send,
    *,
    served: bool,
) -> None:
    one = gate()
    if served:
        site.start("all")
    call = site.command("call", held, function, "-")
    assert call.process.stdin
    call.process.stdin.write(one.data)
    call.process.stdin.close()
    one.begun()
    family = list(descendants(call.pid))
    assert len(family) == (0 if served else 3)
    send(call, number)
    interrupted(call, number)
    one.ended()
    wait_for_end(*family)
    if served:
        with site.session() as session:
            until(lambda: [one.cores_free for one in session.nodes()] == [2], "free cores")


@pytest.mark.parametrize("number", SIGNALS)
def test_client_that_leases(site: Site, libraries: Path, number: int, send: Send) -> None:
    """It waits for a library that is never loaded."""
    node = site.start("all")
    call = site.command("call", build_library(libraries, "ctor_hang"), "never_called")
    until(lambda: len(list(descendants(node.pid))) == 2, "a zygote and a worker")
    send(call, number)
    interrupted(call, number)
    until(lambda: len(list(descendants(node.pid))) == 1, "the end of the worker")
    with site.session() as session:
        until(lambda: [one.cores_free for one in session.nodes()] == [2], "free cores")


@pytest.mark.parametrize("number", SIGNALS)
def test_client_that_reads_its_input(site: Site, shipped: Path, number: int, send: Send) -> None:
    call = site.command("call", shipped, "echo", "-")
    until(lambda: f"{shipped}" in Path(f"/proc/{call.pid}/cmdline").read_text(), "our program")
    until(lambda: "pipe" in Path(f"/proc/{call.pid}/wchan").read_text(), "reading of the pipe")
    send(call, number)
    interrupted(call, number)


def test_interrupt_in_python_leaves_a_session_that_works(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    """KeyboardInterrupt out of a call: the lease can be closed, and others taken."""
    program = """
session = rfaas.connect()
lease = session.lease(library=sys.argv[1])
for attempt in (
    lambda data: lease.call("hold", data),
    lambda data: lease.submit("hold", data).result(),
    lambda data: next(lease.map("hold", [data])),
):
    try:
        attempt(sys.stdin.readline().strip().encode())
    except KeyboardInterrupt:
        say("interrupted")
    lease.close()
    lease = session.lease(library=sys.argv[1])
    say(bytes(lease.call("copy", b"works")).decode())
session.close()
"""
    client = site.client(program, held)
    for _ in range(3):
        one = gate()
        client.say(str(one.path))
        one.begun()
        client.signal(signal.SIGINT)
        assert client.lines.next() == "interrupted", client.stderr
        one.ended()
        assert client.lines.next() == "works", client.stderr
    assert client.wait() == 0
    assert client.stderr == ""
