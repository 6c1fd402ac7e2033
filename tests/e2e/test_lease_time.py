"""Leases and time: they expire when nobody renews them, and live on when somebody does."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas.errors import LeaseEndedError, UsageError
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


def test_lease_of_a_stopped_client_expires(site: Site, held: Path) -> None:
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


def test_lease_expires_at_a_private_executor(
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
