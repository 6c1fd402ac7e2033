"""GPUs, by devices that stand in for them: counted, leased, given to one worker alone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.client import Session, reports
from rfaas.errors import CapacityError, WorkerCrashedError
from tests.functions.build import build_library
from tests.harness import gpus
from tests.harness.gpus import use, variable
from tests.harness.processes import until
from tests.harness.site import Site

VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "RFAAS_GPUS")


@pytest.fixture
def two() -> Iterator[list[str]]:
    yield from gpus.stand_ins(2)


@pytest.fixture
def probe(libraries: Path) -> Path:
    return build_library(libraries, "gpus")


def of_node(site: Site, **settings: object) -> Session:
    """A session with an executor that grants by itself."""
    return site.session(client__executor=site.address("executor"), **settings)


def test_they_are_counted_leased_and_free_again(site: Site, two: list[str], probe: Path) -> None:
    site.set(executor__gpus=" ".join(two))
    site.start("all")
    with site.session() as session:
        (node,) = session.nodes()
        assert (node.gpus, node.gpus_free) == (2, 2)
        with session.lease(library=probe, gpus=1) as first:
            with session.lease(library=probe, gpus=1) as second:
                assert {*first.gpus, *second.gpus} == set(two)
                assert variable(first, "RFAAS_GPUS") == first.gpus[0]
                assert variable(second, "RFAAS_GPUS") == second.gpus[0]
                (node,) = session.nodes()
                assert (node.gpus, node.gpus_free) == (2, 0)
                assert sorted(one.gpus for one in session.leases()) == [1, 1]
                with pytest.raises(CapacityError) as refused:
                    session.lease(library=probe, gpus=1)
                assert "cannot lease 1 core, 1 GPU and 64 MiB of memory" in refused.value.text
                assert "has 0 of 2 cores, 0 of 2 GPUs and" in refused.value.text
                given = second.gpus
            with session.lease(library=probe, gpus=1) as third:
                assert third.gpus == given
        with session.lease(2, library=probe, gpus=2) as both:
            assert sorted(both.gpus) == two
        with pytest.raises(CapacityError, match="no node is that large") as never:
            session.lease(library=probe, gpus=3)
        assert "ask for at most 2 cores, 2 GPUs and" in never.value.hint
        until(lambda: sum(bill.gpu_s for bill in reports.bills(session)) > 0, "a bill")


@pytest.mark.parametrize("level", ["none", "process", "sandbox"])
def test_a_worker_has_its_own(site: Site, two: list[str], probe: Path, level: str) -> None:
    site.set(executor__gpus=" ".join(two), executor__cores=3, lease__isolation=level)
    site.start("executor", "--resource-manager", "none")
    with (
        of_node(site) as session,
        session.lease(library=probe, gpus=1) as first,
        session.lease(library=probe, gpus=1) as second,
        session.lease(library=probe) as without,
    ):
        for lease, other in ((first, second), (second, first)):
            assert use(lease, lease.gpus[0]) == "works"
            if level == "sandbox":
                assert use(lease, other.gpus[0]) == "open: ENOENT"
        assert without.gpus == ()
        if level == "sandbox":
            assert [use(without, path) for path in two] == ["open: ENOENT"] * 2
            # Only what was given; and nothing can be made.
            assert use(first, "/dev/null") == "open: ENOENT"
        else:
            assert [variable(without, name) for name in VARIABLES] == ["", "-1", "-1", ""]


def test_a_worker_that_waits_is_for_leases_without(site: Site, two: list[str], probe: Path) -> None:
    site.set(executor__gpus=" ".join(two), sandbox__pool=2, lease__isolation="sandbox")
    site.start("executor", "--resource-manager", "none")
    with of_node(site) as session:
        for _ in range(2):
            with session.lease(library=probe, gpus=1) as lease:
                assert use(lease, lease.gpus[0]) == "works"
            with session.lease(library=probe) as lease:
                assert use(lease, two[0]) == "open: ENOENT"


def test_no_worker_keeps_one(site: Site, two: list[str], probe: Path) -> None:
    """Kept for its client, it would hold a device that is leased to somebody else."""
    site.set(executor__gpus=two[0], executor__keep_warm_s=60, lease__isolation="sandbox")
    site.start("executor", "--resource-manager", "none")
    with of_node(site) as session:
        for count, kept in ((0, False), (1, False), (1, False), (0, True)):
            with session.lease(library=probe, gpus=count) as lease:
                assert lease.was_kept == kept
                assert use(lease, two[0]) == ("works" if count else "open: ENOENT")


def test_the_next_worker_of_a_lease_has_the_same(site: Site, two: list[str], probe: Path) -> None:
    site.set(executor__gpus=" ".join(two), lease__isolation="sandbox")
    with site.private_session() as session, session.lease(library=probe, gpus=1) as lease:
        given = lease.gpus
        with pytest.raises(WorkerCrashedError, match="SIGABRT"):
            lease.call("die")
        assert use(lease, given[0]) == "works"
        assert lease.gpus == given


def test_a_killed_executor_holds_none(site: Site, two: list[str], probe: Path) -> None:
    site.set(executor__gpus=" ".join(two))
    site.start("resource-manager")
    executor = site.start("executor")
    with site.session() as session:
        lease = session.lease(2, library=probe, gpus=2)
        site.kill(executor)
        until(lambda: [one.state for one in session.nodes()] == ["lost"], "the node's loss")
        site.start("executor")
        with session.lease(library=probe, gpus=2) as again:
            assert sorted(again.gpus) == two
        lease.close()


def test_a_restarted_manager_knows_who_has_them(site: Site, two: list[str], probe: Path) -> None:
    site.set(executor__gpus=" ".join(two), client__lease_duration_s=30)
    manager = site.start("resource-manager")
    site.start("executor")
    with site.session() as session, session.lease(library=probe, gpus=1) as lease:
        site.kill(manager)
        site.start("resource-manager")
        with site.session() as other:

            def free() -> list[int]:
                return [one.gpus_free for one in other.nodes() if one.state == "up"]

            until(lambda: free() == [1], "the node's return")
            with other.lease(library=probe, gpus=1) as rest:
                assert rest.gpus != lease.gpus


def test_commands(site: Site, two: list[str], probe: Path) -> None:
    site.set(executor__gpus=" ".join(two))
    site.start("all")
    table = site.run("nodes").stdout.decode()
    assert "GPUS FREE" in table
    assert re.search(r"up +2 of 2 +2 of 2 ", table)
    assert json.loads(site.run("nodes", "--json").stdout)["gpus"] == 2
    name = site.path / "name"
    name.write_bytes(b"RFAAS_GPUS")
    done = site.run("call", "--gpus", "2", probe, "variable", name)
    assert sorted(done.stdout.decode().split(",")) == two, done.stderr
    assert b"GPUs free: 2" in site.run("status").stdout


def test_one_that_is_not_there(site: Site, two: list[str]) -> None:
    site.set(executor__gpus=f"{two[0]} {two[0]}x")
    child = site.start_unready("executor", "--resource-manager", "none")
    assert child.wait() == 78
    assert f"executor.gpus: {two[0]}x: No such file or directory" in child.stderr


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0,
    reason="the test makes a /dev of its own as root, by unshare of util-linux",
)
@pytest.mark.parametrize("level", ["process", "sandbox"])
def test_nvidia_devices_are_found(site: Site, probe: Path, level: str) -> None:
    """As the driver names them, in a /dev of the executor's own."""
    names = "nvidia0 nvidia1 nvidiactl nvidia-uvm"
    site.set(executor__cores=3, lease__isolation=level)
    executor = site.start_unready(
        "executor", "--resource-manager", "none", prefix=(*gpus.OWN_DEV, names)
    )
    line = executor.lines.next()
    assert line is not None, executor.stderr
    assert "ready" in line
    with (
        of_node(site) as session,
        session.lease(library=probe, gpus=1) as first,
        session.lease(library=probe, gpus=1) as second,
        session.lease(library=probe) as without,
    ):
        assert (first.gpus, second.gpus) == (("nvidia0",), ("nvidia1",))
        for lease, index in ((first, "0"), (second, "1")):
            assert variable(lease, "RFAAS_GPUS") == f"/dev/nvidia{index}"
            # A worker that sees no other one counts from 0.
            seen = "0" if level == "sandbox" else index
            assert variable(lease, "CUDA_VISIBLE_DEVICES") == seen
            assert variable(lease, "ROCR_VISIBLE_DEVICES") == "-1"
            for node in (f"nvidia{index}", "nvidiactl", "nvidia-uvm"):
                assert use(lease, f"/dev/{node}") == "works"
        if level == "sandbox":
            assert use(first, "/dev/nvidia1") == "open: ENOENT"
            assert use(without, "/dev/nvidiactl") == "open: ENOENT"
        else:
            assert variable(without, "CUDA_VISIBLE_DEVICES") == ""
    assert "lends GPU nvidia0 (0)" in executor.stderr
