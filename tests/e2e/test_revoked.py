"""Leases that somebody else ends: with notice, in mid-call; and nodes that are drained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas.errors import CapacityError, LeaseEndedError
from tests.harness.gate import Gate
from tests.harness.manager import operated
from tests.harness.processes import until, workers_of
from tests.harness.site import Site


def test_revoked_in_mid_call(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    """The client has notice; at its end the call fails, its worker is gone, its cores are free."""
    with operated(site) as operator:
        node = site.start("executor")
        with site.session() as session, session.lease(cores=1, library=held) as lease:
            running = gate()
            call = lease.submit("hold", running.data)
            running.begun()
            assert lease.ends_in_s is None
            operator.do(lambda manager: manager.leases.revoke(lease.id, 0.5))
            left_s = until(lambda: lease.ends_in_s, "the client has notice")
            assert left_s is not None
            assert 0 < left_s <= 0.5
            assert not call.done()  # what runs may finish until then
            with pytest.raises(LeaseEndedError, match="is over: revoked"):
                call.result()
            running.ended()
            assert workers_of(node.pid) == []
            until(lambda: [one.cores_free for one in session.nodes()] == [2], "its core is free")
            with pytest.raises(LeaseEndedError):
                lease.call("copy", b"x")


def test_work_that_ends_in_time_is_not_lost(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    with operated(site) as operator:
        site.start("executor")
        with site.session() as session, session.lease(cores=1, library=held) as lease:
            running = gate()
            call = lease.submit("hold", running.data)
            running.begun()
            operator.do(lambda manager: manager.leases.revoke(lease.id, 60.0))
            until(lambda: lease.ends_in_s, "the client has notice")
            running.release()
            call.result()


def test_a_drained_node_serves_on_and_takes_nothing_new(site: Site, held: Path) -> None:
    with operated(site) as operator:
        site.start("executor")
        (name,) = operator.manager.state.ledger.names
        with site.session() as session, session.lease(cores=1, library=held) as lease:
            operator.do(lambda manager: manager.nodes.drain(name))
            assert bytes(lease.call("copy", b"on")) == b"on"
            lease.renew()
            with pytest.raises(CapacityError):
                session.lease(cores=1, library=held)
            operator.do(lambda manager: manager.nodes.drain(name, draining=False))
            with session.lease(cores=1, library=held) as other:
                assert bytes(other.call("copy", b"too")) == b"too"
