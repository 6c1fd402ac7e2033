"""Leases over several nodes, and in the queue: real executors, a real manager, real calls."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rfaas.client import Lease, Session
from rfaas.errors import CapacityError, RfaasError, WorkerCrashedError
from tests.harness.processes import until
from tests.harness.site import Site


@pytest.fixture
def wide(site: Site) -> Site:
    """A manager and two executors with two cores each."""
    site.start("resource-manager")
    for name in ("a", "b"):
        site.start("executor", "--set", f"executor.name={name}")
    return site


def use_up(lease: Lease) -> None:
    """Call until the lease is over."""
    for _ in range(100_000):
        lease.call("echo", b"x")


def free(session: Session) -> list[int]:
    return [node.cores_free for node in session.nodes()]


def test_a_lease_spans_two_nodes(wide: Site, shipped: Path) -> None:
    with wide.session() as session:
        with session.lease(cores=3, library=shipped) as lease:
            assert sorted(lease.node.split(", ")) == ["a", "b"]
            assert len(lease._lanes) == len(lease.cpus) == 3
            inputs = [str(number).encode() for number in range(200)]
            assert list(lease.map("echo", inputs)) == inputs
            calls = [lease.submit("echo", data) for data in inputs[:20]]
            assert [bytes(call.result()) for call in calls] == inputs[:20]
            assert sorted(free(session)) == [0, 1]
            lease.renew()
            with pytest.raises(CapacityError, match="all nodes together have 1 core free"):
                session.lease(cores=2, library=shipped)
        assert free(session) == [2, 2]


def test_placement_is_the_callers_choice(wide: Site, shipped: Path) -> None:
    with wide.session() as session:
        with session.lease(cores=2, library=shipped, placement="spread") as lease:
            assert sorted(lease.node.split(", ")) == ["a", "b"]
        with session.lease(cores=2, library=shipped) as lease:
            assert lease.node in ("a", "b")
        with pytest.raises(CapacityError):
            session.lease(cores=3, library=shipped, placement="node")
        with session.lease(cores="all", library=shipped) as lease:
            assert len(lease.cpus) == 2
        assert free(session) == [2, 2]


def test_a_crash_costs_one_node_and_not_the_others(
    wide: Site, shipped: Path, hostile: Path
) -> None:
    with wide.session() as session, session.lease(cores=4, library=hostile) as lease:
        with pytest.raises(WorkerCrashedError):
            lease.call("crash_segv", b"")
        assert len(lease._lanes) == 4  # the part has another worker
        assert isinstance(lease, Lease)


def test_a_lost_node_ends_the_whole_lease(wide: Site, shipped: Path) -> None:
    with wide.session() as session, session.lease(cores=4, library=shipped) as lease:
        wide.kill(wide.children[-1])
        until(lambda: len(session.leases()) == 0, "the manager has ended both parts")
        with pytest.raises(RfaasError):
            use_up(lease)
        until(lambda: sum(free(session)) >= 2, "the other node is free")


def test_who_waits_gets_the_cores_that_become_free(wide: Site, shipped: Path) -> None:
    with wide.session() as holder, wide.session(client__name="b@b:1") as waiter:
        first = holder.lease(cores=4, library=shipped)
        found: list[Lease] = []

        def wait() -> None:
            found.append(waiter.lease(cores=2, library=shipped, wait_s=30))

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: holder.status().facts["requests waiting"] == 1, "it stands in the queue")
        first.close()
        thread.join()
        with found[0] as lease:
            assert bytes(lease.call("echo", b"mine")) == b"mine"
            lease.renew()


def test_who_waits_in_vain_is_told(wide: Site, shipped: Path) -> None:
    with (
        wide.session() as session,
        session.lease(cores=4, library=shipped),
        pytest.raises(CapacityError, match=r"after 0\.3 s of waiting"),
    ):
        session.lease(cores=1, library=shipped, wait_s=0.3)


def test_who_waits_and_dies_leaves_the_queue(wide: Site, shipped: Path) -> None:
    with wide.session() as session, session.lease(cores=4, library=shipped):
        child = wide.client(
            "with rfaas.connect() as session:\n    session.lease(1, sys.argv[1], wait_s=600)\n",
            shipped,
        )
        until(lambda: session.status().facts["requests waiting"] == 1, "it stands in the queue")
        wide.kill(child)
        until(lambda: session.status().facts["requests waiting"] == 0, "it is gone")


def test_an_executor_alone_has_a_queue_too(site: Site, shipped: Path) -> None:
    site.start("executor", "--resource-manager", "none")
    address = site.address("executor")
    with site.session(client__executor=address) as session:
        first = session.lease(cores=2, library=shipped)
        with pytest.raises(CapacityError, match=r"after 0\.3 s of waiting"):
            session.lease(cores=1, library=shipped, wait_s=0.3)
        timer = threading.Timer(0.1, first.close)
        timer.start()
        with session.lease(cores=2, library=shipped, wait_s=30) as lease:
            assert bytes(lease.call("echo", b"mine")) == b"mine"
        timer.join()
