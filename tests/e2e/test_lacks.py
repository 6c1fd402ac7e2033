"""Machines where a part of a level cannot be had: who is told, and what is refused.

Each is made of this one, for an executor and all that it starts: without its control groups,
or with a kernel that answers as one without Landlock does.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from rfaas.errors import CapacityError
from tests.harness import no_landlock
from tests.harness.processes import Child, until
from tests.harness.site import Site

NO_CGROUPS = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    'umount -R /sys/fs/cgroup && exec "$0" "$@"',
)
NO_LANDLOCK = (sys.executable, "-I", str(no_landlock.__file__))


class Machine(NamedTuple):
    """One without a part: what makes it of this one, and what is said of it."""

    prefix: tuple[str, ...]
    part: str
    why: str
    hint: str
    levels: tuple[str, ...]  # that have the part elsewhere
    finding: str  # the doctor's

    @property
    def warning(self) -> str:
        """What follows a level's name in the log."""
        return f"is granted in part: it lacks {self.part}: {self.why}; hint: {self.hint}"


WITHOUT_CGROUPS = Machine(
    NO_CGROUPS,
    "cgroup",
    "no hierarchy of memory, pids, cpuset is mounted for writing",
    "delegate a group to the executor: Delegate=yes",
    ("process", "sandbox", "bubblewrap"),
    "cgroups +none mounted; not writable",
)
WITHOUT_LANDLOCK = Machine(
    NO_LANDLOCK,
    "landlock",
    "the kernel has none, or it is switched off",
    "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock among its lsm=",
    ("sandbox",),
    "landlock +the kernel has none",
)
MACHINES = {
    "cgroup": pytest.param(
        WITHOUT_CGROUPS,
        id="cgroup",
        marks=pytest.mark.skipif(
            shutil.which("unshare") is None or os.geteuid() != 0,
            reason="root unmounts control groups, in a namespace by unshare of util-linux",
        ),
    ),
    "landlock": pytest.param(WITHOUT_LANDLOCK, id="landlock"),
}
machines = pytest.mark.parametrize("machine", MACHINES.values())
without_cgroups = pytest.mark.parametrize("machine", [MACHINES["cgroup"]])


@without_cgroups
def test_a_private_executor_that_can_hold_neither_says_so_once(
    site: Site, shipped: Path, machine: Machine
) -> None:
    """Where all is required, `process` cannot stand in: it lacks control groups as well."""
    site.set(lease__isolation="default", sandbox__require="true")
    done = site.run_under(machine.prefix, "call", shipped, "echo", __file__)
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr.decode() == (
        "rfaas: this machine can hold neither a sandbox nor level process "
        f"({machine.part}: {machine.why})\n"
        f"hint: {machine.hint} in its systemd unit; "
        "or let sandbox.degrade name it, with sandbox.require = false\n"
    )


LEVELS = ("none", "process", "sandbox", "bubblewrap")


def start(site: Site, machine: Machine) -> Child:
    """An executor on such a machine, ready."""
    child = site.start_unready("executor", "--resource-manager", "none", prefix=machine.prefix)
    line = child.lines.next()
    assert line is not None, child.stderr
    assert "ready" in line
    return child


@machines
def test_what_is_missing_is_told(site: Site, shipped: Path, machine: Machine) -> None:
    """In the lease, in the node's status, and in its log, as it starts and for each worker."""
    executor = start(site, machine)
    told = {f"{level} (without {machine.part})" for level in machine.levels}
    with site.session(client__executor=site.address("executor")) as session:
        offered = str(session.status().facts["isolation"]).split(", ")
        assert told <= set(offered)
        for level in LEVELS:
            if level == "bubblewrap" and shutil.which("bwrap") is None:
                continue
            lacks = (machine.part,) if level in machine.levels else ()
            with session.lease(library=shipped, isolation=level) as lease:
                assert (lease.isolation, lease.lacks) == (level, lacks)
                assert lease.call("echo", b"x") == b"x"
                words = f"lease {lease.id[:8]}: worker "
                said = f", isolation {level}{f' (without {machine.part})' if lacks else ''}, serves"
                until(
                    lambda words=words, said=said: any(  # type: ignore[misc]
                        words in line and said in line for line in executor.stderr.splitlines()
                    ),
                    "the worker's line in the log",
                )
    done = site.run("status", "--executor", site.address("executor"))
    (line,) = [line for line in done.stdout.decode().splitlines() if line.startswith("isolation: ")]
    assert f"sandbox (without {machine.part})" in line
    warnings = [line for line in executor.stderr.splitlines() if " WARNING " in line]
    for level in machine.levels:
        if level != "bubblewrap" or shutil.which("bwrap") is not None:
            assert [f"isolation {level} {machine.warning}" in line for line in warnings].count(True)
    assert not any(" none is granted in part" in line for line in warnings)


@machines
def test_a_resource_manager_tells_it(site: Site, shipped: Path, machine: Machine) -> None:
    """`rfaas leases`, for people and as JSON."""
    site.start("resource-manager")
    child = site.start_unready("executor", prefix=machine.prefix)
    assert "ready" in str(child.lines.next())
    with site.session() as session:
        for level, lacks in (("sandbox", (machine.part,)), ("none", ())):
            with session.lease(library=shipped, isolation=level) as lease:
                (found,) = session.leases()
                assert (found.isolation, found.lacks) == (level, lacks)
                row = site.run("leases").stdout.decode().splitlines()[1]
                assert row.startswith(lease.id[:8])
                assert (f" sandbox (without {machine.part}) " in row) == bool(lacks)
        (web,) = [one for one in session.leases(all=True) if one.isolation == "sandbox"]
        assert web.lacks == (machine.part,)


@machines
def test_a_lease_over_several_nodes_lacks_it(site: Site, shipped: Path, machine: Machine) -> None:
    """As soon as one of them does."""
    site.start("resource-manager")
    site.start("executor", "--name", "alpha", "--node-cores", "1")
    child = site.start_unready(
        "executor", "--name", "beta", "--node-cores", "1", prefix=machine.prefix
    )
    assert "ready" in str(child.lines.next())
    with site.session() as session, session.lease(2, shipped, isolation="sandbox") as lease:
        assert lease.lacks == (machine.part,)
        found = {one.node: one.lacks for one in session.leases()}
        assert found["beta"] == (machine.part,)


REFUSING = [
    pytest.param({"sandbox__require": "true"}, id="all-required"),
    pytest.param({"sandbox__degrade": "time"}, id="not-in-degrade"),
]


@machines
@pytest.mark.parametrize("settings", REFUSING)
def test_a_level_that_must_not_lack_it_is_refused(
    site: Site, shipped: Path, machine: Machine, settings: dict[str, str]
) -> None:
    """Unless it is asked for, the node does without the level, and says so."""
    site.set(**settings)
    executor = start(site, machine)
    with site.session(client__executor=site.address("executor")) as session:
        with pytest.raises(CapacityError, match="no node offers isolation 'sandbox', offered: "):
            session.lease(library=shipped, isolation="sandbox")
        offered = str(session.status().facts["isolation"]).split(", ")
        assert not set(machine.levels) & set(offered)
        with session.lease(library=shipped, isolation="none") as lease:
            assert lease.lacks == ()
    words = f"isolation sandbox is not granted: it lacks {machine.part}: {machine.why}; hint: "
    assert words + machine.hint in executor.stderr


@machines
@pytest.mark.parametrize("settings", REFUSING)
def test_an_executor_that_names_such_a_level_does_not_start(
    site: Site, machine: Machine, settings: dict[str, str]
) -> None:
    for level in machine.levels:
        if level == "bubblewrap" and shutil.which("bwrap") is None:
            continue
        site.set(sandbox__levels=f"none {level}", **settings)
        child = site.start_unready("executor", "--resource-manager", "none", prefix=machine.prefix)
        assert child.wait() == 78
        words = f"isolation {level} cannot be had on this node: {machine.part}: {machine.why}"
        assert f"rfaas: {words}\nhint: {machine.hint}" in child.stderr
        assert child.rest() == ""


@machines
def test_the_doctor_names_it(site: Site, machine: Machine) -> None:
    text = site.run_under(machine.prefix, "doctor").stdout.decode()
    assert re.search(rf"^hint +{machine.finding}.*sandboxes are without$", text, re.MULTILINE)
    assert "sandbox can work" in text


@machines
@pytest.mark.parametrize("settings", REFUSING)
def test_the_doctor_says_what_it_blocks(
    site: Site, machine: Machine, settings: dict[str, str]
) -> None:
    site.set(**settings)
    text = site.run_under(machine.prefix, "doctor").stdout.decode()
    assert re.search(rf"^no sandbox +{machine.finding}", text, re.MULTILINE)
    assert "sandbox cannot work" in text
