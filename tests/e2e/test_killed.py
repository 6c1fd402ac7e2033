"""Processes that are killed: who depends on them hears of it, and what they held comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas.client import Session
from rfaas.errors import (
    CapacityError,
    LeaseEndedError,
    PeerLostError,
    RfaasError,
    UnavailableError,
    WorldError,
)
from tests.harness.gate import Gate
from tests.harness.processes import (
    Child,
    descendants,
    endpoints_of,
    is_alive,
    parent_of,
    until,
    wait_for_end,
    workers_of,
)
from tests.harness.site import Site

# A client program: `lease` of one core, then what a test adds.
CLIENT = """
library, *data = sys.argv[1:]
session = rfaas.connect()
lease = session.lease(library=library)
"""
HOLDS = CLIENT + "lease.call('hold', data[0].encode())"
PIPELINES = (
    CLIENT
    + """
def inputs():
    number = 0
    while True:
        number += 1
        if number == 1000:
            say("busy")
        yield b"x" * 200
for result in lease.map("copy", inputs()):
    pass
"""
)
FUTURES = (
    CLIENT
    + """
futures = [lease.submit("hold", data[0].encode())]
futures += [lease.submit("copy", b"x" * 200) for _ in range(10)]
say("busy")
sys.stdin.read()
"""
)


def cores_free(session: Session) -> list[int]:
    return [node.cores_free for node in session.nodes()]


def wait_for_cores(session: Session, wanted: int = 2) -> None:
    until(lambda: cores_free(session) == [wanted], f"{wanted} free cores")


# Clients


def test_row_34_client_killed_in_mid_call(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    node, one = site.start("all"), gate()
    client = site.client(HOLDS, held, one.path)
    worker = one.begun()
    with site.session() as session:
        assert cores_free(session) == [1]
        client.signal(signal.SIGKILL)
        client.wait()
        one.ended()
        wait_for_end(worker)
        wait_for_cores(session)
        (ended,) = session.leases(all=True)
        assert ended.state == "client-lost"
    assert workers_of(node.pid) == []


@pytest.mark.parametrize("program", [PIPELINES, FUTURES])
def test_client_killed_while_pipelining(
    site: Site, held: Path, gate: Callable[[], Gate], program: str
) -> None:
    node, one = site.start("all"), gate()
    client = site.client(program, held, one.path)
    assert client.lines.next() == "busy", client.stderr
    workers = workers_of(node.pid)
    assert len(workers) == 1
    client.signal(signal.SIGKILL)
    client.wait()
    wait_for_end(*workers)
    with site.session() as session:
        wait_for_cores(session)
        with session.lease(cores=2, library=held) as lease:
            assert bytes(lease.call("copy", b"next")) == b"next"


def test_client_killed_while_it_sends_its_library(site: Site, held: Path) -> None:
    """The lease is granted, the library half there."""
    node = site.start("all")
    program = """
from rfaas.control.link import Link
request = Link.request
def stop(self, message, *rest, **more):
    if type(message).__name__ == "SendLibrary" and message.offset:
        say("half")
        sys.stdin.read()
    return request(self, message, *rest, **more)
Link.request = stop
rfaas.connect().lease(library=sys.argv[1])
"""
    large = site.path / "large.so"
    large.write_bytes(held.read_bytes() + bytes(200_000))
    client = site.client(program, large)
    assert client.lines.next() == "half", client.stderr
    with site.session() as session:
        assert cores_free(session) == [1]
        client.signal(signal.SIGKILL)
        client.wait()
        wait_for_cores(session)
        with session.lease(library=large) as lease:
            assert bytes(lease.call("copy", b"whole")) == b"whole"
    assert workers_of(node.pid) == []


def test_private_executor_goes_with_its_client(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    one = gate()
    client = site.client(HOLDS, held, one.path)
    worker = one.begun()
    family = list(descendants(client.pid))
    assert worker in family
    assert len(family) - len(endpoints_of(client.pid)) == 3  # executor, zygote, worker
    client.signal(signal.SIGKILL)
    client.wait()
    one.ended()
    wait_for_end(*family)


def test_private_executor_is_killed(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    one = gate()
    with site.private_session() as session:
        lease = session.lease(library=held)
        future = lease.submit("hold", one.data)
        worker = one.begun()
        executor = parent_of(parent_of(worker))  # its zygote's
        os.kill(executor, signal.SIGKILL)
        with pytest.raises(PeerLostError, match="the executor of node private is gone"):
            future.result()
        one.ended()
        with pytest.raises(PeerLostError):
            lease.call("copy", b"x")
        with pytest.raises(WorldError):
            session.lease(library=held)


# Executors


def test_row_36_executor_killed_in_mid_call(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    site.start("resource-manager")
    executor, one = site.start("executor"), gate()
    with site.session() as session, session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        family = [*descendants(executor.pid), one.begun()]
        site.kill(executor)
        with pytest.raises(PeerLostError) as lost:
            future.result()
        assert lost.value.text.startswith("the executor of node ")
        assert lost.value.exit_status == 69
        one.ended()
        wait_for_end(*family)
        with pytest.raises(PeerLostError):
            lease.call("copy", b"x")
        until(lambda: [node.state for node in session.nodes()] == ["lost"], "a lost node")
        assert [one.state for one in session.leases(all=True)] == ["node-lost"]
        with pytest.raises(CapacityError, match="no node is up"):
            session.lease(library=held)
        site.start("executor")  # over the dead one's socket
        with session.lease(cores=2, library=held) as again:
            assert bytes(again.call("copy", b"again")) == b"again"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_of_a_function_go_with_the_executor(
    site: Site, held: Path, gate: Callable[[], Gate], number: int
) -> None:
    executor, one = site.start("executor", "--resource-manager", "none"), gate()
    with (
        site.session(client__executor=site.address("executor")) as session,
        session.lease(library=held) as lease,
    ):
        lease.call("hold_in_children", one.data)
        one.begun()
        assert one.is_held()
        site.killed = number == signal.SIGKILL
        executor.signal(number)
        executor.wait()
        one.ended()


def test_call_command_says_that_its_executor_was_killed(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    site.start("resource-manager")
    executor, one = site.start("executor"), gate()
    call = site.command("call", held, "hold", "-")
    assert call.process.stdin
    call.process.stdin.write(one.data)
    call.process.stdin.close()
    one.begun()
    site.kill(executor)
    assert call.wait() == 69
    assert call.stderr.startswith("rfaas: the executor of node ")
    assert call.rest() == ""


def test_executor_stops_in_mid_call(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    """SIGTERM: it ends its workers and goes; clients hear of it."""
    site.start("resource-manager")
    executor, one = site.start("executor"), gate()
    with site.session() as session, session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        worker = one.begun()
        executor.signal(signal.SIGTERM)
        with pytest.raises(LeaseEndedError, match=r"lease [0-9a-f]{8} is over: node-lost"):
            future.result()
        assert executor.wait() == 0
        assert not is_alive(worker)
        assert not site.socket("executor").exists()
        with pytest.raises(WorldError):
            lease.call("copy", b"x")


def test_zygote_killed(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    """Without it no worker can be started: the executor ends, says so, and leaves nothing."""
    site.start("resource-manager")
    executor, one = site.start("executor"), gate()
    (zygote,) = descendants(executor.pid)
    with site.session() as session, session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        worker = one.begun()
        os.kill(zygote, signal.SIGKILL)
        assert executor.wait() == 70
        assert "rfaas: the zygote is gone: no worker can be started" in executor.stderr
        assert isinstance(future.exception(), RfaasError)
        wait_for_end(worker)
        assert not site.socket("executor").exists()


# Resource managers


def restart(site: Site, manager: Child) -> Child:
    """Kill the manager, and start another where it was."""
    site.kill(manager)
    return site.start("resource-manager")


def test_manager_killed_in_mid_call(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    """Calls go on without it; the next one takes node, lease and bill over."""
    manager = site.start("resource-manager")
    executor, one = site.start("executor"), gate()
    session = site.session()
    lease = session.lease(library=held)
    future = lease.submit("hold", one.data)
    worker = one.begun()
    site.kill(manager)
    one.release()
    assert bytes(future.result()) == one.data
    for _ in range(100):
        assert bytes(lease.call("copy", b"x" * 300)) == b"x" * 300

    site.start("resource-manager")
    with site.session() as second:
        until(lambda: [node.state for node in second.nodes()] == ["up"], "the node again")
        (report,) = second.leases()
        assert (report.lease, report.state) == (lease.id, "live")
        assert cores_free(second) == [1]
        assert bytes(lease.call("copy", b"x")) == b"x"
        assert workers_of(executor.pid) == [worker]
        until(lambda: second.leases()[0].usage.calls == 102, "102 calls in the report")
        lease.close()
        wait_for_cores(second)
        (report,) = second.leases(all=True)
        assert report.state == "released"
    session.close()


def test_lease_ends_while_the_manager_is_away(site: Site, held: Path) -> None:
    manager = site.start("resource-manager")
    site.start("executor")
    session = site.session()
    lease = session.lease(library=held)
    assert bytes(lease.call("copy", b"x")) == b"x"
    site.kill(manager)
    lease.close()
    with pytest.raises(UnavailableError, match="nobody answers at unix:"):
        session.lease(library=held)
    session.close()
    site.start("resource-manager")
    with site.session() as second:
        wait_for_cores(second)
        (report,) = second.leases(all=True)
        assert (report.state, report.usage.calls) == ("released", 1)


def test_client_renews_with_the_next_manager(site: Site, held: Path) -> None:
    """A lease outlives its duration through a change of managers."""
    site.set(client__lease_duration_s=2)
    manager = site.start("resource-manager")
    site.start("executor")
    with site.session() as session, session.lease(library=held) as lease:
        restart(site, manager)
        with site.session() as second:
            until(lambda: [node.state for node in second.nodes()] == ["up"], "the node again")
            until(lambda: second.leases() and second.leases()[0].age_s > 2.5, "an age of 2.5 s")
            assert [one.lease for one in second.leases()] == [lease.id]
        assert bytes(lease.call("copy", b"x")) == b"x"


def test_executor_started_before_its_manager(site: Site, held: Path) -> None:
    executor = site.start_unready("executor")
    until(lambda: "trying again" in executor.stderr, "a warning")
    with pytest.raises(UnavailableError, match="no resource manager: nobody answers"):
        site.session(client__resource_manager=site.address())
    site.start("resource-manager")
    assert (executor.lines.next() or "").startswith("executor ")
    with site.session() as session, session.lease(cores=2, library=held) as lease:
        assert bytes(lease.call("copy", b"x")) == b"x"
