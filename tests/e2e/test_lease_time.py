"""Leases and time: they expire when nobody renews them, and live on when somebody does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rfaas.client import Lease
from rfaas.errors import LeaseEndedError, UsageError, WorkerCrashedError
from tests.functions.build import build_library
from tests.harness.gate import Gate
from tests.harness.processes import until, wait_for_end, workers_of
from tests.harness.site import Site

DURATION_S = 0.6

# Leases a core and calls for each line of input; what an error says is a line, too.
CLIENT = """
session = rfaas.connect()
lease = session.lease(library=sys.argv[1])
say("leased", lease.id)
for line in sys.stdin:
    try:
        say(bytes(lease.call("copy", line.strip().encode())).decode())
    except rfaas.RfaasError as error:
        say(type(error).__name__, error)
"""


def pass_by(seconds: float) -> None:
    """Return when so much time is over: it is what these tests are about."""
    over_s = time.monotonic() + seconds
    until(lambda: time.monotonic() >= over_s, f"{seconds} s passing by")


def test_row_35_lease_of_a_stopped_client_expires(site: Site, held: Path) -> None:
    site.set(client__lease_duration_s=DURATION_S)
    node = site.start("all")
    client = site.client(CLIENT, held)
    client.lines.until("leased")
    workers = workers_of(node.pid)
    client.signal(signal.SIGSTOP)
    with site.session() as session:
        until(lambda: not session.leases(), "the end of the lease")
        (ended,) = session.leases(all=True)
        assert ended.state == "expired"
        wait_for_end(*workers)
        with session.lease(cores=2, library=held) as lease:
            assert bytes(lease.call("copy", b"x")) == b"x"
            client.signal(signal.SIGCONT)
            client.say("hello")
            line = client.lines.next() or ""
            assert line.startswith("LeaseEndedError"), line
            assert "is over: expired" in line
            client.say("hello")
            assert "is over: expired" in (client.lines.next() or "")
            assert bytes(lease.call("copy", b"y")) == b"y"


def test_row_38_lease_expires_in_mid_call(
    site: Site, held: Path, gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in mid-call: the call ends with the lease, and the next says why."""
    one = gate()
    with site.private_session(client__lease_duration_s=DURATION_S) as session:
        lease = session.lease(library=held)
        monkeypatch.setattr(lease, "renew", lambda: None, raising=False)
        future = lease.submit("hold", one.data)
        worker = one.begun()
        with pytest.raises(LeaseEndedError, match="is over: expired"):
            future.result()
        wait_for_end(worker)
        with pytest.raises(LeaseEndedError, match="is over: expired"):
            lease.call("copy", b"x")
        with session.lease(cores=2, library=held) as again:
            assert bytes(again.call("copy", b"x")) == b"x"


@pytest.mark.parametrize("served", [True, False])
def test_renewals_keep_a_lease_alive(
    site: Site, held: Path, gate: Callable[[], Gate], *, served: bool
) -> None:
    """Idle, and in a call that takes longer than the lease's duration."""
    site.set(client__lease_duration_s=DURATION_S)
    if served:
        site.start("all")
    one = gate()
    session = site.session() if served else site.private_session()
    with session, session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        one.begun()
        pass_by(2 * DURATION_S)
        one.release()
        assert bytes(future.result()) == one.data
        pass_by(1.5 * DURATION_S)
        assert bytes(lease.call("copy", b"x")) == b"x"
        if served:
            (report,) = session.leases()
            assert report.age_s > 3 * DURATION_S
            assert 0 < report.remaining_s <= DURATION_S


def build_slow(directory: Path, one: Gate) -> Path:
    """A library that is loaded when the gate is released."""
    return build_library(directory, "ctor_held", f'-DGATE="{one.path}"')


def test_library_that_loads_for_longer_than_its_lease_lasts(
    site: Site, held: Path, gate: Callable[[], Gate], tmp_path: Path
) -> None:
    """When the lease is opened, and when a call starts its next worker; its neighbour lives."""
    one = gate()
    slow = build_slow(tmp_path, one)
    with (
        site.private_session(client__lease_duration_s=DURATION_S) as session,
        session.lease(library=held) as neighbour,
        ThreadPoolExecutor(1) as pool,
    ):
        opening = pool.submit(session.lease, library=slow)
        worker = one.begun()
        pass_by(2 * DURATION_S)
        one.release()
        with opening.result() as lease:
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(WorkerCrashedError):
                lease.call("copy", b"x")
            calling = pool.submit(lease.call, "copy", b"x")
            assert one.begun() != worker
            pass_by(2 * DURATION_S)
            assert bytes(neighbour.call("copy", b"y")) == b"y"
            one.release()
            assert bytes(calling.result()) == b"x"


def test_lease_that_expires_while_its_library_loads(
    site: Site, gate: Callable[[], Gate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "renew", lambda _: None)
    slow = build_slow(tmp_path, gate())
    with (
        site.private_session(client__lease_duration_s=DURATION_S) as session,
        pytest.raises(LeaseEndedError, match=r"lease [0-9a-f]{8} is over: expired"),
    ):
        session.lease(library=slow)


# Pauses: the settings of a site allow for 10 s of silence, here it is short


def test_pause_of_the_manager_ends_no_lease(site: Site, held: Path) -> None:
    """It wakes to beats that wait in its sockets: it was not the node that was silent."""
    site.set(resource_manager__missed_beats_max=10)
    manager = site.start("resource-manager")
    site.start("executor")
    with site.session() as session, session.lease(library=held) as lease:
        manager.signal(signal.SIGSTOP)
        pass_by(2.0)
        assert bytes(lease.call("copy", b"x")) == b"x"
        manager.signal(signal.SIGCONT)
        assert [one.state for one in session.leases(all=True)] == ["live"]
        pass_by(0.5)
        assert [one.state for one in session.leases(all=True)] == ["live"]
        assert bytes(lease.call("copy", b"x")) == b"x"


def test_pause_of_a_node_ends_its_leases(site: Site, held: Path) -> None:
    """Also where one missed beat is too many, so that the manager must look often."""
    site.set(resource_manager__heartbeat_s=0.5, resource_manager__missed_beats_max=1)
    site.start("resource-manager")
    executor = site.start("executor")
    with site.session() as session:
        until(lambda: [one.state for one in session.nodes()] == ["up"], "a node")
        executor.signal(signal.SIGSTOP)
        pass_by(1.0)  # nobody asks the manager meanwhile, which would have it look
        until(lambda: [one.state for one in session.nodes()] == ["lost"], "a lost node")
        executor.signal(signal.SIGCONT)


def test_duration_past_the_manager_s_limit(site: Site, held: Path) -> None:
    site.set(resource_manager__lease_duration_max_s=5)
    site.start("all")
    with site.session(client__lease_duration_s=6) as session:
        with pytest.raises(UsageError) as refused:
            session.lease(library=held)
        assert refused.value.text.startswith("a lease cannot last 6 s, more than 0 and at most 5 s")
        assert refused.value.hint == "a lease can be renewed as often as you like"
    with (
        site.session(client__lease_duration_s=5) as session,
        session.lease(library=held) as lease,
    ):
        assert bytes(lease.call("copy", b"x")) == b"x"
    done = site.run("call", "--set", "client.lease_duration_s=0", held, "copy")
    assert done.returncode == 78
    assert b"client.lease_duration_s: value is too small (0.0), at least 0.1" in done.stderr
