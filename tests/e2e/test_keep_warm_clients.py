"""Kept workers: whose they are, and what of a lease they take along, which is nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rfaas.client import Session
from rfaas.client.library import Library
from rfaas.errors import LeaseEndedError
from rfaas.proto.messages import (
    Done,
    LeaseGranted,
    LeaseOpened,
    OpenLease,
    ReleaseLease,
    RequestLease,
    StartWorker,
    WorkerStarted,
)
from rfaas.proto.proof import prove
from tests.e2e.test_hostile import answers
from tests.e2e.test_lacks import NO_CGROUPS
from tests.functions.build import build_library
from tests.harness.hostile import over
from tests.harness.processes import endpoints_of, until, workers_of
from tests.harness.rdma import End
from tests.harness.site import Site

TWICE = """
session = rfaas.connect()
for _ in range(2):
    with session.lease(library=sys.argv[1], isolation=sys.argv[2]) as lease:
        text = f"{lease.was_kept} {int.from_bytes(lease.call('count', b''), 'little')}"
    say(text)
    if not lease.was_kept:
        sys.stdin.readline()
session.close()
"""

AS_ANOTHER_USER = """
import os
os.chdir(sys.argv[1])
library = open(sys.argv[2], "rb").read()
address = "unix:/proc/self/cwd/" + sys.argv[3]
def lease(session, **options):
    with session.lease(library=library, **options) as lease:
        return f"{lease.was_kept} {int.from_bytes(lease.call('count', b''), 'little')}"
session = rfaas.connect(overrides={"client.executor": address, "client.name": "ada@here:1"})
say(lease(session))
os.seteuid(65534)
with rfaas.connect(overrides={"client.executor": address, "client.name": "ada@here:1"}) as other:
    say(lease(other))
    with other.lease(library=library) as its_own:
        say(its_own.was_kept)
        other.former = {node: [(one, b"?" * 32) for one, _ in had]
                        for node, had in session.former.items()}
        with other.lease(library=library) as new:
            say(new.was_kept)
            other.former = {node: list(had) for node, had in session.former.items()}
            say(lease(other))
    os.seteuid(0)
    with session.lease(library=library) as again:
        say(again.was_kept)
    os.seteuid(65534)
    while session.status().facts["workers kept"] > 3:
        pass
    say("three are kept")
    with other.lease(cores=3, library=library, keep_warm=False) as all_of_it:
        say(all_of_it.was_kept)
        while other.status().facts["workers kept"]:
            pass
        say("none is kept")
session.close()
"""

over_shm = pytest.mark.skipif(
    os.environ.get("RFAAS_LANE_TRANSPORT") == "verbs",
    reason="over RDMA, only a worker behind an endpoint is kept",
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be two users")


def start(site: Site, **settings: object) -> None:
    """An executor that keeps workers."""
    site.set(executor__keep_warm_s=600.0, client__executor=site.address("executor"), **settings)
    site.start("executor", "--resource-manager", "none")


def kept_by(session: Session) -> object:
    return session.status().facts["workers kept"]


@as_root
@over_shm
def test_a_client_is_who_it_proves_to_be(site: Site, counter: Path) -> None:
    """Not who it calls itself: another user has it only with the secret of the lease."""
    start(site, executor__cores=3, lease__isolation="sandbox")
    site.runtime.chmod(0o711)
    site.socket("executor").chmod(0o666)
    client = site.client(AS_ANOTHER_USER, site.runtime, counter, site.socket("executor").name)

    def says(line: str) -> None:
        assert client.lines.next() == line, client.stderr

    says("False 1")
    says("False 1")  # same name, same library, another user
    says("True")  # his own of before
    says("False")  # proofs that prove nothing
    says("True 2")  # the first one's, by its secret
    says("False")  # which is his from now on, and not the first one's
    says("three are kept")
    says("False")
    says("none is kept")  # all three were in his way, and are gone
    assert client.wait() == 0, client.stderr


@over_shm
def test_tokens_and_memory_of_one_lease_are_not_anothers(site: Site, counter: Path) -> None:
    start(site)
    with site.session() as session:
        with session.lease(library=counter):  # brings the library
            pass
        seen: list[tuple[LeaseGranted, OpenLease, os.stat_result, bytes]] = []
        for _ in range(2):
            link = session.link_to(session.where)
            granted = link.ask(
                RequestLease(
                    client="ada",
                    cores=1,
                    memory_bytes=1 << 26,
                    duration_s=60.0,
                    isolation="process",
                ),
                LeaseGranted,
            )
            shown = OpenLease(
                token=granted.token, proof=prove(granted.secret, link.nonce, granted.lease)
            )
            link.ask(shown, LeaseOpened)
            begin = StartWorker(
                lease=granted.lease,
                sha256=Library.read(counter).sha256,
                slots=2,
                slot_bytes=4096,
                hot_timeout_ms=0,
            )
            started = link.ask(begin, WorkerStarted)
            assert started.kept == bool(seen)
            (rings,) = link.take_fds()
            os.pwrite(rings, b"mine", 4096 + 64)  # what the next lease must not see
            body = os.pread(rings, 1 << 16, 4096 + 128)
            assert body == bytes(len(body))
            seen.append((granted, shown, os.fstat(rings), body))
            os.close(rings)
            link.ask(ReleaseLease(lease=granted.lease), Done)
            for again in (shown, begin):
                with pytest.raises(LeaseEndedError):
                    link.ask(again, LeaseOpened)
            link.close()
        assert seen[0][2].st_ino != seen[1][2].st_ino
        assert seen[0][0].secret != seen[1][0].secret


@over_shm
def test_each_lease_has_a_bill_of_its_own(site: Site, counter: Path) -> None:
    site.set(executor__keep_warm_s=600.0)
    site.start("all")
    calls = []
    with site.session() as session:
        for number in (5, 7):
            with session.lease(library=counter) as lease:
                for _ in range(number):
                    lease.call("count", b"")
                calls.append((lease.id, number))
        until(lambda: kept_by_node(site) == 1, "the worker is kept")
        before = {one.lease: one.usage for one in session.leases(all=True)}
        assert [(lease, before[lease].calls) for lease, _ in calls] == calls
        after = {one.lease: one.usage for one in session.leases(all=True)}
        assert before == after  # nobody is billed for what is kept


@over_shm
@pytest.mark.parametrize("grouped", [True, False], ids=["cgroup", "no-cgroup"])
@pytest.mark.parametrize("what", ["zero", "ones"])
def test_a_worker_that_forges_its_counts_lowers_no_later_bill(
    site: Site, libraries: Path, what: str, grouped: bool
) -> None:
    """Its thread outlives the lease with it, and writes over the next one's counts as well."""
    if not grouped and os.geteuid() != 0:
        pytest.skip("root unmounts control groups")
    attacks = build_library(libraries, "attacks")
    site.set(executor__keep_warm_s=600.0, client__executor=site.address("executor"))
    site.set(executor__keep_warm_s=600.0, lease__isolation="sandbox")
    prefix = () if grouped else NO_CGROUPS
    executor = site.start_unready("executor", "--resource-manager", "none", prefix=prefix)
    assert "ready" in str(executor.lines.next())
    with site.session(client__executor=site.address("executor")) as session:
        with session.lease(library=attacks) as lease:
            assert answers(lease, "forge_always", what) == {"page": "done", "thread": "done"}
        for _ in range(2):
            assert kept_by(session) == 1
            begun_s = time.monotonic()
            with session.lease(library=attacks) as lease:
                assert lease.was_kept
                for _ in range(20):
                    answers(lease, "be_honest")
                assert answers(lease, "forge_always", what)["page"] == "done"
                for _ in range(20):
                    answers(lease, "be_honest")
            lasted_s = time.monotonic() - begun_s
            found = until(lambda: over(executor.stderr, lease.id), "its bill in the log")
            assert found["calls"] == 41
            assert 0.27 <= found["executing_s"] + found["polling_s"] <= lasted_s + 0.05


def kept_by_node(site: Site) -> object:
    with site.session(client__executor=site.address("executor")) as session:
        return kept_by(session)


@pytest.mark.rdma
@pytest.mark.parametrize("isolation", ["process", "sandbox"])
def test_over_rdma_the_endpoint_is_the_leases_and_the_worker_kept(
    site: Site, counter: Path, rdma_ends: tuple[End, End], isolation: str
) -> None:
    site.set(executor__endpoint="always", executor__keep_warm_s=600.0)
    executor = site.start("all", "--device", rdma_ends[1].device).pid
    site.set(lane__transport="verbs", rdma__device=rdma_ends[0].device)
    client = site.client(TWICE, counter, isolation)
    assert client.lines.next() == "False 1", client.stderr
    assert endpoints_of(executor) == []
    before = workers_of(executor)
    assert before
    client.say("go on")
    assert client.lines.next() == "True 2", client.stderr
    assert client.wait() == 0, client.stderr
    assert workers_of(executor) == before
    assert endpoints_of(executor) == []
    with site.session() as session:
        assert [one.usage.calls for one in session.leases(all=True)] == [1, 1]
