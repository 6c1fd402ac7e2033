"""Machines where a part of a level cannot be had: who is told, and what is refused.

Each is made of this one, for an executor and all that it starts: without its control groups,
or with a kernel that answers as one without Landlock does.
"""

from __future__ import annotations

import os
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
    doctor: str  # how its line begins there


WITHOUT_CGROUPS = Machine(
    NO_CGROUPS,
    "cgroup",
    "no hierarchy of memory, pids, cpuset is mounted for writing",
    "delegate a group to the executor: Delegate=yes",
    ("process", "sandbox", "bubblewrap"),
    "hint      cgroups          none mounted; not writable",
)
WITHOUT_LANDLOCK = Machine(
    NO_LANDLOCK,
    "landlock",
    "the kernel has none, or it is switched off",
    "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock among its lsm=",
    ("sandbox",),
    "hint      landlock         the kernel has none: sandboxes are without",
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
        f"rfaas: this machine can hold neither a sandbox nor level process (cgroup: {machine.why})\n"
        f"hint: {machine.hint} in its systemd unit; "
        "or let sandbox.degrade name it, with sandbox.require = false\n"
    )
